package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"berth.dev/berth/agent/task"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/moby/sys/mountinfo"
)

// handleFor is the handle of one incarnation as it is before anything is made.
func handleFor(t *task.Task, name string, incarnation int) handle {
	h := handle{ID: ContainerID(t.ARN, name, incarnation), Incarnation: incarnation}
	if incarnation > 0 {
		h.Snapshot = ContainerID(t.ARN, name, 0)
	}
	return h
}

// snapshot is the key of the container's snapshot.
func (h *handle) snapshot() string {
	if h.Snapshot != "" {
		return h.Snapshot
	}
	return h.ID
}

// labelled is the handle of a container as its record's labels tell it.
func labelled(id string, labels map[string]string) handle {
	h := handle{ID: id, Cgroup: labels[labelCgroup]}
	h.Signal, _ = strconv.Atoi(labels[labelStopSignal])       // 0 means SIGTERM
	h.Incarnation, _ = strconv.Atoi(labels[labelIncarnation]) // 0 where there is no label: the first
	if h.Incarnation > 0 {
		h.Snapshot = ContainerID(labels[LabelTaskARN], labels[LabelContainer], 0)
	}
	return h
}

// incarnations lists those of a container that containerd has a record of, the latest
// first.
func (c *Client) incarnations(ctx context.Context, t *task.Task, name string) ([]handle, error) {
	list, err := c.containers.List(ctx, fmt.Sprintf("labels.%q==%q,labels.%q==%q", LabelTaskID, t.ID(), LabelContainer, name))
	if err != nil {
		return nil, err
	}
	var out []handle
	for _, r := range list {
		if r.Labels[LabelTaskARN] == t.ARN {
			out = append(out, labelled(r.ID, r.Labels))
		}
	}
	slices.SortFunc(out, func(a, b handle) int { return b.Incarnation - a.Incarnation })
	return out, nil
}

// replace takes away the incarnations before the one that is to be made. That of a
// process whose shim serves other containers of the task is left until they have ended;
// only its root file system is given up, which the new one is about to use.
func (c *Client) replace(ctx context.Context, t *task.Task, p *planned) error {
	if p.h.Incarnation == 0 {
		return nil
	}
	all, err := c.incarnations(ctx, t, p.name)
	if err != nil {
		return err
	}
	for _, old := range all {
		if old.Incarnation >= p.h.Incarnation {
			continue
		}
		if err := c.leave(ctx, t.ID(), len(t.Containers), old, false); err != nil {
			return err
		}
		_, err := c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: old.ID})
		switch {
		case isNotFound(err):
			if err := c.forgetEarlier(ctx, old.ID); err != nil {
				return err
			}
		case err != nil:
			return err
		default:
			if err := c.giveUpRootfs(old.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// giveUpRootfs unmounts the root file system of an ended process that containerd keeps.
func (c *Client) giveUpRootfs(id string) error {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasSuffix(m.Mountpoint, "/io.containerd.runtime.v2.task/"+c.cfg.Namespace+"/"+id+"/rootfs"), false
	})
	if err != nil {
		return fmt.Errorf("mounts of container %s: %w", id, err)
	}
	for _, m := range mounts {
		if err := unmountRootfs(m.Mountpoint); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("root file system of container %s: %w", id, err)
		}
	}
	return nil
}

// eraseEarlier takes away what is left of the incarnations before h, but their snapshot,
// which is h's as well. One whose shim h itself uses goes after h's process.
func (c *Client) eraseEarlier(ctx context.Context, t *task.Task, name string, h handle) error {
	if h.Incarnation == 0 {
		return nil
	}
	all, err := c.incarnations(ctx, t, name)
	if err != nil || len(all) == 0 {
		return err
	}
	if err := c.leave(ctx, t.ID(), len(t.Containers), h, true); err != nil {
		return err
	}
	for _, old := range all {
		if old.ID == h.ID {
			continue
		}
		if err := c.leave(ctx, t.ID(), len(t.Containers), old, true); err != nil {
			return err
		}
		if err := c.forgetEarlier(ctx, old.ID); err != nil {
			return err
		}
	}
	return nil
}

// forgetEarlier deletes the record of an incarnation without a process.
func (c *Client) forgetEarlier(ctx context.Context, id string) error {
	if err := c.containers.Delete(ctx, id); err != nil && !isNotFound(err) {
		return err
	}
	if err := os.Remove(c.checkPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	c.untrack(id)
	return nil
}

// retireAll frees the processes of all incarnations. The last may have been made and not
// started, because its task was stopped meanwhile.
func (c *Client) retireAll(ctx context.Context, t *task.Task, name string) error {
	all, err := c.incarnations(ctx, t, name)
	if err != nil {
		return classify(err, "")
	}
	for _, h := range all {
		r, err := c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: h.ID})
		if err != nil && !isNotFound(err) {
			return classify(err, "")
		}
		idle := err == nil && r.Process.Status == tasktypes.Status_CREATED
		if err := c.leave(ctx, t.ID(), len(t.Containers), h, idle); err != nil {
			return err
		}
	}
	return nil
}
