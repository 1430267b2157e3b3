package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth.dev/berth/agent/task"
)

// Admission shares out the host: its CPU, memory, static ports and GPUs. A task whose
// share is not free waits; it does not hold back others that fit, until it has waited for
// DefaultPatience: from then on nothing that it needs is given to one that came later, so
// that a large task is not passed by small ones for ever. A share is held until everything
// of the task is gone from the host, so that what the cluster believes to be free is never
// promised twice.
//
// It is a Resource of kind admission, which lives in memory only: after a restart
// the tasks that hold a share are entered again without asking (agent protocol,
// "Restart of the agent").
type Admission struct {
	// Patience is how long a task may be passed by others that came later; set it before
	// use. 0 means DefaultPatience.
	Patience time.Duration

	mu      sync.Mutex
	total   Share
	free    Share                 // its ports and GPUs are in owners
	owners  map[claim]string      // of single things, by task ARN; "" is the host
	held    map[string]Share      // by task ARN
	waiting []*waiter             // in the order of arrival
	tell    func(arn, why string) // a task begins to wait
}

// DefaultPatience is how long a task waits before it is not passed any more.
const DefaultPatience = time.Minute

// Share is a part of the host: what a task needs or what there is.
type Share struct {
	CPU    int64 // units; 1024 is one vCPU
	Memory int64 // MiB
	Ports  []Port
	GPUs   []string
}

// Port is a host port; reserved ports of the host are entered as held.
type Port struct {
	Number   uint16
	Protocol string // tcp or udp
}

// claim is one thing of which the host has one: a port or a GPU.
type claim struct {
	port Port
	gpu  string
}

func (c claim) String() string {
	if c.gpu != "" {
		return "GPU " + c.gpu
	}
	return fmt.Sprintf("port %d/%s", c.port.Number, c.port.Protocol)
}

func (s *Share) claims() []claim {
	out := make([]claim, 0, len(s.Ports)+len(s.GPUs))
	for _, p := range s.Ports {
		out = append(out, claim{port: p})
	}
	for _, g := range s.GPUs {
		out = append(out, claim{gpu: g})
	}
	return out
}

type waiter struct {
	arn   string
	need  Share
	since time.Time
	ok    chan struct{}
}

// NewAdmission shares out total; reserved ports are never given to a task.
func NewAdmission(total Share, reserved []Port) *Admission {
	a := &Admission{
		total: total, free: Share{CPU: total.CPU, Memory: total.Memory},
		owners: make(map[claim]string), held: make(map[string]Share),
	}
	for _, p := range reserved {
		a.owners[claim{port: p}] = ""
	}
	return a
}

// Need is what a task takes of the host (agent protocol, "Host resources and the queue").
func Need(t *task.Task) Share {
	need := Share{CPU: int64(t.CPU * 1024), Memory: t.Memory}
	ports, gpus := map[Port]bool{}, map[string]bool{}
	for i := range t.Containers {
		c := &t.Containers[i]
		if t.CPU == 0 {
			need.CPU += c.CPU
		}
		if t.Memory == 0 {
			need.Memory += memory(c)
		}
		for _, id := range c.GPUs {
			gpus[id] = true
		}
		if t.NetworkMode == task.NetworkAWSVPC || t.NetworkMode == task.NetworkNone {
			continue
		}
		for j := range c.Ports {
			for _, n := range hostPorts(t, &c.Ports[j]) {
				ports[Port{Number: n, Protocol: c.Ports[j].Protocol}] = true
			}
		}
	}
	for p := range ports {
		need.Ports = append(need.Ports, p)
	}
	slices.SortFunc(need.Ports, func(a, b Port) int {
		return strings.Compare(fmt.Sprintf("%05d%s", a.Number, a.Protocol), fmt.Sprintf("%05d%s", b.Number, b.Protocol))
	})
	need.GPUs = slices.Sorted(maps.Keys(gpus))
	return need
}

// hostPorts are the host's ports that a mapping takes for itself: a port that it names, and
// in host mode what the container listens on. Others are found when they are needed.
func hostPorts(t *task.Task, p *task.Port) []uint16 {
	switch {
	case p.HostPort != 0:
		return []uint16{p.HostPort}
	case t.NetworkMode != task.NetworkHost:
		return nil
	case p.ContainerPort != 0:
		return []uint16{p.ContainerPort}
	}
	first, last, _ := strings.Cut(p.ContainerRange, "-")
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil {
		return nil // intake takes no such range
	}
	var out []uint16
	for n := a; n <= b; n++ {
		out = append(out, uint16(n))
	}
	return out
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
// than the whole host ever has fails with HostResourcesExhausted.
func (a *Admission) Ensure(ctx context.Context, t *task.Task, _ string, d Deps) (task.Result, error) {
	w := &waiter{arn: t.ARN, need: Need(t), since: time.Now(), ok: make(chan struct{})}
	if !d.Since.IsZero() {
		w.since = d.Since
	}
	a.mu.Lock()
	if _, held := a.held[t.ARN]; held {
		a.mu.Unlock()
		return task.Result{}, nil
	}
	if err := a.never(w.need); err != nil {
		a.mu.Unlock()
		return task.Result{}, err
	}
	at, _ := slices.BinarySearchFunc(a.waiting, w, func(x, y *waiter) int {
		if c := x.since.Compare(y.since); c != 0 {
			return c
		}
		return -1 // behind those that came at the same time
	})
	a.waiting = slices.Insert(a.waiting, at, w)
	a.serve()
	why := ""
	if slices.Contains(a.waiting, w) {
		why = a.why(w)
	}
	a.mu.Unlock()
	if why != "" && a.tell != nil {
		a.tell(w.arn, why)
	}
	select {
	case <-w.ok:
		return task.Result{}, nil
	case <-ctx.Done():
		a.giveUp(w)
		return task.Result{}, ctx.Err()
	}
}

// never is why a need can never be met on this host, or nil.
func (a *Admission) never(need Share) error {
	if need.CPU > a.total.CPU || need.Memory > a.total.Memory {
		return task.Failf(task.Invalid, task.HostResourcesExhausted,
			"the task needs %d CPU units and %d MiB of memory; this host has %d and %d in all", need.CPU, need.Memory, a.total.CPU, a.total.Memory)
	}
	for _, c := range need.claims() {
		owner, taken := a.owners[c]
		switch {
		case c.gpu != "" && !slices.Contains(a.total.GPUs, c.gpu):
			return task.Failf(task.Invalid, task.HostResourcesExhausted, "the task needs %s, which this host does not have", c)
		case taken && owner == "":
			return task.Failf(task.Invalid, task.HostResourcesExhausted,
				"the task needs %s, which is reserved on this host (ECS_RESERVED_PORTS, ECS_RESERVED_PORTS_UDP)", c)
		}
	}
	return nil
}

// giveUp leaves the queue; a share that was given in the same moment is given back.
func (a *Admission) giveUp(w *waiter) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if i := slices.Index(a.waiting, w); i >= 0 {
		a.waiting = slices.Delete(a.waiting, i, i+1)
		a.serve() // what was kept for it is free for others
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

// kept is what is not given to a task: what others hold, or have waited for too long.
type kept struct {
	cpu, memory int64
	claims      map[claim]string
}

// serve gives their shares to the tasks that wait, in their order, as far as they fit.
func (a *Admission) serve() {
	now := time.Now()
	k := kept{claims: map[claim]string{}}
	a.waiting = slices.DeleteFunc(a.waiting, func(w *waiter) bool {
		if len(a.lacks(w, &k)) == 0 {
			a.take(w.arn, w.need)
			close(w.ok)
			return true
		}
		if now.Sub(w.since) >= a.patience() {
			a.keep(w, &k)
		}
		return false
	})
}

// keep has nothing given to others that came later than w and would be in its way. As long
// as it waits for nothing but a port or a GPU that others hold, its part of the processors
// and the memory is of use to others.
func (a *Admission) keep(w *waiter, k *kept) {
	if w.need.CPU > a.free.CPU-k.cpu || w.need.Memory > a.free.Memory-k.memory {
		k.cpu += w.need.CPU
		k.memory += w.need.Memory
	}
	for _, c := range w.need.claims() {
		if _, taken := k.claims[c]; !taken {
			k.claims[c] = w.arn
		}
	}
}

func (a *Admission) patience() time.Duration {
	if a.Patience > 0 {
		return a.Patience
	}
	return DefaultPatience
}

// lacks says in words what a task waits for; nothing when it fits. What is kept for
// others counts as not free, where the task needs any of it.
func (a *Admission) lacks(w *waiter, k *kept) []string {
	var out []string
	if free := a.free.CPU - k.cpu; w.need.CPU > 0 && w.need.CPU > free {
		out = append(out, fmt.Sprintf("%d CPU units, of which %d are free", w.need.CPU, max(0, free)))
	}
	if free := a.free.Memory - k.memory; w.need.Memory > 0 && w.need.Memory > free {
		out = append(out, fmt.Sprintf("%d MiB of memory, of which %d are free", w.need.Memory, max(0, free)))
	}
	for _, c := range w.need.claims() {
		owner, taken := a.owners[c]
		if !taken {
			owner, taken = k.claims[c]
		}
		if taken {
			out = append(out, fmt.Sprintf("%s, which task %s has", c, owner[strings.LastIndexByte(owner, '/')+1:]))
		}
	}
	return out
}

// why says what a task that is in the queue waits for.
func (a *Admission) why(w *waiter) string {
	now := time.Now()
	k := kept{claims: map[claim]string{}}
	for _, before := range a.waiting {
		if before == w {
			break
		}
		if now.Sub(before.since) >= a.patience() {
			a.keep(before, &k)
		}
	}
	return "waits for " + strings.Join(a.lacks(w, &k), "; ")
}

func (a *Admission) take(arn string, need Share) {
	a.free.CPU -= need.CPU
	a.free.Memory -= need.Memory
	a.held[arn] = need
	for _, c := range need.claims() {
		if _, taken := a.owners[c]; !taken {
			a.owners[c] = arn
		}
	}
}

func (a *Admission) release(arn string) {
	held, ok := a.held[arn]
	if !ok {
		return
	}
	delete(a.held, arn)
	a.free.CPU += held.CPU
	a.free.Memory += held.Memory
	for _, c := range held.claims() {
		if a.owners[c] == arn {
			delete(a.owners, c)
		}
	}
	a.serve()
}

// Waiting is a task that waits for its share of the host.
type Waiting struct {
	TaskARN string    `json:"taskArn"`
	Since   time.Time `json:"since"`
	Why     string    `json:"why"`
	// Next says that it has waited so long that others do not pass it any more.
	Next bool `json:"next"`
}

// Waiting lists the tasks that wait for their share, in order.
func (a *Admission) Waiting() []Waiting {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]Waiting, 0, len(a.waiting))
	for _, w := range a.waiting {
		out = append(out, Waiting{TaskARN: w.arn, Since: w.since, Why: a.why(w), Next: time.Since(w.since) >= a.patience()})
	}
	return out
}
