package plan

import (
	"time"

	"berth.dev/berth/agent/task"
)

// Rebuild makes what is known of a task whose records are lost from what the runtime
// has of it. Every container that is there counts as one whose start was intended, since
// nothing says that it was not: what has ended is not started again. Everything else is
// made again, which finds what is there.
func Rebuild(f task.Found, now time.Time) *task.Known {
	k := &task.Known{Desired: task.StatusRunning, Received: now}
	for _, id := range resources(f.Task) {
		if id.Kind != task.KindContainer && id.Kind != task.KindImage {
			k.Resource(id).Phase = task.Ensuring
		}
	}
	for _, c := range f.Containers {
		if c.Created.Before(k.Received) {
			k.Received = c.Created
		}
		*k.Resource(Container(c.Name)) = task.Record{
			Phase: task.Present, Handle: c.Handle, RuntimeID: c.RuntimeID, Created: c.Created, StartIntent: true,
			Incarnation: c.Incarnation, Restarts: c.Incarnation,
		}
		*k.Resource(Image(c.Name)) = task.Record{Phase: task.Present, Handle: c.Image, Digest: c.Digest}
	}
	Recover(k, false)
	return k
}
