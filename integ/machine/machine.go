// Package machine tests what people install, on machines with an init of their own:
// systemd-nspawn boots Debian with systemd, one machine beside another, and the packages,
// the units and the install script are used in them as on any host.
package machine

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
	"berth.dev/berth/integ/vm"
)

// recipe is the version of what Root makes; raise it when that changes.
const recipe = "1"

// Root makes the files of a machine, once for each list of packages (purpose "machine" of
// packaging/packages.txt), and returns their folder, which nobody may change.
func Root() (string, error) {
	packages, err := vm.Packages("../../packaging/packages.txt", "machine")
	if err != nil {
		return "", err
	}
	cache, err := filepath.Abs("../../.cache/machine")
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(recipe + "\n" + strings.Join(packages, "\n")))
	root := filepath.Join(cache, hex.EncodeToString(sum[:8]))
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	// The files of an earlier list are of no use any more.
	if err := errors.Join(os.RemoveAll(cache), os.MkdirAll(cache, 0o755)); err != nil {
		return "", err
	}
	log := new(bytes.Buffer)
	if err := vm.Bootstrap(root+".new", packages, log); err != nil {
		return "", fmt.Errorf("the files of a machine: %w\n%s", err, log)
	}
	return root, os.Rename(root+".new", root)
}

// Machine is a machine that runs.
type Machine struct {
	t    testing.TB
	Name string
	// Files is its file system, as this host sees it.
	Files string

	dir    string
	nspawn *exec.Cmd
	out    *bytes.Buffer
	done   chan struct{}
	leader string   // process id of its init
	groups []string // its cgroups on this host
}

// Boot starts a machine in a network namespace and waits until its services run. Folders
// are seen by the machine read-only below /host.
func Boot(t testing.TB, root, name, netns string, folders map[string]string) *Machine {
	t.Helper()
	m := &Machine{t: t, Name: name, dir: host.ShortDir(t), done: make(chan struct{}), out: new(bytes.Buffer)}
	m.Files = filepath.Join(m.dir, "root")
	args := []string{
		"--quiet", "--directory=" + m.Files, "--machine=" + name, "--boot", "--register=no", "--keep-unit", "--kill-signal=SIGRTMIN+3",
		"--network-namespace-path=" + netns, "--capability=all", "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=read-only",
		"--bind=/dev/fuse", "--bind=/dev/loop-control",
	}
	for _, data := range []string{"/var/lib/containerd", "/var/lib/berth"} {
		// What containerd mounts cannot lie on an overlay.
		from := filepath.Join(m.dir, filepath.Base(data))
		if err := os.Mkdir(from, 0o755); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--bind="+from+":"+data)
	}
	for at, folder := range folders {
		args = append(args, "--bind-ro="+folder+":/host/"+at)
	}
	m.mount(root)
	m.group()
	var moved strings.Builder
	for _, g := range m.groups {
		fmt.Fprintf(&moved, "echo $$ > %s/cgroup.procs && ", g)
	}
	m.nspawn = exec.Command("sh", append([]string{"-c", moved.String() + `exec systemd-nspawn "$@"`, "sh"}, args...)...)
	// Without its filter the machine's keyrings can be made, which runc needs; the network's
	// settings are its own.
	m.nspawn.Env = append(os.Environ(), "SYSTEMD_SECCOMP=0", "SYSTEMD_NSPAWN_API_VFS_WRITABLE=network")
	m.nspawn.Stdout, m.nspawn.Stderr = m.out, m.out
	m.nspawn.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := m.nspawn.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		m.nspawn.Wait() //nolint:errcheck // its end is what counts
		close(m.done)
	}()
	t.Cleanup(m.end)
	system.Until(t, 60*time.Second, "the init of "+name, m.findLeader)
	system.Until(t, 60*time.Second, "services of "+name, func() error {
		out, err := m.Try("systemctl", "is-system-running")
		if state := strings.TrimSpace(out); state != "running" && state != "degraded" {
			return fmt.Errorf("%q, %v", state, err)
		}
		return nil
	})
	m.Run("sh", "-c", `for c in cpu cpuacct cpuset memory devices freezer blkio pids; do
  [ ! -d /sys/fs/cgroup/$c ] || mount -o remount,rw,bind /sys/fs/cgroup/$c
done
mount --make-rshared /`)
	return m
}

// on is the machine for a part of a test.
func (m *Machine) on(t testing.TB) *Machine {
	part := *m
	part.t = t
	return &part
}

// mount gives the machine files that it can change.
func (m *Machine) mount(root string) {
	m.t.Helper()
	for _, dir := range []string{"root", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(m.dir, dir), 0o755); err != nil {
			m.t.Fatal(err)
		}
	}
	options := "lowerdir=" + root + ",upperdir=" + filepath.Join(m.dir, "upper") + ",workdir=" + filepath.Join(m.dir, "work")
	if err := unix.Mount("overlay", m.Files, "overlay", 0, options); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.Files, "etc/hostname"), []byte(m.Name+"\n"), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// group makes a cgroup for the machine in each hierarchy, below the one of this process.
func (m *Machine) group() {
	m.t.Helper()
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		at := filepath.Join("/sys/fs/cgroup", strings.TrimPrefix(f[1], "name="))
		if f[1] == "" {
			if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
				at = "/sys/fs/cgroup/unified"
			}
		}
		own := filepath.Join(at, f[2])
		if _, err := os.Stat(own); err != nil {
			own = at // another cgroup namespace's view
		}
		g := filepath.Join(own, filepath.Base(m.dir))
		if err := os.Mkdir(g, 0o755); err != nil {
			m.t.Fatal(err)
		}
		m.groups = append(m.groups, g)
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			if v, err := os.ReadFile(filepath.Join(own, name)); err == nil && f[1] == "cpuset" {
				if err := os.WriteFile(filepath.Join(g, name), v, 0o644); err != nil {
					m.t.Fatal(err)
				}
			}
		}
	}
}

// findLeader finds the init: the process below nspawn that is the first of its namespace.
func (m *Machine) findLeader() error {
	select {
	case <-m.done:
		m.t.Fatalf("%s did not boot:\n%s", m.Name, m.out.String())
	default:
	}
	pid := strconv.Itoa(m.nspawn.Process.Pid)
	children, err := os.ReadFile(filepath.Join("/proc", pid, "task", pid, "children"))
	if err != nil {
		return err
	}
	for _, child := range strings.Fields(string(children)) {
		status, err := os.ReadFile(filepath.Join("/proc", child, "status"))
		if err != nil {
			continue
		}
		name, _ := os.ReadFile(filepath.Join("/proc", child, "comm")) //nolint:errcheck // no name is no match
		for line := range strings.Lines(string(status)) {
			if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
				if f := strings.Fields(ids); len(f) > 1 && f[len(f)-1] == "1" && strings.TrimSpace(string(name)) == "systemd" {
					m.leader = child
					return nil
				}
			}
		}
	}
	return errors.New("no init yet")
}

// Command is a command that runs in the machine.
func (m *Machine) Command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--target=" + m.leader, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"}, args...)...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	return cmd
}

// Try runs a command in the machine and returns what it printed.
func (m *Machine) Try(args ...string) (string, error) {
	out, err := m.Command(args...).CombinedOutput()
	return string(out), err
}

// Run runs a command in the machine that must succeed.
func (m *Machine) Run(args ...string) string {
	m.t.Helper()
	out, err := m.Try(args...)
	if err != nil {
		m.t.Fatalf("%s: %s: %v\n%s", m.Name, strings.Join(args, " "), err, out)
	}
	return out
}

// Show is a property of a unit.
func (m *Machine) Show(unit, property string) string {
	m.t.Helper()
	return strings.TrimSpace(m.Run("systemctl", "show", "-p", property, "--value", unit))
}

// PowerOff ends the machine as its owner would.
func (m *Machine) PowerOff() {
	m.t.Helper()
	m.Try("systemctl", "poweroff") //nolint:errcheck // the connection ends with it
	select {
	case <-m.done:
	case <-time.After(90 * time.Second):
		m.t.Errorf("%s does not go off", m.Name)
	}
}

// end takes the machine away.
func (m *Machine) end() {
	if m.t.Failed() {
		if out, err := m.Try("journalctl", "--no-pager", "-n", "80", "-o", "short-monotonic"); err == nil {
			m.t.Logf("the journal of %s:\n%s", m.Name, out)
		}
	}
	select {
	case <-m.done:
	default:
		if pid, err := strconv.Atoi(m.leader); err == nil && pid > 1 {
			syscall.Kill(pid, syscall.SIGKILL) //nolint:errcheck // it may be gone; everything in its namespace goes with it
		}
		syscall.Kill(-m.nspawn.Process.Pid, syscall.SIGTERM) //nolint:errcheck // as above
		<-m.done
	}
	for _, g := range m.groups {
		system.Until(m.t, 30*time.Second, "cgroups of "+m.Name, func() error { return removeGroup(g) })
	}
	if err := unix.Unmount(m.Files, unix.MNT_DETACH); err != nil {
		m.t.Errorf("unmount the files of %s: %v", m.Name, err)
	}
}

// removeGroup removes a cgroup with all below it.
func removeGroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil //nolint:nilerr // what is gone need not be removed
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		if rmErr := unix.Rmdir(dirs[i]); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("%s: %w", dirs[i], rmErr))
		}
	}
	return err
}
