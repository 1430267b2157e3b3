package runtime

import (
	"context"
	"fmt"
	"time"

	"berth.dev/berth/agent/task"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// tracked is what the observer has to know of a container to make sense of an event.
type tracked struct {
	handle
	taskID, name string
	oom          bool // the kernel killed one of its processes for lack of memory
	exited       bool // its end was told
	recorded     bool // this client has made or found its record
	remains      int  // failures to make its process that may be the fault of what an earlier try left
}

func (c *Client) track(h handle, taskID, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.known[h.ID]; ok {
		old.handle = h
		return
	}
	c.known[h.ID] = &tracked{handle: h, taskID: taskID, name: name}
}

// made forgets the end of an earlier process of a container that has a new one.
func (c *Client) made(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t, ok := c.known[id]; ok {
		t.exited, t.oom = false, false
	}
}

func (c *Client) untrack(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.known, id)
}

func (c *Client) trackedHandle(id string) handle {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t, ok := c.known[id]; ok {
		return t.handle
	}
	return handle{ID: id}
}

// trackAll fills the map from containerd's records.
func (c *Client) trackAll(ctx context.Context) error {
	list, err := c.containers.List(ctx)
	if err != nil {
		return err
	}
	for _, r := range list {
		if r.Labels[LabelTaskID] != "" {
			c.track(labelled(r.ID, r.Labels), r.Labels[LabelTaskID], r.Labels[LabelContainer])
		}
	}
	return nil
}

func (c *Client) sawOOM(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.known[id]
	return ok && t.oom
}

// Delays between attempts to reach containerd again.
const (
	reconnectFirst = 50 * time.Millisecond
	reconnectMax   = 2 * time.Second
)

// markTopic is the topic of the event by which the observer knows that its subscription
// is in force.
const markTopic = "/berth/subscribed"

// Observe subscribes to the events of our containerd namespace.
func (s *Containers) Observe(ctx context.Context, seen func(taskID, name string, o task.Observed), lost func()) error {
	delay := reconnectFirst
	for ctx.Err() == nil {
		began := time.Now()
		err := s.c.subscribe(s.c.ns(ctx), seen, lost)
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > reconnectMax {
			delay = reconnectFirst
		}
		s.c.log.Warn("the event stream of containerd ended and is opened again", "err", err, "after", delay)
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
		delay = min(2*delay, reconnectMax)
	}
	return ctx.Err()
}

func (c *Client) subscribe(ctx context.Context, seen func(taskID, name string, o task.Observed), lost func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := c.probe(ctx); err != nil {
		return err
	}
	envelopes, errs := c.cd.EventService().Subscribe(ctx,
		fmt.Sprintf("namespace==%s,topic~=\"^/(tasks/(exit|oom|delete)|berth/)\"", c.cfg.Namespace))
	// The stream is open at some time after Subscribe has returned: marks are sent until
	// one comes back, and only then is everything before it asked for.
	mark := time.NewTicker(reconnectFirst)
	defer mark.Stop()
	if err := c.publishMark(ctx); err != nil {
		return err
	}
	for marked := false; ; {
		select {
		case <-mark.C:
			if err := c.publishMark(ctx); err != nil {
				return err
			}
		case err := <-errs:
			return err
		case e := <-envelopes:
			if e.Topic != markTopic {
				c.event(ctx, e, seen)
				continue
			}
			if marked {
				continue
			}
			marked = true
			mark.Stop()
			if err := c.trackAll(ctx); err != nil {
				return err
			}
			lost()
		}
	}
}

func (c *Client) publishMark(ctx context.Context) error {
	return c.cd.EventService().Publish(ctx, markTopic, &apievents.NamespaceUpdate{Name: c.cfg.Namespace})
}

func (c *Client) event(ctx context.Context, e *events.Envelope, seen func(taskID, name string, o task.Observed)) {
	v, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		c.log.Warn("an event of containerd cannot be read", "topic", e.Topic, "err", err)
		return
	}
	switch v := v.(type) {
	case *apievents.TaskOOM:
		c.mu.Lock()
		if t, ok := c.known[v.ContainerID]; ok {
			t.oom = true
		}
		c.mu.Unlock()
	case *apievents.TaskExit:
		if v.ID == v.ContainerID {
			c.exited(ctx, v.ContainerID, v.ExitStatus, v.ExitedAt, seen)
		}
	case *apievents.TaskDelete:
		// Normally our own doing, after the exit. For a killed shim it may be all there is.
		// It may also come late, of a process that was undone and has a successor by now.
		if (v.ID == "" || v.ID == v.ContainerID) && !c.lives(ctx, v.ContainerID) {
			c.exited(ctx, v.ContainerID, v.ExitStatus, v.ExitedAt, seen)
		}
	}
}

// lives reports whether containerd has a process of the container that has not ended.
func (c *Client) lives(ctx context.Context, id string) bool {
	c.mu.Lock()
	t, ok := c.known[id]
	told := !ok || t.exited
	c.mu.Unlock()
	if told {
		return false // nothing will be told anyway
	}
	r, err := c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: id})
	return err == nil && r.Process.Status != tasktypes.Status_STOPPED
}

// exited tells the end of a container once its last process is gone.
func (c *Client) exited(ctx context.Context, id string, status uint32, at *timestamppb.Timestamp, seen func(taskID, name string, o task.Observed)) {
	c.mu.Lock()
	t, ok := c.known[id]
	if !ok || t.exited {
		c.mu.Unlock()
		return
	}
	t.exited = true
	known := *t
	c.mu.Unlock()
	tell := func() {
		exit, err := c.ended(ctx, known.handle, status, at)
		if err != nil {
			// The engine's next probe asks again.
			c.log.Warn("a container ended and its processes did not", "task", known.taskID, "container", known.name, "err", err)
			c.mu.Lock()
			if t, ok := c.known[id]; ok {
				t.exited = false
			}
			c.mu.Unlock()
			return
		}
		seen(known.taskID, known.name, task.Observed{
			Exists: true, Process: task.ProcessExited, Exit: &exit, Unstarted: c.unstarted(id), Incarnation: known.Incarnation,
		})
	}
	if pids, err := c.cgs.procs(known.Cgroup); err == nil && len(pids) == 0 {
		tell()
		return
	}
	go tell() // so that one slow end does not hold up the others
}
