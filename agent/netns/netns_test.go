package netns

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/cni-plugins/ecs-bridge/bridge"
	"berth.dev/berth/eni"
	"berth.dev/berth/eni/enitest"
)

var (
	_ engine.Resource = (*Network)(nil)
	_ engine.Sweeper  = (*Network)(nil)
)

func TestMain(m *testing.M) { os.Exit(enitest.Main(m)) }

func open(t testing.TB, change ...func(*Config)) *Network {
	t.Helper()
	enitest.Root(t)
	dir := t.TempDir()
	resolv := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 127.0.0.53\nnameserver 192.0.2.53\nsearch example.net\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Dir: filepath.Join(dir, "net"), Resolv: resolv, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, f := range change {
		f(&cfg)
	}
	before := enitest.Snapshot(t, cfg.Dir)
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := n.TeardownHost(context.Background()); err != nil {
				t.Error(err)
			}
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if err := os.Remove(cfg.Dir); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(before, enitest.Snapshot(t, cfg.Dir)); diff != "" {
			t.Errorf("teardown left something (-before +after):\n%s", diff)
		}
	})
	for range 2 {
		if err := n.EnsureHost(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

func someTask(i int, mode string, containers ...task.Container) *task.Task {
	return &task.Task{ARN: fmt.Sprintf("arn:aws:ecs:us-east-1:000000000000:task/default/%032x", i), NetworkMode: mode, Containers: containers}
}

func web(ports ...task.Port) task.Container { return task.Container{Name: "web", Ports: ports} }

// ensure makes the network of a task's first container, or the one of a host mode task.
func ensure(t testing.TB, n *Network, tk *task.Task) (Handle, task.Result) {
	t.Helper()
	return ensureOf(t, n, tk, "web")
}

func ensureOf(t testing.TB, n *Network, tk *task.Task, name string) (Handle, task.Result) {
	t.Helper()
	res, err := n.Ensure(t.Context(), tk, name, engine.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	var h Handle
	if err := json.Unmarshal(res.Handle, &h); err != nil {
		t.Fatal(err)
	}
	return h, res
}

func remove(t testing.TB, n *Network, tk *task.Task) {
	t.Helper()
	removeOf(t, n, tk, "web")
}

func removeOf(t testing.TB, n *Network, tk *task.Task, name string) {
	t.Helper()
	for range 2 {
		if err := n.Remove(context.Background(), tk, name, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func exists(t testing.TB, n *Network, tk *task.Task) bool {
	t.Helper()
	o, err := n.Probe(t.Context(), tk, "web", nil)
	if err != nil {
		t.Fatal(err)
	}
	return o.Exists
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestBridgeMode(t *testing.T) {
	n := open(t)
	before := enitest.Snapshot(t, n.cfg.Dir)
	tk := someTask(1, task.NetworkBridge,
		web(task.Port{ContainerPort: 80, HostPort: 8080, Protocol: "tcp"}, task.Port{ContainerRange: "7000-7002", Protocol: "udp"}),
		task.Container{Name: "side", Links: []string{"web:www"}, Config: task.Config{Hostname: "sidecar"},
			HostConfig: task.HostConfig{ExtraHosts: []string{"db:192.0.2.7"}, DNS: []string{"192.0.2.54"}}})
	if exists(t, n, tk) {
		t.Error("probe sees a network before ensure")
	}
	remove(t, n, tk) // before Ensure ever ran
	h, res := ensure(t, n, tk)
	if !exists(t, n, tk) {
		t.Error("probe does not see the network")
	}
	again, resAgain := ensure(t, n, tk)
	if diff := cmp.Diff(h, again) + cmp.Diff(res, resAgain); diff != "" {
		t.Errorf("ensure again gives another network:\n%s", diff)
	}
	if got := res.Bindings["web"][0]; got != (task.Binding{BindIP: "0.0.0.0", ContainerPort: 80, HostPort: 8080, Protocol: "tcp"}) {
		t.Errorf("binding %+v", got)
	}
	if got := res.Bindings["web"][1]; got.ContainerRange != "7000-7002" || len(got.HostRange) < 3 || got.HostPort != 0 {
		t.Errorf("range binding %+v", got)
	}
	enitest.Echo(t, h.Path, ":80")
	if _, err := enitest.Dial("", "127.0.0.1:8080", 3*time.Second); err != nil {
		t.Error(err)
	}
	name := tk.ID()[:12]
	if h.Hostname != name || read(t, h.HostnameFile) != name+"\n" {
		t.Errorf("hostname %q", h.Hostname)
	}
	if got, want := read(t, h.Hosts), localHosts+h.IP+"\t"+name+"\n"; got != want {
		t.Errorf("hosts %q, want %q", got, want)
	}
	if got := read(t, h.Resolv); got != "nameserver 192.0.2.53\nsearch example.net\n" {
		t.Errorf("resolv.conf %q", got)
	}
	side, sideRes := ensureOf(t, n, tk, "side")
	if side.Path == h.Path || side.IP == h.IP || len(sideRes.Bindings) != 0 || side.Hostname != "sidecar" {
		t.Errorf("side has %+v and bindings %v", side, sideRes.Bindings)
	}
	if got, want := read(t, side.Hosts), localHosts+side.IP+"\tsidecar\n192.0.2.7\tdb\n"+h.IP+"\twww web\n"; got != want {
		t.Errorf("hosts of side %q, want %q", got, want)
	}
	if got := read(t, side.Resolv); got != "search example.net\nnameserver 192.0.2.54\n" {
		t.Errorf("resolv.conf of side %q", got)
	}
	if got := read(t, side.HostnameFile); got != "sidecar\n" {
		t.Errorf("hostname of side %q", got)
	}
	removeOf(t, n, tk, "side")
	if !exists(t, n, tk) {
		t.Error("the network of web went with that of side")
	}
	remove(t, n, tk)
	if exists(t, n, tk) {
		t.Error("probe sees a network after remove")
	}
	if err := os.Remove(filepath.Join(n.cfg.Dir, "files")); err != nil {
		t.Error(err) // the empty directory stays for the next task
	}
	if diff := cmp.Diff(before, enitest.Snapshot(t, n.cfg.Dir)); diff != "" {
		t.Errorf("remove left something:\n%s", diff)
	}
}

// Two containers of a task serve the same port, each behind a host port of its own, and
// reach each other directly, which no other task does.
func TestContainersOfATaskHaveTheirOwnPorts(t *testing.T) {
	n := open(t)
	two := func(i int, first uint16) *task.Task {
		other := web(task.Port{ContainerPort: 80, HostPort: first + 1, Protocol: "tcp"})
		other.Name, other.Links = "other", []string{"web:www"}
		return someTask(i, task.NetworkBridge, web(task.Port{ContainerPort: 80, HostPort: first, Protocol: "tcp"}), other)
	}
	tk, stranger := two(1, 8080), two(2, 8090)
	if _, err := n.Ensure(t.Context(), tk, "other", engine.Deps{}); task.ClassOf(err) != task.Unavailable {
		t.Errorf("before what it links to: %v, want unavailable", err)
	}
	var ends []Handle
	for _, e := range []struct {
		task *task.Task
		name string
		port uint16
	}{{tk, "web", 8080}, {tk, "other", 8081}, {stranger, "web", 8090}} {
		h, res := ensureOf(t, n, e.task, e.name)
		want := map[string][]task.Binding{e.name: {{BindIP: "0.0.0.0", ContainerPort: 80, HostPort: e.port, Protocol: "tcp"}}}
		if diff := cmp.Diff(want, res.Bindings); diff != "" {
			t.Errorf("bindings of %s (-want +got):\n%s", e.name, diff)
		}
		enitest.Echo(t, h.Path, ":80")
		if _, err := enitest.Dial("", fmt.Sprintf("127.0.0.1:%d", e.port), 3*time.Second); err != nil {
			t.Error(err)
		}
		ends = append(ends, h)
	}
	for i, from := range ends {
		for j, to := range ends {
			if i == j {
				continue
			}
			_, err := enitest.Dial(from.Path, to.IP+":80", 3*time.Second)
			if want := i < 2 && j < 2; want != (err == nil) {
				t.Errorf("%d to %d directly: %v, want reachable %t", i, j, err, want)
			}
		}
	}
	owned, err := n.Owned(t.Context())
	if err != nil || len(owned) != 3 || owned[0].TaskID != tk.ID() || owned[1].TaskID != tk.ID() || owned[2].TaskID != stranger.ID() {
		t.Fatalf("owned %+v, %v", owned, err)
	}
	for _, o := range owned[:2] {
		for range 2 {
			if err := n.Sweep(t.Context(), o); err != nil {
				t.Error(err)
			}
		}
	}
	if owned, err = n.Owned(t.Context()); err != nil || len(owned) != 1 || !exists(t, n, stranger) {
		t.Errorf("after the sweep %+v, %v", owned, err)
	}
}

func TestSweepTakesOnlyNamesOfTheTask(t *testing.T) {
	n := open(t)
	for _, key := range []string{"../x", ".", "other", "other.0123"} {
		data, err := json.Marshal(found{Key: key})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Sweep(t.Context(), task.Owned{TaskID: "mine", Handle: data}); task.ClassOf(err) != task.Invalid {
			t.Errorf("%q: %v, want invalid", key, err)
		}
	}
}

func TestHostAndNoneMode(t *testing.T) {
	n := open(t)
	host := someTask(1, task.NetworkHost, web(task.Port{ContainerPort: 80, HostPort: 80, Protocol: "tcp"}))
	h, res := ensure(t, n, host)
	if h.Path != "" || !strings.Contains(read(t, h.Resolv), "127.0.0.53") || res.Bindings["web"][0].HostPort != 80 {
		t.Errorf("host mode: %+v %+v", h, res.Bindings)
	}
	none := someTask(2, task.NetworkNone, web())
	h, _ = ensure(t, n, none)
	if err := enitest.In(h.Path, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		if len(links) != 1 || links[0].Attrs().Flags&net.FlagUp == 0 {
			return fmt.Errorf("links %v", links)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	for _, tk := range []*task.Task{host, none} {
		if !exists(t, n, tk) {
			t.Error("probe does not see the network")
		}
		remove(t, n, tk)
		if exists(t, n, tk) {
			t.Error("probe sees a network after remove")
		}
	}
	if _, err := n.Ensure(t.Context(), someTask(3, task.NetworkAWSVPC), "task", engine.Deps{}); task.ClassOf(err) != task.Invalid {
		t.Errorf("awsvpc: %v", err)
	}
}

func TestErrorsHaveClassAndName(t *testing.T) {
	n := open(t)
	taken := enitest.Listen(t, "", "127.0.0.1:0").Addr().(*net.TCPAddr).Port
	ensure(t, n, someTask(1, task.NetworkBridge, web(task.Port{ContainerPort: 80, HostPort: 8080, Protocol: "tcp"})))
	for name, c := range map[string]struct {
		port  task.Port
		class task.Class
	}{
		"another process": {task.Port{ContainerPort: 80, HostPort: uint16(taken), Protocol: "tcp"}, task.Invalid},
		"another task":    {task.Port{ContainerPort: 80, HostPort: 8080, Protocol: "tcp"}, task.Exhausted},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := n.Ensure(t.Context(), someTask(2, task.NetworkBridge, web(c.port)), "web", engine.Deps{})
			r := task.ReasonOf(err, "")
			if task.ClassOf(err) != c.class || r.Code != task.ContainerNetworking || !strings.Contains(r.Detail, "a host port is unavailable") {
				t.Errorf("class %q reason %v", task.ClassOf(err), r)
			}
			if owned, err := n.Owned(t.Context()); err != nil || len(owned) != 1 {
				t.Errorf("a failed ensure left something: %v %v", owned, err)
			}
		})
	}
}

func TestProbeRepairsOrReportsDamage(t *testing.T) {
	for _, c := range []struct {
		name   string
		exists bool
		damage func(*Network, Handle) error
	}{
		{"bridge deleted", true, func(n *Network, _ Handle) error {
			l, err := netlink.LinkByName(n.host.Config().Bridge)
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		}},
		{"namespace file deleted", false, func(_ *Network, h Handle) error { return eni.RemoveNamespace(h.Path) }},
		{"interface deleted", false, func(_ *Network, h Handle) error {
			return enitest.In(h.Path, func() error {
				l, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				return netlink.LinkDel(l)
			})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := open(t)
			tk := someTask(1, task.NetworkBridge, web(task.Port{ContainerPort: 80, HostPort: 8080, Protocol: "tcp"}))
			h, _ := ensure(t, n, tk)
			if err := c.damage(n, h); err != nil {
				t.Fatal(err)
			}
			if exists(t, n, tk) != c.exists {
				t.Errorf("exists %t, want %t", !c.exists, c.exists)
			}
			h, _ = ensure(t, n, tk)
			enitest.Echo(t, h.Path, ":80")
			if _, err := enitest.Dial("", "127.0.0.1:8080", 3*time.Second); err != nil {
				t.Errorf("after ensure: %v", err)
			}
		})
	}
}

func TestRestartFindsAndSweeps(t *testing.T) {
	n := open(t)
	kept, lost := someTask(1, task.NetworkBridge, web(task.Port{ContainerPort: 80, Protocol: "tcp"})), someTask(2, task.NetworkBridge, web())
	h, res := ensure(t, n, kept)
	ensure(t, n, lost)
	stale := filepath.Join(n.namespaces(), fmt.Sprintf("%032x.01234567", 3)) // a file without a mount
	if err := os.WriteFile(stale, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	br, err := netlink.LinkByName(n.host.Config().Bridge)
	if err != nil {
		t.Fatal(err)
	}
	foreign := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "stray0", MasterIndex: br.Attrs().Index}, PeerName: "stray1"}
	if err := netlink.LinkAdd(foreign); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	// The next agent.
	if n.host, err = bridge.Open(n.host.Config()); err != nil {
		t.Fatal(err)
	}
	if err := n.EnsureHost(t.Context()); err != nil {
		t.Fatal(err)
	}
	again, resAgain := ensure(t, n, kept)
	if diff := cmp.Diff(h, again) + cmp.Diff(res, resAgain); diff != "" {
		t.Errorf("a restart changed the network:\n%s", diff)
	}
	owned, err := n.Owned(t.Context())
	if err != nil || len(owned) != 4 {
		t.Fatalf("owned %+v, %v", owned, err)
	}
	for _, o := range owned {
		if o.TaskID == kept.ID() {
			continue
		}
		for range 2 {
			if err := n.Sweep(t.Context(), o); err != nil {
				t.Error(err)
			}
		}
	}
	if owned, err = n.Owned(t.Context()); err != nil || len(owned) != 1 || owned[0].TaskID != kept.ID() {
		t.Errorf("after the sweep %+v, %v", owned, err)
	}
	if !exists(t, n, kept) || exists(t, n, lost) {
		t.Error("the sweep took the wrong one")
	}
}

func TestFiftyTasksAtOnce(t *testing.T) {
	n := open(t)
	var g errgroup.Group
	for i := range 50 {
		g.Go(func() error {
			_, err := n.Ensure(t.Context(), someTask(i, task.NetworkBridge, web(task.Port{ContainerPort: 80, Protocol: "tcp"})), "web", engine.Deps{})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for i := range 50 {
		g.Go(func() error { return n.Remove(context.Background(), someTask(i, task.NetworkBridge), "web", nil) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("50 removed in %v", time.Since(start))
}

// The same network, made by the plugin that anybody's runtime can execute.
func TestPluginLeavesTheSameAsTheCallInProcess(t *testing.T) {
	n := open(t)
	plugin := filepath.Join(t.TempDir(), "ecs-bridge")
	if out, err := exec.Command("go", "build", "-o", plugin, "berth.dev/berth/cni-plugins/ecs-bridge").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	tk := someTask(1, task.NetworkBridge, web(task.Port{ContainerPort: 80, HostPort: 8080, Protocol: "tcp"}))
	h, _ := ensure(t, n, tk)
	bridgeDir := filepath.Join(n.cfg.Dir, "bridge")
	inProcess := enitest.Snapshot(t, bridgeDir)
	conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"bridge","type":"ecs-bridge","dataDir":%q,"runtimeConfig":{"group":%q,"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}}`, n.cfg.Dir, tk.ID())
	run := func(command string) {
		t.Helper()
		cmd := exec.Command(plugin)
		cmd.Env = []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + keyOf(tk, "web"), "CNI_NETNS=" + h.Path, "CNI_IFNAME=eth0", "CNI_PATH=" + filepath.Dir(plugin)}
		cmd.Stdin = strings.NewReader(conf)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, &out)
		}
	}
	run("DEL")
	if err := n.host.Close(); err != nil { // gives up the port
		t.Fatal(err)
	}
	host, err := bridge.Open(n.host.Config())
	if err != nil {
		t.Fatal(err)
	}
	n.host = host
	run("ADD")
	if diff := cmp.Diff(inProcess, enitest.Snapshot(t, bridgeDir)); diff != "" {
		t.Errorf("the plugin made something else (-in process +plugin):\n%s", diff)
	}
	if err := n.EnsureHost(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !exists(t, n, tk) {
		t.Error("the agent does not take over what the plugin made")
	}
}

func BenchmarkEnsureRemove(b *testing.B) {
	n := open(b)
	var up, down time.Duration
	for i := 0; b.Loop(); i++ {
		tk := someTask(i, task.NetworkBridge, web(task.Port{ContainerPort: 80, Protocol: "tcp"}))
		t0 := time.Now()
		ensure(b, n, tk)
		t1 := time.Now()
		if err := n.Remove(context.Background(), tk, "web", nil); err != nil {
			b.Fatal(err)
		}
		up, down = up+t1.Sub(t0), down+time.Since(t1)
	}
	b.ReportMetric(float64(up.Microseconds())/float64(b.N)/1000, "ms/ensure")
	b.ReportMetric(float64(down.Microseconds())/float64(b.N)/1000, "ms/remove")
}
