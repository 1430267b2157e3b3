package bridge

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/berth/eni/enitest"
)

// Of two systems on one host the first to go leaves forwarding to the other, and the
// last restores what was before both, whichever came first.
func TestTheLastSystemRestoresForwarding(t *testing.T) {
	read := func() string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(sysctlRoot, forwarding))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	enitest.Root(t)
	up := func(c Config) *Host {
		t.Helper()
		c.Dir, c.Log = filepath.Join(t.TempDir(), "net"), slog.New(slog.DiscardHandler)
		h, err := Open(c)
		if err == nil {
			t.Cleanup(func() { h.Close() }) //nolint:errcheck // it was torn down
			err = h.Setup(context.Background())
		}
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	was := read()
	t.Cleanup(func() {
		if err := writeSysctl(forwarding, was); err != nil {
			t.Error(err)
		}
	})
	for _, order := range [][2]int{{0, 1}, {1, 0}} {
		for _, before := range []string{"0", "1"} {
			if err := writeSysctl(forwarding, before); err != nil {
				t.Fatal(err)
			}
			hosts := []*Host{up(Config{}), up(Config{Bridge: "berth-second", Subnet: netip.MustParsePrefix("172.31.77.0/24")})}
			if read() != "1" {
				t.Fatal("forwarding is off")
			}
			for i, want := range []string{"1", before} {
				if err := hosts[order[i]].Teardown(context.Background()); err != nil {
					t.Fatal(err)
				}
				if got := read(); got != want {
					t.Errorf("before %s, order %v: forwarding is %s after %d of 2 have gone, want %s", before, order, got, i+1, want)
				}
			}
		}
	}
}
