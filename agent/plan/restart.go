package plan

import (
	"fmt"
	"slices"

	"berth.dev/berth/agent/task"
)

// earlierLimit is how many ends of earlier incarnations are remembered of a container.
const earlierLimit = 10

// restarts begins a new incarnation of every container that has ended and whose restart
// policy says so. It is one commit with the intent to make it, so that a restart is
// counted once whatever happens. The end of the process before is not told to the
// cluster (agent protocol, "Restart policy of containers").
func (d *decision) restarts() {
	if d.k.Desired == task.StatusStopped {
		return
	}
	for i := range d.t.Containers {
		c := &d.t.Containers[i]
		id := Container(c.Name)
		r := d.rec(id)
		if c.Restart == nil || r.Phase != task.Ended || r.Verb != task.VerbNone || r.Unconfirmed || whyFinal(c.Restart, r) != "" {
			continue
		}
		d.touch(id)
		d.event(task.EventRestart, id, task.VerbNone, fmt.Sprintf("restart %d, after exit code %d", r.Restarts+1, r.Exit.Code))
		earlier := append(slices.Clone(r.Earlier), *r.Exit)
		*r = task.Record{
			// Parts of the earlier one may be there, so a Remove is owed as well.
			Phase: task.Ensuring, Incarnation: r.Incarnation + 1, Restarts: r.Restarts + 1,
			Earlier: earlier[max(0, len(earlier)-earlierLimit):],
			// A probe that is under way answers for the earlier one.
			Probing: r.Probing, Checking: r.Checking,
		}
	}
}

// whyFinal says why a container that has ended is not started again, or nothing.
func whyFinal(p *task.Restart, r *task.Record) string {
	switch {
	case !r.StopSent.IsZero():
		return "container's desired status is stopped"
	case r.Exit == nil:
		return "exit code is nil"
	case slices.Contains(p.IgnoredExitCodes, r.Exit.Code):
		return fmt.Sprintf("exit code %d should be ignored", r.Exit.Code)
	case r.Started.IsZero() || max(0, r.Exit.At.Sub(r.Started)) < p.AttemptPeriod:
		return "attempt reset period has not elapsed"
	default:
		return ""
	}
}

// executionStopped remembers when the first essential container ended for good.
func (d *decision) executionStopped() {
	if !d.k.ExecutionStopped.IsZero() {
		return
	}
	for i := range d.t.Containers {
		c := &d.t.Containers[i]
		r := d.rec(Container(c.Name))
		exit := r.LastExit()
		if !c.Essential || exit == nil || r.Restarting() && d.k.Desired != task.StatusStopped {
			continue
		}
		if d.k.ExecutionStopped.IsZero() || exit.At.Before(d.k.ExecutionStopped) {
			d.k.ExecutionStopped = exit.At
			d.step.Known = true
		}
	}
}
