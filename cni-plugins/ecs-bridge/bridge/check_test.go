package bridge

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"berth.dev/berth/eni"
	"berth.dev/berth/eni/enitest"
)

func TestCheckNamesWhatIsMissing(t *testing.T) {
	port := Port{Protocol: "tcp", HostPort: 8080, ContainerPort: 80}
	inside := func(fn func(netlink.Link) error) func(*Host, *Attachment, string) error {
		return func(_ *Host, _ *Attachment, ns string) error {
			return enitest.In(ns, func() error {
				link, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				return fn(link)
			})
		}
	}
	rule := func(fn func(*nftables.Conn, *Host, *elements) error) func(*Host, *Attachment, string) error {
		return func(h *Host, a *Attachment, _ string) error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			var e elements
			e.add(a)
			if err := fn(c, h, &e); err != nil {
				return err
			}
			return c.Flush()
		}
	}
	for _, c := range []struct {
		name, text string
		repairable bool
		damage     func(*Host, *Attachment, string) error
	}{
		{"address", "lost its address", false, inside(func(l netlink.Link) error {
			addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			return netlink.AddrDel(l, &addrs[0])
		})},
		{"route", "default route", false, inside(func(l netlink.Link) error {
			routes, err := netlink.RouteList(l, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			for _, r := range routes {
				if r.Gw != nil {
					return netlink.RouteDel(&r)
				}
			}
			return errors.New("no default route")
		})},
		{"interface", "is gone", false, inside(netlink.LinkDel)},
		{"host interface down", "is down", true, func(_ *Host, a *Attachment, _ string) error {
			l, err := netlink.LinkByName(a.HostVeth)
			if err != nil {
				return err
			}
			return netlink.LinkSetDown(l)
		}},
		{"bridge", "bridge berth0 is gone", true, func(h *Host, _ *Attachment, _ string) error {
			l, err := netlink.LinkByName(h.cfg.Bridge)
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		}},
		{"published port", "set published lacks", true, rule(func(c *nftables.Conn, h *Host, e *elements) error {
			return c.SetDeleteElements(h.rules.published, e.published)
		})},
		{"source", "set sources lacks", true, rule(func(c *nftables.Conn, h *Host, e *elements) error {
			return c.SetDeleteElements(h.rules.sources, e.sources)
		})},
		{"everything", "rules are gone", true, rule(func(c *nftables.Conn, _ *Host, _ *elements) error { c.FlushRuleset(); return nil })},
		{"reservation", "reservation of address", false, func(h *Host, a *Attachment, _ string) error {
			return os.Remove(filepath.Join(h.cfg.Dir, a.Address.String()))
		}},
		{"namespace", "network namespace", false, func(_ *Host, _ *Attachment, ns string) error { return eni.RemoveNamespace(ns) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := open(t)
			a, ns := attach(t, h, 1, port)
			if _, err := h.Check(t.Context(), key(1), ns); err != nil {
				t.Fatal(err)
			}
			if err := c.damage(h, a, ns); err != nil {
				t.Fatal(err)
			}
			if _, err := h.Check(t.Context(), key(1), ns); KindOf(err) != Damaged || !strings.Contains(err.Error(), c.text) {
				t.Errorf("check: %v, want %q", err, c.text)
			}
			if !c.repairable {
				return
			}
			if err := h.Repair(t.Context(), key(1)); err != nil {
				t.Fatal(err)
			}
			if _, err := h.Check(t.Context(), key(1), ns); err != nil {
				t.Errorf("after repair: %v", err)
			}
		})
	}
}

func TestAddRepairsWhatSomebodyRemoved(t *testing.T) {
	h := open(t)
	_, first := attach(t, h, 1, Port{Protocol: "tcp", HostPort: 8080, ContainerPort: 80})
	enitest.Echo(t, first, ":80")
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.FlushRuleset()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	attach(t, h, 2)
	if _, err := enitest.Dial("", "127.0.0.1:8080", patience); err != nil {
		t.Errorf("the first task's port was not published again: %v", err)
	}
}

func TestSetupRefusesASubnetInUse(t *testing.T) {
	enitest.Root(t)
	outside(t)
	h, err := Open(Config{Dir: t.TempDir(), Subnet: netip.MustParsePrefix("192.0.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Setup(t.Context()); KindOf(err) != Invalid || !strings.Contains(err.Error(), "192.0.2.0/24") {
		t.Errorf("got %v", err)
	}
}
