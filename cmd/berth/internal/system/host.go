package system

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth.dev/berth/agent/netns"
	"berth.dev/berth/cmd/berth/internal/layout"
	"berth.dev/berth/cni-plugins/ecs-bridge/bridge"
)

// cgroupRoots are the cgroups that those of all tasks lie in, with version 1 and with
// version 2 (agent/resource).
func (s *System) cgroupRoots() []string {
	if name := s.Layout.Cgroup(); name != "" {
		return []string{name, name + ".slice"}
	}
	return []string{"ecs", "ecstasks.slice"}
}

// networkDir is where the agent keeps what its networks consist of.
func (s *System) networkDir() string { return s.Layout.Run("network") }

// bridge is the interface that the tasks' networks hang on.
func (s *System) bridge() string { return cmp.Or(s.Layout.Bridge(), bridge.DefaultBridge) }

// sweep ends and removes what containers are left in Berth's namespace, and with purge
// also its images.
func (s *System) sweep(ctx context.Context, now layout.System, purge bool) (err error) {
	if _, err := os.Stat(now.Containerd); errors.Is(err, fs.ErrNotExist) {
		return nil // and no way to ask what it ran
	}
	c, err := open(ctx, s.Layout, now.Containerd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	containers := c.Containers()
	owned, err := containers.Owned(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, o := range owned {
		errs = append(errs, containers.Sweep(ctx, o))
	}
	if err := errors.Join(errs...); err != nil || !purge {
		return err
	}
	return c.Purge(ctx)
}

// teardown removes the networks and cgroups of tasks and what they share.
func (s *System) teardown(ctx context.Context, tasks []string) error {
	var errs []error
	if _, err := os.Stat(s.networkDir()); err == nil { // else no agent made any here
		n, err := netns.New(netns.Config{Dir: s.networkDir(), Bridge: s.bridge()})
		if err != nil {
			errs = append(errs, err)
		} else {
			errs = append(errs, n.TeardownHost(ctx), n.Close())
		}
	}
	roots, err := s.cgroupDirs()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, dir := range roots {
		for _, path := range cgroupsOf(dir, tasks) {
			errs = append(errs, removeTree(path))
		}
		errs = append(errs, removeCgroup(dir))
	}
	return errors.Join(errs...)
}

// taskIDs are the ids of the tasks that may have something on the host.
func (s *System) taskIDs() ([]string, error) {
	var ids []string
	for _, dir := range []string{TaskLogs(s.Layout), filepath.Join(s.networkDir(), "namespaces"), filepath.Join(s.networkDir(), "files")} { // below the last two by keys of networks
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			ids = append(ids, netns.TaskID(e.Name()))
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// cgroupDirs are the parents of tasks' cgroups that exist, in all hierarchies.
func (s *System) cgroupDirs() ([]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, m := range mounts {
		for _, root := range s.cgroupRoots() {
			dir := filepath.Join(m.Mountpoint, root)
			if _, err := os.Stat(dir); err == nil && !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs, nil
}

// cgroupsOf are the cgroups directly below dir that belong to one of the tasks. Others
// may be another agent's.
func cgroupsOf(dir string, tasks []string) []string {
	var found []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // gone since
	}
	for _, e := range entries {
		id := strings.TrimSuffix(e.Name(), ".slice") // of version 2, with the parent's name before it
		id = id[strings.LastIndexByte(id, '-')+1:]
		if e.IsDir() && slices.Contains(tasks, id) {
			found = append(found, filepath.Join(dir, e.Name()))
		}
	}
	return found
}

// removeTree removes a cgroup and those below it.
func removeTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	for _, path := range slices.Backward(dirs) {
		err = errors.Join(err, removeCgroup(path))
	}
	return err
}

// removeCgroup removes a cgroup unless something is in it: leftovers tells then.
func removeCgroup(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("remove cgroup %s: %w", dir, err)
}

// leftovers lists everything of this system that is still on the host. What cannot be
// asked is listed as such.
func (s *System) leftovers(tasks []string) []string {
	left := []string{}
	add := func(format string, args ...any) { left = append(left, fmt.Sprintf(format, args...)) }
	for _, name := range []string{Agent, Cluster, Containerd} {
		if proc, err := s.Program(name).Running(); err != nil {
			add("%s: %v", name, err)
		} else if proc != nil {
			add("process %d (%s)", proc.PID, name)
		}
	}
	for _, line := range s.shims() {
		add("%s", line)
	}
	if mounts, err := s.mountsBelow(s.Layout.Run(), s.Layout.Lib()); err != nil {
		add("mounts: %v", err)
	} else {
		for _, path := range mounts {
			add("mount %s", path)
		}
	}
	if _, err := netlink.LinkByName(s.bridge()); err == nil {
		add("network interface %s", s.bridge())
	} else if !errors.As(err, new(netlink.LinkNotFoundError)) {
		add("network interfaces: %v", err)
	}
	if tables, err := (&nftables.Conn{}).ListTables(); err != nil {
		add("firewall: %v", err)
	} else {
		for _, t := range tables {
			if t.Name == bridge.TableOf(s.bridge()) {
				add("nftables table %s", t.Name)
			}
		}
	}
	dirs, err := s.cgroupDirs()
	if err != nil {
		add("cgroups: %v", err)
	}
	for _, dir := range dirs {
		for _, path := range cgroupsOf(dir, tasks) {
			add("cgroup %s", path)
		}
	}
	return left
}

// shims lists the shims of our own containerd.
func (s *System) shims() []string {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return []string{err.Error()}
	}
	var left []string
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // gone since
		}
		args := strings.Split(string(b), "\x00")
		i := slices.Index(args, "-address")
		if i < 0 || i+1 == len(args) || !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") {
			continue
		}
		j := slices.Index(args, "-namespace")
		mine := strings.HasPrefix(args[i+1], s.Layout.Run()+"/")
		if mine || s.Layout.Root == "" && args[i+1] == SystemSocket && j >= 0 && j+1 < len(args) && args[j+1] == s.Layout.Namespace(SystemSocket) {
			left = append(left, "process "+filepath.Base(filepath.Dir(file))+" (containerd-shim)")
		}
	}
	return left
}
