package telemetry

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"berth.dev/berth/cluster/series"
	"berth.dev/berth/cluster/store"
)

// minuteUse is what one container used in a minute.
type minuteUse struct {
	key
	instance string
	points   []Point // of the minute
	before   Point   // the last one before it, if there is one
}

// uses is what was used in the minute that begins at a time, by all containers.
func (k *Keeper) uses(minute time.Time) []minuteUse {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []minuteUse
	n := minute.Unix() / 60
	for id, c := range k.containers {
		from, _ := slices.BinarySearchFunc(c.points, n, func(p Point, n int64) int {
			if minuteOf(p.At) < n {
				return -1
			}
			return 1
		})
		to := from
		for to < len(c.points) && minuteOf(c.points[to].At) == n {
			to++
		}
		if from == to {
			continue
		}
		u := minuteUse{key: id, instance: c.instance, points: slices.Clone(c.points[from:to])}
		if from > 0 {
			u.before = c.points[from-1]
		}
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b minuteUse) int {
		if c := strings.Compare(a.task, b.task); c != 0 {
			return c
		}
		return strings.Compare(a.container, b.container)
	})
	return out
}

// roll makes the rows of a minute. counts says that the minute is the last one, so that
// what the records say now is true of it.
func (r *Recorder) roll(minute time.Time, counts bool) *series.Rows {
	s := newSheet()
	r.records.View(func(reader store.Reader) {
		s.registered(reader)
		for _, u := range r.keeper.uses(minute) {
			s.container(reader, &u)
		}
	})
	s.tasks()
	s.whole()
	if counts {
		s.counts(r.keeper.Usage(r.records))
	}
	return &s.rows
}

// sheet is the rows of a minute while they are made.
type sheet struct {
	rows  series.Rows
	index map[string]int // of rows by kind and name
	known []taskInfo     // in the order of the rows of tasks
	// What is registered, by the names of rows.
	hosts, clusters map[string]amount
}

func newSheet() *sheet {
	return &sheet{index: map[string]int{}, hosts: map[string]amount{}, clusters: map[string]amount{}}
}

// registered reads what instances and clusters have.
func (s *sheet) registered(r store.Reader) {
	store.Scan(r, store.Instances, "", func(_ string, i *store.Instance) bool {
		if aws.ToString(i.Instance.Status) != "INACTIVE" {
			has := registered(i.Instance.RegisteredResources)
			s.hosts[i.ClusterName+"/"+i.ID] = has
			sum := s.clusters[i.ClusterName]
			sum.add(has)
			s.clusters[i.ClusterName] = sum
		}
		return true
	})
}

// taskInfo is what the records say of a task.
type taskInfo struct {
	cluster, service, instance string
	reserved                   amount
}

func indexOf(k series.Kind, name string) string { return string(rune('0'+k)) + name }

// row is the row with a name, which is made.
func (s *sheet) row(k series.Kind, name string) (*series.Row, bool) {
	id := indexOf(k, name)
	i, known := s.index[id]
	if !known {
		i = len(s.rows[k])
		s.index[id] = i
		s.rows[k] = append(s.rows[k], series.Row{Name: name})
	}
	return &s.rows[k][i], known
}

// summed are the metrics of a container that are added up for its task, and so on. Those
// of a cluster are without what is reserved, which is also so where nothing was measured.
var (
	summed        = append([]series.Metric{series.CPUReserved, series.MemoryReserved}, summedCluster...)
	summedCluster = []series.Metric{
		series.CPUUtilized, series.MemoryUtilized, series.NetworkRxBytes, series.NetworkTxBytes,
		series.StorageReadBytes, series.StorageWriteBytes, series.RestartCount,
	}
)

func (s *sheet) container(r store.Reader, u *minuteUse) {
	_, rest, ok := strings.Cut(u.task, ":task/")
	cluster, id, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 {
		return
	}
	info := taskInfo{cluster: cluster, instance: lastPart(u.instance)}
	var reserved amount // of the container
	if t, found := store.Get(r, store.Tasks, store.Key(cluster, id)); found {
		info.reserved = amount{cpu: float64(t.Held.CPU), memory: float64(t.Held.Memory)}
		info.service, _ = strings.CutPrefix(aws.ToString(t.Task.Group), "service:")
		if info.service == aws.ToString(t.Task.Group) {
			info.service = ""
		}
		for i := range t.Task.Containers {
			if c := &t.Task.Containers[i]; aws.ToString(c.Name) == u.container {
				reserved = amount{cpu: numberOf(c.Cpu), memory: max(numberOf(c.MemoryReservation), numberOf(c.Memory))}
			}
		}
	}
	c := u.row(s.hosts[cluster+"/"+info.instance].cpu, reserved)
	c.Name = cluster + "/" + id + "/" + u.container
	s.rows[series.Container] = append(s.rows[series.Container], c)
	task, known := s.row(series.Task, cluster+"/"+id)
	if !known {
		s.known = append(s.known, info)
	}
	addMeans(task, &c, summed)
	last := u.points[len(u.points)-1]
	if last.StorageUsed > 0 {
		task.Set(series.StorageUtilized, series.One(float64(last.StorageUsed)))
	}
	if last.VolumeUsed > 0 {
		task.Set(series.VolumeUtilized, series.One(float64(last.VolumeUsed)))
	}
}

func lastPart(arn string) string { return arn[strings.LastIndexByte(arn, '/')+1:] }

func numberOf(s *string) float64 {
	v, err := strconv.ParseFloat(aws.ToString(s), 64)
	if err != nil {
		return 0 // it was not set
	}
	return v
}

// addMeans adds the means of a row to those of a larger one.
func addMeans(to, of *series.Row, metrics []series.Metric) {
	for _, m := range metrics {
		if set := of.Get(m); set.Count > 0 {
			was := to.Get(m)
			to.Set(m, series.One(was.Sum+set.Sum/float64(set.Count)))
		}
	}
}

// row is the row of a container: for CPU and memory the samples of the minute's points with
// their peaks, for the rest one number.
func (u *minuteUse) row(cpuUnits float64, reserved amount) series.Row {
	var r series.Row
	rx, tx, restarts := 0.0, 0.0, 0.0
	for _, p := range u.points {
		if cpuUnits > 0 {
			r.Add(series.CPUUtilized, peak(float64(p.CPU)/100*cpuUnits, float64(p.CPUMax)/100*cpuUnits))
		}
		r.Add(series.MemoryUtilized, peak(float64(p.Memory), float64(p.MemoryMax)))
		rx, tx, restarts = rx+float64(p.RxRate), tx+float64(p.TxRate), restarts+float64(p.Restarts)
	}
	n := float64(len(u.points))
	r.Set(series.NetworkRxBytes, series.One(rx/n))
	r.Set(series.NetworkTxBytes, series.One(tx/n))
	r.Set(series.RestartCount, series.One(restarts))
	last, before := u.points[len(u.points)-1], u.before
	if before.At.IsZero() {
		before = Point{} // a new container has counted from zero
	}
	r.Set(series.StorageReadBytes, series.One(float64(max(last.ReadBytes-before.ReadBytes, 0))))
	r.Set(series.StorageWriteBytes, series.One(float64(max(last.WriteBytes-before.WriteBytes, 0))))
	utilization(&r, reserved)
	return r
}

func peak(mean, highest float64) series.Set {
	return series.Set{Min: mean, Max: max(mean, highest), Sum: mean, Count: 1}
}

// utilization enters what was used as percent of what there is to use, and that.
func utilization(r *series.Row, of amount) {
	part := func(m, used, whole series.Metric, v float64) {
		if v <= 0 {
			return
		}
		r.Set(whole, series.One(v))
		if s := r.Get(used); s.Count > 0 {
			f := 100 / v
			r.Set(m, series.Set{Min: s.Min * f, Max: s.Max * f, Sum: s.Sum * f, Count: s.Count})
		}
	}
	part(series.CPUUtilization, series.CPUUtilized, series.CPUReserved, of.cpu)
	part(series.MemoryUtilization, series.MemoryUtilized, series.MemoryReserved, of.memory)
}

// tasks finishes the rows of tasks and adds them to those of services and instances. A
// task is one sample of its service (ECS API reference, metrics: the number of samples is
// that of the running tasks).
func (s *sheet) tasks() {
	for i := range s.rows[series.Task] {
		t, info := &s.rows[series.Task][i], &s.known[i]
		utilization(t, info.reserved)
		if info.service != "" {
			service, _ := s.row(series.Service, info.cluster+"/"+info.service)
			for _, m := range []series.Metric{series.CPUUtilization, series.MemoryUtilization} {
				service.Add(m, t.Get(m))
			}
			addMeans(service, t, summed)
			service.Add(series.VolumeUtilized, t.Get(series.VolumeUtilized))
		}
		name := info.cluster + "/" + info.instance
		instance, _ := s.row(series.Instance, name)
		addMeans(instance, t, summed)
		instance.Set(series.RunningTasks, series.One(instance.Get(series.RunningTasks).Sum+1))
	}
}

// whole finishes the rows of instances and adds them to those of clusters.
func (s *sheet) whole() {
	for i := range s.rows[series.Instance] {
		r := &s.rows[series.Instance][i]
		share(r, s.hosts[r.Name])
		cluster, _, _ := strings.Cut(r.Name, "/")
		row, _ := s.row(series.Cluster, cluster)
		addMeans(row, r, summedCluster)
	}
	for i := range s.rows[series.Cluster] {
		r := &s.rows[series.Cluster][i]
		share(r, s.clusters[r.Name])
	}
}

// share enters what is used and reserved of what is registered.
func share(r *series.Row, of amount) {
	for _, m := range [...]struct {
		to, from series.Metric
		whole    float64
	}{
		{series.CPUUtilization, series.CPUUtilized, of.cpu}, {series.MemoryUtilization, series.MemoryUtilized, of.memory},
		{series.CPUReservation, series.CPUReserved, of.cpu}, {series.MemoryReservation, series.MemoryReserved, of.memory},
	} {
		if set := r.Get(m.from); set.Count > 0 && m.whole > 0 {
			r.Set(m.to, series.One(percent(set.Sum, m.whole)))
		}
	}
}

// counts enters what the records say of the clusters and services, idle ones included.
func (s *sheet) counts(list []*Usage) {
	for _, u := range list {
		kind, name := series.Cluster, u.Cluster
		if u.Service != "" {
			kind, name = series.Service, u.Cluster+"/"+u.Service
		} else if u.Instances == 0 && u.RunningTasks+u.PendingTasks == 0 {
			continue
		}
		r, _ := s.row(kind, name)
		r.Set(series.RunningTasks, series.One(float64(u.RunningTasks)))
		r.Set(series.PendingTasks, series.One(float64(u.PendingTasks)))
		if kind == series.Service {
			continue
		}
		r.Set(series.Instances, series.One(float64(u.Instances)))
		r.Set(series.CPUReserved, series.One(u.reserved.cpu))
		r.Set(series.MemoryReserved, series.One(u.reserved.memory))
		if u.registered.gpus > 0 {
			r.Set(series.GPUReservation, series.One(u.GPUReservation))
		}
		share(r, u.registered)
	}
}
