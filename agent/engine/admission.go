package engine

import (
	"context"
	"slices"
	"sync"

	"berth.dev/berth/agent/task"
)

// Admission shares out the host: its CPU, memory and static ports. A task whose
// share is not free waits; it does not hold back others that fit. A share is held
// until everything of the task is gone from the host, so that what the cluster
// believes to be free is never promised twice.
//
// It is a Resource of kind admission, which lives in memory only: after a restart
// the tasks that hold a share are entered again without asking (agent protocol,
// "Restart of the agent").
type Admission struct {
	mu      sync.Mutex
	total   Share
	free    Share
	held    map[string]Share // by task ARN
	waiting []*waiter        // in the order of arrival
}

// Share is a part of the host: what a task needs or what there is.
type Share struct {
	CPU    int64 // units; 1024 is one vCPU
	Memory int64 // MiB
	Ports  []Port
}

// Port is a host port; reserved ports of the host are entered as held.
type Port struct {
	Number   uint16
	Protocol string // tcp or udp
}

type waiter struct {
	arn  string
	need Share
	ok   chan struct{}
}

// NewAdmission shares out total; reserved ports are never given to a task.
func NewAdmission(total Share, reserved []Port) *Admission {
	a := &Admission{total: total, free: Share{CPU: total.CPU, Memory: total.Memory}, held: make(map[string]Share)}
	a.held[""] = Share{Ports: reserved}
	return a
}

// Need is what a task takes of the host (agent protocol, "Host resources and the queue").
func Need(t *task.Task) Share {
	need := Share{CPU: int64(t.CPU * 1024), Memory: t.Memory}
	for i := range t.Containers {
		c := &t.Containers[i]
		if t.CPU == 0 {
			need.CPU += c.CPU
		}
		if t.Memory == 0 {
			need.Memory += memory(c)
		}
		if t.NetworkMode == task.NetworkAWSVPC || t.NetworkMode == task.NetworkNone {
			continue
		}
		for _, p := range c.Ports {
			port := p.HostPort
			if port == 0 && t.NetworkMode == task.NetworkHost {
				port = p.ContainerPort
			}
			if port != 0 {
				need.Ports = append(need.Ports, Port{Number: port, Protocol: p.Protocol})
			}
		}
	}
	return need
}

// memory is a container's claim in MiB: its reservation, else its limit.
func memory(c *task.Container) int64 {
	if c.HostConfig.MemoryReservation > 0 {
		return c.HostConfig.MemoryReservation >> 20
	}
	return c.Memory
}

// Kind is task.KindAdmission.
func (a *Admission) Kind() string { return task.KindAdmission }

// Ensure waits until the task's share is free and takes it. A task that needs more
// than the whole host fails with HostResourcesExhausted.
func (a *Admission) Ensure(ctx context.Context, t *task.Task, _ string, _ Deps) (task.Result, error) {
	w := &waiter{arn: t.ARN, need: Need(t), ok: make(chan struct{})}
	if w.need.CPU > a.total.CPU || w.need.Memory > a.total.Memory {
		return task.Result{}, task.Failf(task.Invalid, task.HostResourcesExhausted,
			"the task needs %d CPU units and %d MiB of memory; this host has %d and %d in all", w.need.CPU, w.need.Memory, a.total.CPU, a.total.Memory)
	}
	a.mu.Lock()
	if _, held := a.held[t.ARN]; held {
		a.mu.Unlock()
		return task.Result{}, nil
	}
	if a.fits(w.need) {
		a.take(w.arn, w.need)
		a.mu.Unlock()
		return task.Result{}, nil
	}
	a.waiting = append(a.waiting, w)
	a.mu.Unlock()
	select {
	case <-w.ok:
		return task.Result{}, nil
	case <-ctx.Done():
		a.giveUp(w)
		return task.Result{}, ctx.Err()
	}
}

// giveUp leaves the queue; a share that was given in the same moment is given back.
func (a *Admission) giveUp(w *waiter) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if i := slices.Index(a.waiting, w); i >= 0 {
		a.waiting = slices.Delete(a.waiting, i, i+1)
		return
	}
	a.release(w.arn)
}

// Remove gives the task's share back.
func (a *Admission) Remove(_ context.Context, t *task.Task, _ string, _ task.Handle) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.release(t.ARN)
	return nil
}

// Probe reports whether the task holds a share.
func (a *Admission) Probe(_ context.Context, t *task.Task, _ string, _ task.Handle) (task.Observed, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, held := a.held[t.ARN]
	return task.Observed{Exists: held}, nil
}

// restore enters the share of a task that held it before the agent was restarted,
// even where that takes more than there is now.
func (a *Admission) restore(t *task.Task) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, held := a.held[t.ARN]; !held {
		a.take(t.ARN, Need(t))
	}
}

func (a *Admission) fits(need Share) bool {
	if need.CPU > a.free.CPU || need.Memory > a.free.Memory {
		return false
	}
	for _, held := range a.held {
		for _, p := range need.Ports {
			if slices.Contains(held.Ports, p) {
				return false
			}
		}
	}
	return true
}

func (a *Admission) take(arn string, need Share) {
	a.free.CPU -= need.CPU
	a.free.Memory -= need.Memory
	a.held[arn] = need
}

func (a *Admission) release(arn string) {
	held, ok := a.held[arn]
	if !ok {
		return
	}
	delete(a.held, arn)
	a.free.CPU += held.CPU
	a.free.Memory += held.Memory
	a.waiting = slices.DeleteFunc(a.waiting, func(w *waiter) bool {
		if !a.fits(w.need) {
			return false
		}
		a.take(w.arn, w.need)
		close(w.ok)
		return true
	})
}

// Waiting lists the ARNs of the tasks that wait for their share, in order.
func (a *Admission) Waiting() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]string, 0, len(a.waiting))
	for _, w := range a.waiting {
		out = append(out, w.arn)
	}
	return out
}
