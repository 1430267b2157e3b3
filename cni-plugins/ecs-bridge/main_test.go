package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"berth.dev/berth/cni-plugins/ecs-bridge/bridge"
	"berth.dev/berth/cni-plugins/plugin/plugintest"
	"berth.dev/berth/eni/enitest"
)

func TestMain(m *testing.M) { os.Exit(plugintest.Main(m, run)) }

func newPlugin(t testing.TB) *plugintest.Network {
	t.Helper()
	p := plugintest.New(t, map[string]any{"type": "ecs-bridge"})
	t.Cleanup(func() { // the plugin has no verb for what all attachments share
		if br, err := netlink.LinkByName("berth0"); err == nil {
			if err := netlink.LinkDel(br); err != nil {
				t.Error(err)
			}
		}
	})
	return p
}

func portMappings(port int) map[string]any {
	return map[string]any{"portMappings": []map[string]any{{"hostPort": port, "containerPort": 80, "protocol": "tcp"}}}
}

func TestConformance(t *testing.T) {
	in := plugintest.Inside
	for name, extra := range map[string]map[string]any{"IPv4": nil, "IPv6 and a port": {"subnet6": "fd7b:8a31:44::/64", "runtimeConfig": portMappings(8080)}} {
		t.Run(name, func(t *testing.T) {
			plugintest.Conformance(t, plugintest.Subject{
				Interfaces: 3,
				New: func(t testing.TB) *plugintest.Network {
					p := newPlugin(t)
					for k, v := range extra {
						p = p.With(k, v)
					}
					return p
				},
				Damages: map[string]func(string) error{
					"interface": in(netlink.LinkDel), "down": in(netlink.LinkSetDown), "address": in(plugintest.NoAddress), "route": in(plugintest.NoDefaultRoute),
					"rules": func(string) error { return exec.Command("nft", "delete", "table", "inet", "berth").Run() },
				},
			})
		})
	}
}

func TestGCRemovesWhatIsNotListed(t *testing.T) {
	p := newPlugin(t)
	kept, gone := enitest.Namespace(t), enitest.Namespace(t)
	p.Must("ADD", "kept", kept)
	before := p.Snapshot()
	p.With("runtimeConfig", portMappings(8080)).Must("ADD", "gone", gone)
	for _, name := range []string{"10.213.79.7", ".claim-1"} { // what a power cut may leave
		if err := os.WriteFile(filepath.Join(p.Dir, "net", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	valid := []any{map[string]any{"containerID": "kept", "ifname": "eth0"}}
	p.With("cni.dev/valid-attachments", valid).Must("GC", "", "")
	if diff := cmp.Diff(without(before), without(p.Snapshot())); diff != "" {
		t.Errorf("GC left or took something:\n%s", diff)
	}
	p.Must("DEL", "kept", kept)
}

// without leaves out the mounts of namespaces, which belong to the test.
func without(s []string) []string {
	return slices.DeleteFunc(s, func(x string) bool { return strings.HasPrefix(x, "mount ") })
}

func TestStatusFailsWhenAddWould(t *testing.T) {
	p := newPlugin(t)
	p.Must("STATUS", "", "")
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "notbridge"}, PeerName: "peer"}
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = netlink.LinkDel(l) }()
	if _, err := p.With("bridge", "notbridge").Exec("STATUS", "", ""); plugintest.Code(err) != types.ErrPluginNotAvailable {
		t.Errorf("STATUS with a bridge that is none: %v", err)
	}
	if _, err := p.With("subnet", "300.0.0.0/8").Exec("STATUS", "", ""); plugintest.Code(err) != types.ErrInvalidNetworkConfig {
		t.Errorf("STATUS with a bad subnet: %v", err)
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
			r, err := p.Exec("ADD", fmt.Sprintf("c%d", i), spaces[i])
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
		g.Go(func() error { _, err := p.Exec("DEL", fmt.Sprintf("c%d", i), spaces[i]); return err })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestPortOfAnotherProcessIsNamed(t *testing.T) {
	p := newPlugin(t)
	enitest.Listen(t, "", "0.0.0.0:8080")
	_, err := p.With("runtimeConfig", portMappings(8080)).Exec("ADD", "c", enitest.Namespace(t))
	if plugintest.Code(err) != 101 || !strings.Contains(err.Error(), "8080/tcp") {
		t.Errorf("%v", err)
	}
}

// TestProgramDoesTheSameAsTheCall attaches once by the program and once by the library.
func TestProgramDoesTheSameAsTheCall(t *testing.T) {
	for name, subnet6 := range map[string]netip.Prefix{"IPv4": {}, "dual stack": netip.MustParsePrefix("fd7b:8a31:44::/64")} {
		t.Run(name, func(t *testing.T) {
			p := newPlugin(t).With("runtimeConfig", portMappings(8080))
			cfg := bridge.Config{Dir: filepath.Join(p.Dir, "net")}
			if subnet6.IsValid() {
				p, cfg.Subnet6 = p.With("subnet6", subnet6.String()), subnet6
			}
			k := bridge.Key{ID: "box", IfName: "eth0"}
			var h *bridge.Host
			plugintest.Same(t, p, plugintest.Call{
				Add: func(ns string) (types.Result, error) {
					var err error
					if h, err = bridge.Open(cfg); err != nil {
						return nil, err
					}
					if err := h.Setup(t.Context()); err != nil {
						return nil, err
					}
					a, err := h.Add(t.Context(), bridge.Request{Key: k, Namespace: ns, Ports: []bridge.Port{{Protocol: "tcp", HostPort: 8080, ContainerPort: 80}}})
					if err != nil {
						return nil, err
					}
					return a.Result(), nil
				},
				Del: func() error { return errors.Join(h.Del(t.Context(), k), h.Close()) },
			})
		})
	}
}
