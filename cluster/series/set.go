// Package series keeps what was measured of clusters, services, container instances,
// tasks and containers on disk: for each minute at first, for each five minutes for
// longer, for each hour for very long.
//
// All rows of one kind and one interval are one value of a bbolt database, compressed; the
// names of the rows are written once for each segment of time. A segment is removed as a
// whole when it is too old, or when all of them together are larger than is allowed, the
// oldest of the largest kind first. What comes late is merged into the interval where it
// belongs, and from there into the longer ones.
package series

import "strconv"

// Kind is what a row is about.
type Kind byte

// The kinds, with the form of their names. Parts are joined by a slash.
const (
	Cluster   Kind = iota // cluster
	Service               // cluster/service
	Instance              // cluster/container instance id
	Task                  // cluster/task id
	Container             // cluster/task id/container
	Kinds                 // how many there are
)

// String is the kind in logs and errors.
func (k Kind) String() string {
	if k < Kinds {
		return [...]string{"cluster", "service", "instance", "task", "container"}[k]
	}
	return "kind " + strconv.Itoa(int(k))
}

// Metric is one of the numbers of a row.
type Metric byte

// The metrics. Their numbers are in the database: append to them only.
const (
	CPUReservation    Metric = iota // percent of what is registered
	MemoryReservation               // percent of what is registered
	CPUUtilization                  // percent of what is registered or reserved
	MemoryUtilization               // percent of what is registered or reserved
	CPUReserved                     // CPU units, 1024 a processor
	MemoryReserved                  // MiB
	CPUUtilized                     // CPU units
	MemoryUtilized                  // MiB
	NetworkRxBytes                  // bytes a second
	NetworkTxBytes                  // bytes a second
	StorageReadBytes                // bytes in the interval
	StorageWriteBytes               // bytes in the interval
	RestartCount                    // restarts in the interval
	RunningTasks
	PendingTasks
	Instances
	StorageUtilized // bytes of the task's own storage
	VolumeUtilized  // percent of the fullest block volume
	GPUReservation  // percent of what is registered
	Metrics         // how many there are
)

// MetricSet is some of the metrics.
type MetricSet uint64

// Has reports whether a metric is one of them.
func (s MetricSet) Has(m Metric) bool { return s&(1<<m) != 0 }

// allMetrics stands for those of rows from before they were known of each row.
const allMetrics = MetricSet(1)<<Metrics - 1

// Set is the minimum, maximum, sum and number of samples.
type Set struct {
	Min, Max, Sum float64
	Count         uint64
}

// One is the set of one sample.
func One(v float64) Set { return Set{v, v, v, 1} }

// Add is the set of the samples of both.
func (s Set) Add(o Set) Set {
	switch {
	case o.Count == 0:
		return s
	case s.Count == 0:
		return o
	}
	return Set{min(s.Min, o.Min), max(s.Max, o.Max), s.Sum + o.Sum, s.Count + o.Count}
}

// Value is one metric of a row.
type Value struct {
	Metric Metric
	Set    Set
}

// Row is what was measured of one thing in one interval. Values are in the order of their
// metrics.
type Row struct {
	Name   string
	Values []Value
}

// Set enters the samples of a metric, in place of those that are there.
func (r *Row) Set(m Metric, s Set) {
	i := r.find(m)
	if i < len(r.Values) && r.Values[i].Metric == m {
		r.Values[i].Set = s
		return
	}
	r.Values = append(r.Values, Value{})
	copy(r.Values[i+1:], r.Values[i:])
	r.Values[i] = Value{m, s}
}

// Get is the samples of a metric; none means that it was not measured.
func (r *Row) Get(m Metric) Set {
	if i := r.find(m); i < len(r.Values) && r.Values[i].Metric == m {
		return r.Values[i].Set
	}
	return Set{}
}

// Add enters further samples of a metric.
func (r *Row) Add(m Metric, s Set) {
	if s.Count > 0 {
		r.Set(m, r.Get(m).Add(s))
	}
}

func (r *Row) find(m Metric) int {
	i := 0
	for i < len(r.Values) && r.Values[i].Metric < m {
		i++
	}
	return i
}
