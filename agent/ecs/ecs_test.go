package ecs

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/config"
	"berth.dev/berth/agent/task"
)

const (
	instanceARN = "arn:aws:ecs:eu-west-1:111122223333:container-instance/lab/0a1b2c"
	taskARN     = "arn:aws:ecs:eu-west-1:111122223333:task/lab/9f8e7d"
)

// api is a cluster that answers from a script and keeps what it was asked.
type api struct {
	t      *testing.T
	mu     sync.Mutex
	calls  []call
	answer func(n int, c call) (status int, body string)
}

type call struct {
	op      string
	body    map[string]any
	headers http.Header
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		a.t.Error(err)
	}
	c := call{op: strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "AmazonEC2ContainerServiceV20141113."), headers: r.Header.Clone()}
	if err := json.Unmarshal(raw, &c.body); err != nil {
		a.t.Errorf("%s: %v", c.op, err)
	}
	a.mu.Lock()
	a.calls = append(a.calls, c)
	n := len(a.calls)
	a.mu.Unlock()
	status, body := a.answer(n, c)
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) // the client may have left
}

func (a *api) ops() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for _, c := range a.calls {
		out = append(out, c.op)
	}
	return out
}

func fault(code, message string) string {
	return `{"__type":"` + code + `","message":"` + message + `"}`
}

// echo is the answer to a registration that a cluster should give.
func echo(c call) (int, string) {
	attributes, _ := c.body["attributes"].([]any)
	attributes = append(attributes, map[string]any{"name": "ecs.availability-zone", "value": "eu-west-1a"})
	body, err := json.Marshal(map[string]any{"containerInstance": map[string]any{"containerInstanceArn": instanceARN, "attributes": attributes}})
	if err != nil {
		return http.StatusInternalServerError, err.Error()
	}
	return http.StatusOK, string(body)
}

// settings are those of an external instance, with env over them.
func settings(t *testing.T, env ...string) *config.Config {
	t.Helper()
	all := []string{
		"AWS_DEFAULT_REGION=eu-west-1", "ECS_CLUSTER=lab", "AWS_ACCESS_KEY_ID=AKID", "AWS_SECRET_ACCESS_KEY=SKCANARY", "ECS_EXTERNAL=true",
	}
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		all = slices.DeleteFunc(all, func(o string) bool { return strings.HasPrefix(o, name+"=") })
		all = append(all, e)
	}
	c, err := config.Load(config.Sources{
		Environ:  all,
		EnvFiles: []string{}, JSONFile: filepath.Join(t.TempDir(), "none"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var host = HostFacts{CPUs: 2, MemoryMiB: 7811, OSFamily: "debian_12", Architecture: "x86_64", IPv6: true, VLAN: true}

// client starts a cluster and makes a client of it. Its delays take no time and are
// kept in waits.
func client(t *testing.T, answer func(n int, c call) (int, string), env ...string) (*Client, *api, *[]time.Duration) {
	t.Helper()
	a := &api{t: t, answer: answer}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	c := settings(t, append([]string{"ECS_BACKEND_HOST=" + server.URL}, env...)...)
	cl, err := New(c, host, Credentials(c), "Berth Agent - v1.0.0 (abcdef12)", slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	waits := new([]time.Duration)
	cl.wait = func(ctx context.Context, d time.Duration) error {
		*waits = append(*waits, d)
		return ctx.Err()
	}
	return cl, a, waits
}

func always(status int, body string) func(int, call) (int, string) {
	return func(int, call) (int, string) { return status, body }
}

func TestRegister(t *testing.T) {
	cl, a, _ := client(t, func(_ int, c call) (int, string) { return echo(c) },
		`ECS_INSTANCE_ATTRIBUTES={"rack":"r1"}`, `ECS_CONTAINER_INSTANCE_TAGS={"k":"v"}`, "ECS_RESERVED_MEMORY=11")
	r, err := cl.Register(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Registration{InstanceARN: instanceARN, AvailabilityZone: "eu-west-1a", Cluster: "lab"}, r); d != "" {
		t.Error(d)
	}
	c := a.calls[0]
	if got := c.headers.Get("User-Agent"); got != "Berth Agent - v1.0.0 (abcdef12) (linux; debian_12) (+https://berth.dev/)" {
		t.Errorf("User-Agent %q", got)
	}
	if auth := c.headers.Get("Authorization"); !strings.Contains(auth, "Credential=AKID/") || !strings.Contains(auth, "/eu-west-1/ecs/aws4_request") {
		t.Errorf("Authorization %q", auth)
	}
	attributes := c.body["attributes"]
	delete(c.body, "attributes")
	want := map[string]any{
		"cluster": "lab", "instanceIdentityDocument": "", "instanceIdentityDocumentSignature": "",
		"tags": []any{map[string]any{"key": "k", "value": "v"}},
		"totalResources": []any{
			map[string]any{"name": "CPU", "type": "INTEGER", "integerValue": 2048.0},
			map[string]any{"name": "MEMORY", "type": "INTEGER", "integerValue": 7800.0},
			map[string]any{"name": "PORTS", "type": "STRINGSET", "stringSetValue": []any{"22", "2375", "2376", "51678", "51679"}},
			map[string]any{"name": "PORTS_UDP", "type": "STRINGSET", "stringSetValue": []any{}},
		},
	}
	if d := cmp.Diff(want, c.body); d != "" {
		t.Error(d)
	}
	text, err := json.Marshal(attributes)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(text), `[{"name":"rack","value":"r1"},{"name":"ecs.capability.`) {
		t.Errorf("attributes %s", text)
	}
}

func TestRegisterAgain(t *testing.T) {
	cl, a, _ := client(t, func(_ int, c call) (int, string) { return echo(c) }, `ECS_INSTANCE_ATTRIBUTES={"rack":"r1"}`)
	const mine = instanceARN + "ff"
	r, err := cl.Register(t.Context(), mine)
	if err != nil || r.InstanceARN != mine {
		t.Errorf("got %+v, %v; the agent keeps its own ARN", r, err)
	}
	text, err := json.Marshal(a.calls[0].body)
	if err != nil {
		t.Fatal(err)
	}
	if a.calls[0].body["containerInstanceArn"] != mine || strings.Contains(string(text), "rack") {
		t.Errorf("request %s", text)
	}
}

func TestRegisterVerdicts(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		exit   int
	}{
		"invalid":     {400, fault("InvalidParameterException", "bad"), config.ExitTerminal},
		"client":      {400, fault("ClientException", "Container instance type changes are not supported."), config.ExitTerminal},
		"denied":      {400, fault("AccessDeniedException", "no"), config.ExitError},
		"no cluster":  {400, fault("ClusterNotFoundException", "Cluster not found."), config.ExitError},
		"attributes":  {200, `{"containerInstance":{"containerInstanceArn":"` + instanceARN + `","attributes":[]}}`, config.ExitTerminal},
		"no instance": {200, `{}`, config.ExitError},
	} {
		t.Run(name, func(t *testing.T) {
			cl, a, waits := client(t, always(c.status, c.body))
			_, err := cl.Register(t.Context(), "")
			if err == nil || config.ExitCode(err) != c.exit {
				t.Errorf("exit %d, want %d: %v", config.ExitCode(err), c.exit, err)
			}
			if len(a.ops()) != 1 || len(*waits) != 0 {
				t.Errorf("calls %v, waits %v", a.ops(), *waits)
			}
			if strings.Contains(err.Error(), "CANARY") {
				t.Error("error holds a secret")
			}
		})
	}
}

func TestRegisterWaitsForABusyCluster(t *testing.T) {
	busy := 0
	cl, _, waits := client(t, func(_ int, c call) (int, string) {
		if busy++; busy <= 3*quickAttempts {
			return 500, fault("ServerException", "later")
		}
		return echo(c)
	})
	if _, err := cl.Register(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if len(*waits) != 3 {
		t.Fatalf("waits %v", *waits)
	}
	for i, least := range []time.Duration{3 * time.Second, 6 * time.Second, 12 * time.Second} {
		if w := (*waits)[i]; w < least || w >= least*6/5 {
			t.Errorf("wait %d is %v, want %v and up to a fifth more", i, w, least)
		}
	}
}

func TestRegisterWaitsForAClusterThatIsAway(t *testing.T) {
	cl, _, waits := client(t, nil, "ECS_BACKEND_HOST=http://127.0.0.1:1")
	ctx, cancel := context.WithCancel(t.Context())
	cl.wait = func(ctx context.Context, d time.Duration) error {
		if *waits = append(*waits, d); len(*waits) == 3 {
			cancel()
		}
		return ctx.Err()
	}
	if _, err := cl.Register(ctx, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if w := *waits; w[0] < 250*time.Millisecond || w[0] >= 300*time.Millisecond || w[2] < time.Second {
		t.Errorf("waits %v", w)
	}
}

func TestDefaultClusterIsMade(t *testing.T) {
	cl, a, _ := client(t, func(n int, c call) (int, string) {
		switch {
		case c.op == "CreateCluster":
			return 200, `{"cluster":{"clusterName":"default"}}`
		case n == 1:
			return 400, fault("ClientException", "Cluster not found.")
		default:
			return echo(c)
		}
	}, "ECS_CLUSTER=")
	r, err := cl.Register(t.Context(), "")
	if err != nil || r.Cluster != "default" {
		t.Errorf("got %+v, %v", r, err)
	}
	if d := cmp.Diff([]string{"RegisterContainerInstance", "CreateCluster", "RegisterContainerInstance"}, a.ops()); d != "" {
		t.Error(d)
	}
	if got := a.calls[1].body["clusterName"]; got != "default" {
		t.Errorf("made %v", got)
	}
}

func TestReservedMemoryAboveTheHosts(t *testing.T) {
	cl, a, _ := client(t, nil, "ECS_RESERVED_MEMORY=9000")
	if _, err := cl.Register(t.Context(), ""); config.ExitCode(err) != config.ExitTerminal || len(a.calls) != 0 {
		t.Errorf("got %v", err)
	}
}

func TestEndpointIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answers []string
		calls := 0
		c := settings(t, "ECS_BACKEND_HOST=http://ecs.example")
		cl, err := New(c, host, Credentials(c), "v", slog.New(slog.NewTextHandler(io.Discard, nil)))
		if err != nil {
			t.Fatal(err)
		}
		// The network of the bubble is a function.
		o := cl.api.Options()
		o.HTTPClient = roundTripper(func(*http.Request) (int, string) {
			calls++
			if len(answers) == 0 {
				return 400, fault("ClientException", "no")
			}
			a := answers[0]
			answers = answers[1:]
			return 200, a
		})
		cl.api = newAPI(o)
		ask := func(want string, wantCalls int) {
			t.Helper()
			got, err := cl.Endpoint(t.Context(), instanceARN)
			if got != want || (err == nil) != (want != "") || calls != wantCalls {
				t.Errorf("got %q, %v after %d calls; want %q after %d", got, err, calls, want, wantCalls)
			}
		}
		ask("", 1)
		answers = []string{`{"endpoint":"http://a","telemetryEndpoint":"http://t"}`}
		ask("http://a", 2)
		ask("http://a", 2)
		time.Sleep(12*time.Hour + time.Second)
		ask("http://a", 3) // the call fails and the old answer serves
		answers = []string{`{"endpoint":"http://b"}`}
		ask("http://b", 4)
		if _, err := cl.Telemetry(t.Context(), instanceARN); err == nil {
			t.Error("a missing telemetry endpoint was not noticed")
		}
	})
}

type roundTripper func(*http.Request) (int, string)

func (f roundTripper) Do(r *http.Request) (*http.Response, error) {
	status, body := f(r)
	return &http.Response{
		StatusCode: status, Header: http.Header{"Content-Type": {"application/x-amz-json-1.1"}}, Body: io.NopCloser(strings.NewReader(body)), Request: r,
	}, nil
}

func TestSubmit(t *testing.T) {
	cl, a, _ := client(t, always(200, `{"acknowledgment":"x"}`))
	exit := 137
	at := func(ms int64) time.Time { return time.UnixMilli(1767225600000 + ms) }
	err := cl.SubmitTaskStateChange(t.Context(), task.Change{
		TaskARN: taskARN, ClusterARN: "arn", Status: task.StatusStopped, PullStarted: at(1200), PullStopped: at(3900), ExecutionStopped: at(9001),
		Containers: []task.ContainerChange{
			{
				Name: "app", Status: task.ContainerStopped, RuntimeID: strings.Repeat("r", 300), Digest: "sha256:1", Exit: &exit, Reason: strings.Repeat("é", 600),
				Bindings: []task.Binding{
					{BindIP: "0.0.0.0", ContainerPort: 8080, HostPort: 32768, Protocol: "tcp"}, {BindIP: "::", ContainerPort: 8080, HostPort: 32768, Protocol: "tcp"},
					{BindIP: "0.0.0.0", ContainerRange: "80-82", HostRange: "90-92", Protocol: "udp"},
				},
			},
			{Name: "b", Status: task.ContainerPulled},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"cluster": "lab", "task": taskARN, "status": "STOPPED", "reason": "",
		"pullStartedAt": 1767225601.2, "pullStoppedAt": 1767225603.9, "executionStoppedAt": 1767225609.001,
		"containers": []any{
			map[string]any{
				"containerName": "app", "status": "STOPPED", "runtimeId": strings.Repeat("r", 255), "imageDigest": "sha256:1", "exitCode": 137.0,
				"reason": strings.Repeat("é", 512),
				"networkBindings": []any{
					map[string]any{"bindIP": "0.0.0.0", "containerPort": 8080.0, "hostPort": 32768.0, "protocol": "tcp"},
					map[string]any{"bindIP": "0.0.0.0", "containerPortRange": "80-82", "hostPortRange": "90-92", "protocol": "udp"},
				},
			},
			map[string]any{"containerName": "b", "status": "PENDING", "networkBindings": []any{}},
		},
		"managedAgents": []any{}, "attachments": []any{},
	}
	if d := cmp.Diff(want, a.calls[0].body); d != "" {
		t.Error(d)
	}
	if err := cl.SubmitAttachmentState(t.Context(), "arn:a", task.AttachmentAttached); err != nil {
		t.Fatal(err)
	}
	attached := map[string]any{"cluster": "lab", "attachments": []any{map[string]any{"attachmentArn": "arn:a", "status": "ATTACHED"}}}
	if d := cmp.Diff(attached, a.calls[1].body); d != "" {
		t.Error(d)
	}
}

func TestSubmitClasses(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		class  task.Class
		calls  int
	}{
		"invalid":   {400, fault("InvalidParameterException", "bad"), task.Invalid, 1},
		"client":    {400, fault("ClientException", "bad"), task.Unavailable, 1},
		"denied":    {400, fault("AccessDeniedException", "no"), task.Unavailable, 1},
		"server":    {500, fault("ServerException", "later"), task.Unavailable, quickAttempts},
		"throttled": {400, fault("ThrottlingException", "slower"), task.Exhausted, quickAttempts},
		"garbage":   {200, `<html>`, task.Unavailable, 1},
	} {
		t.Run(name, func(t *testing.T) {
			cl, a, _ := client(t, always(c.status, c.body))
			err := cl.SubmitTaskStateChange(t.Context(), task.Change{TaskARN: taskARN, Status: task.StatusRunning})
			if task.ClassOf(err) != c.class || len(a.ops()) != c.calls {
				t.Errorf("class %q after %d calls, want %q after %d: %v", task.ClassOf(err), len(a.ops()), c.class, c.calls, err)
			}
		})
	}
	cl, _, _ := client(t, always(200, `{}`))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := cl.SubmitTaskStateChange(ctx, task.Change{TaskARN: taskARN}); task.ClassOf(err) != task.Canceled {
		t.Errorf("cancelled: %v", err)
	}
}

func TestNothingIsAskedOfTheNetworkAtStart(t *testing.T) {
	begin := time.Now()
	cl, _, _ := client(t, func(_ int, c call) (int, string) { return echo(c) })
	if _, err := cl.Register(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > 20*time.Second { // about 10 ms; the bound is for a loaded machine
		t.Errorf("registration on loopback took %v", d)
	}
}

func TestBaseEndpoint(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "ecs.example": "https://ecs.example", "ecs.example:8443": "https://ecs.example:8443", "http://x:1/": "http://x:1", "https://x": "https://x",
	} {
		if got, err := baseEndpoint(in); got != want || err != nil {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"ftp://x", "http://", "https://%zz"} {
		if got, err := baseEndpoint(in); err == nil {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestNewNeedsARegion(t *testing.T) {
	c := settings(t)
	c.Cluster.Region = ""
	if _, err := New(c, host, nil, "v", nil); config.ExitCode(err) != config.ExitTerminal {
		t.Errorf("got %v", err)
	}
}

func TestCAFile(t *testing.T) {
	server := httptest.NewTLSServer(&api{t: t, answer: func(_ int, c call) (int, string) { return echo(c) }})
	defer server.Close()
	server.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(io.Discard, nil), slog.LevelDebug)
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, certificatePEM(server), 0o600); err != nil {
		t.Fatal(err)
	}
	register := func(ca string) error {
		c := settings(t, "ECS_BACKEND_HOST="+strings.TrimPrefix(server.URL, "https://"), "BERTH_CA_FILE="+ca)
		cl, err := New(c, host, Credentials(c), "v", slog.New(slog.NewTextHandler(io.Discard, nil)))
		if err != nil {
			return err
		}
		cl.wait = func(context.Context, time.Duration) error { return errors.New("no more") }
		_, err = cl.Register(t.Context(), "")
		return err
	}
	if err := register(path); err != nil {
		t.Error(err)
	}
	if err := register(""); err == nil {
		t.Error("an unknown authority was trusted")
	}
	if err := register("/nonexistent"); err == nil || !strings.Contains(err.Error(), "BERTH_CA_FILE") {
		t.Errorf("got %v", err)
	}
}
