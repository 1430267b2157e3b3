package runtime

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/spec"
	"berth.dev/berth/agent/task"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Namespaces makes what the containers of a task share by pidMode or ipcMode task: the
// namespaces of a container that does nothing, and a file system for shared memory. It
// serves task.KindNamespace. Other containers of a shared process namespace end with the
// one that holds it, so it is made first and goes last.
//
//	<StateDir>/shm-<task id>   shared memory, mounted (ipcMode task)
type Namespaces struct{ c *Client }

var (
	_ engine.Resource = (*Namespaces)(nil)
	_ engine.Sweeper  = (*Namespaces)(nil)
)

// Namespaces is the engine's view of the client for shared namespaces.
func (c *Client) Namespaces() *Namespaces { return &Namespaces{c} }

// pauseName is the name that the protocol gives to the container that holds the
// namespaces; no container of a definition can have it (agent protocol, "Namespaces").
const pauseName = "~internal~ecs~pause~namespace"

// Kind is task.KindNamespace.
func (n *Namespaces) Kind() string { return task.KindNamespace }

// Ensure makes the holder and starts it, or finds it running.
func (n *Namespaces) Ensure(ctx context.Context, t *task.Task, _ string, d engine.Deps) (task.Result, error) {
	p := &planned{t: t, name: pauseName, h: n.handle(t), runtime: chosen{shimRuntime, n.c.options}}
	p.in.Container = &task.Container{Name: pauseName}
	p.in.Container.HostConfig.LogConfig.Type = "none"
	parent := cgroupHandle{Parent: path.Join("/ecs", t.ID())}
	if err := dependency(d, task.ResourceID{Kind: task.KindCgroup, Name: "task"}, &parent); err != nil {
		return task.Result{}, err
	}
	p.h.Cgroup = path.Join("/", parent.Parent, p.h.ID)
	oci, err := spec.Pause(n.c.host, p.h.Cgroup)
	if err != nil {
		return task.Result{}, err
	}
	if _, ipc := spec.SharedNamespaces(t); ipc {
		if err := n.mountShm(t); err != nil {
			return task.Result{}, classify(err, task.ResourceInitialization)
		}
	}
	nctx := n.c.ns(ctx)
	mounts, err := n.c.prepare(nctx, p)
	if err == nil {
		err = n.c.record(nctx, p, oci, "")
	}
	if err == nil {
		err = n.c.create(nctx, p, mounts)
	}
	if err == nil {
		err = n.start(nctx, p.h.ID)
	}
	if err != nil {
		return task.Result{}, explain(classify(fmt.Errorf("namespaces of the task: %w", err), task.ResourceInitialization))
	}
	h, err := json.Marshal(p.h)
	return task.Result{Handle: h, RuntimeID: p.h.ID}, err
}

// start starts the holder; a repeated start finds it running.
func (n *Namespaces) start(ctx context.Context, id string) error {
	_, err := n.c.tasks.Start(ctx, &tasks.StartRequest{ContainerID: id})
	if err == nil {
		return nil
	}
	if _, perr := n.c.holder(ctx, id); perr == nil {
		return nil
	}
	return err
}

func (n *Namespaces) handle(t *task.Task) handle { return handle{ID: ContainerID(t.ARN, pauseName, 0)} }

// errNoHolder says that the namespaces of a task are gone.
var errNoHolder = errors.New("the process that holds the namespaces of the task is gone")

// holder is the process id of the holder. It is asked for each time, because a number
// that was remembered may have become another process's.
func (c *Client) holder(ctx context.Context, id string) (uint32, error) {
	r, err := c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err != nil {
		return 0, err
	}
	runs := r.Process.Status == tasktypes.Status_RUNNING || r.Process.Status == tasktypes.Status_CREATED && c.begun(id)
	if !runs || r.Process.Pid == 0 {
		return 0, errNoHolder
	}
	return r.Process.Pid, nil
}

// shared are the namespaces that the containers of a task have in common.
func (c *Client) shared(ctx context.Context, t *task.Task) (spec.Shared, error) {
	var out spec.Shared
	pid, ipc := spec.SharedNamespaces(t)
	if !pid && !ipc {
		return out, nil
	}
	n := c.Namespaces()
	holder, err := c.holder(c.ns(ctx), n.handle(t).ID)
	if err != nil {
		return out, classify(fmt.Errorf("pidMode and ipcMode: %w", err), task.CannotCreateContainer)
	}
	if pid {
		out.PID = fmt.Sprintf("/proc/%d/ns/pid", holder)
	}
	if ipc {
		out.IPC, out.Shm = fmt.Sprintf("/proc/%d/ns/ipc", holder), n.shm(t.ID())
	}
	return out, nil
}

const shmPrefix = "shm-"

func (n *Namespaces) shm(taskID string) string {
	return filepath.Join(n.c.cfg.StateDir, shmPrefix+safeName(taskID))
}

// usualShm is the size of shared memory in bytes where no container of a task asks for
// one (Docker's default).
const usualShm = 64 << 20

// mountShm mounts the task's shared memory, as large as the largest that a container
// asks for.
func (n *Namespaces) mountShm(t *task.Task) error {
	dir := n.shm(t.ID())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	mounted, err := mountinfo.Mounted(dir)
	if err != nil || mounted {
		return err
	}
	var size int64
	for i := range t.Containers {
		size = max(size, t.Containers[i].HostConfig.ShmSize)
	}
	options := fmt.Sprintf("mode=1777,size=%d", cmp.Or(size, usualShm))
	if err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("sharedMemorySize: mounting %s: %w", dir, err)
	}
	return nil
}

func (n *Namespaces) unmountShm(taskID string) error {
	dir := n.shm(taskID)
	if err := unmountRootfs(dir); err != nil {
		return classify(err, "")
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return classify(err, "")
	}
	return nil
}

// Remove ends the holder and takes everything of it away.
func (n *Namespaces) Remove(ctx context.Context, t *task.Task, _ string, raw task.Handle) error {
	h := n.handle(t)
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &h); err != nil {
			return task.Failf(task.Invalid, task.ResourceInitialization, "handle of the namespaces: %w", err)
		}
	}
	if h.Cgroup == "" {
		var err error
		if h, err = n.c.Containers().handleOf(ctx, t, pauseName, nil); err != nil {
			return err
		}
	}
	if err := n.c.erase(n.c.ns(ctx), t.ID(), 1, h); err != nil {
		return err
	}
	return n.unmountShm(t.ID())
}

// Probe reports whether the namespaces are there.
func (n *Namespaces) Probe(ctx context.Context, t *task.Task, _ string, _ task.Handle) (task.Observed, error) {
	ctx, cancel := context.WithTimeout(n.c.ns(ctx), askTimeout)
	defer cancel()
	_, err := n.c.holder(ctx, n.handle(t).ID)
	if errors.Is(err, errNoHolder) || isNotFound(err) {
		return task.Observed{}, nil
	}
	return task.Observed{Exists: err == nil}, classify(err, task.CannotInspectContainer)
}

// Owned lists the shared memories that are mounted; what holds namespaces is listed with
// the containers.
func (n *Namespaces) Owned(context.Context) ([]task.Owned, error) {
	entries, err := os.ReadDir(n.c.cfg.StateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []task.Owned
	for _, e := range entries {
		if id, ok := strings.CutPrefix(e.Name(), shmPrefix); ok {
			out = append(out, task.Owned{Resource: task.ResourceID{Kind: task.KindNamespace, Name: "task"}, TaskID: id})
		}
	}
	return out, err
}

// Sweep removes what Owned listed.
func (n *Namespaces) Sweep(_ context.Context, o task.Owned) error { return n.unmountShm(o.TaskID) }
