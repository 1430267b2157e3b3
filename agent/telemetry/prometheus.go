package telemetry

import (
	"math"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/stats"
)

// Collector gives the use of every running container to Prometheus. Names and units
// follow its conventions: base units, _total for what only grows.
type Collector struct{ w *Watcher }

// Collector is the watcher's view for Prometheus.
func (w *Watcher) Collector() *Collector { return &Collector{w} }

var labels = []string{"cluster", "task_id", "task_definition_family", "container_name"}

// metric is one number of a sample; it is left out where the sample does not have it.
type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	has   stats.Has
	value func(*stats.Sample) float64
}

func counter(name, help string, has stats.Has, value func(*stats.Sample) float64) metric {
	return metric{prometheus.NewDesc("berth_container_"+name+"_total", help, labels, nil), prometheus.CounterValue, has, value}
}

func gauge(name, help string, has stats.Has, value func(*stats.Sample) float64) metric {
	return metric{prometheus.NewDesc("berth_container_"+name, help, labels, nil), prometheus.GaugeValue, has, value}
}

const (
	nano  = 1e-9
	micro = 1e-6
)

var metrics = []metric{
	counter("cpu_usage_seconds", "Processor time used, of all processors together.", stats.HasCPU, func(s *stats.Sample) float64 { return float64(s.CPU.Usage) * nano }),
	counter("cpu_user_seconds", "Processor time used in user mode.", stats.HasCPU, func(s *stats.Sample) float64 { return float64(s.CPU.User) * nano }),
	counter("cpu_system_seconds", "Processor time used in kernel mode.", stats.HasCPU, func(s *stats.Sample) float64 { return float64(s.CPU.System) * nano }),
	counter("cpu_periods", "Enforcement periods that have passed.", stats.HasThrottling, func(s *stats.Sample) float64 { return float64(s.CPU.Periods) }),
	counter("cpu_throttled_periods", "Enforcement periods in which the container was throttled.", stats.HasThrottling, func(s *stats.Sample) float64 { return float64(s.CPU.Throttled) }),
	counter("cpu_throttled_seconds", "Time for which the container was throttled.", stats.HasThrottling, func(s *stats.Sample) float64 { return float64(s.CPU.ThrottledTime) * nano }),
	gauge("memory_used_bytes", "Memory in use as ECS counts it.", stats.HasMemory, func(s *stats.Sample) float64 { return float64(s.Memory.Used()) }),
	gauge("memory_working_set_bytes", "Memory that cannot be taken away unnoticed.", stats.HasMemory, func(s *stats.Sample) float64 { return float64(s.Memory.WorkingSet()) }),
	gauge("memory_usage_bytes", "Memory charged to the container, page cache included.", stats.HasMemory, func(s *stats.Sample) float64 { return float64(s.Memory.Usage) }),
	gauge("memory_cache_bytes", "Page cache.", stats.HasMemory, func(s *stats.Sample) float64 { return float64(s.Memory.Cache) }),
	gauge("memory_limit_bytes", "Memory limit; 0 means none.", stats.HasMemory, func(s *stats.Sample) float64 { return float64(s.Memory.Limit) }),
	gauge("processes", "Processes and threads.", stats.HasPids, func(s *stats.Sample) float64 { return float64(s.Pids.Current) }),
	counter("storage_read_bytes", "Bytes read from block devices.", stats.HasIO, func(s *stats.Sample) float64 { return float64(s.IO.ReadBytes) }),
	counter("storage_written_bytes", "Bytes written to block devices.", stats.HasIO, func(s *stats.Sample) float64 { return float64(s.IO.WriteBytes) }),
	counter("network_receive_bytes", "Bytes received.", stats.HasNetwork, func(s *stats.Sample) float64 { return float64(s.Network.RxBytes) }),
	counter("network_receive_packets", "Packets received.", stats.HasNetwork, func(s *stats.Sample) float64 { return float64(s.Network.RxPackets) }),
	counter("network_receive_errors", "Packets received with errors.", stats.HasNetwork, func(s *stats.Sample) float64 { return float64(s.Network.RxErrors) }),
	counter("network_receive_dropped", "Received packets that were dropped.", stats.HasNetwork, func(s *stats.Sample) float64 { return float64(s.Network.RxDropped) }),
	counter("network_transmit_bytes", "Bytes sent.", stats.HasNetwork, func(s *stats.Sample) float64 { return float64(s.Network.TxBytes) }),
	counter("network_transmit_packets", "Packets sent.", stats.HasNetwork, func(s *stats.Sample) float64 { return float64(s.Network.TxPackets) }),
	counter("network_transmit_errors", "Packets that could not be sent for errors.", stats.HasNetwork, func(s *stats.Sample) float64 { return float64(s.Network.TxErrors) }),
	counter("network_transmit_dropped", "Packets to be sent that were dropped.", stats.HasNetwork, func(s *stats.Sample) float64 { return float64(s.Network.TxDropped) }),
	counter("pressure_cpu_waiting_seconds", "Time for which processes waited for a processor (cgroup version 2).", stats.HasPressure, func(s *stats.Sample) float64 { return float64(s.Pressure.CPUSome) * micro }),
	counter("pressure_memory_waiting_seconds", "Time for which processes waited for memory (cgroup version 2).", stats.HasPressure, func(s *stats.Sample) float64 { return float64(s.Pressure.MemorySome) * micro }),
	counter("pressure_io_waiting_seconds", "Time for which processes waited for block devices (cgroup version 2).", stats.HasPressure, func(s *stats.Sample) float64 { return float64(s.Pressure.IOSome) * micro }),
}

// gpuMetrics are of each GPU that a container has. None has two containers, so that its
// numbers are the container's.
var gpuMetrics = []struct {
	desc  *prometheus.Desc
	value func(*stats.GPU) float64
}{
	{gpuDesc("utilization_ratio", "Part of the time in which the GPU computed."), func(g *stats.GPU) float64 { return g.Utilization }},
	{gpuDesc("memory_busy_ratio", "Part of the time in which the GPU's memory was read or written."), func(g *stats.GPU) float64 { return g.MemoryBusy }},
	{gpuDesc("memory_used_bytes", "Memory of the GPU in use."), func(g *stats.GPU) float64 { return g.MemoryUsed }},
	{gpuDesc("memory_size_bytes", "Memory of the GPU."), func(g *stats.GPU) float64 { return g.MemoryTotal }},
	{gpuDesc("temperature_celsius", "Temperature of the GPU."), func(g *stats.GPU) float64 { return g.Temperature }},
	{gpuDesc("power_watts", "Power that the GPU draws."), func(g *stats.GPU) float64 { return g.Power }},
}

func gpuDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("berth_container_gpu_"+name, help, append(slices.Clone(labels), "gpu"), nil)
}

var restartsDesc = prometheus.NewDesc("berth_container_restarts_total", "Restarts by the restart policy.", labels, nil)

// Describe lists the metrics.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics {
		ch <- m.desc
	}
	for i := range gpuMetrics {
		ch <- gpuMetrics[i].desc
	}
	ch <- restartsDesc
}

// Collect gives the last sample of every container.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	c.w.Each(func(t *task.Task, name string, s *stats.Sample, restarts int) {
		values := []string{clusterName(t.ClusterARN), t.ID(), t.Family, name}
		for i := range metrics {
			if m := &metrics[i]; s.Has&m.has == m.has {
				ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(s), values...)
			}
		}
		ch <- prometheus.MustNewConstMetric(restartsDesc, prometheus.CounterValue, float64(restarts), values...)
	})
	c.w.EachGPU(func(t *task.Task, name, gpu string, now *stats.GPU) {
		for i := range gpuMetrics {
			if v := gpuMetrics[i].value(now); !math.IsNaN(v) {
				ch <- prometheus.MustNewConstMetric(gpuMetrics[i].desc, prometheus.GaugeValue, v, clusterName(t.ClusterARN), t.ID(), t.Family, name, gpu)
			}
		}
	})
}

// clusterName is the last part of a cluster's ARN.
func clusterName(arn string) string {
	for i := len(arn) - 1; i >= 0; i-- {
		if arn[i] == '/' {
			return arn[i+1:]
		}
	}
	return arn
}
