package plan

import (
	"slices"

	"berth.dev/berth/agent/task"
)

// ContainerStatus is what a container counts as (agent protocol, "Task engine: states").
func ContainerStatus(t *task.Task, k *task.Known, name string) task.ContainerStatus {
	r, image, network := k.Resource(Container(name)), k.Resource(Image(name)), k.Resource(Network(t, name))
	switch {
	case r.Exit != nil || r.Phase == task.Ended || r.Phase == task.Failed || image.Phase == task.Failed:
		return task.ContainerStopped
	case r.Phase == task.Removing || r.Phase == task.Removed:
		return task.ContainerStopped
	case r.Running():
		return task.ContainerRunning
	case network.Phase == task.Failed && r.Verb == task.VerbNone && !r.Unconfirmed:
		return task.ContainerStopped // nothing runs, and nothing will
	case r.Restarting() && k.Desired != task.StatusStopped:
		return task.ContainerRunning // the end between two processes is not told
	case k.Desired == task.StatusStopped && r.Verb == task.VerbNone && !r.Unconfirmed:
		// Not running when it should stop: stopped without asking the runtime.
		return task.ContainerStopped
	case r.Phase == task.Present:
		return task.ContainerCreated
	case image.Phase == task.Present:
		return task.ContainerPulled
	default:
		return task.ContainerNone
	}
}

// ContainerStatuses is what each container of a task counts as.
func ContainerStatuses(t *task.Task, k *task.Known) map[string]task.ContainerStatus {
	out := make(map[string]task.ContainerStatus, len(t.Containers))
	for i := range t.Containers {
		out[t.Containers[i].Name] = ContainerStatus(t, k, t.Containers[i].Name)
	}
	return out
}

// essential makes a task stop when an essential container has stopped, or when
// something that the whole task stands on could not be made.
func (d *decision) essential() {
	if d.k.Desired == task.StatusStopped {
		return
	}
	shared := []task.ResourceID{Admission, Cgroup}
	if !ownNetworks(d.t) {
		shared = append(shared, sharedNetwork)
	}
	for _, id := range shared {
		if r := d.rec(id); r.Phase == task.Failed {
			d.taskReason(r.Reason)
			d.desireStopped(id.String() + " failed")
			return
		}
	}
	if id, reason, failed := d.failedBase(); failed {
		d.taskReason(reason)
		d.desireStopped(id.String() + " failed")
		return
	}
	if d.failedPull() {
		return
	}
	for i := range d.t.Containers {
		c := &d.t.Containers[i]
		if c.Essential && ContainerStatus(d.t, d.k, c.Name) == task.ContainerStopped {
			d.desireStopped("essential container " + c.Name + " stopped")
			return
		}
	}
}

func (d *decision) taskReason(r *task.Reason) {
	if d.k.Reason == nil && r != nil {
		d.k.Reason = r
		d.step.Known = true
	}
}

func (d *decision) desireStopped(why string) {
	d.k.Desired = task.StatusStopped
	d.k.StopRequested = d.now
	d.step.Known = true
	d.event(task.EventDesired, task.ResourceID{}, task.VerbNone, "STOPPED: "+why)
}

// status raises the task's status to that of its earliest container and writes the
// reports that are owed.
func (d *decision) status() {
	status := d.earliest()
	if status > d.k.Status {
		d.k.Status = status
		if status == task.StatusStopped {
			d.k.Stopped = d.now
		}
		d.step.Known = true
		d.event(task.EventStatus, task.ResourceID{}, task.VerbNone, status.String())
	}
	d.report()
}

// earliest is the lowest status over all containers, except that a task whose
// essential container has stopped is not raised to anything short of STOPPED.
func (d *decision) earliest() task.Status {
	lowest := task.StatusStopped
	essentialStopped := false
	for i := range d.t.Containers {
		c := &d.t.Containers[i]
		status := ContainerStatus(d.t, d.k, c.Name)
		if status == task.ContainerStopped {
			essentialStopped = essentialStopped || c.Essential
			if !d.settled(c.Name) {
				lowest = min(lowest, d.k.Status)
			}
			continue
		}
		lowest = min(lowest, status.Task())
	}
	if lowest == task.StatusStopped && d.k.Desired != task.StatusStopped {
		// All containers have ended although none is essential: nothing is left to run.
		d.desireStopped("all containers stopped")
	}
	if lowest < task.StatusStopped && (essentialStopped || d.k.Desired == task.StatusStopped) {
		return d.k.Status
	}
	return lowest
}

// settled reports whether nothing is in flight for a container that could still
// start a process.
func (d *decision) settled(name string) bool {
	for _, id := range []task.ResourceID{Image(name), Container(name)} {
		if v := d.rec(id).Verb; v == task.VerbEnsure || v == task.VerbStart {
			return false
		}
	}
	return true
}

// report writes the changes that the cluster has not been told (agent protocol,
// SubmitTaskStateChange: what triggers a task event).
func (d *decision) report() {
	k := d.k
	switch {
	case k.Status == task.StatusManifestPulled && k.Sent < task.StatusManifestPulled && d.pulled():
	case k.Status >= task.StatusRunning && k.Status > k.Sent:
	case k.Status == task.StatusRunning && d.containersOwed():
	default:
		return
	}
	d.step.Report = append(d.step.Report, d.change())
	k.Sent = max(k.Sent, k.Status)
	d.step.Known = true
}

// pulled reports whether an image was really fetched, so that the cluster may learn
// its digest before RUNNING. A cached image has nothing to tell that RUNNING does not.
func (d *decision) pulled() bool {
	return slices.ContainsFunc(d.t.Containers, func(c task.Container) bool {
		r := d.rec(Image(c.Name))
		return r.Digest != "" && r.PullStopped.After(r.PullStarted)
	})
}

// reportable is the container status to tell the cluster, or ContainerNone.
func reportable(s task.ContainerStatus) task.ContainerStatus {
	switch s {
	case task.ContainerRunning, task.ContainerResourcesProvisioned, task.ContainerStopped:
		return s
	default:
		return task.ContainerNone
	}
}

// containersOwed reports whether a container of a running task has something to tell.
// While the task stops, what its containers tell waits a little, because it mostly
// travels with the task's own STOPPED.
func (d *decision) containersOwed() bool {
	return slices.ContainsFunc(d.t.Containers, func(c task.Container) bool {
		if reportable(ContainerStatus(d.t, d.k, c.Name)) <= d.k.SentContainers[c.Name] {
			return false
		}
		if d.k.Desired != task.StatusStopped {
			return true
		}
		at := d.k.StopRequested
		if exit := d.rec(Container(c.Name)).LastExit(); exit != nil && exit.At.After(at) {
			at = exit.At
		}
		if at = at.Add(containerFlush); d.now.Before(at) {
			d.wake(at)
			return false
		}
		return true
	})
}

// change is the report of the task as it stands, with every container that has
// something new to tell.
func (d *decision) change() task.Change {
	k := d.k
	ch := task.Change{
		TaskARN: d.t.ARN, ClusterARN: d.t.ClusterARN, Status: k.Status,
		ExecutionStopped: k.ExecutionStopped,
	}
	if k.Reason != nil {
		ch.Reason = k.Reason.String()
	}
	for i := range d.t.Containers {
		name := d.t.Containers[i].Name
		image := d.rec(Image(name))
		if !image.PullStarted.IsZero() && (ch.PullStarted.IsZero() || image.PullStarted.Before(ch.PullStarted)) {
			ch.PullStarted = image.PullStarted
		}
		if image.PullStopped.After(ch.PullStopped) {
			ch.PullStopped = image.PullStopped
		}
		status := ContainerStatus(d.t, k, name)
		if s := reportable(status); s > k.SentContainers[name] {
			ch.Containers = append(ch.Containers, d.containerChange(name, s))
			if k.SentContainers == nil {
				k.SentContainers = make(map[string]task.ContainerStatus)
			}
			k.SentContainers[name] = s
		} else if k.Status == task.StatusManifestPulled && image.Digest != "" {
			ch.Containers = append(ch.Containers, task.ContainerChange{
				Name: name, Status: task.ContainerManifestPulled, Digest: image.Digest,
			})
		}
	}
	return ch
}

func (d *decision) containerChange(name string, s task.ContainerStatus) task.ContainerChange {
	r, image, network := d.rec(Container(name)), d.rec(Image(name)), d.rec(Network(d.t, name))
	ch := task.ContainerChange{
		Name: name, Status: s, RuntimeID: r.RuntimeID, Digest: image.Digest,
		Bindings: network.Bindings[name],
	}
	if exit := r.LastExit(); exit != nil && s == task.ContainerStopped {
		code := exit.Code
		ch.Exit = &code
		if exit.OOMKilled {
			ch.Reason = task.Reason{Code: task.OutOfMemory, Detail: "Container killed due to memory usage"}.String()
		}
	}
	switch {
	case r.Reason != nil:
		ch.Reason = r.Reason.String()
	case image.Reason != nil && s == task.ContainerStopped:
		ch.Reason = image.Reason.String()
	case network.Reason != nil && s == task.ContainerStopped && ownNetworks(d.t):
		ch.Reason = network.Reason.String()
	}
	return ch
}

// Current is what the cluster has been told of a task so far, as one change: for a
// cluster that may have missed some of it. It is false for a task that nothing was
// told of.
func Current(t *task.Task, k *task.Known) (task.Change, bool) {
	if k.Sent < task.StatusRunning {
		return task.Change{}, false
	}
	known := *k
	known.SentContainers = nil
	d := decision{t: t, k: &known}
	ch := d.change()
	return ch, true
}
