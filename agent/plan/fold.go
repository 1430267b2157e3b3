package plan

import (
	"time"

	"berth.dev/berth/agent/task"
)

// Fold enters one fact into what is known of a task, and returns the line for the
// event log, if the fact says anything new. Facts about different resources may come
// in any order; an outcome of an action that was overtaken is entered all the same,
// because the world is as it says.
func Fold(t *task.Task, k *task.Known, f task.Fact) (task.Event, bool) {
	r := k.Resource(f.Resource)
	ev := task.Event{At: f.At, Resource: f.Resource, Verb: f.Verb, Fact: &f}
	before := *r
	if stale(r, f) {
		return ev, false
	}
	switch {
	case f.Verb == task.VerbCheck:
		ev.Kind = task.EventHealth
		ev.Text, ev.Fact = checked(t.Container(f.Resource.Name), r, f), nil
		return ev, ev.Text != ""
	case f.Verb == task.VerbProbe:
		r.Probing = false
		if f.Failure != nil {
			r.ProbeFailed++
			r.ProbeAt = f.At.Add(backoff(t.ARN+f.Resource.String(), r.ProbeFailed))
			return ev, false
		}
		r.ProbeFailed, r.ProbeAt = 0, time.Time{}
		observe(t, k, f)
		ev.Kind = task.EventAdopted
		if before.Phase == r.Phase && before.Exit == r.Exit && !before.Unconfirmed {
			return ev, false
		}
	case f.Verb == task.VerbNone:
		observe(t, k, f)
		ev.Kind = task.EventObserved
		if f.Observed != nil && f.Observed.Process == task.ProcessExited {
			if before.Exit != nil {
				return ev, false
			}
			if r.Exit != nil {
				ev.Kind = task.EventExited
			}
		}
	case f.Failure != nil:
		ev.Kind = task.EventActionFailed
		ev.Text = f.Failure.String()
		failed(t, r, f)
	default:
		ev.Kind = task.EventActionDone
		done(r, f)
		if f.Observed != nil {
			observe(t, k, f)
		}
	}
	return ev, true
}

// stale reports whether a fact is about a process that has a successor by now.
func stale(r *task.Record, f task.Fact) bool {
	switch {
	case f.Resource.Kind != task.KindContainer:
		return false
	case f.Verb == task.VerbNone:
		return f.Observed != nil && f.Observed.Incarnation != r.Incarnation
	case f.Incarnation >= r.Incarnation:
		return false
	}
	switch f.Verb {
	case task.VerbProbe:
		r.Probing = false
	case task.VerbCheck:
		r.Checking = false
	}
	return true
}

// done enters the success of an action.
func done(r *task.Record, f task.Fact) {
	r.Verb = task.VerbNone
	r.Attempts, r.NotBefore = 0, time.Time{}
	switch f.Verb {
	case task.VerbEnsure:
		r.Phase = task.Present
		if r.Exit != nil {
			r.Phase = task.Ended // it was killed before it was ever started
		}
		r.Unconfirmed = false
		r.Created = f.At
		if f.Result.Handle != nil {
			r.Handle = f.Result.Handle
		}
		if f.Result.RuntimeID != "" {
			r.RuntimeID = f.Result.RuntimeID
		}
		if f.Result.Digest != "" {
			r.Digest = f.Result.Digest
		}
		r.PullStarted, r.PullStopped = f.Result.PullStarted, f.Result.PullStopped
		r.Bindings = f.Result.Bindings
	case task.VerbStart:
		if r.Started.IsZero() {
			r.Started = f.At
		}
	case task.VerbStop:
		r.StopSent = f.At
		if r.Phase == task.Present {
			r.Phase = task.Stopping
		}
	case task.VerbKill:
		r.KillSent = f.At
	case task.VerbRetire:
		r.Retired = true
	case task.VerbRemove:
		r.Phase = task.Removed
	}
}

// failed enters the failure of an action: to be tried again later, or final.
func failed(t *task.Task, r *task.Record, f task.Fact) {
	r.Verb = task.VerbNone
	switch f.Verb {
	case task.VerbEnsure, task.VerbStart:
		if f.Class.Retriable() && r.Attempts < ensureAttempts {
			r.Attempts++
			r.NotBefore = f.At.Add(backoff(t.ARN+f.Resource.String(), r.Attempts))
			if f.Verb == task.VerbStart {
				// Whether the start took place is not known; only the world can say.
				r.Unconfirmed = true
				r.ProbeAt = r.NotBefore
			}
			return
		}
		r.Attempts, r.NotBefore = 0, time.Time{}
		r.Phase = task.Failed
		if r.Reason == nil && f.Class != task.Canceled {
			r.Reason = f.Failure
		}
	case task.VerbStop, task.VerbKill:
		// The process is asked about: it may be gone, and then nothing more is owed.
		r.Attempts++
		r.NotBefore = f.At.Add(backoff(t.ARN+f.Resource.String(), r.Attempts))
		if r.Exit == nil {
			r.Unconfirmed = true
			r.ProbeAt = time.Time{}
		}
	default:
		r.Attempts++
		r.NotBefore = f.At.Add(backoff(t.ARN+f.Resource.String(), r.Attempts))
	}
}

// observe enters what a probe or an event says exists.
func observe(t *task.Task, k *task.Known, f task.Fact) {
	if f.Observed == nil {
		return
	}
	if f.Resource.Kind == task.KindContainer {
		observeContainer(k, k.Resource(f.Resource), f)
		return
	}
	r := k.Resource(f.Resource)
	r.Unconfirmed = false
	if f.Observed.Exists || r.Phase != task.Present {
		return
	}
	// Something that containers stand on is gone. What nothing has used yet is made
	// again; a process that has lost its network or cgroup is not repaired but ended,
	// because it would run with less than was promised to it.
	users, whose := t.Containers, "the task's "
	if f.Resource.Kind == task.KindNetwork && ownNetworks(t) {
		c := t.Container(f.Resource.Name)
		if c == nil {
			return
		}
		users, whose = []task.Container{*c}, "the container's "
		if used := k.Resource(Container(c.Name)); used.Exit != nil || used.Phase == task.Ended {
			r.Phase = task.Failed // its only user has ended already, and not of this
			return
		}
	}
	if b := baseOf(t, f.Resource); b != nil {
		users = b.usersOf(t)
	}
	if !anyStarted(users, k) {
		r.Phase = task.Ensuring
		return
	}
	r.Phase = task.Failed
	if r.Reason == nil {
		r.Reason = &task.Reason{Code: lostCode(k, task.ResourceInitialization), Detail: whose + f.Resource.Kind + " is gone from the host"}
	}
}

func anyStarted(containers []task.Container, k *task.Known) bool {
	for i := range containers {
		if r := k.Resources[Container(containers[i].Name)]; r != nil && (r.StartIntent || r.Phase == task.Present) {
			return true
		}
	}
	return false
}

func lostCode(k *task.Known, otherwise task.Code) task.Code {
	if k.Rebooted {
		return task.HostRebooted
	}
	return otherwise
}

// observeContainer enters what exists of a container. Whether a process that has
// left no trace ever ran is told by StartIntent: it is set before the first start,
// so a process without it was never started and may be made anew, and one with it
// must not be started twice.
func observeContainer(k *task.Known, r *task.Record, f task.Fact) {
	o := f.Observed
	if o.Incarnation != r.Incarnation {
		o = &task.Observed{} // what is there came before: of this one there is nothing
		f.Observed = o
	}
	if r.Phase == task.Removing || r.Phase == task.Removed {
		r.Unconfirmed = false
		return
	}
	if r.Verb != task.VerbNone && o.Process != task.ProcessExited {
		return // something is being done to it; the outcome will tell
	}
	r.Unconfirmed = false
	switch o.Process {
	case task.ProcessRunning:
		if r.Exit != nil || r.Phase == task.Failed || r.Phase == task.Ended {
			return
		}
		r.StartIntent = true
		if r.Started.IsZero() {
			r.Started = begun(r, f.At)
		}
		if r.StopSent.IsZero() {
			r.Phase = task.Present
		} else {
			r.Phase = task.Stopping
		}
	case task.ProcessExited:
		if (!r.StartIntent || o.Unstarted) && r.Started.IsZero() && (r.Phase == task.Ensuring || r.Phase == task.Present) {
			// What ended was made and never started: the runtime undoes what an agent that
			// crashed had asked it for, or was killed itself. It is made anew.
			r.Phase = task.Ensuring
			r.StartIntent = false
			return
		}
		r.Attempts, r.NotBefore = 0, time.Time{}
		if r.Phase != task.Failed {
			r.Phase = task.Ended
		}
		if r.Exit == nil {
			r.Exit = o.Exit
		}
		if r.Started.IsZero() && r.StartIntent && o.Exit != nil {
			r.Started = begun(r, o.Exit.At)
		}
	case task.ProcessCreated:
		// A process that waits to be started was certainly never started.
		if r.Phase == task.Ensuring && r.Handle == nil {
			return // what Ensure returned was lost; it is asked again
		}
		if r.Exit == nil && r.Phase != task.Failed {
			r.Phase = task.Present
			r.Started = time.Time{}
		}
	default:
		observeNoProcess(k, r, f)
	}
}

// begun is about when a process began whose start was not recorded, because the agent
// ended in that moment: right after it was made. How long it ran decides whether it is
// restarted, so the time at which it is found again will not do.
func begun(r *task.Record, seen time.Time) time.Time {
	if r.Created.IsZero() || r.Created.After(seen) {
		return seen
	}
	return r.Created
}

func observeNoProcess(k *task.Known, r *task.Record, f task.Fact) {
	switch {
	case r.Exit != nil || r.Phase == task.Failed || r.Phase == task.Ended:
	case !r.StartIntent:
		r.Phase = task.Ensuring // parts of it may be there, so a Remove is owed as well
		r.Started = time.Time{}
	default:
		r.Phase = task.Ended
		code, detail := task.ContainerVanished, "No container matching saved ID found"
		if f.Observed.Exists {
			code, detail = task.RuntimeLost, "the container's process is gone and the runtime does not know how it ended"
		}
		if k.Rebooted {
			code, detail = task.HostRebooted, "the host was restarted while the container ran"
		}
		if r.Reason == nil {
			r.Reason = &task.Reason{Code: code, Detail: detail}
		}
	}
}

// Recover prepares what was loaded from the state database: what was being done when
// the agent ended is not being done any more, and nothing that is recorded counts
// until a probe has confirmed it. Rebooted says that the host was restarted since.
func Recover(k *task.Known, rebooted bool) {
	k.Rebooted = rebooted
	for _, r := range k.Resources {
		r.Verb = task.VerbNone
		r.Unconfirmed = true
	}
}
