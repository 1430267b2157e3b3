package telemetry

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"berth.dev/berth/cluster/series"
	"berth.dev/berth/cluster/store"
)

// What comes so late that the points of its time are no longer there is worked out
// otherwise: the rows of its containers are made of it alone, and those of their tasks,
// services, instances and clusters get what that adds to what they are.
const (
	// lateAfter is how late that is: the minute of what is younger is entered before it is
	// past the horizon.
	lateAfter = horizon - 2*time.Minute
	// maxLate bounds the late points that wait to be entered; agents that have more wait for
	// their acknowledgement, and send it then.
	maxLate = 200_000
)

// lateLimit is how late a point can be at most: the minutes that it is added to are kept at
// least that long.
var lateLimit = series.Retention(series.Container, series.Minute)

// backlog is what of a container came late and is not entered yet.
type backlog struct {
	points []Point // sorted by time
	last   Point   // that was taken
	quiet  bool    // nothing came since the last taking
}

// enterLate takes a point that is so late, and reports whether it is.
func (k *Keeper) enterLate(c *kept, now time.Time, p Point) bool {
	age := now.Sub(p.At)
	if age <= lateAfter || age > lateLimit {
		return age > lateLimit
	}
	k.putLate(c, p)
	return true
}

func (k *Keeper) putLate(c *kept, p Point) {
	i, found := slices.BinarySearchFunc(c.late.points, p.At, byTime)
	if !found {
		c.late.points = slices.Insert(c.late.points, i, p)
		c.late.quiet = false
		k.late++
	}
}

func byTime(p Point, at time.Time) int { return p.At.Compare(at) }

// waitForRoom waits until late points can be taken.
func (k *Keeper) waitForRoom(ctx context.Context, at time.Time) error {
	for k.now().Sub(at) > lateAfter {
		k.mu.Lock()
		full, relief := k.late >= maxLate, k.relief
		k.mu.Unlock()
		if !full {
			return nil
		}
		select {
		case <-relief:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// takeLate takes the late points by their minutes. Of a container of which points keep
// coming, the last minute may not be whole: it is left for the next time.
func (k *Keeper) takeLate() map[int64][]minuteUse {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make(map[int64][]minuteUse)
	for id, c := range k.containers {
		b := &c.late
		n := len(b.points)
		if n == 0 {
			continue
		}
		for last := minuteOf(b.points[n-1].At); !b.quiet && n > 0 && minuteOf(b.points[n-1].At) == last; {
			n--
		}
		b.quiet = true
		for from := 0; from < n; {
			minute, to := minuteOf(b.points[from].At), from+1
			for to < n && minuteOf(b.points[to].At) == minute {
				to++
			}
			u := minuteUse{key: id, instance: c.instance, points: c.withRing(b.points[from:to], minute), before: b.last}
			if u.before.At.IsZero() || u.before.At.Before(u.points[0].At.Add(-time.Minute)) {
				u.before = u.points[0] // what was before is not known, so only differences in the minute count
			}
			out[minute] = append(out[minute], u)
			b.last, from = b.points[to-1], to
		}
		b.points = slices.Delete(b.points, 0, n)
		k.late -= n
	}
	close(k.relief)
	k.relief = make(chan struct{})
	return out
}

// withRing is points of a minute with those of the same minute that were not too late.
func (c *kept) withRing(points []Point, minute int64) []Point {
	points = slices.Clone(points)
	for _, p := range c.points {
		if i, found := slices.BinarySearchFunc(points, p.At, byTime); !found && minuteOf(p.At) == minute {
			points = slices.Insert(points, i, p)
		}
	}
	return points
}

// enterLate enters what came late into the series.
func (r *Recorder) enterLate(until time.Time) error {
	if len(r.late) == 0 {
		r.late = r.keeper.takeLate()
	}
	for _, n := range slices.Sorted(maps.Keys(r.late)) {
		minute := time.Unix(n*60, 0)
		rows, err := r.rollLate(minute, r.late[n])
		if err == nil {
			err = r.series.Put(minute, until, rows)
		}
		if err != nil {
			return fmt.Errorf("enter late points of %s: %w", minute.Format(time.RFC3339), err)
		}
		delete(r.late, n)
	}
	return nil
}

// rollLate makes the rows that late points change.
func (r *Recorder) rollLate(minute time.Time, uses []minuteUse) (*series.Rows, error) {
	a := &addition{sheet: newSheet(), late: newSheet()}
	r.records.View(func(reader store.Reader) {
		a.registered(reader)
		a.late.hosts = a.hosts
		for i := range uses {
			a.late.container(reader, &uses[i])
		}
	})
	for k := range series.Kinds {
		wanted := make(map[string]bool)
		for i := range a.late.rows[series.Task] {
			wanted[a.late.known[i].row(k, a.late.rows[series.Task][i].Name)] = true
		}
		if k == series.Container {
			wanted = make(map[string]bool, len(a.late.rows[k]))
			for i := range a.late.rows[k] {
				wanted[a.late.rows[k][i].Name] = true
			}
		}
		was, err := r.series.At(k, minute, wanted)
		if err != nil {
			return nil, err
		}
		a.was[k] = was
	}
	a.containers()
	a.tasks()
	return &a.rows, nil
}

// addition is how the rows of a minute change by what came late.
type addition struct {
	*sheet
	late *sheet // made of what came late alone
	was  [series.Kinds]map[string]series.Row
}

// row is the name of the row of a kind that a task's use is part of.
func (i *taskInfo) row(k series.Kind, task string) string {
	switch {
	case k == series.Cluster:
		return i.cluster
	case k == series.Instance:
		return i.cluster + "/" + i.instance
	case k == series.Service && i.service != "":
		return i.cluster + "/" + i.service
	case k == series.Task:
		return task
	}
	return ""
}

// present is a row as it was, or has become since.
func (a *addition) present(k series.Kind, name string) *series.Row {
	r, known := a.row(k, name)
	if !known {
		r.Values = slices.Clone(a.was[k][name].Values)
	}
	return r
}

// containers enters the rows of containers, and into those of their tasks what they add.
// A row that says more already stays: what it was made of has come twice.
func (a *addition) containers() {
	for _, c := range a.late.rows[series.Container] {
		was := a.was[series.Container][c.Name]
		if c.Get(series.MemoryUtilized).Count <= was.Get(series.MemoryUtilized).Count {
			continue
		}
		a.rows[series.Container] = append(a.rows[series.Container], c)
		addDifference(a.present(series.Task, c.Name[:strings.LastIndexByte(c.Name, '/')]), &was, &c, summed)
	}
}

// tasks finishes the rows of tasks, and enters what they add to those of which they are part.
func (a *addition) tasks() {
	for i := range a.late.rows[series.Task] {
		late, info := &a.late.rows[series.Task][i], &a.late.known[i]
		if _, changed := a.index[indexOf(series.Task, late.Name)]; !changed {
			continue
		}
		was, t := a.was[series.Task][late.Name], a.present(series.Task, late.Name)
		for _, m := range []series.Metric{series.StorageUtilized, series.VolumeUtilized} {
			if set := late.Get(m); set.Count > 0 {
				t.Set(m, set)
			}
		}
		utilization(t, info.reserved)
		instance := a.present(series.Instance, info.row(series.Instance, ""))
		addDifference(instance, &was, t, summed)
		if len(was.Values) == 0 {
			instance.Set(series.RunningTasks, series.One(instance.Get(series.RunningTasks).Sum+1))
		}
		addDifference(a.present(series.Cluster, info.cluster), &was, t, summedCluster)
		if info.service == "" {
			continue
		}
		service := a.present(series.Service, info.row(series.Service, ""))
		addDifference(service, &was, t, summed)
		for _, m := range []series.Metric{series.CPUUtilization, series.MemoryUtilization, series.VolumeUtilized} {
			if was.Get(m).Count == 0 {
				service.Add(m, t.Get(m))
			}
		}
	}
	for i := range a.rows[series.Instance] {
		share(&a.rows[series.Instance][i], a.hosts[a.rows[series.Instance][i].Name])
	}
	for i := range a.rows[series.Cluster] {
		share(&a.rows[series.Cluster][i], a.clusters[a.rows[series.Cluster][i].Name])
	}
}

// addDifference adds to a row the difference between the means of two.
func addDifference(to, was, now *series.Row, metrics []series.Metric) {
	mean := func(s series.Set) float64 {
		if s.Count == 0 {
			return 0
		}
		return s.Sum / float64(s.Count)
	}
	for _, m := range metrics {
		if set := now.Get(m); set.Count > 0 {
			to.Set(m, series.One(to.Get(m).Sum+mean(set)-mean(was.Get(m))))
		}
	}
}
