package engine

import (
	"context"

	"berth.dev/berth/agent/task"
)

// Resource is one kind of thing on the host that tasks need. The engine calls it
// from many goroutines, but never twice at once for the same resource of a task.
//
// Errors carry a class (task.Fail); Unavailable and Exhausted are tried again with
// growing delays, all others are final. The context of Ensure and Start is cancelled
// when the task is to stop; the context of Remove, Stop and Kill only when the agent
// ends. An adapter that is cancelled leaves things so that Remove finds them.
type Resource interface {
	// Kind is the task.Kind… constant that this adapter serves.
	Kind() string

	// Ensure makes the resource, or finds that it is there already. It is called again
	// after a crash at any point inside it, with the handle that was stored last.
	Ensure(ctx context.Context, t *task.Task, name string, d Deps) (task.Result, error)

	// Remove takes away all that Ensure may have left. It succeeds when there is
	// nothing to remove and when Ensure never ran.
	Remove(ctx context.Context, t *task.Task, name string, h task.Handle) error

	// Probe says what exists now. An error means "could not ask", never "absent".
	Probe(ctx context.Context, t *task.Task, name string, h task.Handle) (task.Observed, error)
}

// Process is a Resource that runs and ends by itself.
type Process interface {
	Resource

	// Start starts what Ensure made. It is not called again once it has succeeded.
	Start(ctx context.Context, t *task.Task, name string, h task.Handle) error

	// Stop delivers the container's stop signal and returns; a process that is gone is
	// success. The end is told by the adapter's observations.
	Stop(ctx context.Context, t *task.Task, name string, h task.Handle) error

	// Kill ends every process of the container and returns when the signal is delivered.
	Kill(ctx context.Context, t *task.Task, name string, h task.Handle) error

	// Retire frees what an ended process still holds (its shim, its cgroup) and keeps
	// the container's record, files and log until Remove. It succeeds when there is
	// nothing to free.
	Retire(ctx context.Context, t *task.Task, name string, h task.Handle) error
}

// Checker is implemented by a Process whose health can be asked from inside.
type Checker interface {
	// Check runs the container's health check once, with the check's own time limit, after
	// which it kills it. That it failed, or could not be run in the container, is a result;
	// an error means that nothing was learnt.
	Check(ctx context.Context, t *task.Task, name string, h task.Handle) (task.Check, error)
}

// Deps hands an Ensure what was stored of the resource and of those it builds on.
type Deps = task.Deps

// Sweeper is implemented by resources that can list what they own on the host.
type Sweeper interface {
	// Owned lists everything on the host that carries the agent's marks.
	Owned(ctx context.Context) ([]task.Owned, error)
	// Sweep removes one of them that belongs to no known task.
	Sweep(ctx context.Context, o task.Owned) error
}

// Observer is implemented by resources that learn of changes by themselves.
type Observer interface {
	// Observe sends what happens to the adapter's resources until ctx ends, and
	// reconnects by itself. lost is called each time events may have been missed, and
	// the engine then probes.
	Observe(ctx context.Context, seen func(taskID, name string, o task.Observed), lost func()) error
}
