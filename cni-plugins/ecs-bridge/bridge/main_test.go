package bridge

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/eni/enitest"
)

func TestMain(m *testing.M) { os.Exit(enitest.Main(m)) }

// open gives a Host that is set up, and checks at the end of the test that tearing it
// down leaves the host as it was.
func open(t testing.TB, change ...func(*Config)) *Host {
	t.Helper()
	enitest.Root(t)
	cfg := Config{Dir: filepath.Join(t.TempDir(), "net"), Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, f := range change {
		f(&cfg)
	}
	before := enitest.Snapshot(t, cfg.Dir)
	h, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Teardown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(before, enitest.Snapshot(t, cfg.Dir)); diff != "" {
			t.Errorf("teardown left something behind (-before +after):\n%s", diff)
		}
	})
	if err := h.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	return h
}

func subnet(s string) func(*Config) {
	return func(c *Config) { c.Subnet = netip.MustParsePrefix(s) }
}

func key(n int) Key { return Key{ID: fmt.Sprintf("%032x", n), IfName: "eth0"} }

// attach adds a namespace of its own, which goes with the test.
func attach(t testing.TB, h *Host, n int, ports ...Port) (*Attachment, string) {
	t.Helper()
	ns := enitest.Namespace(t)
	a, err := h.Add(t.Context(), Request{Key: key(n), Namespace: ns, Ports: ports})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Del(context.Background(), key(n)); err != nil {
			t.Error(err)
		}
	})
	return a, ns
}
