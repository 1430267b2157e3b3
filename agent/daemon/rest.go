package daemon

import (
	"context"
	"runtime/debug"
	"time"

	"berth.dev/berth/agent/engine"
)

// When memory is given back: so long after the last change of any task, and at most so
// often. What many tasks at once took would else be kept for minutes.
const (
	restAfter = 5 * time.Second
	restPause = 15 * time.Second
)

// How much garbage there may be, in percent of what is in use, before it is collected:
// while tasks change, when processor time is short, and while they do not.
const (
	garbageBusy = 100
	garbageIdle = 30
)

// rest gives memory back to the host whenever the tasks have come to rest.
func (a *agent) rest(ctx context.Context) {
	timer := time.NewTimer(restAfter)
	defer timer.Stop()
	resting := false
	for last := time.Now(); ; {
		select {
		case <-a.changed:
			if resting {
				debug.SetGCPercent(garbageBusy)
				resting = false
			}
			timer.Reset(max(restAfter, restPause-time.Since(last)))
		case <-timer.C:
			debug.SetGCPercent(garbageIdle)
			debug.FreeOSMemory()
			last, resting = time.Now(), true
		case <-ctx.Done():
			return
		}
	}
}

// published is told of a task each time something of it may have changed.
func (a *agent) published(v engine.View) {
	a.metadata.published(v)
	select {
	case a.changed <- struct{}{}:
	default: // it has not been seen yet
	}
}
