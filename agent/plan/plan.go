// Package plan decides what to do for one task: from the task, what is known of its
// resources and the time, to the actions to start now, the status it counts as and
// the reports it owes. Deciding is pure: no I/O, no clock, no randomness; the same
// input gives the same output, so that every decision can be replayed from an event
// log and every crash is just another input.
//
// A task's resources form a small graph that is built from the task itself:
//
//	admission ─┬─ cgroup ────────────┐
//	           ├─ network ───────────┼─ container (created) ─ started ─ ended ─ retired
//	           ├─ image of container ┤        │ dependsOn of other containers
//	           └─ bases ─────────────┘
//
// Bases are what only some tasks need: volumes, secrets, endpoints (see base).
//
// A network is the task's or, in the modes bridge and none, one container's, made after
// those of the containers that it links to, whose addresses it has to know.
//
// Things are made from left to right as soon as what they stand on is there, and
// taken away from right to left. Every Remove is owed once an Ensure was intended.
package plan

import (
	"hash/fnv"
	"time"

	"berth.dev/berth/agent/task"
)

// Settings are the limits that apply to every task of this agent. Durations of zero
// are not defaulted here; agent/config does that.
type Settings struct {
	StopTimeout   time.Duration // stop signal to kill, where the container names none (ECS_CONTAINER_STOP_TIMEOUT)
	CreateTimeout time.Duration // one Ensure of a container (ECS_CONTAINER_CREATE_TIMEOUT)
	StartTimeout  time.Duration // one Start of a container (ECS_CONTAINER_START_TIMEOUT)
	PullTimeout   time.Duration // one Ensure of an image (ECS_IMAGE_PULL_TIMEOUT)
	Retention     time.Duration // a stopped task is kept so long (ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION)
	Jitter        time.Duration // added to Retention, 0..Jitter by task
	// NoHealthChecks leaves health checks alone (ECS_DISABLE_DOCKER_HEALTH_CHECK).
	NoHealthChecks bool
	// PullOrStop has a task end with the pull of any of its images
	// (ECS_IMAGE_PULL_BEHAVIOR always or once), PullUpfront with that of an essential
	// container's, also before its dependencies are met (ECS_PULL_DEPENDENT_CONTAINERS_UPFRONT).
	PullOrStop, PullUpfront bool
	Relist                  time.Duration // running processes are probed this often, events or not
}

// Limits that are not settings.
const (
	setupTimeout    = time.Minute      // Ensure of a network or cgroup (agent protocol, "CNI chain": ADD limit 1 min)
	remoteTimeout   = 3 * time.Minute  // a network file system: longer than it is waited for, so that the reason is the server's
	deviceTimeout   = 5 * time.Minute  // a block volume's device (agent protocol, ConfirmAttachmentMessage: waitTimeoutMs)
	secretsTimeout  = 3 * time.Minute  // all secrets and environment files of a task
	teardownTimeout = 2 * time.Minute  // Remove, Retire
	signalTimeout   = 30 * time.Second // Stop, Kill
	probeTimeout    = 30 * time.Second // inspect limit (agent protocol, "Runtime call timeouts")
	ensureAttempts  = 40               // retriable failures of one Ensure before it is final
	killAgain       = 5 * time.Second  // a process that outlives its kill is killed again
	retryMin        = 200 * time.Millisecond
	retryMax        = 30 * time.Second
	containerFlush  = 10 * time.Second // ends of containers of a stopping task are told after this at the latest (agent protocol, SubmitTaskStateChange: 10 to 30 s)
	deliveryCheck   = 30 * time.Second // look again whether the cluster has taken the STOPPED
	exitDependency  = 143              // exit code of a container whose dependency failed (agent protocol, "Dependencies")
)

// Action is one thing to do to one resource.
type Action struct {
	Resource task.ResourceID
	Verb     task.Verb
	Attempt  int // failures of this verb before this one
	// Incarnation is which making of a container this is about.
	Incarnation int
	Deadline    time.Duration // the action is cancelled after this long; 0 means never
}

// Step is what Next decided.
type Step struct {
	Do      []Action          // independent of each other; to be started together
	Changed []task.ResourceID // records that differ and must be stored before Do is started
	Known   bool              // the Known itself differs and must be stored
	Report  []task.Change     // for the outbox, with the same commit
	Events  []task.Event      // for the event log, with the same commit
	Wake    time.Time         // decide again then, even if nothing happens; zero means only on facts
	Done    bool              // nothing of this task is left on the host
}

// Next decides what to do for one task now. Intents, status and desired status are
// entered into k, which is the only thing it changes; the caller stores what Step
// names before it starts the actions. Calling Next again without a new fact and
// before Step.Wake decides nothing.
func Next(t *task.Task, k *task.Known, s Settings, now time.Time) Step {
	d := decision{t: t, k: k, s: s, now: now, bases: bases(t), changed: make(map[task.ResourceID]bool)}
	d.confirm()
	d.restarts()
	d.links()
	d.putOff()
	d.dependencies()
	d.essential()
	d.executionStopped()
	if k.Desired == task.StatusStopped {
		d.stop()
	} else {
		d.run()
	}
	d.status()
	if k.Status == task.StatusStopped {
		d.teardown()
	}
	d.relist()
	d.checkHealth()
	return d.finish()
}

// decision is one call of Next.
type decision struct {
	t       *task.Task
	k       *task.Known
	s       Settings
	now     time.Time
	step    Step
	bases   []base
	changed map[task.ResourceID]bool
	order   []task.ResourceID // changed, in the order of the first change
}

// Resource identifiers of a task as a whole.
var (
	Admission = task.ResourceID{Kind: task.KindAdmission, Name: "task"}
	Cgroup    = task.ResourceID{Kind: task.KindCgroup, Name: "task"}
	Secrets   = task.ResourceID{Kind: task.KindSecrets, Name: "task"}
	LogRouter = task.ResourceID{Kind: task.KindLogRouter, Name: "task"}
)

// sharedNetwork is the network of a task whose containers share one.
var sharedNetwork = task.ResourceID{Kind: task.KindNetwork, Name: "task"}

// ownNetworks reports whether each container of a task has a network of its own.
func ownNetworks(t *task.Task) bool {
	return t.NetworkMode == task.NetworkBridge || t.NetworkMode == task.NetworkNone
}

// Network is the resource of the network that a container uses: in the modes bridge and
// none its own, otherwise the one of the task. A container named "task" is no exception:
// a task has networks of one kind only.
func Network(t *task.Task, container string) task.ResourceID {
	if ownNetworks(t) {
		return task.ResourceID{Kind: task.KindNetwork, Name: container}
	}
	return sharedNetwork
}

// networks lists the networks of a task.
func networks(t *task.Task) []task.ResourceID {
	if !ownNetworks(t) {
		return []task.ResourceID{sharedNetwork}
	}
	ids := make([]task.ResourceID, 0, len(t.Containers))
	for i := range t.Containers {
		ids = append(ids, Network(t, t.Containers[i].Name))
	}
	return ids
}

// Image is the resource of a container's image.
func Image(container string) task.ResourceID {
	return task.ResourceID{Kind: task.KindImage, Name: container}
}

// Container is the resource of a container and its process.
func Container(container string) task.ResourceID {
	return task.ResourceID{Kind: task.KindContainer, Name: container}
}

func (d *decision) rec(id task.ResourceID) *task.Record { return d.k.Resource(id) }

func (d *decision) touch(id task.ResourceID) *task.Record {
	if !d.changed[id] {
		d.changed[id] = true
		d.order = append(d.order, id)
	}
	return d.rec(id)
}

func (d *decision) event(kind task.EventKind, id task.ResourceID, verb task.Verb, text string) {
	d.step.Events = append(d.step.Events, task.Event{At: d.now, Kind: kind, Resource: id, Verb: verb, Text: text})
}

// wake asks to be called again at t, or earlier.
func (d *decision) wake(t time.Time) {
	if t.IsZero() {
		return
	}
	if d.step.Wake.IsZero() || t.Before(d.step.Wake) {
		d.step.Wake = t
	}
}

// due reports whether a resource may be acted on now: nothing is in flight, what is
// recorded is confirmed, and no delay of an earlier failure runs.
func (d *decision) due(id task.ResourceID) bool {
	r := d.rec(id)
	if r.Verb != task.VerbNone || r.Unconfirmed {
		return false
	}
	if d.now.Before(r.NotBefore) {
		d.wake(r.NotBefore)
		return false
	}
	return true
}

// do enters the intent of one action.
func (d *decision) do(id task.ResourceID, verb task.Verb, deadline time.Duration) {
	r := d.touch(id)
	r.Verb = verb
	d.step.Do = append(d.step.Do, Action{Resource: id, Verb: verb, Attempt: r.Attempts, Incarnation: r.Incarnation, Deadline: deadline})
	d.event(task.EventIntent, id, verb, "")
}

func (d *decision) finish() Step {
	d.step.Changed = d.order
	return d.step
}

// ensure intends to make a resource that is not there yet.
func (d *decision) ensure(id task.ResourceID, deadline time.Duration) {
	if r := d.rec(id); r.Phase == task.Absent && d.due(id) {
		r.Phase = task.Ensuring
		d.do(id, task.VerbEnsure, deadline)
	} else if r.Phase == task.Ensuring && d.due(id) {
		d.do(id, task.VerbEnsure, deadline)
	}
}

// remove intends to take away a resource, and reports whether it is gone.
func (d *decision) remove(id task.ResourceID) bool {
	r := d.rec(id)
	switch r.Phase {
	case task.Absent, task.Removed:
		return r.Verb == task.VerbNone
	default:
		if d.due(id) {
			r.Phase = task.Removing
			d.do(id, task.VerbRemove, teardownTimeout)
		}
		return false
	}
}

func (d *decision) present(id task.ResourceID) bool {
	r := d.rec(id)
	return r.Phase == task.Present && !r.Unconfirmed
}

// run makes what is missing of a task that is to run.
func (d *decision) run() {
	d.ensure(Admission, 0)
	if !d.present(Admission) {
		return
	}
	d.ensure(Cgroup, setupTimeout)
	for i := range d.t.Containers {
		c := &d.t.Containers[i]
		if d.linksPresent(c) {
			d.ensure(Network(d.t, c.Name), setupTimeout)
		}
		d.pull(c)
	}
	d.makeBases()
	if !d.present(Cgroup) {
		return
	}
	for i := range d.t.Containers {
		d.runContainer(&d.t.Containers[i])
	}
}

func (d *decision) runContainer(c *task.Container) {
	id := Container(c.Name)
	r := d.rec(id)
	if d.rec(Network(d.t, c.Name)).Phase == task.Failed {
		// It is not repaired under a process, which would run with less than was promised.
		if r.Running() {
			d.stopContainer(c, r)
		}
		return
	}
	if !d.present(Network(d.t, c.Name)) {
		return
	}
	switch {
	case r.Phase == task.Absent || r.Phase == task.Ensuring:
		// What was begun once its dependencies were met goes on, whatever became of them.
		begun := r.Phase == task.Ensuring
		if d.present(Image(c.Name)) && d.basesPresent(c.Name) && (begun || d.dependenciesMet(c)) {
			d.ensure(id, d.s.CreateTimeout)
		}
	case r.Phase == task.Present && r.Started.IsZero() && d.due(id):
		r.StartIntent = true
		d.do(id, task.VerbStart, d.s.StartTimeout)
	}
}

// stop ends what runs of a task that is to stop, those that others depend on last.
func (d *decision) stop() {
	d.serveEnding()
	for i := range d.t.Containers {
		c := &d.t.Containers[i]
		r := d.rec(Container(c.Name))
		if r.Running() && d.dependentsStopped(c.Name) {
			d.stopContainer(c, r)
		}
	}
}

func (d *decision) stopContainer(c *task.Container, r *task.Record) {
	id := Container(c.Name)
	if r.StopSent.IsZero() {
		if d.due(id) {
			d.do(id, task.VerbStop, signalTimeout)
		}
		return
	}
	kill := r.StopSent.Add(d.stopTimeout(c))
	if !r.KillSent.IsZero() {
		kill = r.KillSent.Add(killAgain)
	}
	if d.now.Before(kill) {
		d.wake(kill)
		return
	}
	if d.due(id) {
		d.do(id, task.VerbKill, signalTimeout)
	}
}

func (d *decision) stopTimeout(c *task.Container) time.Duration {
	if c.StopTimeout > 0 {
		return c.StopTimeout
	}
	return d.s.StopTimeout
}

// teardown gives back what a stopped task holds: at once what others wait for, after
// the retention time what people may still look at.
func (d *decision) teardown() {
	free := true
	for i := range d.t.Containers {
		free = d.freeContainer(d.t.Containers[i].Name) && free
	}
	if !free || !d.removeBases(asProcesses) {
		return
	}
	gone := d.remove(Cgroup)
	for _, id := range networks(d.t) {
		gone = d.remove(id) && gone
	}
	if !gone || !d.remove(Admission) {
		return
	}
	if !d.retentionOver() {
		return
	}
	for i := range d.t.Containers {
		gone = d.remove(Container(d.t.Containers[i].Name)) && gone
	}
	for i := range d.t.Containers {
		gone = d.remove(Image(d.t.Containers[i].Name)) && gone
	}
	d.step.Done = gone && d.removeBases(asRecords)
}

// freeContainer frees the process of one container and reports whether it is free.
func (d *decision) freeContainer(name string) bool {
	id := Container(name)
	r := d.rec(id)
	if r.Phase != task.Ended && r.Restarts == 0 {
		return d.remove(id) // never ran: nobody wants to look at it
	}
	if !r.Retired && d.due(id) {
		d.do(id, task.VerbRetire, teardownTimeout)
	}
	return r.Retired
}

func (d *decision) retentionOver() bool {
	end := d.k.Stopped.Add(d.s.Retention + d.share(d.s.Jitter))
	if d.now.Before(end) {
		d.wake(end)
		return false
	}
	if d.k.Undelivered {
		d.wake(d.now.Add(deliveryCheck))
		return false
	}
	return true
}

// share is this task's fixed part of a span, from 0 up to the whole of it.
func (d *decision) share(span time.Duration) time.Duration {
	return spread(span, d.t.ARN, 0)
}

// spread picks a fixed part of span by a hash, so that many tasks that wait for the
// same thing do not come back at the same moment, and a replay decides the same.
func spread(span time.Duration, key string, n int) time.Duration {
	if span <= 0 {
		return 0
	}
	h := fnv.New64a()
	h.Write([]byte(key))
	h.Write([]byte{byte(n), byte(n >> 8)})
	return time.Duration(h.Sum64() % uint64(span))
}

// backoff is the delay before attempt n (1 is the first repetition): doubling from
// 200 ms to 30 s, of which the second half is spread by task.
func backoff(key string, n int) time.Duration {
	delay := retryMax
	if n < 8 {
		delay = min(retryMax, retryMin<<max(0, n-1))
	}
	return delay/2 + spread(delay/2, key, n)
}
