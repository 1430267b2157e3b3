// Package plugintest executes CNI plugins as a runtime does, and holds them to what the
// CNI specification says of every plugin.
package plugintest

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

	"github.com/containernetworking/cni/pkg/types"

	"berth.dev/berth/eni/enitest"
)

// asPlugin makes the test program the plugin, so that it is executed as a runtime would.
const asPlugin = "BERTH_TEST_AS_PLUGIN"

// Main runs a package's tests, or the plugin where the test program is executed as such.
func Main(m *testing.M, plugin func() int) int {
	if os.Getenv(asPlugin) != "" {
		os.Args = os.Args[:1]
		return plugin()
	}
	return enitest.Main(m)
}

// Network is one network, and executes the plugin for it.
type Network struct {
	T    testing.TB
	Dir  string // dataDir
	Conf map[string]any
}

// New is a network of the plugin with a configuration, to which name, version and dataDir
// are added.
func New(t testing.TB, conf map[string]any) *Network {
	t.Helper()
	enitest.Root(t)
	n := &Network{T: t, Dir: filepath.Join(t.TempDir(), "data"), Conf: map[string]any{"cniVersion": "1.1.0", "name": "net"}}
	n.Conf["dataDir"] = n.Dir
	for k, v := range conf {
		n.Conf[k] = v
	}
	return n
}

// With is the same network with one more member in its configuration.
func (n *Network) With(key string, value any) *Network {
	c := map[string]any{key: value}
	for k, v := range n.Conf {
		if k != key {
			c[k] = v
		}
	}
	return &Network{T: n.T, Dir: n.Dir, Conf: c}
}

// Command is one call of the plugin.
func (n *Network) Command(verb, id, netns, ifname string) *exec.Cmd {
	conf, err := json.Marshal(n.Conf)
	if err != nil {
		n.T.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	// The race detector would wait a second at each exit.
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"), asPlugin+"=1", "CNI_COMMAND="+verb, "CNI_CONTAINERID="+id, "CNI_NETNS="+netns, "CNI_IFNAME="+ifname, "CNI_PATH=/nowhere")
	cmd.Stdin = bytes.NewReader(conf)
	return cmd
}

// Outcome executes a call: what it printed, or the error object that it has to print.
func Outcome(cmd *exec.Cmd) (map[string]any, error) {
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

// Exec calls the plugin for the interface eth0.
func (n *Network) Exec(verb, id, netns string) (map[string]any, error) {
	return Outcome(n.Command(verb, id, netns, "eth0"))
}

// Must is Exec that has to succeed.
func (n *Network) Must(verb, id, netns string) map[string]any {
	n.T.Helper()
	v, err := n.Exec(verb, id, netns)
	if err != nil {
		n.T.Fatalf("%s %s: %v", verb, id, err)
	}
	return v
}

// Snapshot is what the host has, without locks, and without link-local addresses, which
// come in the kernel's own time.
func (n *Network) Snapshot() []string {
	return slices.DeleteFunc(enitest.Snapshot(n.T, n.Dir), func(s string) bool {
		return strings.Contains(s, ".lock") || strings.Contains(s, "fe80::")
	})
}

// Code is the code of a CNI error, 0 for any other.
func Code(err error) uint {
	if e, ok := errors.AsType[*types.Error](err); ok {
		return e.Code
	}
	return 0
}

// Codes of errors that Berth's plugins have in common.
const (
	CodeExists  = 100
	CodeDamaged = 102
)
