package runtime

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"berth.dev/berth/agent/task"
)

func TestCapabilities(t *testing.T) {
	status := filepath.Join(t.TempDir(), "status")
	for name, c := range map[string]struct {
		text string
		want []string
		bad  bool
	}{
		"two":     {"Name:\tx\nCapInh:\t0\nCapEff:\t00000000a80425fb\nCapBnd:\t0000000000000021\n", []string{"CAP_CHOWN", "CAP_KILL"}, false},
		"none":    {"CapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\n", nil, false},
		"damaged": {"CapEff:\tcaps\nCapBnd:\t0\n", nil, true},
		"missing": {"CapEff:\t0\n", nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(status, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := capabilities(status); !slices.Equal(got, c.want) || (err != nil) != c.bad {
				t.Errorf("got %v, %v; want %v", got, err, c.want)
			}
		})
	}
}

func TestDaemonProcess(t *testing.T) {
	address := filepath.Join(t.TempDir(), "s")
	if _, err := daemonProcess(address); task.ClassOf(err) != task.Unavailable {
		t.Errorf("nobody listens: %v", err)
	}
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if pid, err := daemonProcess(address); err != nil || pid != os.Getpid() {
		t.Errorf("process %d, %v; want %d", pid, err, os.Getpid())
	}
}
