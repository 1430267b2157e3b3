package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"berth.dev/berth/eni"
	"berth.dev/berth/eni/enitest"
)

// asPlugin makes the test program the plugin, so that it is executed as a runtime would.
const asPlugin = "BERTH_TEST_AS_PLUGIN"

func TestMain(m *testing.M) {
	if os.Getenv(asPlugin) != "" {
		os.Args = os.Args[:1]
		os.Exit(run())
	}
	os.Exit(enitest.Main(m))
}

// network is one network, and executes the plugin for it.
type network struct {
	t    testing.TB
	dir  string // dataDir
	conf map[string]any
}

func newPlugin(t testing.TB) *network {
	t.Helper()
	enitest.Root(t)
	p := &network{t: t, dir: filepath.Join(t.TempDir(), "data")}
	p.conf = map[string]any{"cniVersion": "1.1.0", "name": "net", "type": "ecs-bridge", "dataDir": p.dir}
	t.Cleanup(func() { // the plugin has no verb for what all attachments share
		if br, err := netlink.LinkByName("berth0"); err == nil {
			if err := netlink.LinkDel(br); err != nil {
				t.Error(err)
			}
		}
	})
	return p
}

// with is the same network with one more member in its configuration.
func (p *network) with(key string, value any) *network {
	c := map[string]any{key: value}
	for k, v := range p.conf {
		if k != key {
			c[k] = v
		}
	}
	return &network{t: p.t, dir: p.dir, conf: c}
}

func (p *network) command(verb, id, netns, ifname string) *exec.Cmd {
	conf, err := json.Marshal(p.conf)
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	// The race detector would wait a second at each exit.
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"), asPlugin+"=1", "CNI_COMMAND="+verb, "CNI_CONTAINERID="+id, "CNI_NETNS="+netns, "CNI_IFNAME="+ifname, "CNI_PATH=/nowhere")
	cmd.Stdin = bytes.NewReader(conf)
	return cmd
}

func outcome(cmd *exec.Cmd) (map[string]any, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		e := &types.Error{}
		if jsonErr := json.Unmarshal(out, e); jsonErr != nil || e.Msg == "" {
			return nil, fmt.Errorf("not a CNI error object: %q %q: %w", out, &stderr, err)
		}
		return nil, e
	}
	var v map[string]any
	if len(out) > 0 {
		if err := json.Unmarshal(out, &v); err != nil {
			return nil, fmt.Errorf("output %q: %w", out, err)
		}
	}
	return v, nil
}

func (p *network) exec(verb, id, netns string) (map[string]any, error) {
	return outcome(p.command(verb, id, netns, "eth0"))
}

func (p *network) must(verb, id, netns string) map[string]any {
	p.t.Helper()
	v, err := p.exec(verb, id, netns)
	if err != nil {
		p.t.Fatalf("%s %s: %v", verb, id, err)
	}
	return v
}

func (p *network) snapshot() []string {
	return slices.DeleteFunc(enitest.Snapshot(p.t, p.dir), func(s string) bool { return strings.Contains(s, ".lock") })
}

func code(err error) uint {
	if e, ok := errors.AsType[*types.Error](err); ok {
		return e.Code
	}
	return 0
}

func portMappings(port int) map[string]any {
	return map[string]any{"portMappings": []map[string]any{{"hostPort": port, "containerPort": 80, "protocol": "tcp"}}}
}

func TestResultInEveryVersion(t *testing.T) {
	p := newPlugin(t)
	for _, v := range []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(v, func(t *testing.T) {
			p := p.with("cniVersion", v)
			ns := enitest.Namespace(t)
			r := p.must("ADD", "c-"+v, ns)
			if r["cniVersion"] != v {
				t.Errorf("result of version %v", r["cniVersion"])
			}
			interfaces, ips := r["interfaces"].([]any), r["ips"].([]any)
			if len(interfaces) != 3 || len(ips) != 1 {
				t.Fatalf("result %v", r)
			}
			inside := interfaces[2].(map[string]any)
			if inside["name"] != "eth0" || inside["sandbox"] != ns || inside["mac"] == "" || ips[0].(map[string]any)["interface"] != 2.0 {
				t.Errorf("result %v", r)
			}
			if v >= "0.4.0" {
				p.with("prevResult", r).must("CHECK", "c-"+v, ns)
			} else if _, err := p.with("prevResult", r).exec("CHECK", "c-"+v, ns); code(err) != types.ErrIncompatibleCNIVersion {
				t.Errorf("CHECK in a version without it: %v", err)
			}
			p.with("prevResult", r).must("DEL", "c-"+v, ns)
		})
	}
	if _, err := p.with("cniVersion", "0.2.0").exec("ADD", "c", enitest.Namespace(t)); code(err) != types.ErrIncompatibleCNIVersion {
		t.Errorf("ADD of version 0.2.0: %v", err)
	}
	v, err := outcome(p.command("VERSION", "", "", ""))
	if err != nil || len(v["supportedVersions"].([]any)) != 5 {
		t.Errorf("VERSION: %v %v", v, err)
	}
}

func TestSecondAddIsRefusedAndHarmless(t *testing.T) {
	p := newPlugin(t)
	ns := enitest.Namespace(t)
	p.must("ADD", "c", ns)
	before := p.snapshot()
	if _, err := p.exec("ADD", "c", ns); code(err) != 100 {
		t.Errorf("second ADD: %v", err)
	}
	if diff := cmp.Diff(before, p.snapshot()); diff != "" {
		t.Errorf("second ADD changed something:\n%s", diff)
	}
	p.must("DEL", "c", ns)
}

func TestDelAlwaysSucceedsAndLeavesNothing(t *testing.T) {
	p := newPlugin(t).with("runtimeConfig", portMappings(8080))
	warm := enitest.Namespace(t)
	p.must("ADD", "warm", warm)
	p.must("DEL", "warm", warm)
	before := p.snapshot()
	long := strings.Repeat("a", 255)
	for name, del := range map[string]func(t *testing.T, ns string){
		"twice": func(t *testing.T, ns string) {
			p.must("ADD", "c", ns)
			p.must("DEL", "c", ns)
			p.must("DEL", "c", ns)
		},
		"without an ADD": func(t *testing.T, ns string) { p.must("DEL", "never", ns) },
		"without a namespace": func(t *testing.T, ns string) {
			p.must("ADD", "c", ns)
			p.must("DEL", "c", "")
		},
		"after the namespace": func(t *testing.T, ns string) {
			p.must("ADD", "c", ns)
			if err := eni.RemoveNamespace(ns); err != nil {
				t.Fatal(err)
			}
			p.must("DEL", "c", ns)
		},
		"after a failed ADD": func(t *testing.T, ns string) {
			if _, err := p.exec("ADD", "c", ns+"-missing"); err == nil {
				t.Error("ADD without a namespace succeeded")
			}
			p.must("DEL", "c", ns+"-missing")
		},
		"after the interface": func(t *testing.T, ns string) {
			p.must("ADD", "c", ns)
			if err := enitest.In(ns, func() error {
				l, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				return netlink.LinkDel(l)
			}); err != nil {
				t.Fatal(err)
			}
			p.must("DEL", "c", ns)
		},
		"longest names": func(t *testing.T, ns string) {
			for _, verb := range []string{"ADD", "DEL"} {
				if _, err := outcome(p.command(verb, long, ns, "abcdefghijklmno")); err != nil {
					t.Error(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ns := enitest.Namespace(t)
			del(t, ns)
			if err := eni.RemoveNamespace(ns); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, p.snapshot()); diff != "" {
				t.Errorf("left behind:\n%s", diff)
			}
		})
	}
}

func TestCheckNeedsWhatAddMade(t *testing.T) {
	p := newPlugin(t)
	ns := enitest.Namespace(t)
	r := p.must("ADD", "c", ns)
	if _, err := p.exec("CHECK", "c", ns); code(err) != types.ErrInvalidNetworkConfig {
		t.Errorf("CHECK without prevResult: %v", err)
	}
	p = p.with("prevResult", r)
	p.must("CHECK", "c", ns)
	if _, err := p.exec("CHECK", "other", ns); code(err) != 102 {
		t.Errorf("CHECK of another container: %v", err)
	}
	p.must("DEL", "c", ns)
	if _, err := p.exec("CHECK", "c", ns); code(err) != 102 {
		t.Errorf("CHECK after DEL: %v", err)
	}
}

func TestPreviousResultIsPassedThrough(t *testing.T) {
	prev := map[string]any{"cniVersion": "1.1.0",
		"interfaces": []any{map[string]any{"name": "lo0", "sandbox": "/x"}},
		"ips":        []any{map[string]any{"address": "192.0.2.9/24", "interface": 0}},
		"dns":        map[string]any{"nameservers": []any{"192.0.2.53"}}}
	p := newPlugin(t).with("prevResult", prev)
	ns := enitest.Namespace(t)
	r := p.must("ADD", "c", ns)
	interfaces, ips := r["interfaces"].([]any), r["ips"].([]any)
	if len(interfaces) != 4 || len(ips) != 2 || interfaces[0].(map[string]any)["name"] != "lo0" || ips[1].(map[string]any)["interface"] != 3.0 || r["dns"] == nil {
		t.Errorf("result %v", r)
	}
	p.must("DEL", "c", ns)
}

func TestGCRemovesWhatIsNotListed(t *testing.T) {
	p := newPlugin(t)
	kept, gone := enitest.Namespace(t), enitest.Namespace(t)
	p.must("ADD", "kept", kept)
	before := p.snapshot()
	p.with("runtimeConfig", portMappings(8080)).must("ADD", "gone", gone)
	for _, name := range []string{"10.213.79.7", ".claim-1"} { // what a power cut may leave
		if err := os.WriteFile(filepath.Join(p.dir, "net", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	valid := []any{map[string]any{"containerID": "kept", "ifname": "eth0"}}
	p.with("cni.dev/valid-attachments", valid).must("GC", "", "")
	if diff := cmp.Diff(without(before), without(p.snapshot())); diff != "" {
		t.Errorf("GC left or took something:\n%s", diff)
	}
	p.must("DEL", "kept", kept)
}

// without leaves out the mounts of namespaces, which belong to the test.
func without(s []string) []string {
	return slices.DeleteFunc(s, func(x string) bool { return strings.HasPrefix(x, "mount ") })
}

func TestStatusFailsWhenAddWould(t *testing.T) {
	p := newPlugin(t)
	p.must("STATUS", "", "")
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "notbridge"}, PeerName: "peer"}
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = netlink.LinkDel(l) }()
	if _, err := p.with("bridge", "notbridge").exec("STATUS", "", ""); code(err) != types.ErrPluginNotAvailable {
		t.Errorf("STATUS with a bridge that is none: %v", err)
	}
	if _, err := p.with("subnet", "300.0.0.0/8").exec("STATUS", "", ""); code(err) != types.ErrInvalidNetworkConfig {
		t.Errorf("STATUS with a bad subnet: %v", err)
	}
}

func TestGarbageGivesAnErrorObject(t *testing.T) {
	p := newPlugin(t)
	ns := enitest.Namespace(t)
	for _, in := range []string{"", "{", "null", "[]", `"x"`, "\x00\xff", `{"cniVersion":"1.1.0"}`, `{"cniVersion":7,"name":"n"}`, strings.Repeat("[", 20000),
		`{"cniVersion":"1.1.0","name":"../../x"}`, `{"cniVersion":"1.1.0","name":"n","prevResult":7}`, `{"cniVersion":"1.1.0","name":"n","runtimeConfig":{"portMappings":[{"hostPort":70000,"containerPort":1}]}}`} {
		for _, verb := range []string{"ADD", "DEL", "CHECK", "GC", "STATUS", "NONSENSE"} {
			cmd := p.command(verb, "c", ns, "eth0")
			cmd.Stdin = strings.NewReader(in)
			if _, err := outcome(cmd); code(err) == 0 {
				t.Errorf("%s of %.30q: %v", verb, in, err)
			}
		}
	}
}

func TestFiftyProcessesAtOnce(t *testing.T) {
	p := newPlugin(t)
	const n = 50
	addrs := make([]string, n)
	spaces := make([]string, n)
	for i := range spaces {
		spaces[i] = enitest.Namespace(t)
	}
	var g errgroup.Group
	g.SetLimit(16)
	for i := range n {
		g.Go(func() error {
			r, err := p.exec("ADD", fmt.Sprintf("c%d", i), spaces[i])
			if err == nil {
				addrs[i] = r["ips"].([]any)[0].(map[string]any)["address"].(string)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(addrs)
	if got := len(slices.Compact(addrs)); got != n {
		t.Errorf("%d different addresses for %d containers", got, n)
	}
	for i := range n {
		g.Go(func() error { _, err := p.exec("DEL", fmt.Sprintf("c%d", i), spaces[i]); return err })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// A plugin killed at any moment leaves only what DEL finds.
func TestKilledAddThenDelLeavesNothing(t *testing.T) {
	p := newPlugin(t).with("runtimeConfig", portMappings(8080))
	ns := enitest.Namespace(t)
	p.must("ADD", "warm", ns)
	p.must("DEL", "warm", ns)
	before := p.snapshot()
	start := time.Now()
	p.must("ADD", "c", ns)
	whole := time.Since(start)
	p.must("DEL", "c", ns)
	killed := 0
	const points = 20
	for i := range points {
		cmd := p.command("ADD", "c", ns, "eth0")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(whole*time.Duration(i)/points, func() { _ = cmd.Process.Kill() })
		if err := cmd.Wait(); err != nil {
			killed++
		}
		timer.Stop()
		p.must("DEL", "c", ns)
		p.with("cni.dev/valid-attachments", []any{}).must("GC", "", "") // unfinished claims
		if diff := cmp.Diff(before, p.snapshot()); diff != "" {
			t.Fatalf("killed after %v of %v: left behind:\n%s", whole*time.Duration(i)/points, whole, diff)
		}
	}
	if killed == 0 {
		t.Error("no ADD was killed")
	}
	p.must("ADD", "c", ns)
	p.must("DEL", "c", ns)
}

func TestPortOfAnotherProcessIsNamed(t *testing.T) {
	p := newPlugin(t)
	enitest.Listen(t, "", "0.0.0.0:8080")
	_, err := p.with("runtimeConfig", portMappings(8080)).exec("ADD", "c", enitest.Namespace(t))
	if code(err) != 101 || !strings.Contains(err.Error(), "8080/tcp") {
		t.Errorf("%v", err)
	}
}
