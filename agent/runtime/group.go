package runtime

import (
	"context"
	"errors"
	"fmt"

	"berth.dev/berth/agent/task"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/sandbox"
)

// group is the shim that the containers of one task share.
type group struct {
	lock    chan struct{}   // held while the leader is made and while anything is deleted
	asked   bool            // containerd's records were looked at
	leader  string          // container whose shim it is; "" while there is none
	members map[string]bool // containers that joined it
	retire  bool            // the leader's process is to be deleted once the members' are
}

func (c *Client) group(taskID string) *group {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.groups[taskID]
	if g == nil {
		g = &group{lock: make(chan struct{}, 1), members: map[string]bool{}}
		c.groups[taskID] = g
	}
	return g
}

func (g *group) acquire(ctx context.Context) error {
	select {
	case g.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return classify(ctx.Err(), "")
	}
}

func (g *group) release() { <-g.lock }

// unknownSize stands for the number of containers of a task that is not known any more.
const unknownSize = 2

// grouped reports whether the containers of a task share a shim.
func (c *Client) grouped(containers int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sandbox && containers > 1
}

// labelShim marks the sandbox record of a leader.
const labelShim = "berth/shim"

// keep stores a sandbox record with the container's id. With it, containerd 2.x keeps the
// shim of a container that ended while containerd itself was down; without it, it would
// take the shim for a leaked one at its start and the exit code would be lost. The
// leader's record also lets other containers join its shim.
func (c *Client) keep(ctx context.Context, p *planned, leads bool) error {
	if !c.hasSandboxes() {
		return nil
	}
	id, labels := p.h.ID, c.ownLabels(p.t, p.name)
	if leads {
		labels[labelShim] = "shared"
	}
	_, err := c.sandboxes.Create(ctx, sandbox.Sandbox{ID: id, Runtime: sandbox.RuntimeOpts{Name: p.runtime.shim}, Labels: labels})
	if err == nil || isExists(err) {
		return nil
	}
	return classify(fmt.Errorf("sandbox record of container %s: %w", id, err), task.CannotCreateContainer)
}

func (c *Client) unkeep(ctx context.Context, id string) error {
	if !c.hasSandboxes() {
		return nil
	}
	if err := c.sandboxes.Delete(ctx, id); err != nil && !isNotFound(err) {
		return classify(err, "")
	}
	return nil
}

func (c *Client) hasSandboxes() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sandbox
}

// join runs create for a container with the sandbox that it is to be made in; "" means
// a shim of its own, which leads says is to be shared. The first container of a task is made alone: a second one that
// meets a shim which fails would be lost with it. Only the runc shim is shared.
func (c *Client) join(ctx context.Context, p *planned, create func(sandbox string, leads bool) error) error {
	t, id := p.t, p.h.ID
	if !c.grouped(len(t.Containers)) || p.runtime.shim != shimRuntime {
		return create("", false)
	}
	g := c.group(t.ID())
	if err := g.acquire(ctx); err != nil {
		return err
	}
	held := true
	defer func() {
		if held {
			g.release()
		}
	}()
	if err := c.recover(ctx, t.ID(), g); err != nil {
		return err
	}
	if g.leader != "" && g.leader != id {
		g.members[id] = true
		leader := g.leader
		g.release()
		held = false
		err := create(leader, false)
		if err == nil || classOf(err) != task.Unavailable {
			return err
		}
		// The shim may be gone; the next try finds out and leads a new one.
		if aerr := g.acquire(ctx); aerr != nil {
			return errors.Join(err, aerr)
		}
		held = true
		delete(g.members, id)
		g.asked = false
		return err
	}
	if err := create("", true); err != nil {
		return err
	}
	g.leader = id
	return nil
}

// recover finds the task's sandbox record after a restart or a failure, and drops one
// whose shim is gone. The caller holds the group's lock.
func (c *Client) recover(ctx context.Context, taskID string, g *group) error {
	if g.asked {
		return nil
	}
	list, err := c.sandboxes.List(ctx, fmt.Sprintf("labels.%q==%q,labels.%q==shared", LabelTaskID, taskID, labelShim))
	if err != nil {
		return classify(fmt.Errorf("shared shim of task %s: %w", taskID, err), "")
	}
	g.leader = ""
	for _, s := range list {
		_, err := c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: s.ID})
		switch {
		case err == nil:
			g.leader = s.ID
		case isNotFound(err):
			if err := c.unkeep(ctx, s.ID); err != nil {
				return err
			}
		default:
			return classify(err, "")
		}
	}
	if g.leader != "" {
		records, err := c.containers.List(ctx, fmt.Sprintf("labels.%q==%q", LabelTaskID, taskID))
		if err != nil {
			return classify(err, "")
		}
		for _, r := range records {
			if r.SandboxID != g.leader {
				continue
			}
			if _, err := c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: r.ID}); err == nil {
				g.members[r.ID] = true
			}
		}
	}
	g.asked = true
	return nil
}

// leave deletes a container's process. That of the leader stays as long as others use
// its shim: on Retire it is deleted later, together with the last of them; Remove with
// force is to be tried again.
func (c *Client) leave(ctx context.Context, taskID string, containers int, h handle, force bool) error {
	if !c.grouped(containers) {
		if err := c.deleteProcess(ctx, h, force); err != nil {
			return classify(err, "")
		}
		return c.unkeep(ctx, h.ID)
	}
	g := c.group(taskID)
	if err := g.acquire(ctx); err != nil {
		return err
	}
	defer g.release()
	if err := c.recover(ctx, taskID, g); err != nil {
		return err
	}
	if g.leader == h.ID {
		if len(g.members) > 0 {
			if force {
				return unavailable(fmt.Errorf("container %s: other containers of the task still use its shim", h.ID))
			}
			g.retire = true
			return nil
		}
		return c.disband(ctx, taskID, g, h, force)
	}
	if err := c.deleteProcess(ctx, h, force); err != nil {
		return classify(err, "")
	}
	if err := c.unkeep(ctx, h.ID); err != nil {
		return err
	}
	delete(g.members, h.ID)
	if g.retire && len(g.members) == 0 {
		return c.disband(ctx, taskID, g, c.trackedHandle(g.leader), false)
	}
	if g.leader == "" {
		c.dropGroup(taskID)
	}
	return nil
}

// disband deletes the leader's process and the sandbox record.
func (c *Client) disband(ctx context.Context, taskID string, g *group, leader handle, force bool) error {
	if err := c.deleteProcess(ctx, leader, force); err != nil {
		return classify(err, "")
	}
	if err := c.unkeep(ctx, leader.ID); err != nil {
		return err
	}
	g.leader, g.retire = "", false
	c.dropGroup(taskID)
	return nil
}

// dropGroup forgets an empty group. Whoever waits for its lock goes on with it, which
// is harmless: it has no leader, and what is there is looked up anew.
func (c *Client) dropGroup(taskID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g := c.groups[taskID]; g != nil {
		g.asked = false
		delete(c.groups, taskID)
	}
}
