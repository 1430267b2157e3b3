package layout

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/cni-plugins/ecs-bridge/bridge"
)

func TestLayoutKeepsEverythingBelowItsRoot(t *testing.T) {
	for _, tt := range []struct{ root, socket, key string }{
		{"", "/run/berth/agent.sock", "/var/lib/berth/agent/credentials"},
		{"/", "/run/berth/agent.sock", "/var/lib/berth/agent/credentials"},
		{"/srv/two", "/srv/two/run/berth/agent.sock", "/srv/two/var/lib/berth/agent/credentials"},
	} {
		l, err := New(tt.root)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.AgentSocket(); got != tt.socket {
			t.Errorf("root %q: agent socket %s, want %s", tt.root, got, tt.socket)
		}
		if got := l.AgentKey(); got != tt.key {
			t.Errorf("root %q: agent key %s, want %s", tt.root, got, tt.key)
		}
	}
}

func TestEverySystemHasACgroupOfItsOwn(t *testing.T) {
	one, two := Layout{Root: "/srv/one"}, Layout{Root: "/srv/two"}
	if (Layout{}).Cgroup() != "" || one.Cgroup() == "" || one.Cgroup() == two.Cgroup() {
		t.Errorf("cgroups %q, %q, %q", Layout{}.Cgroup(), one.Cgroup(), two.Cgroup())
	}
}

func TestSystemsShareNoNamespaceOfAContainerd(t *testing.T) {
	const hosts = "/run/containerd/containerd.sock"
	one, two := Layout{Root: "/srv/one"}, Layout{Root: "/srv/two"}
	for address, want := range map[string]bool{hosts: true, one.ContainerdSocket(): false} {
		if got := one.Namespace(address) != "berth"; got != want {
			t.Errorf("below a root, containerd at %s: namespace %s", address, one.Namespace(address))
		}
	}
	if (Layout{}).Namespace(hosts) != "berth" || one.Namespace(hosts) == two.Namespace(hosts) {
		t.Errorf("namespaces %s, %s, %s", Layout{}.Namespace(hosts), one.Namespace(hosts), two.Namespace(hosts))
	}
}

func TestEverySystemHasANetworkOfItsOwn(t *testing.T) {
	if l := (Layout{}); l.Bridge() != "" || l.Subnet() != "" {
		t.Errorf("the host's own system has bridge %q and subnet %q, not the defaults", l.Bridge(), l.Subnet())
	}
	seen := map[string]bool{}
	for i := range 4000 {
		l := Layout{Root: fmt.Sprintf("/srv/%d", i)}
		p, err := netip.ParsePrefix(l.Subnet())
		if err != nil || p != p.Masked() || !netip.MustParsePrefix("10.192.0.0/11").Overlaps(p) || p.Overlaps(bridge.DefaultSubnet) {
			t.Fatalf("root %s: subnet %s (%v)", l.Root, l.Subnet(), err)
		}
		if n := len(l.Bridge()); n == 0 || n > 15 || l.Bridge() == bridge.DefaultBridge {
			t.Fatalf("root %s: bridge %q", l.Root, l.Bridge())
		}
		seen[l.Subnet()] = true
	}
	if len(seen) < 500 {
		t.Errorf("only %d of 511 subnets are used", len(seen))
	}
}

func TestLongestAllowedRootKeepsSocketsBindable(t *testing.T) {
	l, err := New("/" + strings.Repeat("d", maxRoot-1))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(l.ContainerdSocket() + ".ttrpc"); n > 107 {
		t.Errorf("socket path of %d bytes; the kernel takes 107", n)
	}
	if _, err := New("/" + strings.Repeat("d", maxRoot)); err == nil {
		t.Error("a longer root was accepted")
	}
}

func TestSystemIsReadBackAndAbsentMeansNotUp(t *testing.T) {
	dir, err := os.MkdirTemp("", "l") // t.TempDir can be too long for a root
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.ReadSystem(); !errors.Is(err, ErrNotUp) {
		t.Fatalf("before up: %v, want ErrNotUp", err)
	}
	if err := os.MkdirAll(l.Run(), 0o700); err != nil {
		t.Fatal(err)
	}
	want := System{URL: "http://127.0.0.1:7700", Cluster: "default", Containerd: "/run/x.sock", Private: true}
	if err := l.WriteSystem(want); err != nil {
		t.Fatal(err)
	}
	got, err := l.ReadSystem()
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("read back: %v %s", err, diff)
	}
	info, err := os.Stat(l.Run("system.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600 (%v)", info.Mode(), err)
	}
}
