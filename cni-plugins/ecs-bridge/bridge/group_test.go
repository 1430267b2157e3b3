package bridge

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"berth.dev/berth/eni"
	"berth.dev/berth/eni/enitest"
)

// member attaches a namespace that belongs to a group, and serves port 80 in it.
func member(t *testing.T, h *Host, n int, group string) (*Attachment, string) {
	t.Helper()
	ns := enitest.Namespace(t)
	a, err := h.Add(t.Context(), Request{Key: key(n), Namespace: ns, Group: group})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Del(context.Background(), key(n)); err != nil {
			t.Error(err)
		}
	})
	enitest.Echo(t, ns, ":80")
	return a, ns
}

func TestOnlyAGroupReachesItsMembersDirectly(t *testing.T) {
	withBothNetfilters(t, testGroups)
}

func testGroups(t *testing.T) {
	h := open(t)
	type end struct {
		name string
		a    *Attachment
		ns   string
	}
	var ends []end
	for i, e := range []struct{ name, group string }{{"a1", "a"}, {"a2", "a"}, {"b1", "b"}, {"b2", "b"}, {"alone", ""}, {"alone too", ""}} {
		a, ns := member(t, h, i, e.group)
		ends = append(ends, end{e.name, a, ns})
	}
	reach := func(from, to end) (string, error) {
		return enitest.Dial(from.ns, net.JoinHostPort(to.a.Address.String(), "80"), patience)
	}
	check := func(when string) {
		t.Helper()
		for _, from := range ends {
			for _, to := range ends {
				if from == to {
					continue
				}
				seen, err := reach(from, to)
				if want := from.a.Group != "" && from.a.Group == to.a.Group; want != (err == nil) {
					t.Errorf("%s: %s to %s: %v, want reachable %t", when, from.name, to.name, err, want)
				}
				if err == nil && seen != from.a.Address.String() {
					t.Errorf("%s: %s saw %s, want the address %s of %s", when, to.name, seen, from.a.Address, from.name)
				}
			}
		}
	}
	check("as added")
	if err := h.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("after a rebuild from the reservations")
	again, err := Open(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(again.Setup(t.Context()), again.Close()); err != nil {
		t.Fatal(err)
	}
	check("after a restart")
}

// What takes the address of a member that has gone is not in its group.
func TestAGroupForgetsItsMembers(t *testing.T) {
	h := open(t, subnet("10.99.0.0/29"))
	stays, inside := member(t, h, 1, "a")
	before := enitest.Snapshot(t, h.cfg.Dir)
	ns := enitest.Namespace(t)
	gone, err := h.Add(t.Context(), Request{Key: key(2), Namespace: ns, Group: "a"})
	if err != nil {
		t.Fatal(err)
	}
	enitest.Echo(t, ns, ":80")
	if _, err := enitest.Dial(inside, gone.Address.String()+":80", patience); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.Del(t.Context(), key(2)), eni.RemoveNamespace(ns)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, enitest.Snapshot(t, h.cfg.Dir)); diff != "" {
		t.Errorf("del left something (-before +after):\n%s", diff)
	}
	// The same key prefers the same address, now in another group.
	next, other := member(t, h, 2, "b")
	if next.Address != gone.Address {
		t.Fatalf("the address is %s, want %s", next.Address, gone.Address)
	}
	if _, err := enitest.Dial(inside, next.Address.String()+":80", 300*time.Millisecond); err == nil {
		t.Error("the old group reaches the next one at the address")
	}
	if _, err := enitest.Dial(other, stays.Address.String()+":80", 300*time.Millisecond); err == nil {
		t.Error("the next one at the address reaches the old group")
	}
}

func TestCheckMissesAMembership(t *testing.T) {
	h := open(t)
	a, ns := member(t, h, 1, "a")
	peer, _ := member(t, h, 2, "a")
	var e elements
	e.add(a, peer)
	c, err := newConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.SetDeleteElements(h.rules.peers, e.peers), c.Flush()); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Check(t.Context(), key(1), ns); KindOf(err) != Damaged {
		t.Errorf("check: %v, want damaged", err)
	}
	if err := h.Repair(t.Context(), key(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Check(t.Context(), key(1), ns); err != nil {
		t.Errorf("after repair: %v", err)
	}
}

// Members that come and go at once leave exactly the pairs of those that stay.
func TestMembersComeAndGoAtOnce(t *testing.T) {
	h := open(t)
	const n = 10
	spaces := make([]string, n)
	for i := range spaces {
		spaces[i] = enitest.Namespace(t)
	}
	withNamespaces := enitest.Snapshot(t, h.cfg.Dir)
	for range 3 {
		var g errgroup.Group
		for i := range n {
			g.Go(func() error {
				_, err := h.Add(t.Context(), Request{Key: key(i), Namespace: spaces[i], Group: "a"})
				if err == nil && i%2 == 1 {
					err = h.Del(t.Context(), key(i))
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		snap, err := h.rules.read()
		if err != nil {
			t.Fatal(err)
		}
		if got, want := len(snap.sets[setPeers]), n/2*(n/2-1); got != want {
			t.Errorf("%d pairs, want %d", got, want)
		}
		for i := range n {
			g.Go(func() error { return h.Del(t.Context(), key(i)) })
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(withNamespaces, enitest.Snapshot(t, h.cfg.Dir)); diff != "" {
			t.Errorf("left behind (-before +after):\n%s", diff)
		}
	}
}
