package plugintest

import (
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"berth.dev/berth/eni"
	"berth.dev/berth/eni/enitest"
)

// Subject is a plugin that is to be looked at.
type Subject struct {
	// New makes a network, and whatever its plugin needs on the host, for one test.
	New func(t testing.TB) *Network
	// Interfaces is how many interfaces a result has; the last one is the container's.
	Interfaces int
	// Damages are what CHECK has to notice, done inside the namespace or on the host.
	Damages map[string]func(ns string) error
}

// Conformance holds a plugin to the sentences of the CNI specification. With -short it
// leaves out what is the same code in all plugins, for hosts that take very long to
// execute anything.
func Conformance(t *testing.T, s Subject) {
	tests := map[string]func(*testing.T){"DEL": s.del, "CHECK": s.check, "GC": s.collect, "killed": s.killed}
	if !testing.Short() {
		tests["versions"], tests["garbage"], tests["second ADD"], tests["previous result"] = s.versions, s.garbage, s.secondAdd, s.previous
	}
	for name, test := range tests {
		t.Run(name, test)
	}
}

func (s Subject) versions(t *testing.T) {
	p := s.New(t)
	for _, v := range []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(v, func(t *testing.T) {
			p := p.With("cniVersion", v)
			ns := enitest.Namespace(t)
			r := p.Must("ADD", "c-"+v, ns)
			interfaces, ips := r["interfaces"].([]any), r["ips"].([]any)
			if r["cniVersion"] != v || len(interfaces) != s.Interfaces || len(ips) == 0 {
				t.Fatalf("result %v", r)
			}
			last := float64(s.Interfaces - 1)
			inside := interfaces[s.Interfaces-1].(map[string]any)
			if inside["name"] != "eth0" || inside["sandbox"] != ns || inside["mac"] == "" || ips[0].(map[string]any)["interface"] != last {
				t.Errorf("result %v", r)
			}
			if v >= "0.4.0" {
				p.With("prevResult", r).Must("CHECK", "c-"+v, ns)
			} else if _, err := p.With("prevResult", r).Exec("CHECK", "c-"+v, ns); Code(err) != types.ErrIncompatibleCNIVersion {
				t.Errorf("CHECK in a version without it: %v", err)
			}
			p.With("prevResult", r).Must("DEL", "c-"+v, ns)
		})
	}
	if _, err := p.With("cniVersion", "0.2.0").Exec("ADD", "c", enitest.Namespace(t)); Code(err) != types.ErrIncompatibleCNIVersion {
		t.Errorf("ADD of version 0.2.0: %v", err)
	}
	v, err := Outcome(p.Command("VERSION", "", "", ""))
	if err != nil || len(v["supportedVersions"].([]any)) != 5 {
		t.Errorf("VERSION: %v %v", v, err)
	}
	p.Must("STATUS", "", "")
}

func (s Subject) secondAdd(t *testing.T) {
	p := s.New(t)
	ns := enitest.Namespace(t)
	p.Must("ADD", "c", ns)
	before := p.Snapshot()
	if _, err := p.Exec("ADD", "c", ns); Code(err) != CodeExists {
		t.Errorf("second ADD: %v", err)
	}
	if diff := cmp.Diff(before, p.Snapshot()); diff != "" {
		t.Errorf("second ADD changed something:\n%s", diff)
	}
	p.Must("DEL", "c", ns)
}

// warm makes what the plugin leaves for good with its first attachment.
func warm(p *Network, t *testing.T) []string {
	t.Helper()
	ns := enitest.Namespace(t)
	p.Must("ADD", "warm", ns)
	p.Must("DEL", "warm", ns)
	if err := eni.RemoveNamespace(ns); err != nil {
		t.Fatal(err)
	}
	return p.Snapshot()
}

func (s Subject) del(t *testing.T) {
	long := strings.Repeat("a", 255)
	cases := map[string]func(t *testing.T, p *Network, ns string){
		"twice": func(_ *testing.T, p *Network, ns string) {
			p.Must("ADD", "c", ns)
			p.Must("DEL", "c", ns)
			p.Must("DEL", "c", ns)
		},
		"without an ADD": func(_ *testing.T, p *Network, ns string) { p.Must("DEL", "never", ns) },
		"without a namespace": func(_ *testing.T, p *Network, ns string) {
			p.Must("ADD", "c", ns)
			p.Must("DEL", "c", "")
		},
		"after a failed ADD": func(t *testing.T, p *Network, ns string) {
			if _, err := p.Exec("ADD", "c", ns+"-missing"); err == nil {
				t.Error("ADD without a namespace succeeded")
			}
			p.Must("DEL", "c", ns+"-missing")
		},
		"with the previous result": func(_ *testing.T, p *Network, ns string) {
			r := p.Must("ADD", "c", ns)
			p.With("prevResult", r).Must("DEL", "c", ns)
		},
		"longest names": func(t *testing.T, p *Network, ns string) {
			for _, verb := range []string{"ADD", "DEL"} {
				if _, err := Outcome(p.Command(verb, long, ns, "abcdefghijklmno")); err != nil {
					t.Error(err)
				}
			}
		},
	}
	for name, del := range cases {
		if testing.Short() && name != "without a namespace" && name != "after a failed ADD" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			p := s.New(t)
			before := warm(p, t)
			ns := enitest.Namespace(t)
			del(t, p, ns)
			if err := eni.RemoveNamespace(ns); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, p.Snapshot()); diff != "" {
				t.Errorf("left behind:\n%s", diff)
			}
		})
	}
}

func (s Subject) check(t *testing.T) {
	for name, damage := range s.Damages {
		t.Run(name, func(t *testing.T) {
			p := s.New(t)
			ns := enitest.Namespace(t)
			r := p.Must("ADD", "c", ns)
			if _, err := p.Exec("CHECK", "c", ns); Code(err) != types.ErrInvalidNetworkConfig {
				t.Errorf("CHECK without prevResult: %v", err)
			}
			p = p.With("prevResult", r)
			p.Must("CHECK", "c", ns)
			if _, err := p.Exec("CHECK", "other", ns); Code(err) != CodeDamaged {
				t.Errorf("CHECK of another container: %v", err)
			}
			if err := damage(ns); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Exec("CHECK", "c", ns); Code(err) != CodeDamaged {
				t.Errorf("CHECK notices nothing: %v", err)
			}
			p.Must("DEL", "c", ns)
		})
	}
}

func (s Subject) previous(t *testing.T) {
	p := s.New(t).With("prevResult", map[string]any{"cniVersion": "1.1.0",
		"interfaces": []any{map[string]any{"name": "lo0", "sandbox": "/x"}},
		"ips":        []any{map[string]any{"address": "192.0.2.9/24", "interface": 0}},
		"dns":        map[string]any{"nameservers": []any{"192.0.2.53"}}})
	ns := enitest.Namespace(t)
	r := p.Must("ADD", "c", ns)
	interfaces, ips := r["interfaces"].([]any), r["ips"].([]any)
	if len(interfaces) != s.Interfaces+1 || len(ips) < 2 || interfaces[0].(map[string]any)["name"] != "lo0" ||
		ips[1].(map[string]any)["interface"] != float64(s.Interfaces) || r["dns"] == nil {
		t.Errorf("result %v", r)
	}
	p.Must("DEL", "c", ns)
}

func (s Subject) collect(t *testing.T) {
	p := s.New(t)
	before := warm(p, t)
	ns := enitest.Namespace(t)
	p.Must("ADD", "kept", ns)
	with := p.Snapshot()
	valid := []any{map[string]any{"containerID": "kept", "ifname": "eth0"}}
	p.With("cni.dev/valid-attachments", valid).Must("GC", "", "")
	if diff := cmp.Diff(with, p.Snapshot()); diff != "" {
		t.Errorf("GC took what is valid:\n%s", diff)
	}
	p.With("cni.dev/valid-attachments", []any{}).Must("GC", "", "")
	if err := eni.RemoveNamespace(ns); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, p.Snapshot()); diff != "" {
		t.Errorf("GC left something:\n%s", diff)
	}
}

func (s Subject) garbage(t *testing.T) {
	p := s.New(t)
	ns := enitest.Namespace(t)
	for _, in := range []string{
		"", "{", "null", "[]", `"x"`, "\x00\xff", `{"cniVersion":"1.1.0"}`, `{"cniVersion":7,"name":"n"}`, strings.Repeat("[", 20000),
		`{"cniVersion":"1.1.0","name":"../../x"}`, `{"cniVersion":"1.1.0","name":"n","prevResult":7}`, `{"cniVersion":"1.1.0","name":"n","dataDir":"x"}`,
	} {
		for _, verb := range []string{"ADD", "DEL", "CHECK", "GC", "STATUS", "NONSENSE"} {
			cmd := p.Command(verb, "c", ns, "eth0")
			cmd.Stdin = strings.NewReader(in)
			if _, err := Outcome(cmd); Code(err) == 0 {
				t.Errorf("%s of %.30q: %v", verb, in, err)
			}
		}
	}
}

// A plugin killed at any moment leaves only what DEL finds.
func (s Subject) killed(t *testing.T) {
	p := s.New(t)
	before := warm(p, t)
	ns := enitest.Namespace(t)
	start := time.Now()
	p.Must("ADD", "c", ns)
	whole := time.Since(start)
	p.Must("DEL", "c", ns)
	killed, points := 0, 10
	if testing.Short() {
		points = 3
	}
	for i := range points {
		cmd := p.Command("ADD", "c", ns, "eth0")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(whole*time.Duration(i)/time.Duration(points), func() { _ = cmd.Process.Kill() })
		if err := cmd.Wait(); err != nil {
			killed++
		}
		timer.Stop()
		p.Must("DEL", "c", ns)
		p.With("cni.dev/valid-attachments", []any{}).Must("GC", "", "") // unfinished records
		if err := eni.RemoveNamespace(ns); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, p.Snapshot()); diff != "" {
			t.Fatalf("killed after %v of %v: left behind:\n%s", whole*time.Duration(i)/time.Duration(points), whole, diff)
		}
		ns = enitest.Namespace(t)
	}
	if killed == 0 {
		t.Error("no ADD was killed")
	}
	p.Must("ADD", "c", ns)
	p.Must("DEL", "c", ns)
}

// Inside is a damage to the interface eth0 of a namespace.
func Inside(damage func(l netlink.Link) error) func(ns string) error {
	return func(ns string) error {
		return enitest.In(ns, func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return damage(l)
		})
	}
}

// NoAddress takes the IPv4 addresses away.
func NoAddress(l netlink.Link) error {
	list, err := netlink.AddrList(l, netlink.FAMILY_V4)
	for i := range list {
		if err == nil {
			err = netlink.AddrDel(l, &list[i])
		}
	}
	return err
}

// NoDefaultRoute takes the default route away.
func NoDefaultRoute(l netlink.Link) error {
	list, err := netlink.RouteList(l, netlink.FAMILY_V4)
	for i := range list {
		if err == nil && (list[i].Dst == nil || list[i].Dst.IP.IsUnspecified()) {
			err = netlink.RouteDel(&list[i])
		}
	}
	return err
}
