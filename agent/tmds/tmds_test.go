package tmds

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/creds"
	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/eni"
	"berth.dev/berth/wire/tmds"
)

// world is one task in a network namespace of its own, with its endpoint.
type world struct {
	server *Server
	task   *task.Task
	known  task.Known
	creds  *creds.Store
	ns     *eni.Namespace
	handle Handle
}

// View is the task.
func (w *world) View(arn string) (engine.View, bool) {
	return engine.View{Task: w.task, Known: w.known, Containers: map[string]task.ContainerStatus{"app": task.ContainerRunning}}, arn == w.task.ARN
}

// Tags has none.
func (w *world) Tags(context.Context, string) (map[string]string, error) {
	return nil, &CallError{Code: "AccessDeniedException", Message: "no", RequestID: "r", Status: 400}
}

// Protection says that the task is protected.
func (w *world) Protection(_ context.Context, c creds.Credentials, arn string, set *tmds.ProtectionRequest) (*tmds.ProtectionResponse, error) {
	if set != nil && set.ExpiresInMinutes != nil {
		return nil, errors.New("broken")
	}
	return &tmds.ProtectionResponse{Protection: &tmds.Protection{TaskARN: arn, ProtectionEnabled: true}}, nil
}

func start(t *testing.T, edit func(*task.Task, *Config)) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this test makes network namespaces and needs root")
		}
		t.Skip("this test makes network namespaces and needs root")
	}
	w := &world{creds: &creds.Store{}, task: &task.Task{
		ARN: "arn:aws:ecs:us-east-1:000000000000:task/default/abc", ClusterARN: "arn:aws:ecs:us-east-1:000000000000:cluster/default", Family: "web", Version: "3",
		NetworkMode: task.NetworkAWSVPC, CredentialsID: "mine", ExecutionCredentialsID: "agents", FaultInjection: true,
		Interfaces: []task.Interface{{
			MAC: "02:00:00:00:00:07", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("2001:db8::7")},
			GatewayV4: netip.MustParsePrefix("10.0.0.1/24"), NameServers: []string{"10.0.0.2"}, PrivateDNSName: "ip-10-0-0-7",
		}},
		Containers: []task.Container{{Name: "app", Image: "app:1"}},
	}}
	w.known = task.Known{Desired: task.StatusRunning, Status: task.StatusRunning, Resources: map[task.ResourceID]*task.Record{
		containerID("app"): {Phase: task.Present, RuntimeID: "0123456789abcdef0123456789abcdef", Started: time.Unix(1_700_000_000, 0)},
	}}
	path := filepath.Join(t.TempDir(), "ns")
	if err := eni.CreateNamespace(path, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := eni.RemoveNamespace(path); err != nil {
			t.Error(err)
		}
	})
	var err error
	if w.ns, err = eni.OpenNamespace(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.ns.Close() }) //nolint:errcheck // it was only looked at
	c := Config{
		Dir: filepath.Join(t.TempDir(), "tokens"), Tasks: w, Credentials: w.creds, Cluster: w,
		Instance: func() Instance { return Instance{"default", "arn:instance", "us-east-1a"} }, Rate: 1000, Burst: 1000,
	}
	if edit != nil {
		edit(w.task, &c)
	}
	w.server = New(c)
	t.Cleanup(w.server.Close)
	deps := task.Deps{Get: func(task.ResourceID) (task.Record, bool) {
		return task.Record{Handle: json.RawMessage(fmt.Sprintf(`{"path":%q}`, path))}, true
	}}
	r, err := w.server.Ensure(t.Context(), w.task, "task", deps)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(r.Handle, &w.handle); err != nil {
		t.Fatal(err)
	}
	return w
}

// ask makes a request from inside the namespace.
func (w *world) ask(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, network, addr string) (c net.Conn, err error) {
		return c, w.ns.Do(func() error { c, err = net.DialTimeout(network, addr, 2*time.Second); return err })
	}}}
	req, err := http.NewRequest(method, "http://"+wellKnown+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	if _, err := fmt.Fprint(&b, readAll(t, resp)); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, b.String()
}

func readAll(t *testing.T, resp *http.Response) string {
	t.Helper()
	var b strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := resp.Body.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			return b.String()
		}
	}
}

func (w *world) id() string { return w.handle.IDs["app"] }

func TestEndpoint(t *testing.T) {
	w := start(t, nil)
	set := func(role creds.Role, id, key string) {
		t.Helper()
		if err := w.creds.Set(creds.Credentials{
			ID: id, TaskARN: w.task.ARN, Role: role, RoleARN: "arn:role", AccessKeyID: task.NewSecret(key), SecretAccessKey: task.NewSecret("s"),
			SessionToken: task.NewSecret("t"), Expiration: time.Now().Add(time.Hour).UTC().Format(time.RFC3339),
		}); err != nil {
			t.Fatal(err)
		}
	}
	if status, body := w.ask(t, "GET", "/v2/credentials/mine", ""); status != 503 || !strings.Contains(body, `"code":"CredentialsUninitialized","message":"CredentialsV2Request: Credentials uninitialized for ID","HTTPErrorCode":503`) {
		t.Errorf("before they have come: %d %s", status, body)
	}
	if status, body := w.ask(t, "GET", "/api/"+w.id()+"/task-protection/v1/state", ""); status != 403 || !strings.Contains(body, "no task IAM role credentials available for task") {
		t.Errorf("protection without a role: %d %s", status, body)
	}
	set(creds.Application, "mine", "first")
	set(creds.Application, "renewed", "second") // under another id
	set(creds.Execution, "agents", "execution")
	for _, tt := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/v2/credentials/mine", "", 200, `"AccessKeyId":"second"`},
		{"GET", "/v1/credentials?id=mine", "", 200, `"AccessKeyId":"second"`},
		{"GET", "/v2/credentials/agents", "", 200, `"AccessKeyId":"execution"`},
		{"GET", "/v2/credentials/other", "", 400, `InvalidIdInRequest`},
		{"GET", "/v2/credentials", "", 400, `NoIdInRequest`},
		{"POST", "/v2/credentials/mine", "", 405, ""},
		{"GET", "/v4/" + w.id() + "/taskWithTags", "", 200, `"ErrorCode":"AccessDeniedException","ErrorMessage":"no","StatusCode":400,"RequestId":"r"`},
		{"GET", "/v4/" + w.id() + "/stats", "", 500, `"Unable to get container stats for: 0123456789abcdef0123456789abcdef"`},
		{"GET", "/v3/" + w.id() + "/stats", "", 400, `"Unable to get container stats for:`},
		{"GET", "/v4/" + w.id() + "/task/stats", "", 200, `{"0123456789abcdef0123456789abcdef":{}}`},
		{"GET", "/v3/" + w.id() + "/task/stats", "", 200, `{"0123456789abcdef0123456789abcdef":null}`},
		{"GET", "/v4/" + w.id() + "/associations/elastic-inference", "", 200, `{"Associations":null}`},
		{"GET", "/v4/" + w.id() + "/associations/elastic-inference/x", "", 400, "unable to get association value"},
		{"GET", "/api/" + w.id() + "/task-protection/v1/state", "", 200, `{"protection":{"ExpirationDate":null,"ProtectionEnabled":true,"TaskArn":"` + w.task.ARN + `"}}`},
		{"PUT", "/api/" + w.id() + "/task-protection/v1/state", `{"ProtectionEnabled":true}`, 200, `"protection"`},
		{"PUT", "/api/" + w.id() + "/task-protection/v1/state", `{"ProtectionEnabled":true,"More":1}`, 400, `UpdateTaskProtection: failed to decode request`},
		{"PUT", "/api/" + w.id() + "/task-protection/v1/state", `{}`, 400, `Invalid request: does not contain 'ProtectionEnabled' field`},
		{"PUT", "/api/" + w.id() + "/task-protection/v1/state", `{"ProtectionEnabled":true,"ExpiresInMinutes":1}`, 500, `ServerException`},
		{"DELETE", "/api/" + w.id() + "/task-protection/v1/state", "", 405, ""},
	} {
		if status, body := w.ask(t, tt.method, tt.path, tt.body); status != tt.status || !strings.Contains(body, tt.want) {
			t.Errorf("%s %s %s: %d %s", tt.method, tt.path, tt.body, status, body)
		}
	}
	var c tmds.Container
	if _, body := w.ask(t, "GET", "/v4/"+w.id(), ""); json.Unmarshal([]byte(body), &c) != nil {
		t.Errorf("container: %s", body)
	}
	zero := 0
	want := []tmds.Network{{
		NetworkMode: "awsvpc", IPv4Addresses: []string{"10.0.0.7"}, IPv6Addresses: []string{"2001:db8::7"}, AttachmentIndex: &zero, MACAddress: "02:00:00:00:00:07",
		IPv4SubnetCIDRBlock: "10.0.0.0/24", IPv6SubnetCIDRBlock: "2001:db8::/64", DomainNameServers: []string{"10.0.0.2"}, PrivateDNSName: "ip-10-0-0-7", SubnetGatewayIPv4Address: "10.0.0.1/24",
	}}
	if diff := cmp.Diff(want, c.Networks); diff != "" {
		t.Errorf("networks (-want +got):\n%s", diff)
	}
	w.known.Status = task.StatusStopped
	if status, body := w.ask(t, "GET", "/v2/credentials/mine", ""); status != 400 || strings.Contains(body, "second") {
		t.Errorf("after the end: %d %s", status, body)
	}
	if err := w.server.Remove(t.Context(), w.task, "task", nil); err != nil {
		t.Fatal(err)
	}
	if err := w.ns.Do(func() error { _, err := net.DialTimeout("tcp", wellKnown+":80", time.Second); return err }); err == nil {
		t.Error("the endpoint is still open after its removal")
	}
	if w.creds.Len() != 0 {
		t.Error("the credentials of a task are kept after its end")
	}
}

func TestFaults(t *testing.T) {
	w := start(t, nil)
	reaches := func(port int) bool {
		return w.ns.Do(func() error {
			c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 300*time.Millisecond)
			if err == nil {
				err = c.Close()
			}
			return err
		}) == nil
	}
	var l net.Listener
	if err := w.ns.Do(func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:7007"); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) //nolint:errcheck // nobody uses it
	base := "/api/" + w.id() + "/fault/v1/"
	hole := `{"Port":7007,"Protocol":"tcp","TrafficType":"ingress"}`
	post := func(path, body string, status int, want string) {
		t.Helper()
		if got, text := w.ask(t, "POST", base+path, body); got != status || text != want {
			t.Errorf("%s %s: %d %s", path, body, got, text)
		}
	}
	again := func() { // the limits are not what this is about
		g := w.server.guest(w.task.ID())
		g.faults.mu.Lock()
		defer g.faults.mu.Unlock()
		clear(g.faults.limits)
	}
	post("network-blackhole-port/status", hole, 200, `{"Status":"not-running"}`)
	post("network-blackhole-port/start", hole, 200, `{"Status":"running"}`)
	if reaches(7007) {
		t.Error("the port is reached through a blackhole")
	}
	post("network-blackhole-port/start", hole, 429, "You have reached maximum request limit")
	again()
	post("network-blackhole-port/start", hole, 200, `{"Status":"running"}`)
	post("network-blackhole-port/status", hole, 200, `{"Status":"running"}`)
	post("network-blackhole-port/stop", hole, 200, `{"Status":"stopped"}`)
	if !reaches(7007) {
		t.Error("the port is not reached after the blackhole was stopped")
	}
	again()
	lossy := `{"LossPercent":100,"Sources":["127.0.0.1"],"FlowsPercent":100}`
	post("network-packet-loss/start", lossy, 200, `{"Status":"running"}`)
	if reaches(7007) {
		t.Error("nothing is lost of 100%")
	}
	again()
	post("network-packet-loss/start", `{"LossPercent":5,"Sources":["10.0.0.0/8","2001:db8::/32"],"FlowsPercent":50}`, 409, `{"Error":"There is already one network packet loss fault running"}`)
	post("network-packet-loss/stop", "", 200, `{"Status":"stopped"}`)
	again()
	post("network-packet-loss/start", `{"LossPercent":5,"Sources":["10.0.0.0/8","2001:db8::/32"],"SourcesToFilter":["10.1.0.0/16"],"FlowsPercent":50}`, 200, `{"Status":"running"}`)
	post("network-packet-loss/status", "", 200, `{"Status":"running"}`)
	if !reaches(7007) {
		t.Error("packets to others than the sources are lost")
	}
	post("network-latency/start", `{"DelayMilliseconds":5,"JitterMilliseconds":0,"Sources":["10.0.0.0/8"]}`, 500, `{"Error":"failed to resolve default host network interface"}`)
	post("network-latency/status", "", 200, `{"Status":"not-running"}`)
	again()
	for body, want := range map[string]string{
		``:                             "required request body is missing",
		`{}`:                           "required parameter Port is missing",
		`{"Port":1,"Protocol":"icmp"}`: "invalid value icmp for parameter Protocol",
		`{"Port":1,"Protocol":"tcp"}`:  "required parameter TrafficType is missing",
		`{"Port":1,"Protocol":"tcp","TrafficType":"egress","SourcesToFilter":["x"]}`: "invalid value x for parameter SourcesToFilter",
	} {
		post("network-blackhole-port/start", body, 400, `{"Error":"`+want+`"}`)
		again()
	}
	w.task.FaultInjection = false
	post("network-latency/stop", "", 400, `{"Error":"enableFaultInjection is not enabled for task: `+w.task.ARN+`"}`)
	w.task.FaultInjection, w.task.NetworkMode = true, task.NetworkBridge
	post("network-packet-loss/stop", "", 400, `{"Error":"bridge mode is not supported. Please use either host or awsvpc mode."}`)
}

func TestAdopt(t *testing.T) {
	w := start(t, nil)
	w.server.Close()
	second := New(w.server.c)
	t.Cleanup(second.Close)
	b, err := json.Marshal(w.handle)
	if err != nil {
		t.Fatal(err)
	}
	k := w.known
	k.Resources = map[task.ResourceID]*task.Record{{Kind: task.KindEndpoint, Name: "task"}: {Phase: task.Present, Handle: b}}
	second.Adopt([]task.Stored{{Task: w.task, Known: &k}})
	if status, body := w.ask(t, "GET", "/v4/"+w.id(), ""); status != 200 || !strings.Contains(body, `"Name":"app"`) {
		t.Errorf("after a restart: %d %s", status, body)
	}
}

func FuzzFault(f *testing.F) {
	f.Add("network-blackhole-port", `{"Port":80,"Protocol":"tcp","TrafficType":"egress","SourcesToFilter":["10.0.0.1/8","::1"]}`)
	f.Add("network-packet-loss", `{"LossPercent":1,"Sources":["0.0.0.0/0"],"FlowsPercent":3}`)
	f.Add("network-latency", `{"DelayMilliseconds":1,"JitterMilliseconds":1,"Sources":["::/0"]}`)
	f.Fuzz(func(t *testing.T, kind, body string) {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
		got, err := readFault(httptest.NewRecorder(), r, kind, "start")
		if err == nil && kind == faultBlackhole && strings.ContainsAny(got.chain(), "/\x00 ") {
			t.Errorf("chain %q", got.chain())
		}
	})
}
