package logs

import (
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/task"
)

func container(driver string, options map[string]string) *task.Container {
	c := &task.Container{Name: "we_b", Image: "busybox:1", LogsAuth: "ExecutionRole", Environment: map[string]string{"STAGE": "lab", "OTHER": "x"}}
	c.Config.Labels = map[string]string{"team": "blue", "tier": "web"}
	c.HostConfig.LogConfig.Type, c.HostConfig.LogConfig.Config = driver, options
	return c
}

func taskOf(c ...*task.Container) *task.Task {
	t := &task.Task{ARN: "arn:aws:ecs:eu-west-1:111122223333:task/lab/0123456789abcdef", Family: "fam", Version: "7"}
	for _, c := range c {
		t.Containers = append(t.Containers, *c)
	}
	return t
}

func TestPlanOfALocalLog(t *testing.T) {
	about := About{Dir: "/logs/x", ID: "00112233445566778899aabbccddeeff"}
	for name, tt := range map[string]struct {
		settings Settings
		driver   string
		options  map[string]string
		want     url.Values
	}{
		"default":         {Settings{}, "", nil, url.Values{"path": {"/logs/x/log.json"}, "max": {"10485760"}, "files": {"5"}}},
		"of the agent":    {Settings{MaxBytes: 1 << 20, Files: 2}, JSONFile, nil, url.Values{"path": {"/logs/x/log.json"}, "max": {"1048576"}, "files": {"2"}}},
		"of the task":     {Settings{}, JSONFile, map[string]string{"max-size": "2k", "max-file": "9"}, url.Values{"path": {"/logs/x/log.json"}, "max": {"2048"}, "files": {"9"}}},
		"none is kept":    {Settings{}, None, nil, url.Values{"path": {"/logs/x/log.json"}, "max": {"10485760"}, "files": {"5"}}},
		"none is dropped": {Settings{DropNone: true}, None, nil, nil},
	} {
		c := container(tt.driver, tt.options)
		p, err := tt.settings.Plan(taskOf(c), c, about)
		if err != nil || p.Stream != nil {
			t.Errorf("%s: %+v, %v", name, p, err)
			continue
		}
		if diff := cmp.Diff(tt.want, p.Args); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestPlanOfALogThatIsSent(t *testing.T) {
	s := Settings{Run: "/run/b", Logs: "/logs", ExecutionRole: true, MaxBytes: 1000, Files: 1}
	c := container(Syslog, map[string]string{"mode": "blocking", "labels": "team,none", "env-regex": "^STA", "syslog-address": "tcp://h"})
	p, err := s.Plan(taskOf(c), c, About{Dir: "/logs/t/c", ID: "00112233445566778899aabbccddeeff", Image: "busybox:1", ImageID: "sha256:aabb", Command: []string{"sh"}, Secrets: []string{"tag"}})
	if err != nil {
		t.Fatal(err)
	}
	want := &Stream{
		TaskARN: "arn:aws:ecs:eu-west-1:111122223333:task/lab/0123456789abcdef", TaskID: "0123456789abcdef", Container: "we_b",
		Driver: Syslog, Options: c.HostConfig.LogConfig.Config, Secrets: []string{"tag"}, Execution: true, Blocking: true,
		ID: "00112233445566778899aabbccddeeff", Name: "ecs-fam-7-web-00112233445566778899", Image: "busybox:1", ImageID: "sha256:aabb", Command: []string{"sh"},
		Extra: map[string]string{"team": "blue", "STAGE": "lab"},
	}
	if diff := cmp.Diff(want, p.Stream); diff != "" {
		t.Error(diff)
	}
	// What may be unsent must fit into the files besides the one that is written.
	if diff := cmp.Diff(url.Values{"path": {"/logs/t/c/log.json"}, "max": {"1048576"}, "files": {"4"}, "run": {"/run/b"}, "logs": {"/logs"}, "block": {"1"}}, p.Args); diff != "" {
		t.Error(diff)
	}
	c = container(GELF, map[string]string{"gelf-address": "udp://h:1", "max-buffer-size": "20m"})
	if p, err = s.Plan(taskOf(c), c, About{Dir: "/d", ID: "00"}); err != nil || p.Args.Get("files") != "22" || p.Stream.Blocking {
		t.Errorf("a buffer of 20 MiB: %+v, %v", p, err)
	}
	s.Available = []string{"json-file"}
	if _, err = s.Plan(taskOf(c), c, About{}); err == nil || !strings.Contains(err.Error(), "ECS_AVAILABLE_LOGGING_DRIVERS has json-file") {
		t.Errorf("a driver that is not available: %v", err)
	}
}

func TestPlanOfALogRouter(t *testing.T) {
	c := container(FireLens, map[string]string{"Name": "cloudwatch", "log-driver-buffer-limit": "1048576"})
	router := &task.Container{Name: "log_router", Router: &task.LogRouter{Type: "fluentbit"}}
	for name, tt := range map[string]struct {
		waits bool
		mode  string
		want  bool
	}{"as it comes": {false, "", false}, "the agent waits": {true, "", true}, "the agent waits, the task not": {true, "non-blocking", false}, "the task waits": {false, "blocking", true}} {
		s := Settings{Routers: "/routers", RouterWaits: tt.waits, Available: []string{JSONFile}}
		c.HostConfig.LogConfig.Config = maps.Clone(c.HostConfig.LogConfig.Config)
		delete(c.HostConfig.LogConfig.Config, "mode")
		if tt.mode != "" {
			c.HostConfig.LogConfig.Config["mode"] = tt.mode
		}
		p, err := s.Plan(taskOf(c, router), c, About{ID: "00"})
		if err != nil {
			t.Fatal(err)
		}
		o := p.Stream.Options
		if p.Stream.Driver != Fluentd || p.Stream.Blocking != tt.want || o["fluentd-address"] != "unix:///routers/0123456789abcdef/socket/fluent.sock" ||
			o["tag"] != "we_b-firelens-0123456789abcdef" || o["fluentd-request-ack"] != "true" || o["fluentd-buffer-limit"] != "1048576" || o["Name"] != "" {
			t.Errorf("%s: %+v", name, p.Stream)
		}
	}
	router.Router.Type = "fluentd"
	p, err := (&Settings{Routers: "/r"}).Plan(taskOf(c, router), c, About{ID: "00"})
	if err != nil || p.Stream.Options["fluentd-request-ack"] != "" {
		t.Errorf("Fluentd, which acknowledges nothing on its socket: %+v, %v", p, err)
	}
}

func TestTags(t *testing.T) {
	s := &Stream{ID: "00112233445566778899aabbccddeeff", Name: "n", Image: "busybox:1", ImageID: "sha256:ffeeddccbbaa99887766", Command: []string{"sh", "-c", "x"}, Options: map[string]string{"k": "v"}}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"{{.ID}}": "001122334455", "{{.FullID}}": s.ID, "{{.Name}}": "n", "{{.ImageID}}": "ffeeddccbbaa", "{{.ImageFullID}}": s.ImageID,
		"{{.ImageName}}": "busybox:1", "{{.Command}}": "sh -c x", "{{.DaemonName}}": "berth", "{{.Hostname}}": host, "{{.ContainerName}}": "/n",
		"{{upper .Name}}": "N", "{{lower \"A\"}}": "a", "{{title .Name}}": "N", "{{pad .Name 1 2}}": " n  ", "{{truncate .FullID 3}}": "001",
		"{{json .ContainerArgs}}": `["-c","x"]`, "{{index .Config \"k\"}}": "v", "plain": "plain",
	} {
		if got, err := Tag(text, s.Info()); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"{{", "{{.Missing}}", strings.Repeat("x", maxTag+1), "{{call .Name}}"} {
		if got, err := Tag(text, s.Info()); err == nil {
			t.Errorf("%.20s gave %.20q", text, got)
		}
	}
}

func TestReadState(t *testing.T) {
	dir := t.TempDir()
	if s, err := ReadState(dir); err != nil || s != (State{}) {
		t.Errorf("without a file: %+v, %v", s, err)
	}
	for text, bad := range map[string]bool{"": false, `{"lost":3,"error":"x"}`: false, "{": true} {
		if err := os.WriteFile(filepath.Join(dir, PlaceFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := ReadState(dir)
		if (err != nil) != bad || text != "" && !bad && (s.Lost != 3 || s.Error != "x") {
			t.Errorf("%q: %+v, %v", text, s, err)
		}
	}
}

func TestDriversAreListedInOrder(t *testing.T) {
	if d := Drivers(); !slices.IsSorted(d) || len(d) != 8 {
		t.Errorf("%v", d)
	}
}
