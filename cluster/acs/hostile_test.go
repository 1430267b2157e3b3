package acs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crypto/sha256"
	"encoding/hex"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/ecs"

	cacs "berth.dev/berth/cluster/acs"
	"berth.dev/berth/cluster/acs/acstest"
	"berth.dev/berth/wire/acs"
)

// ask requests a session the way an agent does, without opening it.
func ask(t *testing.T, l *acstest.Lab, creds aws.CredentialsProvider, cluster, arn string) (int, map[string]string) {
	t.Helper()
	ctx := context.Background()
	q := url.Values{"clusterArn": {cluster}, "containerInstanceArn": {arn}, "sendCredentials": {"true"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.URL+"/ws?"+q.Encode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if creds != nil {
		c, err := creds.Retrieve(ctx)
		if err != nil {
			t.Fatal(err)
		}
		empty := sha256.Sum256(nil)
		if err := v4.NewSigner().SignHTTP(ctx, c, req, hex.EncodeToString(empty[:]), "ecs", acstest.LabRegion, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]string
	if err := json.Unmarshal(body, &out); err != nil {
		t.Fatalf("refusal %q is no JSON object: %v", body, err)
	}
	return resp.StatusCode, out
}

func TestRefusals(t *testing.T) {
	l := acstest.NewLab(t, nil, nil)
	prepare(t, l)
	key, other := l.InstanceKey("AKIAONE"), l.InstanceKey("AKIAOTHER")
	a := agent(t, l, acstest.Config{Credentials: key})
	agent(t, l, acstest.Config{Credentials: other})
	gone := agent(t, l, acstest.Config{Credentials: l.InstanceKey("AKIAGONE")})
	if _, err := l.Operator.DeregisterContainerInstance(context.Background(), &ecs.DeregisterContainerInstanceInput{ContainerInstance: aws.String(gone.ARN())}); err != nil {
		t.Fatal(err)
	}
	sessions := a.Sessions()
	cases := map[string]struct {
		creds        aws.CredentialsProvider
		cluster, arn string
		want         string
	}{
		"no signature":           {nil, "default", a.ARN(), "AccessDeniedException"},
		"another instance's key": {other, "default", a.ARN(), "AccessDeniedException"},
		"the operator's key":     {l.Credentials(), "default", a.ARN(), "AccessDeniedException"},
		"unknown instance":       {key, "default", strings.Replace(a.ARN(), "container-instance/default/", "container-instance/default/f", 1), "InvalidInstanceException"},
		"no instance":            {key, "default", "", "InvalidInstanceException"},
		"another cluster":        {key, "other", a.ARN(), "InvalidClusterException"},
		"deregistered":           {l.InstanceKey("AKIAGONE"), "default", gone.ARN(), "InactiveInstanceException"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			status, body := ask(t, l, c.creds, c.cluster, c.arn)
			if _, ok := body[c.want]; !ok || len(body) != 1 || status != http.StatusBadRequest {
				t.Errorf("status %d, body %v, want 400 and %s", status, body, c.want)
			}
		})
	}
	if got := a.Sessions(); got != sessions {
		t.Errorf("the refused requests disturbed the session: %d sessions, before %d", got, sessions)
	}
}

// TestNewerSessionReplacesOlder with the same key.
func TestNewerSessionReplacesOlder(t *testing.T) {
	l := acstest.NewLab(t, nil, nil)
	prepare(t, l)
	key := l.InstanceKey("AKIATWICE")
	first := agent(t, l, acstest.Config{Credentials: key})
	second := agent(t, l, acstest.Config{Credentials: key})
	if first.ARN() != second.ARN() {
		t.Fatalf("one key, two instances: %s and %s", first.ARN(), second.ARN())
	}
	first.Close()
	reach(t, l, "RUNNING", runTasks(t, l, 1)...)
	if n := len(second.Tasks()); n != 1 {
		t.Errorf("the newer session has %d tasks, want 1", n)
	}
}

// TestHostileFrames: frames without meaning cost nothing but the session, and whatever
// they were, the next session and the other instances are served.
func TestHostileFrames(t *testing.T) {
	l := acstest.NewLab(t, nil, nil)
	prepare(t, l)
	evil := agent(t, l, acstest.Config{})
	good := agent(t, l, acstest.Config{})
	ctx := context.Background()
	frames := [][]byte{
		nil, []byte("{"), []byte("null"), []byte("[]"), []byte(`"x"`), []byte("\xff\xfe\x00"),
		[]byte(`{"type":"Nonsense","message":{}}`), []byte(`{"type":"AckRequest"}`), []byte(`{"type":"AckRequest","message":null}`),
		[]byte(`{"type":"AckRequest","message":{"messageId":7}}`), []byte(`{"type":7,"message":{}}`),
		[]byte(`{"type":"AckRequest","type":"PayloadMessage","message":{}}`),
		[]byte(`{"type":"PayloadMessage","message":{"tasks":[{"arn":"x"}]}}`),
		[]byte(`{"type":"TaskStopVerificationMessage","message":{"messageId":"guess","stopCandidates":[{"taskArn":"x"}]}}`),
		[]byte(strings.Repeat("[", 1_000_000)),
		[]byte(`{"type":"AckRequest","message":{"messageId":"` + strings.Repeat("a", 900_000) + `"}}`),
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for n := range 1000 {
		sendOrWait(ctx, t, evil, frames[n%len(frames)])
	}
	sendOrWait(ctx, t, evil, bytes.Repeat([]byte("a"), 2<<20))
	running := reach(t, l, "RUNNING", runTasks(t, l, 4)...)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("the heap has grown by %d MiB", grown>>20)
	}
	if len(evil.Tasks())+len(good.Tasks()) != len(running) {
		t.Errorf("tasks are on neither instance")
	}
	if good.Sessions() != 1 {
		t.Errorf("the other instance's session was disturbed")
	}
}

// sendOrWait sends a frame; when the session was ended for the frames before, it waits
// for the next one.
func sendOrWait(ctx context.Context, t *testing.T, a *acstest.Agent, frame []byte) {
	t.Helper()
	acstest.WaitFor(t, "a session to send on", func() bool { return a.SendRaw(ctx, frame) == nil })
}

// TestFlood: an agent that sends without end is cut off.
func TestFlood(t *testing.T) {
	l := acstest.NewLab(t, nil, nil)
	prepare(t, l)
	a := agent(t, l, acstest.Config{})
	frame, err := acs.Encode(&acs.HeartbeatAckRequest{MessageID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	for range 20_000 {
		if a.SendRaw(context.Background(), frame) != nil || a.Sessions() > 1 {
			break
		}
	}
	acstest.WaitFor(t, "the session to be ended", func() bool { return a.Sessions() > 1 })
}

// TestFaults runs tasks through every fault at once.
func TestFaults(t *testing.T) {
	var n, cuts atomic.Int64
	every := func(k int64) bool { return n.Add(1)%k == 0 }
	faults := &cacs.Faults{
		HoldAck:   func(string) bool { return every(3) },
		Duplicate: func(acs.Message) int { return int(n.Add(1) % 3) },
		Reorder:   func(acs.Message) bool { return every(5) },
		Drop:      func(acs.Message) bool { return every(4) },
		DropAfter: func(string) int64 {
			if cuts.Add(1) > 5 {
				return 0
			}
			return 6 << 10
		},
	}
	var mu sync.Mutex
	kinds := make(map[cacs.EntryKind]int)
	l := acstest.NewLab(t, nil, func(c *cacs.Config) {
		c.Faults, c.AckTimeout, c.Grace = faults, 200*time.Millisecond, time.Minute
		c.Ledger = func(e cacs.Entry) {
			mu.Lock()
			defer mu.Unlock()
			kinds[e.Kind]++
		}
	})
	prepare(t, l)
	started := make(map[string]int)
	a := agent(t, l, acstest.Config{CPU: 8192, FailStart: func(task *acs.Task) string {
		mu.Lock()
		defer mu.Unlock()
		started[task.ARN]++
		return ""
	}})
	var arns []string
	for range 10 {
		arns = append(arns, runTasks(t, l, 5)...)
	}
	reach(t, l, "RUNNING", arns...)
	for _, arn := range arns[:25] {
		if _, err := l.Operator.StopTask(context.Background(), &ecs.StopTaskInput{Task: aws.String(arn)}); err != nil {
			t.Fatal(err)
		}
	}
	reach(t, l, "STOPPED", arns[:25]...)
	reach(t, l, "RUNNING", arns[25:]...)
	mu.Lock()
	defer mu.Unlock()
	for arn, n := range started {
		if n != 1 {
			t.Errorf("task %s was started %d times", arn, n)
		}
	}
	if len(started) != len(arns) {
		t.Errorf("%d tasks were started, want %d", len(started), len(arns))
	}
	if kinds[cacs.EntrySent] == 0 || kinds[cacs.EntryReceived] == 0 || kinds[cacs.EntryOpened] < 2 {
		t.Errorf("the faults did not happen, or the ledger misses them: %v, %d sessions", kinds, a.Sessions())
	}
}

// TestUnacknowledgedTask: one task that an agent never acknowledges holds up no other,
// and is not sent for ever.
func TestUnacknowledgedTask(t *testing.T) {
	var mu sync.Mutex
	sent := make(map[string]int)
	var poison string
	gaveUp := make(chan struct{}, 1)
	l := acstest.NewLab(t, nil, func(c *cacs.Config) {
		c.AckTimeout = 2 * time.Millisecond
		c.Ledger = func(e cacs.Entry) {
			mu.Lock()
			defer mu.Unlock()
			if e.Kind == cacs.EntryGaveUp {
				gaveUp <- struct{}{}
			}
			if e.Kind == cacs.EntrySent {
				for _, task := range e.Tasks {
					sent[task.ARN]++
				}
			}
		}
	})
	prepare(t, l)
	agent(t, l, acstest.Config{Receive: func(m acs.Message) bool {
		p, ok := m.(*acs.PayloadMessage)
		if !ok {
			return true
		}
		mu.Lock()
		defer mu.Unlock()
		if poison == "" {
			poison = p.Tasks[0].ARN
		}
		for i := range p.Tasks {
			if p.Tasks[i].ARN == poison {
				return false
			}
		}
		return true
	}})
	arns := runTasks(t, l, 5)
	select {
	case <-gaveUp:
	case <-time.After(time.Minute):
		t.Fatal("the server did not give the task up")
	}
	mu.Lock()
	bad, times := poison, sent[poison]
	mu.Unlock()
	var others []string
	for _, arn := range arns {
		if arn != bad {
			others = append(others, arn)
		}
	}
	reach(t, l, "RUNNING", others...)
	if times < 2 || times > 10 {
		t.Errorf("the task was sent %d times", times)
	}
}

// TestManifest: an agent with a task that the cluster does not know is told to stop it,
// and keeps the others.
func TestManifest(t *testing.T) {
	l := acstest.NewLab(t, nil, func(c *cacs.Config) { c.Manifest = 10 * time.Millisecond })
	prepare(t, l)
	a := agent(t, l, acstest.Config{})
	known := runTasks(t, l, 1)
	reach(t, l, "RUNNING", known...)
	stranger := strings.Replace(known[0], known[0][strings.LastIndexByte(known[0], '/')+1:], strings.Repeat("0", 32), 1)
	frame, err := acs.Encode(&acs.PayloadMessage{
		MessageID: "stray", ClusterARN: "c", ContainerInstanceARN: a.ARN(), SeqNum: 1,
		Tasks: []acs.Task{{ARN: stranger, TaskClusterARN: "default", Family: "x", Version: "1", DesiredStatus: "RUNNING"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	id := a.ARN()[strings.LastIndexByte(a.ARN(), '/')+1:]
	if err := l.ACS.SendRaw(context.Background(), id, frame); err != nil {
		t.Fatal(err)
	}
	acstest.WaitFor(t, "the stray task to be stopped", func() bool { return a.Tasks()[stranger] == "STOPPED" })
	if got := a.Tasks()[known[0]]; got != "RUNNING" {
		t.Errorf("the known task is %s", got)
	}
}

func TestDeregisterEndsTheSession(t *testing.T) {
	l := acstest.NewLab(t, nil, nil)
	prepare(t, l)
	a := agent(t, l, acstest.Config{})
	arns := runTasks(t, l, 1)
	reach(t, l, "RUNNING", arns...)
	ctx := context.Background()
	if _, err := l.Operator.DeregisterContainerInstance(ctx, &ecs.DeregisterContainerInstanceInput{ContainerInstance: aws.String(a.ARN())}); err == nil {
		t.Error("an instance with a task was deregistered without force")
	}
	if _, err := l.Operator.DeregisterContainerInstance(ctx, &ecs.DeregisterContainerInstanceInput{ContainerInstance: aws.String(a.ARN()), Force: aws.Bool(true)}); err != nil {
		t.Fatal(err)
	}
	acstest.WaitFor(t, "the session to be ended", func() bool { return !l.ACS.Connected(a.ARN()[strings.LastIndexByte(a.ARN(), '/')+1:]) })
	reach(t, l, "STOPPED", arns...)
}

// TestPayloadLatency bounds the way from the answer of RunTask to the agent.
func TestPayloadLatency(t *testing.T) {
	var mu sync.Mutex
	arrived := make(map[string]time.Time)
	l := acstest.NewLab(t, nil, nil)
	prepare(t, l)
	agent(t, l, acstest.Config{Receive: func(m acs.Message) bool {
		if p, ok := m.(*acs.PayloadMessage); ok {
			mu.Lock()
			defer mu.Unlock()
			for i := range p.Tasks {
				arrived[p.Tasks[i].ARN] = time.Now()
			}
		}
		return true
	}})
	var worst time.Duration
	for range 20 {
		arn := runTasks(t, l, 1)[0]
		answered := time.Now()
		acstest.WaitFor(t, "the payload", func() bool {
			mu.Lock()
			defer mu.Unlock()
			at, ok := arrived[arn]
			worst = max(worst, at.Sub(answered))
			return ok
		})
	}
	t.Logf("payload at the agent at most %v after RunTask's answer", worst)
	if worst > 250*time.Millisecond {
		t.Errorf("a payload took %v", worst)
	}
}
