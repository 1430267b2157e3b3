// Package telemetry keeps what the agents say their containers use: the last minutes of
// every container in memory, from which the use of tasks, services, instances and
// clusters is worked out, in the terms of CloudWatch's AWS/ECS metrics.
//
// An agent that was cut off sends what it measured meanwhile with its own times, and
// requests may come twice; a point is known by its container and its time.
package telemetry

import (
	"slices"
	"strings"
	"sync"
	"time"

	"berth.dev/berth/wire/tcs"
)

// Limits of what is kept.
const (
	// Points is how many points of a container are kept: at one in 20 s, a quarter of an hour.
	Points = 45
	// stale is the age at which the last point of a container says nothing about now
	// (agents publish every 20 s).
	stale = 90 * time.Second
	// maxContainers bounds the containers that are kept; the longest silent gives place.
	maxContainers = 100_000
	// future is how far an agent's clock may be ahead.
	future = 5 * time.Minute
)

// Point is what a container used in one interval of its agent.
type Point struct {
	At time.Time `json:"at"`
	// CPU is percent of the instance's processors, Memory MiB; both the mean of the
	// interval's samples, and the largest of them.
	CPU       float32 `json:"cpu"`
	CPUMax    float32 `json:"cpuMax"`
	Memory    float32 `json:"memory"`
	MemoryMax float32 `json:"memoryMax"`
	// Counters so far, and bytes a second in the interval.
	RxBytes    int64   `json:"rxBytes"`
	TxBytes    int64   `json:"txBytes"`
	RxRate     float32 `json:"rxRate"`
	TxRate     float32 `json:"txRate"`
	ReadBytes  int64   `json:"readBytes"`
	WriteBytes int64   `json:"writeBytes"`
	Restarts   int32   `json:"restarts"` // in the interval
	// Of the task as a whole, in the points of its first container: bytes in its own limited
	// storage, and percent of its fullest block volume.
	StorageUsed int64   `json:"storageUsed,omitempty"`
	VolumeUsed  float32 `json:"volumeUsed,omitempty"`
}

// Container is a container with the points that are kept of it, the oldest first.
type Container struct {
	TaskARN     string  `json:"taskArn"`
	InstanceARN string  `json:"containerInstanceArn"`
	Family      string  `json:"family"`
	Name        string  `json:"containerName"`
	Points      []Point `json:"points"`
}

// Keeper keeps points.
type Keeper struct {
	now func() time.Time

	mu         sync.Mutex
	containers map[key]*kept
	dirty      map[int64]bool // minutes, by their number since 1970, with points that no series has
	late       int            // points that came late and are not entered yet
	relief     chan struct{}  // closed when these are taken
}

type key struct{ task, container string }

// kept is the ring of a container.
type kept struct {
	instance, family string
	points           []Point // sorted by time, at most Points
	fresh            []Point // of them, those that are not on disk, in the order of their arrival
	heard            time.Time
	late             backlog
}

// New makes a keeper. now is the clock; nil means the system's.
func New(now func() time.Time) *Keeper {
	if now == nil {
		now = time.Now
	}
	return &Keeper{now: now, containers: make(map[key]*kept), dirty: make(map[int64]bool), relief: make(chan struct{})}
}

// Take enters a request of an agent.
func (k *Keeper) Take(instanceARN string, m *tcs.PublishMetricsRequest) {
	now := k.now()
	at := m.Timestamp.Time
	if at.IsZero() || at.After(now.Add(future)) {
		at = now // a clock that is far off would hide every true point behind its own
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range m.TaskMetrics {
		t := &m.TaskMetrics[i]
		for j := range t.ContainerMetrics {
			c := &t.ContainerMetrics[j]
			p := point(at, c)
			if j == 0 {
				p.StorageUsed, p.VolumeUsed = ofTask(t)
			}
			k.enter(key{t.TaskARN, c.ContainerName}, instanceARN, t.TaskDefinitionFamily, now, p)
		}
	}
}

// point makes a point of one container's sets.
func point(at time.Time, c *tcs.ContainerMetric) Point {
	p := Point{At: at}
	p.CPU, p.CPUMax = mean(c.CPU)
	p.Memory, p.MemoryMax = mean(c.Memory)
	if n := c.Network; n != nil {
		p.RxBytes, p.TxBytes = largest(n.RxBytes), largest(n.TxBytes)
		p.RxRate, _ = mean(n.RxBytesPerSecond)
		p.TxRate, _ = mean(n.TxBytesPerSecond)
	}
	if s := c.Storage; s != nil {
		p.ReadBytes, p.WriteBytes = largest(s.ReadSizeBytes), largest(s.WriteSizeBytes)
	}
	if c.Restart != nil {
		p.Restarts = int32(min(max(c.Restart.RestartCount, 0), 1<<30))
	}
	return p
}

// ofTask is how full a task's own storage is, in bytes, and its fullest volume, in percent.
func ofTask(t *tcs.TaskMetric) (storage int64, volume float32) {
	if e := t.EphemeralStorage; e != nil {
		storage = largest(e.BytesUtilized)
	}
	for i := range t.VolumeMetrics {
		if used, size := t.VolumeMetrics[i].Utilized, t.VolumeMetrics[i].Size; used != nil && size != nil && size.Max > 0 {
			volume = max(volume, float32(100*used.Max/size.Max))
		}
	}
	return storage, volume
}

func mean(s *tcs.Set) (mean, highest float32) {
	if s == nil || s.SampleCount <= 0 {
		return 0, 0
	}
	return float32(s.Sum / float64(s.SampleCount)), float32(s.Max)
}

func largest(s *tcs.LongSet) int64 {
	if s == nil {
		return 0
	}
	return s.Max
}

func (k *Keeper) enter(id key, instance, family string, now time.Time, p Point) {
	c := k.containers[id]
	if c == nil {
		if len(k.containers) >= maxContainers {
			k.forgetOldest()
		}
		c = &kept{instance: instance, family: family}
		k.containers[id] = c
	}
	c.heard = now
	if k.enterLate(c, now, p) {
		return
	}
	i, found := slices.BinarySearchFunc(c.points, p.At, func(q Point, at time.Time) int { return q.At.Compare(at) })
	if found {
		return // it came twice
	}
	if len(c.points) == Points {
		if i == 0 {
			return
		}
		copy(c.points, c.points[1:i])
		c.points[i-1] = p
	} else {
		c.points = slices.Insert(c.points, i, p)
	}
	c.fresh = append(c.fresh, p)
	if len(c.fresh) > Points { // nobody saves them
		c.fresh = slices.Delete(c.fresh, 0, len(c.fresh)-Points)
	}
	k.dirty[minuteOf(p.At)] = true
}

// forgetOldest makes room by a sixteenth, so that it is not done for every newcomer.
func (k *Keeper) forgetOldest() {
	type entry struct {
		id    key
		heard time.Time
	}
	all := make([]entry, 0, len(k.containers))
	for id, c := range k.containers {
		all = append(all, entry{id, c.heard})
	}
	slices.SortFunc(all, func(a, b entry) int { return a.heard.Compare(b.heard) })
	for _, e := range all[:len(all)/16+1] {
		k.forget(e.id)
	}
}

// Sweep forgets the containers that nothing was heard of for as long as points are kept.
func (k *Keeper) Sweep() {
	limit := k.now().Add(-Points * 20 * time.Second)
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, c := range k.containers {
		if c.heard.Before(limit) && len(c.late.points) == 0 {
			k.forget(id)
		}
	}
}

func (k *Keeper) forget(id key) {
	k.late -= len(k.containers[id].late.points)
	delete(k.containers, id)
}

// Containers returns what is kept of the containers of one cluster's tasks, sorted by
// task and name. With since, only points after it are returned, and containers without
// any are left out.
func (k *Keeper) Containers(cluster string, since time.Time) []Container {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []Container
	for id, c := range k.containers {
		if !in(id.task, cluster) {
			continue
		}
		i, _ := slices.BinarySearchFunc(c.points, since, func(q Point, at time.Time) int {
			if q.At.After(at) {
				return 1
			}
			return -1
		})
		if i == len(c.points) {
			continue
		}
		out = append(out, Container{TaskARN: id.task, InstanceARN: c.instance, Family: c.family, Name: id.container, Points: slices.Clone(c.points[i:])})
	}
	slices.SortFunc(out, func(a, b Container) int {
		if n := strings.Compare(a.TaskARN, b.TaskARN); n != 0 {
			return n
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}

// in reports whether a task's ARN is of the cluster.
func in(taskARN, cluster string) bool {
	_, rest, ok := strings.Cut(taskARN, ":task/")
	return ok && strings.HasPrefix(rest, cluster+"/")
}

// Now calls f with the last point of every container that was heard of lately.
func (k *Keeper) Now(f func(taskARN, instanceARN, container string, p Point)) {
	limit := k.now().Add(-stale)
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, c := range k.containers {
		if n := len(c.points); n > 0 && c.points[n-1].At.After(limit) {
			f(id.task, c.instance, id.container, c.points[n-1])
		}
	}
}

// Len is how many containers are kept.
func (k *Keeper) Len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.containers)
}
