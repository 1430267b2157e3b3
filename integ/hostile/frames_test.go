package hostile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"berth.dev/berth/wire/acs"
)

// Names that the frames of these tests use.
const (
	clusterARN  = "arn:aws:ecs:us-east-1:123456789012:cluster/default"
	instanceARN = "arn:aws:ecs:us-east-1:123456789012:container-instance/default/11111111111111111111111111111111"
)

func taskARN(n int) string {
	return fmt.Sprintf("arn:aws:ecs:us-east-1:123456789012:task/default/%032x", n)
}

// honest is a task that an agent takes.
func honest(n int) acs.Task {
	return acs.Task{
		ARN: taskARN(n), TaskClusterARN: clusterARN, Family: "f", Version: "1", DesiredStatus: "RUNNING", NetworkMode: "none",
		Containers: []acs.Container{{
			Name: "c", Image: "i", CPU: 10, Memory: 64, Essential: true, ContainerARN: "arn:aws:ecs:us-east-1:123456789012:container/default/x/y",
			Environment: map[string]string{"A": "B"}, DockerConfig: &acs.DockerConfig{Version: "1.17", Config: "{}", HostConfig: `{"NetworkMode":"none"}`},
		}},
	}
}

func payload(id string, seq int64, tasks ...acs.Task) *acs.PayloadMessage {
	return &acs.PayloadMessage{MessageID: id, ClusterARN: clusterARN, ContainerInstanceARN: instanceARN, SeqNum: seq, GeneratedAt: 1, Tasks: tasks}
}

func encode(t testing.TB, m acs.Message) []byte {
	t.Helper()
	b, err := acs.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// malformed makes frames that break the syntax, the types or the limits, each of them
// small enough for a session to survive it.
func malformed(t testing.TB, count int) [][]byte {
	rng := rand.New(rand.NewPCG(1, 1))
	seeds := [][]byte{
		encode(t, payload("m", 1, honest(1), honest(2))),
		encode(t, &acs.HeartbeatMessage{Healthy: true, MessageID: "h"}),
		encode(t, &acs.TaskManifestMessage{MessageID: "t", ClusterARN: clusterARN, ContainerInstanceARN: instanceARN, Timeline: 1, Tasks: []acs.TaskIdentifier{{TaskARN: taskARN(1)}}}),
		encode(t, &acs.IAMRoleCredentialsMessage{MessageID: "c", TaskARN: taskARN(1), RoleType: "TaskApplication", RoleCredentials: &acs.IAMRoleCredentials{CredentialsID: "x"}}),
		encode(t, &acs.TaskStopVerificationAck{MessageID: "s", StopTasks: []acs.TaskIdentifier{{TaskARN: taskARN(1)}}}),
	}
	frames := [][]byte{
		nil, {}, []byte(" "), []byte("null"), []byte("[]"), []byte("0"), []byte(`""`), []byte("{}"), {0}, {0xff, 0xfe}, []byte("\xef\xbb\xbf{}"),
		[]byte(`{"type":1,"message":{}}`), []byte(`{"type":"PayloadMessage"}`), []byte(`{"type":"PayloadMessage","message":null}`),
		[]byte(`{"type":"PayloadMessage","message":[]}`), []byte(`{"type":"PayloadMessage","message":{"tasks":{}}}`),
		[]byte(`{"type":"PayloadMessage","message":{"tasks":[null]}}`), []byte(`{"type":"PayloadMessage","message":{"seqNum":1e400}}`),
		[]byte(`{"type":"PayloadMessage","message":{"seqNum":"1"}}`), []byte(`{"type":"PayloadMessage","type":"HeartbeatMessage","message":{}}`),
		[]byte(`{"type":"` + strings.Repeat("A", 1<<20) + `","message":{}}`), []byte(`{"type":"../../etc/passwd","message":{}}`),
		[]byte(`{"type":"NoSuchMessage","message":{"a":[1,2,3]}}`), []byte(strings.Repeat("[", 100000)), []byte(strings.Repeat(`{"a":`, 50000)),
		[]byte(`{"type":"HeartbeatMessage","message":{` + strings.Repeat(`"k":1,`, 5000) + `"k":1}}`),
		[]byte(`{"type":"PayloadMessage","message":{"tasks":[` + strings.Repeat("{},", 30000) + `{}]}}`),
		[]byte(`{"type":"HeartbeatMessage","message":{"messageId":"\ud800"}}`), []byte("{\"type\":\"HeartbeatMessage\",\"message\":{\"messageId\":\"\xff\xff\"}}"),
	}
	for len(frames) < count {
		b := bytes.Clone(seeds[rng.IntN(len(seeds))])
		for range 1 + rng.IntN(4) {
			b = mutate(rng, b)
		}
		frames = append(frames, b)
	}
	return frames
}

// mutate damages text in one of many ways.
func mutate(rng *rand.Rand, b []byte) []byte {
	if len(b) == 0 {
		return []byte{byte(rng.IntN(256))}
	}
	i := rng.IntN(len(b))
	splice := func(at, until int, with string) []byte {
		return append(append(bytes.Clone(b[:at]), with...), b[until:]...)
	}
	values := []string{
		"null", "true", "-1", "1e999", "18446744073709551616", `"x"`, "[]", "{}", `[[[[[[]]]]]]`, `"` + strings.Repeat("y", 3000) + `"`,
		"\x00", "\x1b[31m", `"\u0000"`, ",", ":", `"`, "{", "}", "]", `\`, "é", "\xf0\x28\x8c\x28", "NaN", "/*", "'",
	}
	switch rng.IntN(6) {
	case 0: // cut off
		return b[:i]
	case 1: // one other byte
		b[i] = byte(rng.IntN(256))
		return b
	case 2: // something in between
		return splice(i, i, values[rng.IntN(len(values))])
	case 3: // a part twice
		j := min(len(b), i+1+rng.IntN(200))
		return splice(j, j, string(b[i:j]))
	case 4: // a part missing
		return splice(i, min(len(b), i+1+rng.IntN(40)), "")
	default: // another value for a member
		colon := bytes.IndexByte(b[i:], ':')
		if colon < 0 {
			return splice(i, i, "}")
		}
		at := i + colon + 1
		until := at
		for until < len(b) && b[until] != ',' && b[until] != '}' {
			until++
		}
		return splice(at, until, values[rng.IntN(len(values))])
	}
}

// deceitful makes frames that are well-formed and say what no cluster should.
func deceitful(t testing.TB, count int) [][]byte {
	rng := rand.New(rand.NewPCG(2, 2))
	evil := []string{
		"", ".", "..", "../../../etc/passwd", "/", "a/b", "-rf", "--privileged", "$(reboot)", "`id`", "a\nb", "a\x00b", "\u202e", strings.Repeat("n", 5000),
		"arn:aws:ecs:::task/", "💥", "%s%n%d", "CON", " ", "\t", `{"a":`, "[]", "null", "NetworkMode",
	}
	pick := func() string { return evil[rng.IntN(len(evil))] }
	numbers := []int64{-1, 0, 1, 65535, 65536, 1 << 31, 1 << 40, -1 << 63, 1<<63 - 1}
	number := func() int64 { return numbers[rng.IntN(len(numbers))] }
	edits := []func(*acs.PayloadMessage, *acs.Task, *acs.Container){
		func(_ *acs.PayloadMessage, k *acs.Task, _ *acs.Container) { k.ARN = pick() },
		func(_ *acs.PayloadMessage, k *acs.Task, _ *acs.Container) { k.DesiredStatus = pick() },
		func(_ *acs.PayloadMessage, k *acs.Task, _ *acs.Container) { k.NetworkMode = pick() },
		func(_ *acs.PayloadMessage, k *acs.Task, _ *acs.Container) { k.Overrides = pick() },
		func(_ *acs.PayloadMessage, k *acs.Task, _ *acs.Container) {
			k.CPU, k.Memory = float64(number()), number()
		},
		func(_ *acs.PayloadMessage, k *acs.Task, _ *acs.Container) { k.Containers = nil },
		func(_ *acs.PayloadMessage, k *acs.Task, c *acs.Container) {
			k.Containers = append(k.Containers, *c, *c)
		},
		func(_ *acs.PayloadMessage, k *acs.Task, _ *acs.Container) {
			k.RoleCredentials = &acs.IAMRoleCredentials{CredentialsID: pick(), Expiration: pick()}
		},
		func(_ *acs.PayloadMessage, k *acs.Task, _ *acs.Container) {
			k.Volumes = []acs.Volume{{Name: pick()}, {Name: pick()}}
		},
		func(_ *acs.PayloadMessage, _ *acs.Task, c *acs.Container) { c.Name = pick() },
		func(_ *acs.PayloadMessage, _ *acs.Task, c *acs.Container) { c.Image = pick() },
		func(_ *acs.PayloadMessage, _ *acs.Task, c *acs.Container) { c.CPU, c.Memory = number(), number() },
		func(_ *acs.PayloadMessage, _ *acs.Task, c *acs.Container) {
			c.StopTimeout, c.StartTimeout = number(), number()
		},
		func(_ *acs.PayloadMessage, _ *acs.Task, c *acs.Container) { c.DockerConfig.Config = pick() },
		func(_ *acs.PayloadMessage, _ *acs.Task, c *acs.Container) { c.DockerConfig.HostConfig = pick() },
		func(_ *acs.PayloadMessage, _ *acs.Task, c *acs.Container) {
			c.DockerConfig.HostConfig = strings.Repeat(`{"Binds":[`, 2000)
		},
		func(_ *acs.PayloadMessage, _ *acs.Task, c *acs.Container) {
			c.PortMappings = []acs.PortMapping{{ContainerPort: number(), HostPort: number(), Protocol: pick()}, {ContainerPortRange: pick()}}
		},
		func(_ *acs.PayloadMessage, _ *acs.Task, c *acs.Container) {
			c.MountPoints = []acs.MountPoint{{SourceVolume: pick(), ContainerPath: pick()}}
		},
		func(_ *acs.PayloadMessage, _ *acs.Task, c *acs.Container) {
			c.DependsOn = []acs.ContainerDependency{{ContainerName: "c", Condition: pick()}, {ContainerName: pick(), Condition: "START"}}
		},
		func(_ *acs.PayloadMessage, _ *acs.Task, c *acs.Container) {
			c.Environment = map[string]string{pick(): pick(), pick(): pick()}
		},
		func(_ *acs.PayloadMessage, _ *acs.Task, c *acs.Container) { c.Command = []string{pick(), pick()} },
		func(m *acs.PayloadMessage, _ *acs.Task, _ *acs.Container) { m.ClusterARN = "" },
		func(m *acs.PayloadMessage, _ *acs.Task, _ *acs.Container) { m.MessageID = pick() },
		func(m *acs.PayloadMessage, _ *acs.Task, _ *acs.Container) { m.SeqNum = -number() },
	}
	var frames [][]byte
	for n := range count {
		m := payload(fmt.Sprint("deceit-", n), 1, honest(1000+n))
		for range 1 + rng.IntN(3) {
			task := &m.Tasks[0]
			c := &acs.Container{}
			if len(task.Containers) > 0 {
				c = &task.Containers[0]
			}
			if c.DockerConfig == nil {
				c.DockerConfig = &acs.DockerConfig{}
			}
			edits[rng.IntN(len(edits))](m, task, c)
		}
		b, err := json.Marshal(map[string]any{"type": "PayloadMessage", "message": m})
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, b)
	}
	for _, m := range []acs.Message{
		&acs.TaskManifestMessage{}, &acs.TaskManifestMessage{MessageID: "x", Timeline: -5}, &acs.IAMRoleCredentialsMessage{}, &acs.HeartbeatMessage{},
		&acs.TaskStopVerificationAck{MessageID: "never asked", StopTasks: []acs.TaskIdentifier{{TaskARN: taskARN(1)}}}, &acs.ErrorMessage{Message: "x"},
		&acs.StageUpdateMessage{UpdateInfo: &acs.UpdateInfo{Location: "file:///etc/passwd"}}, &acs.PerformUpdateMessage{}, &acs.ConfirmAttachmentMessage{},
		&acs.AttachTaskNetworkInterfacesMessage{}, &acs.AttachInstanceNetworkInterfacesMessage{}, &acs.AckRequest{}, &acs.NackRequest{Reason: "x"}, &acs.HeartbeatAckRequest{},
	} {
		frames = append(frames, encode(t, m))
	}
	return frames
}

// Decode refuses or takes each frame without a panic, and an error never carries more
// than 32 bytes of it.
func TestDecode(t *testing.T) {
	before := measure(t)
	refused := 0
	for i, frame := range malformed(t, 5000) {
		_, err := acs.Decode(frame)
		if err == nil {
			continue
		}
		refused++
		text := err.Error()
		if len(text) > 300 {
			t.Errorf("frame %d: an error of %d bytes", i, len(text))
		}
		for at := 0; at+33 <= len(frame) && at < 5000; at++ {
			if strings.Contains(text, string(frame[at:at+33])) {
				t.Errorf("frame %d: the error repeats it: %s", i, text)
				break
			}
		}
	}
	if refused < 1000 {
		t.Errorf("only %d frames were refused", refused)
	}
	notGrown(t, before)
}
