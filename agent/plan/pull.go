package plan

import (
	"time"

	"berth.dev/berth/agent/task"
)

// Images are pulled as soon as the task may use the host, also those of containers that
// wait for others: it costs nothing and saves the time later. In the reference such a
// pull begins when the dependencies are met, and what fails then fails then; so an early
// pull that failed is no failure yet, unless ECS_PULL_DEPENDENT_CONTAINERS_UPFRONT is set
// or the behaviour is always or once, which resolve every image before anything starts
// (agent protocol, "Pull behaviour").

// pull begins the pull of a container's image, unless it was put off.
func (d *decision) pull(c *task.Container) {
	if d.rec(Image(c.Name)).PutOff {
		if !d.dependenciesMet(c) {
			return
		}
		d.touch(Image(c.Name)).PutOff = false
	}
	d.ensure(Image(c.Name), d.s.PullTimeout)
}

// putOff puts off the early pulls that have failed.
func (d *decision) putOff() {
	if d.k.Desired == task.StatusStopped || d.s.PullUpfront || d.s.PullOrStop {
		return
	}
	for i := range d.t.Containers {
		c := &d.t.Containers[i]
		id := Image(c.Name)
		if d.rec(id).Phase != task.Failed || d.rec(Container(c.Name)).Phase != task.Absent || !d.waits(c) {
			continue
		}
		r := d.touch(id)
		d.event(task.EventActionFailed, id, task.VerbEnsure, "pulled again when the container's dependencies are met")
		r.Phase, r.Reason, r.Attempts, r.NotBefore = task.Ensuring, nil, 0, time.Time{} // a Remove stays owed
		r.PutOff = true
	}
}

// waits reports whether a container waits for others that may still come about.
func (d *decision) waits(c *task.Container) bool {
	waits := false
	for _, dep := range conditions(c) {
		met, never := d.condition(dep)
		if never != "" {
			return false
		}
		waits = waits || !met
	}
	return waits
}

// failedPull ends a task whose image could not be pulled where that is the rule: with
// always and once for every container, and with early pulls for the essential ones, whose
// failure is then the task's reason.
func (d *decision) failedPull() bool {
	for i := range d.t.Containers {
		c := &d.t.Containers[i]
		r := d.rec(Image(c.Name))
		if r.Phase != task.Failed || !d.s.PullOrStop && !(d.s.PullUpfront && c.Essential) {
			continue
		}
		if !d.s.PullOrStop {
			d.taskReason(r.Reason)
		}
		d.desireStopped("the image of container " + c.Name + " could not be pulled")
		return true
	}
	return false
}
