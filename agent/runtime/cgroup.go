package runtime

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cgroups knows where the cgroup hierarchies of this host are mounted.
type cgroups struct {
	unified bool              // version 2 only
	mounts  map[string]string // by controller; "" is the unified hierarchy
}

// findCgroups reads the mounts of this process.
func findCgroups(mountinfo string) (cgroups, error) {
	c := cgroups{mounts: map[string]string{}}
	f, err := os.Open(mountinfo)
	if err != nil {
		return c, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		head, tail, ok := strings.Cut(sc.Text(), " - ")
		fields, kind := strings.Fields(head), strings.Fields(tail)
		if !ok || len(fields) < 5 || len(kind) < 3 || !strings.HasPrefix(fields[4], "/sys/fs/cgroup") {
			continue
		}
		switch kind[0] {
		case "cgroup2":
			c.mounts[""] = fields[4]
			c.unified = c.unified || fields[4] == "/sys/fs/cgroup"
		case "cgroup":
			for o := range strings.SplitSeq(kind[2], ",") {
				c.mounts[o] = fields[4]
			}
		}
	}
	if err := sc.Err(); err != nil {
		return c, err
	}
	if len(c.mounts) == 0 {
		return c, errors.New("no cgroup file system is mounted below /sys/fs/cgroup")
	}
	return c, nil
}

// swapLimit reports whether the kernel limits swap by cgroup.
func (c cgroups) swapLimit() bool {
	if c.unified {
		_, err := os.Stat("/proc/swaps")
		return err == nil
	}
	_, err := os.Stat(filepath.Join(c.mounts["memory"], "memory.memsw.limit_in_bytes"))
	return c.mounts["memory"] != "" && err == nil
}

// dirs are the directories of a cgroup in those hierarchies that hold every process.
func (c cgroups) dirs(cgroup string) []string {
	var out []string
	for _, m := range c.mounts {
		d := filepath.Join(m, filepath.Join("/", cgroup))
		if d != m && !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	return out
}

// tasksDir is one directory that lists all processes of the cgroup.
func (c cgroups) tasksDir(cgroup string) string {
	for _, ctrl := range []string{"pids", "memory", "cpu", "devices", "freezer", "name=systemd", ""} {
		if m, ok := c.mounts[ctrl]; ok && (ctrl != "" || c.unified) {
			return filepath.Join(m, filepath.Join("/", cgroup))
		}
	}
	return ""
}

// procs lists the processes of the cgroup; none when it does not exist.
func (c cgroups) procs(cgroup string) ([]int, error) {
	if isRoot(cgroup) {
		return nil, nil
	}
	b, err := os.ReadFile(filepath.Join(c.tasksDir(cgroup), "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []int
	for f := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("cgroup %s: %w", cgroup, err)
		}
		if pid > 0 {
			out = append(out, pid)
		}
	}
	return out, nil
}

// isRoot guards against ever taking the whole host for a container.
func isRoot(cgroup string) bool { return filepath.Join("/", cgroup) == "/" }

// kill sends SIGKILL to every process of the cgroup.
func (c cgroups) kill(cgroup string) error {
	if isRoot(cgroup) {
		return nil
	}
	if c.unified {
		err := os.WriteFile(filepath.Join(c.tasksDir(cgroup), "cgroup.kill"), []byte("1"), 0)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	pids, err := c.procs(cgroup)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("killing process %d of cgroup %s: %w", pid, cgroup, err)
		}
	}
	return nil
}

// Waiting for the processes of a cgroup to end. A container's processes outlive a
// killed shim by up to 1.5 s.
const (
	stragglerPoll  = 5 * time.Millisecond
	stragglerGrace = 200 * time.Millisecond // before they are killed
	stragglerLimit = 5 * time.Second
)

// errStragglers says that processes of an ended container do not go away.
var errStragglers = errors.New("processes of the container are still there after SIGKILL")

// empty waits until no process is left, killing those that stay.
func (c cgroups) empty(ctx context.Context, cgroup string) error {
	start := time.Now()
	var tick *time.Ticker
	for killed := false; ; {
		pids, err := c.procs(cgroup)
		if err != nil || len(pids) == 0 {
			return err
		}
		waited := time.Since(start)
		if waited > stragglerLimit {
			return errStragglers
		}
		if waited > stragglerGrace && !killed {
			if err := c.kill(cgroup); err != nil {
				return err
			}
			killed = true
		}
		if tick == nil {
			tick = time.NewTicker(stragglerPoll)
			defer tick.Stop()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// remove takes away what is left of the cgroup's directories.
func (c cgroups) remove(cgroup string) error {
	var errs []error
	for _, d := range c.dirs(cgroup) {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// oomKills is how often the kernel killed a process of the cgroup for lack of memory;
// 0 when the cgroup is gone.
func (c cgroups) oomKills(cgroup string) int {
	file := filepath.Join(c.mounts["memory"], filepath.Join("/", cgroup), "memory.oom_control")
	if c.mounts["memory"] == "" {
		file = filepath.Join(c.mounts[""], filepath.Join("/", cgroup), "memory.events")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(v)) // 0 when it is not a number
			return n
		}
	}
	return 0
}
