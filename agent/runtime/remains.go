package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"berth.dev/berth/agent/task"

	"github.com/containerd/containerd/api/services/tasks/v1"
)

// clear removes what containerd, a shim and the OCI runtime keep of a container that has
// no process: containerd was killed while it made one, and the shim went on alone.
// Nothing of it was ever started.
func (c *Client) clear(ctx context.Context, h handle) error {
	// containerd 2.x keeps the place of a process that its shim does not know, and gives
	// it up when it is to delete it.
	if _, err := c.tasks.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: h.ID}); err != nil && !isNotFound(err) {
		return err
	}
	if err := c.killOrphan(h); err != nil {
		return err
	}
	if err := c.cgs.kill(h.Cgroup); err != nil {
		return err
	}
	if err := c.cgs.empty(ctx, h.Cgroup); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(c.runcRoot(), c.cfg.Namespace, h.ID))
}

// runcRoot is where the OCI runtime keeps its state: a root of our own, so that ids of
// different daemons on one host cannot meet.
func (c *Client) runcRoot() string { return filepath.Join(c.cfg.StateDir, "runc") }

// remainsTries is how often a creation is tried again that may have met an earlier one
// which is being undone. With the engine's delays that is some 5 s.
const remainsTries = 5

// recorded notes that a container's record is there. One that this client finds was
// made before a crash, and so perhaps was a process.
func (c *Client) recorded(id string, made bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.known[id]
	if !ok || t.recorded {
		return
	}
	t.recorded = true
	if !made {
		t.remains = remainsTries
	}
}

// clearOrphan ends the shim of an earlier try that containerd has forgotten: a new try
// would be given to that one, which may be stuck in what it did when containerd was killed.
func (c *Client) clearOrphan(ctx context.Context, h handle) error {
	c.mu.Lock()
	t, ok := c.known[h.ID]
	tried := ok && t.remains > 0
	c.mu.Unlock()
	if !tried {
		return nil
	}
	if _, err := c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: h.ID}); !isNotFound(err) {
		return nil // it has a process, of which the creation tells; or containerd does not answer, likewise
	}
	return c.killOrphan(h)
}

// despiteRemains makes the failure of a creation one that passes, as long as it may come
// from an earlier one that was cut short by a crash: while containerd undoes that, files
// are there that should not be, or vanish, and the errors name them in many ways.
func (c *Client) despiteRemains(id string, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.known[id]
	if err == nil || !ok {
		return err
	}
	switch {
	case task.ClassOf(err).Retriable():
		t.remains = remainsTries // containerd went away, or was not done with the last try
		return err
	case task.ClassOf(err) == task.Canceled, t.remains == 0:
		return err
	}
	t.remains--
	return &task.Error{Class: task.Unavailable, Reason: task.ReasonOf(err, task.CannotStartContainer), Err: err}
}

// killOrphan ends the shim that was started for a container, unless it serves others.
func (c *Client) killOrphan(h handle) error {
	own, err := c.cgs.procs(h.Cgroup)
	if err != nil {
		return err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	shim, parents := 0, map[int]bool{}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue // not a process
		}
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue // gone meanwhile
		}
		args := strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")
		if c.isShimOf(args, h.ID) {
			shim = pid
		}
		if parent := parentOf(dir); args[0] != c.cfg.LoggerPath && !slices.Contains(own, pid) {
			parents[parent] = true
		}
	}
	if shim == 0 || parents[shim] {
		return nil
	}
	if err := syscall.Kill(shim, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("orphaned shim of container %s, process %d: %w", h.ID, shim, err)
	}
	c.log.Info("an orphaned shim was ended", "container", h.ID, "pid", shim)
	return nil
}

// madeBundle is what containerd says when a container's directory of its own state is
// there already.
var madeBundle = regexp.MustCompile(`mkdir (/[^:]+): file exists`)

// leftBundle reports whether a process could not be made because of what an earlier try
// has left in containerd, and where that is: the agent or containerd itself was killed
// in the middle of it.
func leftBundle(err error, namespace, id string) (dir string, ok bool) {
	if err == nil {
		return "", false
	}
	m := madeBundle.FindStringSubmatch(err.Error())
	if m == nil || !strings.HasSuffix(m[1], "/io.containerd.runtime.v2.task/"+namespace+"/"+id) {
		return "", false
	}
	return m[1], true
}

// leftSnapshot reports whether a snapshot could not be made because the directory that it
// would get is there: containerd was killed while it made one, whose number is given again
// and whose directory its garbage collection takes away.
func leftSnapshot(err error) bool {
	text := err.Error()
	return strings.Contains(text, "failed to rename") && strings.Contains(text, "/snapshots/new-") && strings.Contains(text, "file exists")
}

// bundleUndone is how long containerd may take to undo a creation by itself.
const bundleUndone = 2 * time.Second

// clearBundle removes a container's directory from containerd's state when containerd
// itself will not: a 1.x that was killed between making it and starting the shim stumbles
// over it at its next start and leaves it there for ever.
func (c *Client) clearBundle(ctx context.Context, dir string, h handle) error {
	st, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && time.Since(st.ModTime()) < bundleUndone {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: h.ID}); !isNotFound(err) {
		return err // it has a process after all, which the next try finds
	}
	if err := c.clear(ctx, h); err != nil {
		return err
	}
	if err := unmountRootfs(filepath.Join(dir, "rootfs")); err != nil {
		return err
	}
	c.log.Info("what containerd has left of an earlier try is removed", "container", h.ID, "path", dir)
	return os.RemoveAll(dir)
}

// isShimOf reports whether these are the arguments of the shim that this containerd
// started for a container (containerd's shim protocol, "Command Line").
func (c *Client) isShimOf(args []string, id string) bool {
	follows := func(flag, value string) bool {
		i := slices.Index(args, flag)
		return i >= 0 && i+1 < len(args) && args[i+1] == value
	}
	return strings.HasPrefix(filepath.Base(args[0]), "containerd-shim-") &&
		follows("-namespace", c.cfg.Namespace) && follows("-id", id) && follows("-address", c.cfg.Address)
}

// parentOf is the parent of a process by its directory in /proc (proc(5), stat), or 0.
func parentOf(dir string) int {
	b, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(fields[1]) // 0 when it is not a number
	return n
}
