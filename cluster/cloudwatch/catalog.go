package cloudwatch

import (
	"slices"
	"strings"

	"berth.dev/berth/cluster/series"
)

// Namespaces of the metrics (Amazon ECS developer guide, "Amazon ECS CloudWatch metrics" and
// "Container Insights metrics").
const (
	namespaceECS      = "AWS/ECS"
	namespaceInsights = "ECS/ContainerInsights"
)

// metric is one metric of CloudWatch, and where it is in the series.
type metric struct {
	namespace, name string
	kind            series.Kind
	of              series.Metric
	unit            string
}

const (
	percent   = "Percent"
	count     = "Count"
	megabytes = "Megabytes"
	perSecond = "Bytes/Second"
	byteCount = "Bytes"
	none      = "None"
)

// common are the metrics of Container Insights that everything with tasks has.
var common = []metric{
	{name: "CpuReserved", of: series.CPUReserved, unit: none},
	{name: "CpuUtilized", of: series.CPUUtilized, unit: none},
	{name: "MemoryReserved", of: series.MemoryReserved, unit: megabytes},
	{name: "MemoryUtilized", of: series.MemoryUtilized, unit: megabytes},
	{name: "NetworkRxBytes", of: series.NetworkRxBytes, unit: perSecond},
	{name: "NetworkTxBytes", of: series.NetworkTxBytes, unit: perSecond},
	{name: "StorageReadBytes", of: series.StorageReadBytes, unit: byteCount},
	{name: "StorageWriteBytes", of: series.StorageWriteBytes, unit: byteCount},
	{name: "RestartCount", of: series.RestartCount, unit: count},
}

// catalog is all metrics there are.
var catalog = func() []metric {
	list := []metric{
		{namespaceECS, "CPUReservation", series.Cluster, series.CPUReservation, percent},
		{namespaceECS, "MemoryReservation", series.Cluster, series.MemoryReservation, percent},
		{namespaceECS, "GPUReservation", series.Cluster, series.GPUReservation, percent},
		{namespaceECS, "CPUUtilization", series.Cluster, series.CPUUtilization, percent},
		{namespaceECS, "MemoryUtilization", series.Cluster, series.MemoryUtilization, percent},
		{namespaceECS, "CPUUtilization", series.Service, series.CPUUtilization, percent},
		{namespaceECS, "MemoryUtilization", series.Service, series.MemoryUtilization, percent},

		{namespaceECS, "EBSFilesystemUtilization", series.Service, series.VolumeUtilized, percent},

		{namespaceInsights, "TaskCount", series.Cluster, series.RunningTasks, count},
		{namespaceInsights, "ContainerInstanceCount", series.Cluster, series.Instances, count},
		{namespaceInsights, "RunningTaskCount", series.Service, series.RunningTasks, count},
		{namespaceInsights, "PendingTaskCount", series.Service, series.PendingTasks, count},
		{namespaceInsights, "instance_cpu_utilization", series.Instance, series.CPUUtilization, percent},
		{namespaceInsights, "instance_cpu_reserved_capacity", series.Instance, series.CPUReservation, percent},
		{namespaceInsights, "instance_memory_utilization", series.Instance, series.MemoryUtilization, percent},
		{namespaceInsights, "instance_memory_reserved_capacity", series.Instance, series.MemoryReservation, percent},
		{namespaceInsights, "instance_number_of_running_tasks", series.Instance, series.RunningTasks, count},
		{namespaceInsights, "TaskCpuUtilization", series.Task, series.CPUUtilization, percent},
		{namespaceInsights, "TaskMemoryUtilization", series.Task, series.MemoryUtilization, percent},
		{namespaceInsights, "TaskEBSFilesystemUtilization", series.Task, series.VolumeUtilized, percent},
		{namespaceInsights, "EphemeralStorageUtilized", series.Task, series.StorageUtilized, byteCount},
		{namespaceInsights, "ContainerCpuUtilization", series.Container, series.CPUUtilization, percent},
		{namespaceInsights, "ContainerMemoryUtilization", series.Container, series.MemoryUtilization, percent},
	}
	for _, k := range []series.Kind{series.Cluster, series.Service, series.Task, series.Container} {
		for _, m := range common {
			m.namespace, m.kind = namespaceInsights, k
			list = append(list, m)
		}
	}
	return list
}()

// dimension is a name and a value.
type dimension struct{ name, value string }

// dimensions are the names of a kind's dimensions, in the order of the parts of its rows'
// names. What instanceID adds to instances may be left out.
var dimensions = [series.Kinds][]string{
	series.Cluster:   {"ClusterName"},
	series.Service:   {"ClusterName", "ServiceName"},
	series.Instance:  {"ClusterName", "ContainerInstanceId"},
	series.Task:      {"ClusterName", "TaskId"},
	series.Container: {"ClusterName", "TaskId", "ContainerName"},
}

const instanceID = "InstanceId"

// find is the metric with a name and dimensions, and the name of its row. As in
// CloudWatch a metric has all of its dimensions or is another metric.
func (s *Server) find(namespace, name string, dims []dimension) (m metric, row string, ok bool) {
	for _, m := range catalog {
		if m.namespace != namespace || m.name != name {
			continue
		}
		if row, ok := s.rowOf(m.kind, dims); ok {
			return m, row, true
		}
	}
	return metric{}, "", false
}

func (s *Server) rowOf(k series.Kind, dims []dimension) (string, bool) {
	rest := slices.Clone(dims)
	var parts []string
	for _, name := range dimensions[k] {
		i := slices.IndexFunc(rest, func(d dimension) bool { return d.name == name })
		if i < 0 {
			return "", false
		}
		parts = append(parts, rest[i].value)
		rest = slices.Delete(rest, i, i+1)
	}
	if k == series.Instance && len(rest) == 1 && rest[0].name == instanceID && rest[0].value == s.InstanceID(parts[0], parts[1]) {
		rest = nil
	}
	return strings.Join(parts, "/"), len(rest) == 0
}

// dimensionsOf are the dimensions of a row.
func (s *Server) dimensionsOf(k series.Kind, row string) ([]dimension, bool) {
	names := dimensions[k]
	parts := strings.SplitN(row, "/", len(names))
	if len(parts) != len(names) {
		return nil, false
	}
	out := make([]dimension, len(names))
	for i := range names {
		out[i] = dimension{names[i], parts[i]}
	}
	if k == series.Instance {
		if id := s.InstanceID(parts[0], parts[1]); id != "" {
			out = append(out, dimension{instanceID, id})
		}
	}
	return out, true
}
