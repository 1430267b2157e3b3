// Package telemetry follows the containers of all tasks, has their use of the host read
// by stats, and tells it to those who ask: the telemetry session (as its Source), the
// metadata endpoints and Prometheus.
package telemetry

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/plan"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/stats"
	wire "berth.dev/berth/wire/tcs"
)

// Config is what a Watcher is made of.
type Config struct {
	// Views are the tasks that there are.
	Views       func() []engine.View
	Hierarchies stats.Hierarchies
	// Interval is the time between two samples: 1 s, or that of polling (agent protocol,
	// TCS cadence and sampling).
	Interval time.Duration
	// Storage is what a task has used of storage that is its own: of a limited one, and of
	// its block volumes. It may be nil.
	Storage func(t *task.Task) (*wire.EphemeralStorage, []wire.VolumeMetric)
	// GPUs reads those of the host; nil means that it has none.
	GPUs *stats.GPUs
	// CheckRuntime asks the container runtime for a sign of life; an error says that it
	// gave none.
	CheckRuntime func(ctx context.Context) error
	Log          *slog.Logger
}

// Watcher follows containers.
type Watcher struct {
	c       Config
	samples *stats.Collector
	checks  chan struct{}

	mu       sync.Mutex
	followed map[string]*container // by ID
	status   wire.InstanceStatus
	untold   bool // status was not taken yet
}

// container is one container that is followed.
type container struct {
	id        string
	task      *task.Task
	name      string
	runtimeID string
	started   time.Time
	restarts  bool     // it has a restart policy
	gpus      []string // ids of those that it was given
	// How often it was restarted so far, which the task's record has over restarts of the
	// agent, and how much of that was told.
	total, told int
	ended       bool // what is left to tell is told, and then it is forgotten
	seen        bool
}

// New makes a watcher; Run makes it watch.
func New(c Config) *Watcher {
	now := wire.Time{Time: time.Now()}
	return &Watcher{
		c: c, followed: make(map[string]*container), checks: make(chan struct{}, 1), untold: true,
		samples: stats.New(stats.Config{Hierarchies: c.Hierarchies, Interval: c.Interval, Log: c.Log}),
		status:  wire.InstanceStatus{Type: runtimeCheck, Status: "INITIALIZING", LastUpdated: now, LastStatusChange: now},
	}
}

// Checks of the agent (agent protocol, PublishInstanceStatusRequest).
const (
	runtimeCheck      = "ContainerRuntime"
	runtimeCheckLimit = 2 * time.Second
)

// ID names a container for Samples.
func ID(taskID, container string) string { return taskID + "/" + container }

// Samples has the samples of every container that runs, by ID.
func (w *Watcher) Samples() *stats.Collector { return w.samples }

// Run samples and checks until ctx ends.
func (w *Watcher) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { w.check(ctx) })
	if w.c.GPUs != nil {
		wg.Go(func() { w.c.GPUs.Run(ctx) })
	}
	w.samples.Run(ctx, w.follow)
	wg.Wait()
}

// follow brings what is followed in step with the tasks.
func (w *Watcher) follow() {
	views := w.c.Views()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.followed {
		c.seen = false
	}
	for i := range views {
		v := &views[i]
		for j := range v.Task.Containers {
			w.followContainer(v, &v.Task.Containers[j])
		}
	}
	gpus := false
	for _, c := range w.followed {
		c.ended = c.ended || !c.seen
		gpus = gpus || !c.ended && len(c.gpus) > 0
	}
	if w.c.GPUs != nil {
		w.c.GPUs.Want(gpus)
	}
}

func (w *Watcher) followContainer(v *engine.View, tc *task.Container) {
	r := v.Known.Resources[plan.Container(tc.Name)]
	if r == nil || !r.Running() {
		return
	}
	id := ID(v.Task.ID(), tc.Name)
	c := w.followed[id]
	if c != nil && c.runtimeID == r.RuntimeID && c.started.Equal(r.Started) {
		c.seen = true
		return
	}
	var at struct {
		Cgroup string `json:"cgroup"`
	}
	if err := json.Unmarshal(r.Handle, &at); err != nil || at.Cgroup == "" {
		return // an adapter that keeps no cgroups, as in tests
	}
	told := r.Restarts
	if c != nil {
		told = c.told
	}
	c = &container{
		id: id, task: v.Task, name: tc.Name, runtimeID: r.RuntimeID, started: r.Started, restarts: tc.Restart != nil, gpus: tc.GPUs,
		total: r.Restarts, told: told, seen: true,
	}
	w.followed[id] = c
	w.samples.Follow(stats.Target{
		ID: id, Cgroup: at.Cgroup, Run: r.RuntimeID + "@" + strconv.FormatInt(r.Started.UnixNano(), 10), Namespace: namespace(v, tc.Name),
	})
}

// namespace is the path of the network namespace whose traffic is the container's: none
// in the modes host and none (agent protocol, TCS cadence and sampling).
func namespace(v *engine.View, container string) string {
	if v.Task.NetworkMode == task.NetworkHost || v.Task.NetworkMode == task.NetworkNone {
		return ""
	}
	r := v.Known.Resources[plan.Network(v.Task, container)]
	var at struct {
		Path string `json:"path"`
	}
	if r == nil || json.Unmarshal(r.Handle, &at) != nil {
		return ""
	}
	return at.Path
}

// Metrics takes what was used since the last call, for the telemetry session.
func (w *Watcher) Metrics() (metrics []wire.TaskMetric, idle bool) {
	metrics, tasks, idle := w.metrics()
	if w.c.Storage != nil {
		for i, t := range tasks {
			metrics[i].EphemeralStorage, metrics[i].VolumeMetrics = w.c.Storage(t)
		}
	}
	return metrics, idle
}

// metrics takes those of containers, by their tasks.
func (w *Watcher) metrics() (tasks []wire.TaskMetric, of []*task.Task, idle bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	idle = true
	index := make(map[string]int)
	for _, id := range w.ids() {
		c := w.followed[id]
		m, ok := w.take(c)
		if c.ended {
			w.samples.Forget(id)
			delete(w.followed, id)
		} else {
			idle = false
		}
		if !ok {
			continue
		}
		i, known := index[c.task.ARN]
		if !known {
			i = len(tasks)
			index[c.task.ARN] = i
			of = append(of, c.task)
			tasks = append(tasks, wire.TaskMetric{TaskARN: c.task.ARN, TaskDefinitionFamily: c.task.Family, TaskDefinitionVersion: c.task.Version})
		}
		tasks[i].ContainerMetrics = append(tasks[i].ContainerMetrics, m)
	}
	return tasks, of, idle && len(tasks) == 0
}

// ids are those of the followed containers, in a steady order.
func (w *Watcher) ids() []string {
	ids := make([]string, 0, len(w.followed))
	for id := range w.followed {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, strings.Compare)
	return ids
}

func (w *Watcher) take(c *container) (wire.ContainerMetric, bool) {
	s, ok := w.samples.Take(c.id)
	if !ok {
		return wire.ContainerMetric{}, false
	}
	m := wire.ContainerMetric{ContainerName: c.name, CPU: set(s.CPU), Memory: set(s.Memory)}
	if s.Has&stats.HasIO != 0 {
		m.Storage = &wire.Storage{ReadSizeBytes: longSet(s.Read), WriteSizeBytes: longSet(s.Write)}
	}
	if s.Has&stats.HasNetwork != 0 {
		n := &s.Network
		m.Network = &wire.Network{
			RxBytes: longSet(n.RxBytes), RxPackets: longSet(n.RxPackets), RxErrors: longSet(n.RxErrors), RxDropped: longSet(n.RxDropped),
			TxBytes: longSet(n.TxBytes), TxPackets: longSet(n.TxPackets), TxErrors: longSet(n.TxErrors), TxDropped: longSet(n.TxDropped),
			RxBytesPerSecond: set(n.RxRate), TxBytesPerSecond: set(n.TxRate),
		}
	}
	if c.restarts {
		m.Restart = &wire.Restart{RestartCount: int64(c.total - c.told)}
		c.told = c.total
	}
	return m, true
}

func set(s stats.Set) *wire.Set {
	return &wire.Set{Min: s.Min, Max: s.Max, Sum: s.Sum, SampleCount: s.Count}
}

func longSet(s stats.CounterSet) *wire.LongSet {
	return wire.NewLongSet(s.Min, s.Max, s.Sum, s.Count)
}

// Check has the agent's own checks run, which the cluster asks for with each heartbeat.
// It does not wait for them.
func (w *Watcher) Check() {
	select {
	case w.checks <- struct{}{}:
	default:
	}
}

// check runs the checks when asked to, and once at the start.
func (w *Watcher) check(ctx context.Context) {
	for {
		w.checkRuntime(ctx)
		select {
		case <-w.checks:
		case <-ctx.Done():
			return
		}
	}
}

func (w *Watcher) checkRuntime(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, runtimeCheckLimit)
	defer cancel()
	err := w.c.CheckRuntime(ctx)
	now := wire.Time{Time: time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	s := wire.InstanceStatus{Type: runtimeCheck, Status: "OK", LastUpdated: now, LastStatusChange: w.status.LastStatusChange}
	if err != nil {
		s.Status, s.StatusReason = "IMPAIRED", err.Error()
	}
	if s.Status != w.status.Status {
		s.LastStatusChange = now
	}
	w.status, w.untold = s, true
}

// Status takes the result of the checks, once after each run of them.
func (w *Watcher) Status() []wire.InstanceStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.untold {
		return nil
	}
	w.untold = false
	return []wire.InstanceStatus{w.status}
}

// Each calls f with the task, the name and the last sample of every container that runs.
func (w *Watcher) Each(f func(t *task.Task, name string, s *stats.Sample, restarts int)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range w.ids() {
		c := w.followed[id]
		if now, _, ok := w.samples.Latest(id); ok && !c.ended {
			f(c.task, c.name, &now, c.total)
		}
	}
}

// EachGPU calls f with the task, the name and one GPU of every container that runs and has any.
func (w *Watcher) EachGPU(f func(t *task.Task, name, gpu string, now *stats.GPU)) {
	if w.c.GPUs == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range w.ids() {
		c := w.followed[id]
		for _, gpu := range c.gpus {
			if now, known := w.c.GPUs.Latest(gpu); known && !c.ended {
				f(c.task, c.name, gpu, &now)
			}
		}
	}
}
