// Package metadata looks at the task metadata endpoints from inside real tasks: what they
// say, whom they answer, and what they keep from whom. Of the list of attacks:
//
//	S1, S9   roles: another task's credentials id; secrets on disk, in logs, in process lists
//	S2, S22  otherTasks: another's id, address, gateway, host addresses; documents: own task only
//	S3       spoofed: forged ARP, frames, DHCP, the well-known address
//	S4       hostMode, hostRole: ids of others, no token, another's token
//	S5       instanceMetadata: the host's metadata service in modes bridge, awsvpc and host
//	S6       forged, rate: forged requests, limits of one task beside another
//	S7       impersonated: a task asks for the agent's session
//	S8       agent/ecs TestManInTheMiddle, agent/acs TestTLS and TestRedirectIsRefused
//	S10      environmentOnTheHost: another user of the host looks for a container's secrets
//	S31      afterTheEnd: id and listener of a task that has ended
//	S32      whileNoAgentRuns: another's place between two agents; agent/tmds and package
//	         machine have the sockets that are kept
//	S33      foreignCredentials: a payload with the credentials of another task
package metadata

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	cacs "berth.dev/berth/cluster/acs"
	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
	"berth.dev/berth/integ/testimage"
	wire "berth.dev/berth/wire/acs"
	"berth.dev/berth/wire/tmds"
)

func TestMain(m *testing.M) { host.Main(m) }

type lab struct {
	*system.System
	ports   atomic.Int32
	forward string // URL of the cluster for tasks
	alter   atomic.Pointer[func(*wire.PayloadMessage)]
}

// guest is a running task with the program of that name.
type guest struct {
	t    *testing.T
	task types.Task
	url  string
	env  map[string]string
	dial func(ctx context.Context, network, addr string) (net.Conn, error) // nil is the host's
}

const guestPort = 8080

// guestDefinition is a task that runs guests, one a container; in host mode they listen
// on the ports.
func guestDefinition(mode types.NetworkMode, ports ...int32) *ecs.RegisterTaskDefinitionInput {
	in := &ecs.RegisterTaskDefinitionInput{Family: aws.String("guest-" + string(mode)), NetworkMode: mode}
	for i, p := range ports {
		inside := int32(guestPort)
		if mode == types.NetworkModeHost {
			inside = p
		}
		in.ContainerDefinitions = append(in.ContainerDefinitions, types.ContainerDefinition{
			Name: aws.String(fmt.Sprintf("guest%d", i)), Image: aws.String("guest"), Memory: aws.Int32(64), Cpu: 10,
			Command:      []string{fmt.Sprintf(":%d", inside)},
			DockerLabels: map[string]string{"com.example.tier": "web"},
			PortMappings: []types.PortMapping{{ContainerPort: &inside, HostPort: &p, Protocol: types.TransportProtocolTcp}},
		})
	}
	return in
}

// guests runs a task and returns its containers in order.
func (l *lab) guests(t *testing.T, mode types.NetworkMode, n int, edit func(*ecs.RegisterTaskDefinitionInput)) []*guest {
	t.Helper()
	var ports []int32
	for range n {
		ports = append(ports, 30000+l.ports.Add(1))
	}
	in := guestDefinition(mode, ports...)
	if edit != nil {
		edit(in)
	}
	d := l.On(t)
	arn := d.Run(d.Register(in), 1)[0]
	t.Cleanup(func() { d.Stop(arn) })
	tk := d.Wait("RUNNING", 30*time.Second, arn)[0]
	var out []*guest
	for _, p := range ports {
		g := &guest{t: t, task: tk, url: fmt.Sprintf("http://127.0.0.1:%d", p), env: map[string]string{}}
		g.wait()
		out = append(out, g)
	}
	return out
}

// wait waits until a guest answers, and learns its environment.
func (g *guest) wait() {
	g.t.Helper()
	var env []string
	system.Until(g.t, time.Minute, "guest answers", func() error { return g.ask("/env", nil, &env) })
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		g.env[k] = v
	}
}

func (g *guest) ask(path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 3 * time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: g.dial}}
	resp, err := client.Post(g.url+path, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, out)
}

type fetch struct {
	Method, URL, Host, Body string
	Header                  map[string]string
	Raw                     string
	Count, Parallel         int
	Patience                int // seconds for one request
	Follow                  bool
}

type answer struct {
	Status   int
	Body     string
	Err      string
	Statuses map[int]int
}

// do makes a request from inside.
func (g *guest) do(f fetch) answer {
	g.t.Helper()
	var a answer
	if err := g.ask("/fetch", f, &a); err != nil {
		g.t.Fatalf("ask the guest: %v", err)
	}
	return a
}

// get gets a document from inside and fails the test if it is not what was asked for.
func (g *guest) get(url string, into any) {
	g.t.Helper()
	a := g.do(fetch{URL: url})
	if a.Status != http.StatusOK {
		g.t.Fatalf("GET %s: %+v", url, a)
	}
	if err := json.Unmarshal([]byte(a.Body), into); err != nil {
		g.t.Fatalf("GET %s: %v: %s", url, err, a.Body)
	}
}

func (g *guest) v4() string { return g.env["ECS_CONTAINER_METADATA_URI_V4"] }

func TestMetadata(t *testing.T) {
	bin := system.Programs(t, system.Containerd2)
	l := &lab{}
	l.System = system.Start(t, system.Options{Containerd: system.Containerd2, Programs: bin, AgentEnv: []string{
		"ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION=10s", "ECS_CONTAINER_STOP_TIMEOUT=2s",
		"ECS_ENABLE_TASK_IAM_ROLE_NETWORK_HOST=true", "ECS_ENABLE_CONTAINER_METADATA=true", "ECS_AWSVPC_BLOCK_IMDS=true",
		`BERTH_HOST_PATHS_ALLOWED=["/usr"]`, // for the programs of the host in a container
	}, ACS: func(c *cacs.Config) {
		c.Faults = &cacs.Faults{Alter: func(m *wire.PayloadMessage) {
			if fn := l.alter.Load(); fn != nil {
				(*fn)(m)
			}
		}}
	}})
	img, err := testimage.Program(t.Context(), "berth.dev/berth/integ/metadata/guest", "/guest", testimage.Config{})
	if err != nil {
		t.Fatal(err)
	}
	l.Load("guest", img)
	l.forward = forward(t, l.Cluster.URL)
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *lab)
	}{
		{"documents", documents},
		{"own port 80", ownPort80},
		{"other tasks", otherTasks},
		{"forged requests", forged},
		{"rate", rate},
		{"host mode", hostMode},
		{"agent restart", agentRestart},
		{"roles", roles},
		{"roles in host mode", hostRole},
		{"boto3", stockSDK},
		{"faults", faults},
		{"S3 spoofed addresses", spoofed},
		{"S5 instance metadata", instanceMetadata},
		{"S7 impersonated agent", impersonated},
		{"S10 secrets in the environment", environmentOnTheHost},
		{"S31 after the end", afterTheEnd},
		{"S32 while no agent runs", whileNoAgentRuns},
		{"S33 foreign credentials", foreignCredentials},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, l) })
	}
}

// forward makes the cluster, which listens on loopback, reachable on an address of the
// host.
func forward(t *testing.T, to string) string {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", host.Address+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() }) //nolint:errcheck // nobody uses it
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target.Host)
			if err != nil {
				in.Close()
				continue
			}
			go func() { io.Copy(out, in); out.Close() }() //nolint:errcheck // the ends tell
			go func() { io.Copy(in, out); in.Close() }()  //nolint:errcheck // the ends tell
		}
	}()
	return "http://" + ln.Addr().String()
}

// documents compares what a task is told with what the cluster knows of it.
func documents(t *testing.T, l *lab) {
	gs := l.guests(t, types.NetworkModeBridge, 2, func(in *ecs.RegisterTaskDefinitionInput) {
		in.Memory, in.Cpu = aws.String("256"), aws.String("256")
	})
	g := gs[0]
	arn := *g.task.TaskArn
	var c tmds.Container
	g.get(g.v4(), &c)
	if c.Name != "guest0" || c.DockerID != *g.task.Containers[0].RuntimeId || c.KnownStatus != "RUNNING" || c.Type != "NORMAL" ||
		c.ContainerARN != *g.task.Containers[0].ContainerArn || c.Labels["com.amazonaws.ecs.task-arn"] != arn || c.Labels["com.example.tier"] != "web" ||
		c.Limits.CPU != 10 || c.Limits.Memory != 64 || c.StartedAt == nil || c.LogDriver != "json-file" {
		t.Errorf("version 4 of the container: %+v", c)
	}
	if len(c.Networks) != 1 || c.Networks[0].NetworkMode != "bridge" || len(c.Networks[0].IPv4Addresses) != 1 || c.Networks[0].IPv4Addresses[0] == "" {
		t.Errorf("networks: %+v", c.Networks)
	}
	if len(c.Ports) != 1 || c.Ports[0].ContainerPort != guestPort || c.Ports[0].HostPort == 0 || c.Ports[0].HostIP != "0.0.0.0" {
		t.Errorf("ports: %+v", c.Ports)
	}
	var tk tmds.Task
	g.get(g.v4()+"/task", &tk)
	if tk.TaskARN != arn || tk.Family != "guest-bridge" || tk.KnownStatus != "RUNNING" || tk.DesiredStatus != "RUNNING" || len(tk.Containers) != 2 ||
		tk.Limits == nil || tk.Limits.CPU != 0.25 || tk.Limits.Memory != 256 || tk.LaunchType != "EXTERNAL" || tk.FaultInjectionEnabled == nil {
		t.Errorf("version 4 of the task: %+v", tk)
	}
	var v3 tmds.Task
	g.get(g.env["ECS_CONTAINER_METADATA_URI"]+"/task", &v3)
	if v3.TaskARN != arn || v3.LaunchType != "" || v3.FaultInjectionEnabled != nil || v3.Containers[0].LogDriver != "" {
		t.Errorf("version 3 of the task: %+v", v3)
	}
	var v2 tmds.Task
	g.get("http://169.254.170.2/v2/metadata", &v2)
	if v2.TaskARN != arn {
		t.Errorf("version 2 of the task: %+v", v2)
	}
	if _, err := l.ECS.TagResource(t.Context(), &ecs.TagResourceInput{ResourceArn: &arn, Tags: []types.Tag{{Key: aws.String("team"), Value: aws.String("blue")}}}); err != nil {
		t.Fatal(err)
	}
	var tagged tmds.Task
	g.get(g.v4()+"/taskWithTags", &tagged)
	if tagged.TaskTags["team"] != "blue" || len(tagged.Errors) > 0 {
		t.Errorf("tags: %v, errors %+v", tagged.TaskTags, tagged.Errors)
	}
	var read answer
	system.Until(t, 5*time.Second, "metadata file", func() error {
		if err := g.ask("/read?path="+url.QueryEscape(g.env["ECS_CONTAINER_METADATA_FILE"]), nil, &read); err != nil {
			return err
		}
		if !strings.Contains(read.Body, `"MetadataFileStatus": "READY"`) || !strings.Contains(read.Body, c.DockerID) {
			return fmt.Errorf("%+v", read)
		}
		return nil
	})
	var st tmds.Stats
	g.get(g.v4()+"/stats", &st)
	if st.ID != c.DockerID || st.CPU.Usage.Total == 0 || st.Memory.Usage == 0 || st.Networks["eth0"].RxBytes == 0 {
		t.Errorf("statistics: %+v", st)
	}
	var all map[string]tmds.Stats
	g.get(g.v4()+"/task/stats", &all)
	if len(all) != 2 || all[c.DockerID].Memory.Usage == 0 {
		t.Errorf("statistics of the task: %+v", all)
	}
	introspection(t, &c, arn)
	for _, tt := range []struct {
		path, body string
		status     int
	}{
		{"/v4/none", `"V4 container metadata handler: unable to get container ID from request: unable to get docker ID from v3 endpoint ID: none"`, 404},
		{"/v4/none/task", `"V4 task metadata handler: unable to get task arn from request: unable to get task Arn from v3 endpoint ID: none"`, 404},
		{"/v3/none", `"V3 container metadata handler: unable to get container ID from request: unable to get docker ID from v3 endpoint ID: none"`, 500},
		{"/v3/none/stats", `"V3 container stats handler: unable to get task arn from request: unable to get task Arn from v3 endpoint ID: none"`, 400},
		{"/v2/metadata/none", `"Unable to generate metadata for container 'none'"`, 400},
		{"/v2/credentials/", `{"code":"NoIdInRequest","message":"CredentialsV2Request: No Credential ID in the request","HTTPErrorCode":400}`, 400},
		{"/v1/credentials?id=none", `{"code":"InvalidIdInRequest","message":"CredentialsV1Request: Credentials not found","HTTPErrorCode":400}`, 400},
		{"/api/none/task-protection/v1/state", `{"error":{"Code":"ResourceNotFoundException","Message":"Failed to find a task for the request"}}`, 404},
		{"/nothing", "404 page not found\n", 404},
	} {
		if a := g.do(fetch{URL: "http://169.254.170.2" + tt.path}); a.Status != tt.status || a.Body != tt.body {
			t.Errorf("%s: %+v", tt.path, a)
		}
	}
	if a := g.do(fetch{URL: g.env["ECS_AGENT_URI"] + "/task-protection/v1/state"}); a.Status != 403 || !strings.Contains(a.Body, "no task IAM role credentials available for task") {
		t.Errorf("task protection without a role: %+v", a)
	}
	if a := g.do(fetch{URL: "http://169.254.170.2//v4//x"}); a.Status != http.StatusMovedPermanently {
		t.Errorf("a path that is not clean: %+v", a)
	}
}

// introspection asks the agent from the host.
func introspection(t *testing.T, c *tmds.Container, arn string) {
	t.Helper()
	for path, want := range map[string]string{
		"/v1/metadata":                          `"ContainerInstanceArn":"arn:aws:ecs:`,
		"/v1/tasks":                             arn,
		"/v1/tasks?taskarn=" + arn:              `{"Arn":"` + arn + `","DesiredStatus":"RUNNING","KnownStatus":"RUNNING","Family":"guest-bridge"`,
		"/v1/tasks?dockerid=" + c.DockerID[:12]: `"DockerName":"` + c.DockerName + `"`,
		"/v1/tasks?taskarn=none":                `{"Arn":"","KnownStatus":""`,
		"/anything":                             `{"AvailableCommands":["/v1/metadata","/v1/tasks","/license"]}`,
	} {
		resp, err := http.Get("http://127.0.0.1:51678" + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: %s, %v", path, b, err)
		}
	}
}

// ownPort80 has a task serve port 80 of all addresses beside its endpoint.
func ownPort80(t *testing.T, l *lab) {
	g := l.guests(t, types.NetworkModeBridge, 1, func(in *ecs.RegisterTaskDefinitionInput) {
		c := &in.ContainerDefinitions[0]
		c.Command = []string{":80"}
		c.PortMappings[0].ContainerPort = aws.Int32(80)
	})[0]
	var tk tmds.Task
	g.get(g.v4()+"/task", &tk)
	if tk.TaskARN != *g.task.TaskArn {
		t.Errorf("%+v", tk)
	}
}

// otherTasks has one task ask for another with everything that it could know.
func otherTasks(t *testing.T, l *lab) {
	a, b := l.guests(t, types.NetworkModeBridge, 1, nil)[0], l.guests(t, types.NetworkModeBridge, 1, nil)[0]
	theirs := strings.TrimPrefix(b.v4(), "http://169.254.170.2")
	if got := a.do(fetch{URL: "http://169.254.170.2" + theirs}); got.Status != 404 || strings.Contains(got.Body, *b.task.TaskArn) {
		t.Errorf("a task asked by the id of another: %+v", got)
	}
	var c tmds.Container
	b.get(b.v4(), &c)
	ip := c.Networks[0].IPv4Addresses[0]
	gateway := ip[:strings.LastIndexByte(ip, '.')] + ".1"
	hostService(t, "169.254.169.254")
	var wg sync.WaitGroup
	for _, to := range []string{ip, gateway, host.Address, "127.0.0.1", "169.254.169.254", "2852039166", "0251.0376.0251.0376", "[::ffff:169.254.169.254]"} {
		for _, port := range []int{80, 51678, 51679} {
			wg.Go(func() {
				got := a.do(fetch{URL: fmt.Sprintf("http://%s:%d%s", to, port, theirs), Host: "169.254.170.2"})
				if got.Status != 0 {
					t.Errorf("%s:%d answers: %+v", to, port, got)
				}
			})
		}
	}
	wg.Wait()
}

// hostService gives the host an address of a metadata service with a server on it.
func hostService(t *testing.T, address string) {
	t.Helper()
	if out, err := exec.Command("ip", "address", "add", address, "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	at := net.JoinHostPort(address, "80")
	// The kernel is ready for an IPv6 address a little later.
	var l net.Listener
	system.Until(t, time.Minute, "the address of the host's own service", func() (err error) {
		l, err = net.Listen("tcp", at)
		return err
	})
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "host") })} //nolint:errcheck // a test sees it
	go s.Serve(l)                                                                                                            //nolint:errcheck // ends with Close
	t.Cleanup(func() {
		s.Close() //nolint:errcheck // nobody uses it
		if out, err := exec.Command("ip", "address", "del", address, "dev", "lo").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	system.Until(t, time.Minute, "the host's own service", func() error {
		resp, err := http.Get("http://" + at)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
}

// forged are requests that somebody has a program of the task make.
func forged(t *testing.T, l *lab) {
	g := l.guests(t, types.NetworkModeBridge, 1, nil)[0]
	path := strings.TrimPrefix(g.v4(), "http://169.254.170.2")
	for name, f := range map[string]fetch{
		"another name":     {URL: g.v4(), Host: "evil.example"},
		"through a proxy":  {URL: g.v4(), Header: map[string]string{"X-Forwarded-For": "10.0.0.1"}},
		"encoded path":     {URL: "http://169.254.170.2/v4/%2e%2e" + path},
		"encoded slash":    {URL: "http://169.254.170.2/v4%2f" + path},
		"another method":   {URL: g.v4(), Method: http.MethodPost, Header: map[string]string{"X-HTTP-Method-Override": "GET"}},
		"delete":           {URL: g.v4(), Method: http.MethodDelete},
		"trace":            {URL: g.v4(), Method: "TRACE"},
		"above everything": {URL: "http://169.254.170.2/v4/../../etc/passwd"},
	} {
		if a := g.do(f); (a.Status < 400 || a.Status > 499) && a.Status != http.StatusMovedPermanently {
			t.Errorf("%s: %+v", name, a)
		}
	}
	const at = "169.254.170.2:80"
	for name, raw := range map[string]string{
		"absolute form": "GET http://169.254.169.254/latest HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n",
		"own absolute":  "GET http://169.254.170.2" + path + " HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n",
		"connect":       "CONNECT 10.0.0.1:80 HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n",
		"8 MiB header":  "GET " + path + " HTTP/1.1\r\nHost: 169.254.170.2\r\nX: " + strings.Repeat("x", 8<<20),
		"h2c preface":   "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"two hosts":     "GET " + path + " HTTP/1.1\r\nHost: 169.254.170.2\r\nHost: b\r\n\r\n",
	} {
		a := g.do(fetch{URL: at, Raw: raw})
		if !strings.HasPrefix(a.Body, "HTTP/1.1 4") && !strings.Contains(a.Err, "reset") {
			t.Errorf("%s: %+v", name, a)
		}
	}
	if a := g.do(fetch{URL: at, Raw: "GET " + path + " HTTP/1.1\r\nHost: 169.254.170.2\r\nX: "}); strings.HasPrefix(a.Body, "HTTP/1.1 2") || strings.Contains(a.Err, "timeout") {
		t.Errorf("a request that never ends: %+v", a)
	}
}

// rate has one task ask without end, and another ask meanwhile. How long the other waits
// is measured by the benchmark of the endpoints (package bench).
func rate(t *testing.T, l *lab) {
	const total, burst, perSecond = 10_000, 60, 40 // agent protocol, "Server"
	a, b := l.guests(t, types.NetworkModeBridge, 1, nil)[0], l.guests(t, types.NetworkModeBridge, 1, nil)[0]
	type outcome struct {
		answer
		took time.Duration
	}
	done := make(chan outcome, 1)
	begin := time.Now()
	go func() {
		var all answer
		if err := a.ask("/fetch", fetch{URL: a.v4() + "/task", Count: total, Parallel: 256, Patience: 120}, &all); err != nil {
			all.Err = err.Error()
		}
		done <- outcome{all, time.Since(begin)}
	}()
	asked := 0
	var all outcome
	for busy := true; busy; asked++ {
		// Not so often that it comes to its own limit.
		next := time.After(30 * time.Millisecond)
		var tk tmds.Task
		b.get(b.v4()+"/task", &tk)
		if tk.TaskARN != *b.task.TaskArn {
			t.Errorf("the other task is told of %s", tk.TaskARN)
		}
		select {
		case all = <-done:
			busy = false
		case <-next:
		}
	}
	t.Logf("one task asked %d times in %v: %v; the other %d times meanwhile", total, all.took, all.Statuses, asked)
	if all.Err != "" || all.Statuses[200]+all.Statuses[429] != total || all.Statuses[200] < burst {
		t.Errorf("the task that asked without end: %+v", all.answer)
	}
	if most := burst + int(perSecond*all.took.Seconds()) + 1; all.Statuses[200] > most {
		t.Errorf("%d of its requests were served in %v, and at most %d may be", all.Statuses[200], all.took, most)
	}
}

// hostMode asks from tasks in the host's network.
func hostMode(t *testing.T, l *lab) {
	a, b := l.guests(t, types.NetworkModeHost, 1, nil)[0], l.guests(t, types.NetworkModeHost, 1, nil)[0]
	var tk tmds.Task
	a.get(a.v4()+"/task", &tk)
	if tk.TaskARN != *a.task.TaskArn {
		t.Errorf("%+v", tk)
	}
	base := a.v4()[:strings.Index(a.v4(), "/v4/")]
	for _, path := range []string{"/v2/metadata", "/v2/stats", "/v4/guess", "/v2/credentials/guess"} {
		if got := b.do(fetch{URL: base + path}); got.Status < 400 || strings.Contains(got.Body, *a.task.TaskArn) {
			t.Errorf("%s: %+v", path, got)
		}
	}
}

// agentRestart restarts the agent under a task that asks all the time.
func agentRestart(t *testing.T, l *lab) {
	g := l.guests(t, types.NetworkModeBridge, 1, nil)[0]
	var before, after tmds.Container
	g.get(g.v4(), &before)
	l.Agent.Kill()
	l.StartAgent()
	killed := time.Now()
	system.Until(t, 5*time.Second, "the endpoint answers again", func() error {
		if a := g.do(fetch{URL: g.v4()}); a.Status != http.StatusOK {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
	t.Logf("the endpoint answered %v after the start of a new agent", time.Since(killed))
	l.WaitConnected(10 * time.Second)
	g.get(g.v4(), &after)
	if before.DockerID != after.DockerID {
		t.Errorf("before %+v, after %+v", before, after)
	}
}
