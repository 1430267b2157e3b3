package resource

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/fail"
	"berth.dev/berth/agent/task"
)

// Numbers of the protocol and the kernel.
const (
	defaultCPUPeriod = 100 * time.Millisecond // agent protocol, ECS_CGROUP_CPU_PERIOD
	minShares        = 2                      // kernel and agent protocol, "Task cgroup"
	maxShares        = 262144
	minQuota         = 1000 // microseconds; the kernel refuses less
	mebibyte         = 1 << 20

	// removeTries and removePause bound the wait in Remove for the kernel to finish with
	// processes that have just ended; after it the engine tries again later.
	removeTries = 10
	removePause = 5 * time.Millisecond
)

// CgroupConfig says where task cgroups are. All zero values stand for defaults.
type CgroupConfig struct {
	Root      string        // ECS_CGROUP_PATH; default /sys/fs/cgroup
	Mountinfo string        // default /proc/self/mountinfo
	Name      string        // parent of all tasks; default "ecs" (version 2: "ecstasks")
	CPUPeriod time.Duration // ECS_CGROUP_CPU_PERIOD; default 100 ms
	PidsLimit int64         // ECS_TASK_PIDS_LIMIT; 0 sets none

	// NoLimits leaves task-level limits out (ECS_ENABLE_TASK_CPU_MEM_LIMIT=false). The
	// cgroups are made all the same, because the containers live below them.
	NoLimits bool

	Log *slog.Logger
}

// Cgroup is the parent cgroup of a task, which carries the limits of the task as a
// whole: /ecs/<task id> in every version 1 hierarchy, or the directory of the slice
// ecstasks-<task id>.slice in version 2. It implements engine.Resource and engine.Sweeper.
//
// Version 2 directories are made in the file system, under the names that systemd gives
// them, so that they stay where they are when systemd is asked to make them instead.
type Cgroup struct {
	cfg  CgroupConfig
	log  *slog.Logger
	h    hierarchies
	tree tree
}

// CgroupHandle is the record's handle.
type CgroupHandle struct {
	// Parent is the cgroup's path below the root of each hierarchy.
	Parent string `json:"parent"`
}

// NewCgroup finds the hierarchies. It changes nothing.
func NewCgroup(cfg CgroupConfig) (*Cgroup, error) {
	if cfg.Root == "" {
		cfg.Root = "/sys/fs/cgroup"
	}
	if cfg.Mountinfo == "" {
		cfg.Mountinfo = "/proc/self/mountinfo"
	}
	if cfg.CPUPeriod == 0 {
		cfg.CPUPeriod = defaultCPUPeriod
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Root = filepath.Clean(cfg.Root)
	h, err := findHierarchies(cfg.Mountinfo, cfg.Root)
	if err != nil {
		return nil, err
	}
	if cfg.Name == "" {
		cfg.Name = "ecs"
		if h.unified {
			cfg.Name = "ecstasks"
		}
	}
	if !safeName(cfg.Name) {
		return nil, fmt.Errorf("cgroup name %q: must be the name of one directory", cfg.Name)
	}
	return &Cgroup{cfg: cfg, log: cfg.Log, h: h, tree: kernelTree()}, nil
}

// Unified reports whether the host has cgroup version 2 alone.
func (c *Cgroup) Unified() bool { return c.h.unified }

// Second is the version 2 cgroup that the processes of all tasks are below, which is one
// level below the root; "" on a host without version 2. Hosts with version 1 may have it
// beside, and the runtime puts containers there too.
func (c *Cgroup) Second() (dir string) {
	if c.h.second == "" {
		return ""
	}
	return c.h.second + c.root()
}

// Kind is task.KindCgroup.
func (c *Cgroup) Kind() string { return task.KindCgroup }

func safeName(s string) bool {
	return s != "" && s[0] != '.' && !strings.ContainsAny(s, "/\x00\n")
}

// root is the parent of all task cgroups, below the root of a hierarchy.
func (c *Cgroup) root() string {
	if c.h.unified {
		return "/" + c.cfg.Name + ".slice"
	}
	return "/" + c.cfg.Name
}

func (c *Cgroup) parent(id string) string {
	if c.h.unified {
		return path.Join(c.root(), c.cfg.Name+"-"+id+".slice")
	}
	return path.Join(c.root(), id)
}

// idOf is the reverse of parent, for the name of a directory.
func (c *Cgroup) idOf(name string) (string, bool) {
	if !c.h.unified {
		return name, safeName(name)
	}
	id, ok := strings.CutPrefix(name, c.cfg.Name+"-")
	id, slice := strings.CutSuffix(id, ".slice")
	return id, ok && slice && safeName(id)
}

// dirs are the version 1 directories of p, one for every hierarchy with a controller.
func (c *Cgroup) dirs() []string {
	var out []string
	for _, m := range c.h.controllers {
		out = append(out, m)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// needed are the controllers that limits of tasks need (agent protocol, "Task cgroup").
var needed = []string{"cpu", "memory"}

// EnsureHost makes the parent of all task cgroups. An error means that tasks cannot
// have limits of their own on this host.
func (c *Cgroup) EnsureHost(context.Context) error {
	if c.h.unified {
		return c.ensureHostV2()
	}
	for _, name := range needed {
		if c.h.controllers[name] == "" && !c.cfg.NoLimits {
			return fmt.Errorf("cgroup controller %s is not mounted below %s: mount it, or set ECS_ENABLE_TASK_CPU_MEM_LIMIT=false", name, c.cfg.Root)
		}
	}
	for _, m := range c.dirs() {
		if err := c.makeV1(m, c.root()); err != nil {
			return err
		}
	}
	if c.h.second != "" {
		if err := c.tree.make(c.Second()); err != nil {
			return err
		}
	}
	mem := c.h.controllers["memory"]
	// Kernels from 5.11 on always account hierarchically.
	if v, err := readControl(mem+c.root(), "memory.use_hierarchy"); err == nil && v != "1" {
		return write(mem+c.root(), "memory.use_hierarchy", "1")
	}
	return nil
}

func (c *Cgroup) ensureHostV2() error {
	have, err := readControl(c.cfg.Root, "cgroup.controllers")
	if err != nil {
		return err
	}
	var enable []string
	for _, name := range []string{"cpu", "cpuset", "io", "memory", "pids"} {
		if slices.Contains(strings.Fields(have), name) {
			enable = append(enable, "+"+name)
		} else if slices.Contains(needed, name) && !c.cfg.NoLimits {
			return fmt.Errorf("cgroup controller %s is not available: the kernel was started without it; or set ECS_ENABLE_TASK_CPU_MEM_LIMIT=false", name)
		}
	}
	top := c.cfg.Root + c.root()
	if err := write(c.cfg.Root, "cgroup.subtree_control", strings.Join(enable, " ")); err != nil {
		return err
	}
	if err := c.tree.make(top); err != nil {
		return err
	}
	return write(top, "cgroup.subtree_control", strings.Join(enable, " "))
}

// TeardownHost removes the parent of all task cgroups and what is below it. It fails as
// long as there are processes.
func (c *Cgroup) TeardownHost(ctx context.Context) error {
	return c.removeEverywhere(ctx, c.root())
}

// makeV1 makes one version 1 directory. A new cpuset has no CPUs and takes no process
// before it is given some: it gets its parent's.
func (c *Cgroup) makeV1(mount, p string) error {
	dir := mount + p
	if err := c.tree.make(dir); err != nil {
		return err
	}
	if mount != c.h.controllers["cpuset"] {
		return nil
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		v, err := readControl(dir, file)
		if err != nil {
			return err
		}
		if v != "" {
			continue
		}
		if v, err = readControl(filepath.Dir(dir), file); err != nil {
			return err
		}
		if err := write(dir, file, v); err != nil {
			return err
		}
	}
	return nil
}

// setting is one control file's value, with the controller that it belongs to.
type setting struct{ controller, file, value string }

// settings are the task's limits. Pure.
func (c *Cgroup) settings(t *task.Task) ([]setting, error) {
	if c.cfg.NoLimits {
		return nil, nil
	}
	var shares int64
	for i := range t.Containers {
		ct := &t.Containers[i]
		if t.Memory > 0 && ct.Memory > t.Memory {
			return nil, task.Failf(task.Invalid, task.ResourceInitialization,
				"cgroup resource: container %s asks for %d MiB of memory, more than the %d MiB of its task", ct.Name, ct.Memory, t.Memory)
		}
		shares += max(minShares, ct.CPU)
	}
	shares = min(max(shares, minShares), maxShares)
	period := c.cfg.CPUPeriod.Microseconds()
	quota := max(minQuota, int64(t.CPU*float64(period)))
	var out []setting
	add := func(controller, v1, v2, valueV1, valueV2 string) {
		if c.h.unified {
			v1, valueV1 = v2, valueV2
		}
		out = append(out, setting{controller, v1, valueV1})
	}
	num := func(n int64) string { return strconv.FormatInt(n, 10) }
	switch {
	case t.CPU > 0 && c.h.unified:
		add("cpu", "", "cpu.max", "", num(quota)+" "+num(period))
	case t.CPU > 0:
		add("cpu", "cpu.cfs_period_us", "", num(period), "")
		add("cpu", "cpu.cfs_quota_us", "", num(quota), "")
	default:
		add("cpu", "cpu.shares", "cpu.weight", num(shares), num(weight(shares)))
	}
	if t.Memory > 0 {
		bytes := num(t.Memory * mebibyte)
		add("memory", "memory.limit_in_bytes", "memory.max", bytes, bytes)
	}
	if c.cfg.PidsLimit > 0 {
		add("pids", "pids.max", "pids.max", num(c.cfg.PidsLimit), num(c.cfg.PidsLimit))
	}
	return out, nil
}

// weight turns version 1 shares (2 to 262144) into a version 2 weight (1 to 10000) as
// container runtimes do.
func weight(shares int64) int64 { return 1 + (shares-minShares)*9999/(maxShares-minShares) }

// Ensure makes the task's cgroup and sets its limits.
func (c *Cgroup) Ensure(ctx context.Context, t *task.Task, _ string, _ engine.Deps) (task.Result, error) {
	id := t.ID()
	if !safeName(id) {
		return task.Result{}, task.Failf(task.Invalid, task.CgroupFailed, "task ARN %q has no usable id", t.ARN)
	}
	if t.CPU < 0 || t.Memory < 0 {
		return task.Result{}, task.Failf(task.Invalid, task.CgroupFailed, "task limits cpu %v and memory %d MiB must not be negative", t.CPU, t.Memory)
	}
	settings, err := c.settings(t)
	if err != nil {
		return task.Result{}, err
	}
	p := c.parent(id)
	err = c.make(p)
	if errors.Is(err, fs.ErrNotExist) {
		// Somebody removed the parent.
		if err = c.EnsureHost(ctx); err == nil {
			err = c.make(p)
		}
	}
	if err != nil {
		return task.Result{}, c.classify(err)
	}
	for _, s := range settings {
		mount := c.h.controllers[s.controller]
		if c.h.unified {
			mount = c.cfg.Root
		}
		if mount == "" {
			c.log.Warn("a task limit cannot be set: its cgroup controller is not mounted", "task", id, "controller", s.controller)
			continue
		}
		if err := write(mount+p, s.file, s.value); err != nil {
			return task.Result{}, c.classify(err)
		}
	}
	if err := fail.Point(fail.CgroupAfterCreate); err != nil {
		return task.Result{}, c.classify(err)
	}
	handle, err := json.Marshal(CgroupHandle{Parent: p})
	if err != nil {
		return task.Result{}, err
	}
	return task.Result{Handle: handle}, nil
}

func (c *Cgroup) make(p string) error {
	if c.h.unified {
		return c.tree.make(c.cfg.Root + p)
	}
	for _, m := range c.dirs() {
		if err := c.makeV1(m, p); err != nil {
			return err
		}
	}
	return nil
}

// classify gives errors their class: a value that the kernel refuses stays refused.
func (c *Cgroup) classify(err error) error {
	if err == nil {
		return nil
	}
	class := task.Unavailable
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE):
		class = task.Invalid
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		class = task.Permission
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		class = task.Canceled
	}
	return task.Fail(class, task.CgroupFailed, err)
}

// Remove removes the task's cgroup in every hierarchy, also those that only the runtime
// made, with all cgroups below it. It kills nothing: processes make it fail with class
// Unavailable.
func (c *Cgroup) Remove(ctx context.Context, t *task.Task, _ string, _ task.Handle) error {
	if !safeName(t.ID()) {
		return nil // Ensure made nothing
	}
	return c.classify(c.removeEverywhere(ctx, c.parent(t.ID())))
}

func (c *Cgroup) removeEverywhere(ctx context.Context, p string) error {
	var err error
	for try := range removeTries {
		if err = c.removeOnce(p); !errors.Is(err, unix.EBUSY) || try == removeTries-1 {
			break
		}
		select {
		case <-time.After(removePause):
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
	return err
}

func (c *Cgroup) removeOnce(p string) error {
	var errs []error
	for _, m := range c.h.mounts {
		errs = append(errs, c.tree.removeAll(m+p))
	}
	return errors.Join(errs...)
}

// Probe reports whether the task's cgroup is there in every hierarchy that Ensure makes
// it in.
func (c *Cgroup) Probe(_ context.Context, t *task.Task, _ string, _ task.Handle) (task.Observed, error) {
	if !safeName(t.ID()) {
		return task.Observed{}, nil
	}
	mounts := c.dirs()
	if c.h.unified {
		mounts = []string{c.cfg.Root}
	}
	for _, m := range mounts {
		if _, err := os.Stat(m + c.parent(t.ID())); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return task.Observed{}, nil
			}
			return task.Observed{}, c.classify(err)
		}
	}
	return task.Observed{Exists: true}, nil
}

// Owned lists the task cgroups of all hierarchies by task.
func (c *Cgroup) Owned(context.Context) ([]task.Owned, error) {
	ids := map[string]bool{}
	for _, m := range c.h.mounts {
		entries, err := os.ReadDir(m + c.root())
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, c.classify(err)
		}
		for _, e := range entries {
			if id, ok := c.idOf(e.Name()); ok && e.IsDir() {
				ids[id] = true
			}
		}
	}
	var out []task.Owned
	for id := range ids {
		out = append(out, task.Owned{Resource: task.ResourceID{Kind: task.KindCgroup, Name: "task"}, TaskID: id})
	}
	slices.SortFunc(out, func(a, b task.Owned) int { return strings.Compare(a.TaskID, b.TaskID) })
	return out, nil
}

// Sweep removes the cgroup of a task that Owned listed.
func (c *Cgroup) Sweep(ctx context.Context, o task.Owned) error {
	if !safeName(o.TaskID) {
		return task.Failf(task.Invalid, task.CgroupFailed, "task id %q is not a directory name", o.TaskID)
	}
	return c.classify(c.removeEverywhere(ctx, c.parent(o.TaskID)))
}
