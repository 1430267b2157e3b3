// Package layout says where Berth keeps its files on a host, so that every verb and
// every program it starts agree, and so that a second system can live under a
// directory of its own.
package layout

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Layout is the set of directories of one Berth system. The zero value is the
// system of the host itself: /run/berth, /var/lib/berth and /var/log/berth.
type Layout struct {
	// Root is put before every path. It must be absolute, and short enough that the
	// path of a unix socket below it stays under the kernel's 108 bytes (unix(7)).
	Root string
}

// maxRoot leaves room for the longest socket path below the root in the 107 usable
// bytes of a unix socket's address (unix(7), sun_path): the private containerd's.
const maxRoot = 107 - len("/run/berth/containerd/containerd.sock.ttrpc")

// New checks root and returns the layout below it; "" means the host's own.
func New(root string) (Layout, error) {
	if root == "" || root == "/" {
		return Layout{}, nil
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return Layout{}, fmt.Errorf("--root %s: %w", root, err)
	}
	if len(abs) > maxRoot {
		return Layout{}, fmt.Errorf("--root %s: %d bytes is too long for the sockets below it; use a path of at most %d", abs, len(abs), maxRoot)
	}
	return Layout{Root: abs}, nil
}

// Run holds what ends with the system: pid files, sockets, mounts.
func (l Layout) Run(elem ...string) string { return l.join("run/berth", elem) }

// Lib holds what outlives the system: databases, keys, images.
func (l Layout) Lib(elem ...string) string { return l.join("var/lib/berth", elem) }

// Log holds the logs of Berth's programs and the output of containers.
func (l Layout) Log(elem ...string) string { return l.join("var/log/berth", elem) }

func (l Layout) join(dir string, elem []string) string {
	return filepath.Join(append([]string{"/", l.Root, dir}, elem...)...)
}

// AgentSocket is the agent's debug socket.
func (l Layout) AgentSocket() string { return l.Run("agent.sock") }

// AgentDir is the agent's state directory (ECS_DATADIR).
func (l Layout) AgentDir() string { return l.Lib("agent") }

// AgentKey is the file with the agent's own access key, mode 0600, in the form of an
// AWS shared credentials file (BERTH_KEY_FILE).
func (l Layout) AgentKey() string { return l.Lib("agent", "credentials") }

// ClusterDir is the cluster's state directory.
func (l Layout) ClusterDir() string { return l.Lib("cluster") }

// OperatorKey is the file with the operator's access key, mode 0600, which the
// cluster writes at its first start.
func (l Layout) OperatorKey() string { return l.Lib("cluster", "operator.json") }

// ContainerdRoot, ContainerdState and ContainerdSocket belong to the containerd that
// Berth brings where the host has none.
func (l Layout) ContainerdRoot() string { return l.Lib("containerd") }

// ContainerdState is the private containerd's state directory.
func (l Layout) ContainerdState() string { return l.Run("containerd") }

// ContainerdSocket is the private containerd's socket.
func (l Layout) ContainerdSocket() string { return l.Run("containerd", "containerd.sock") }

// Cgroup is the name of the cgroup of all tasks (BERTH_CGROUP): "" for the default on a
// host's own system, and another for each system below a root, because an agent
// removes every cgroup there that is not its own.
func (l Layout) Cgroup() string {
	if l.Root == "" {
		return ""
	}
	sum := l.sum()
	return "berth" + hex.EncodeToString(sum[:4])
}

// Namespace is the namespace of everything of this system in the containerd at address
// (BERTH_CONTAINERD_NAMESPACE): "berth", and another for each system below a root that
// uses a containerd of the host's, because an agent removes every container there that
// is not its own.
func (l Layout) Namespace(address string) string {
	if l.Root == "" || address == l.ContainerdSocket() {
		return "berth"
	}
	return l.Cgroup()
}

// Bridge is the interface of bridge mode (BERTH_BRIDGE) and Subnet its network
// (BERTH_BRIDGE_SUBNET): "" for the defaults on a host's own system, and others for each
// system below a root, whose agent takes its bridge away when it goes.
func (l Layout) Bridge() string { return l.Cgroup() }

// Subnet is one of 511 networks of 4,096 addresses in 10.192.0.0/11, chosen by the root.
// The one left out is the default.
func (l Layout) Subnet() string {
	if l.Root == "" {
		return ""
	}
	const defaultNet = (213-192)*16 + 64/16 // 10.213.64.0/20
	sum := l.sum()
	n := binary.BigEndian.Uint16(sum[4:]) % 511
	if n >= defaultNet {
		n++
	}
	return fmt.Sprintf("10.%d.%d.0/20", 192+n/16, n%16*16)
}

func (l Layout) sum() [sha256.Size]byte { return sha256.Sum256([]byte(l.Root)) }

// System is what "berth up" decided, kept in the run directory for the verbs that
// come after it.
type System struct {
	URL        string `json:"url"`        // of the cluster
	Region     string `json:"region"`     // that the cluster calls itself
	Cluster    string `json:"cluster"`    // name the agent registers in
	Containerd string `json:"containerd"` // address of its socket
	Private    bool   `json:"private"`    // whether that containerd is our own
}

// ErrNotUp says that no system was started with this layout.
var ErrNotUp = errors.New("Berth is not up here; start it with: berth up") //nolint:staticcheck // Berth is a name, and the line is for people

// ReadSystem returns what "berth up" decided, or ErrNotUp.
func (l Layout) ReadSystem() (System, error) {
	var s System
	err := ReadJSON(l.Run("system.json"), &s)
	if errors.Is(err, fs.ErrNotExist) {
		return System{}, ErrNotUp
	}
	return s, err
}

// WriteSystem keeps s for later verbs.
func (l Layout) WriteSystem(s System) error { return WriteJSON(l.Run("system.json"), s) }

// ReadJSON reads the file at path into v.
func ReadJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// WriteJSON replaces the file at path by v, readable by its owner only. A reader
// sees the old or the new content, never a part.
func WriteJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(path, append(b, '\n'))
}

// WriteFile replaces the file at path by b, as WriteJSON does.
func WriteFile(path string, b []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails after the rename, which is what it should
	if _, err := tmp.Write(b); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
