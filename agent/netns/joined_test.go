package netns

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/eni/enitest"
)

// withNetworks configures the networks lan and ports of Debian's plugins, and one whose
// plugin fails.
func withNetworks(t *testing.T) (*Network, string) {
	t.Helper()
	if _, err := os.Stat("/usr/lib/cni/ptp"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("needs Debian's containernetworking-plugins")
	}
	dir := t.TempDir()
	n := open(t, func(c *Config) { c.CNIConfigDir = dir })
	data := filepath.Join(t.TempDir(), "addresses")
	ptp := func(subnet string) string {
		return fmt.Sprintf(`{"type":"ptp","dns":{"nameservers":["192.0.2.99"]},"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":%q}]]}}`, data, subnet)
	}
	for name, plugins := range map[string]string{
		"lan":    ptp("10.92.1.0/24"),
		"second": ptp("10.92.2.0/24"),
		"broken": ptp("10.92.3.0/24") + `,{"type":"missing"}`,
	} {
		text := fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[%s]}`, name, plugins)
		if err := os.WriteFile(filepath.Join(dir, name+".conflist"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	forwarding := func() string { return read(t, "/proc/sys/net/ipv4/ip_forward") }
	was := forwarding()
	t.Cleanup(func() { // ptp turns it on for good
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte(was), 0o644); err != nil {
			t.Error(err)
		}
	})
	return n, data
}

// addresses are those that host-local has given out.
func addresses(t *testing.T, data string) []string {
	t.Helper()
	var out []string
	if err := filepath.WalkDir(data, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasPrefix(d.Name(), "10.") {
			out = append(out, d.Name())
		}
		if os.IsNotExist(err) {
			return nil
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestContainersJoinNetworks(t *testing.T) {
	for _, mode := range []string{task.NetworkBridge, task.NetworkNone} {
		t.Run(mode, func(t *testing.T) {
			n, data := withNetworks(t)
			before := enitest.Snapshot(t, n.cfg.Dir)
			c := web()
			c.Networks = []string{"lan", "second"}
			tk := someTask(1, mode, c, task.Container{Name: "alone"})
			first := 0
			if mode == task.NetworkBridge {
				first = 1
			}
			h, _ := ensure(t, n, tk)
			again, _ := ensure(t, n, tk)
			if diff := cmp.Diff(fmt.Sprint(h), fmt.Sprint(again)); diff != "" {
				t.Errorf("ensure again gives another network:\n%s", diff)
			}
			if len(h.Networks) != 2 || h.Networks[0].IfName != ifNameOf(first) || h.Networks[1].IfName != ifNameOf(first+1) || h.Networks[1].Network != "second" {
				t.Fatalf("networks %+v", h.Networks)
			}
			if got := read(t, h.Resolv); !strings.Contains(got, "nameserver 192.0.2.99\n") {
				t.Errorf("resolv.conf %q", got)
			}
			if mode == task.NetworkNone && (h.IP != h.Networks[0].Addresses[0].Addr().String() || !strings.Contains(read(t, h.Hosts), h.IP)) {
				t.Errorf("address %s, hosts %q", h.IP, read(t, h.Hosts))
			}
			enitest.Echo(t, h.Path, ":80")
			if _, err := enitest.Dial("", h.Networks[0].Addresses[0].Addr().String()+":80", 3*time.Second); err != nil {
				t.Error(err)
			}
			alone, _ := ensureOf(t, n, tk, "alone")
			if len(alone.Networks) != 0 {
				t.Errorf("the other container joined %+v", alone.Networks)
			}
			if !exists(t, n, tk) {
				t.Error("probe does not see the network")
			}
			if err := enitest.In(h.Path, func() error {
				l, err := netlink.LinkByName(h.Networks[1].IfName)
				if err != nil {
					return err
				}
				return netlink.LinkDel(l)
			}); err != nil {
				t.Fatal(err)
			}
			if exists(t, n, tk) {
				t.Error("probe does not miss an interface")
			}
			h, _ = ensure(t, n, tk) // makes it anew
			if !exists(t, n, tk) || len(addresses(t, data)) != 2 {
				t.Errorf("networks %+v, addresses %v", h.Networks, addresses(t, data))
			}
			owned, err := n.Owned(t.Context())
			if err != nil || !slices.ContainsFunc(owned, func(o task.Owned) bool { return o.TaskID == tk.ID() }) {
				t.Errorf("owned %+v, %v", owned, err)
			}
			removeOf(t, n, tk, "alone")
			remove(t, n, tk)
			if left := addresses(t, data); len(left) != 0 {
				t.Errorf("addresses of the plugins are left: %v", left)
			}
			if err := os.Remove(filepath.Join(n.cfg.Dir, "files")); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(links(before), links(enitest.Snapshot(t, n.cfg.Dir))); diff != "" {
				t.Errorf("remove left something:\n%s", diff)
			}
		})
	}
}

// links leaves out what the plugins of Debian leave for good.
func links(s []string) []string {
	return slices.DeleteFunc(s, func(x string) bool {
		return strings.Contains(x, "forward") || strings.HasPrefix(x, "chain ") || strings.HasPrefix(x, "table ")
	})
}

func TestNetworksThatCannotBeJoined(t *testing.T) {
	n, data := withNetworks(t)
	for _, c := range []struct{ network, want string }{
		{"nowhere", "is not configured in " + n.cfg.CNIConfigDir},
		{"broken", `CNI plugin "missing"`},
	} {
		one := web(task.Port{ContainerPort: 80, HostPort: 8080, Protocol: "tcp"})
		one.Networks = []string{"lan", c.network}
		tk := someTask(1, task.NetworkBridge, one)
		_, err := n.Ensure(t.Context(), tk, "web", engine.Deps{})
		if r := task.ReasonOf(err, ""); task.ClassOf(err) != task.Invalid || r.Code != task.ContainerNetworking || !strings.Contains(r.Detail, c.want) {
			t.Errorf("class %q, reason %v", task.ClassOf(err), r)
		}
	}
	// What the missing plugin of a list cannot undo is tried again.
	if owned, err := n.Owned(t.Context()); err != nil || len(owned) > 1 {
		t.Errorf("a failed ensure left %v, %v", owned, err)
	}
	missing := filepath.Join(t.TempDir(), "missing")
	if err := os.WriteFile(missing, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	reopened, err := New(Config{Dir: n.cfg.Dir, CNIConfigDir: n.cfg.CNIConfigDir, PluginDirs: []string{filepath.Dir(missing), "/usr/lib/cni"}, Resolv: n.cfg.Resolv})
	if err != nil {
		t.Fatal(err)
	}
	*n = Network{cfg: reopened.cfg, log: reopened.log, host: reopened.host, elastic: reopened.elastic, cni: reopened.cni, expected: reopened.expected}
	remove(t, n, someTask(1, task.NetworkBridge, web()))
	if owned, err := n.Owned(t.Context()); err != nil || len(owned) != 0 || len(addresses(t, data)) != 0 {
		t.Errorf("left %v, %v, %v", owned, addresses(t, data), err)
	}
}

// Where the mode publishes no ports, the plugins of a network that can do it are asked to.
func TestPortsOfAJoinedNetwork(t *testing.T) {
	c := web(task.Port{ContainerPort: 80, HostPort: 8080, Protocol: "tcp"}, task.Port{ContainerPort: 81, Protocol: "tcp"})
	c.Networks = []string{"lan"}
	none := someTask(1, task.NetworkNone, c)
	got, err := json.Marshal(capabilities(none, "web"))
	if want := `{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":""}]}`; err != nil || string(got) != want {
		t.Errorf("mode none: %s, %v", got, err)
	}
	if got := capabilities(someTask(2, task.NetworkBridge, c), "web"); got != nil {
		t.Errorf("mode bridge: %v", got)
	}
	want := map[string][]task.Binding{"web": {{BindIP: "0.0.0.0", ContainerPort: 80, HostPort: 8080, Protocol: "tcp"}}}
	if diff := cmp.Diff(want, published(&c, published(&c, nil))); diff != "" {
		t.Errorf("bindings (-want +got):\n%s", diff)
	}
}
