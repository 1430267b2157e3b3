package telemetry

import (
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/prometheus/client_golang/prometheus"

	"berth.dev/berth/cluster/store"
)

// Usage is the use of a cluster, or of one of its services, as CloudWatch has it in the
// namespace AWS/ECS (ECS API reference, metrics). Percentages are 0 where there is
// nothing to divide by.
type Usage struct {
	Cluster string
	Service string // "" for the cluster as a whole

	CPUReservation, MemoryReservation float64 // percent of what the instances registered; of clusters only
	GPUReservation                    float64 // the same; 0 where there are none
	CPUUtilization, MemoryUtilization float64 // percent: of what was registered for a cluster, of what was reserved for a service
	RunningTasks, PendingTasks        int
	Instances                         int // of clusters only

	registered, reserved, used amount
}

// amount is CPU units and MiB, and a number of GPUs.
type amount struct{ cpu, memory, gpus float64 }

func (a *amount) add(b amount) { a.cpu += b.cpu; a.memory += b.memory; a.gpus += b.gpus }

func percent(part, whole float64) float64 {
	if whole <= 0 {
		return 0
	}
	return 100 * part / whole
}

// Usage works out the use of every cluster and service from the records and the last
// points.
func (k *Keeper) Usage(s *store.Store) []*Usage {
	type point struct {
		cpu, memory float64 // percent of the instance, MiB
		instance    string
	}
	points := make(map[string][]point) // by task
	k.Now(func(task, instance, _ string, p Point) {
		points[task] = append(points[task], point{float64(p.CPU), float64(p.Memory), instance})
	})
	var out []*Usage
	s.View(func(r store.Reader) {
		index := make(map[[2]string]*Usage)
		of := func(cluster, service string) *Usage {
			u := index[[2]string{cluster, service}]
			if u == nil {
				u = &Usage{Cluster: cluster, Service: service}
				index[[2]string{cluster, service}] = u
				out = append(out, u)
			}
			return u
		}
		store.Scan(r, store.Clusters, "", func(_ string, c *store.Cluster) bool {
			of(aws.ToString(c.Cluster.ClusterName), "")
			return true
		})
		cpus := make(map[string]float64) // CPU units of instances by ARN
		store.Scan(r, store.Instances, "", func(_ string, i *store.Instance) bool {
			if aws.ToString(i.Instance.Status) == "INACTIVE" {
				return true
			}
			u := of(i.ClusterName, "")
			u.Instances++
			has := registered(i.Instance.RegisteredResources)
			cpus[aws.ToString(i.Instance.ContainerInstanceArn)] = has.cpu
			u.registered.add(has)
			return true
		})
		store.Scan(r, store.Tasks, "", func(_ string, t *store.Task) bool {
			status := aws.ToString(t.Task.LastStatus)
			if status == "STOPPED" {
				return true
			}
			var used amount
			for _, p := range points[aws.ToString(t.Task.TaskArn)] {
				used.add(amount{cpu: p.cpu / 100 * cpus[p.instance], memory: p.memory})
			}
			targets := []*Usage{of(t.ClusterName, "")}
			if service, ok := strings.CutPrefix(aws.ToString(t.Task.Group), "service:"); ok {
				targets = append(targets, of(t.ClusterName, service))
			}
			for _, u := range targets {
				if status == "RUNNING" {
					u.RunningTasks++
				} else {
					u.PendingTasks++
				}
				u.reserved.add(amount{float64(t.Held.CPU), float64(t.Held.Memory), float64(len(t.Held.GPUs))})
				u.used.add(used)
			}
			return true
		})
	})
	for _, u := range out {
		u.finish()
	}
	return out
}

func (u *Usage) finish() {
	whole := u.reserved
	if u.Service == "" {
		whole = u.registered
		u.CPUReservation, u.MemoryReservation = percent(u.reserved.cpu, u.registered.cpu), percent(u.reserved.memory, u.registered.memory)
		u.GPUReservation = percent(u.reserved.gpus, u.registered.gpus)
	}
	u.CPUUtilization, u.MemoryUtilization = percent(u.used.cpu, whole.cpu), percent(u.used.memory, whole.memory)
}

func registered(resources []types.Resource) (a amount) {
	for i := range resources {
		switch aws.ToString(resources[i].Name) {
		case "CPU":
			a.cpu = float64(resources[i].IntegerValue)
		case "MEMORY":
			a.memory = float64(resources[i].IntegerValue)
		case "GPU":
			a.gpus = float64(len(resources[i].StringSetValue))
		}
	}
	return a
}

// Collector gives the use of clusters, services and containers to Prometheus. What
// CloudWatch has has its name in Prometheus' spelling, and its dimensions as labels.
type Collector struct {
	keeper *Keeper
	store  *store.Store
}

// NewCollector makes a collector.
func NewCollector(k *Keeper, s *store.Store) *Collector { return &Collector{k, s} }

var (
	clusterLabels   = []string{"cluster_name"}
	serviceLabels   = []string{"cluster_name", "service_name"}
	containerLabels = []string{"cluster_name", "task_id", "container_name"}
)

func desc(name, help string, labels []string) *prometheus.Desc {
	return prometheus.NewDesc("ecs_"+name, help, labels, nil)
}

var (
	cpuReservation    = desc("cluster_cpu_reservation_percent", "CPU units reserved by tasks, of those registered (CPUReservation).", clusterLabels)
	memoryReservation = desc("cluster_memory_reservation_percent", "Memory reserved by tasks, of that registered (MemoryReservation).", clusterLabels)
	gpuReservation    = desc("cluster_gpu_reservation_percent", "GPUs reserved by tasks, of those registered (GPUReservation).", clusterLabels)
	clusterCPU        = desc("cluster_cpu_utilization_percent", "CPU used, of that registered (CPUUtilization).", clusterLabels)
	clusterMemory     = desc("cluster_memory_utilization_percent", "Memory used, of that registered (MemoryUtilization).", clusterLabels)
	clusterRunning    = desc("cluster_running_tasks", "Tasks that are RUNNING (TaskCount).", clusterLabels)
	clusterPending    = desc("cluster_pending_tasks", "Tasks that are not RUNNING yet.", clusterLabels)
	clusterInstances  = desc("cluster_container_instances", "Container instances that are not deregistered (ContainerInstanceCount).", clusterLabels)

	serviceCPU     = desc("service_cpu_utilization_percent", "CPU used, of that reserved by the service's tasks (CPUUtilization).", serviceLabels)
	serviceMemory  = desc("service_memory_utilization_percent", "Memory used, of that reserved by the service's tasks (MemoryUtilization).", serviceLabels)
	serviceRunning = desc("service_running_tasks", "Tasks of the service that are RUNNING (RunningTaskCount).", serviceLabels)
	servicePending = desc("service_pending_tasks", "Tasks of the service that are not RUNNING yet (PendingTaskCount).", serviceLabels)

	containerCPU    = desc("container_cpu_utilization_percent", "CPU used, of all processors of the container's instance.", containerLabels)
	containerMemory = desc("container_memory_used_bytes", "Memory used as ECS counts it.", containerLabels)
	containerRx     = desc("container_network_receive_bytes_total", "Bytes received.", containerLabels)
	containerTx     = desc("container_network_transmit_bytes_total", "Bytes sent.", containerLabels)
	containerRead   = desc("container_storage_read_bytes_total", "Bytes read from block devices.", containerLabels)
	containerWrite  = desc("container_storage_written_bytes_total", "Bytes written to block devices.", containerLabels)
)

// Describe lists the metrics.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		cpuReservation, memoryReservation, gpuReservation, clusterCPU, clusterMemory, clusterRunning, clusterPending, clusterInstances,
		serviceCPU, serviceMemory, serviceRunning, servicePending,
		containerCPU, containerMemory, containerRx, containerTx, containerRead, containerWrite,
	} {
		ch <- d
	}
}

// Collect works everything out anew.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	for _, u := range c.keeper.Usage(c.store) {
		if u.Service != "" {
			gauge(serviceCPU, u.CPUUtilization, u.Cluster, u.Service)
			gauge(serviceMemory, u.MemoryUtilization, u.Cluster, u.Service)
			gauge(serviceRunning, float64(u.RunningTasks), u.Cluster, u.Service)
			gauge(servicePending, float64(u.PendingTasks), u.Cluster, u.Service)
			continue
		}
		gauge(cpuReservation, u.CPUReservation, u.Cluster)
		gauge(memoryReservation, u.MemoryReservation, u.Cluster)
		if u.registered.gpus > 0 {
			gauge(gpuReservation, u.GPUReservation, u.Cluster)
		}
		gauge(clusterCPU, u.CPUUtilization, u.Cluster)
		gauge(clusterMemory, u.MemoryUtilization, u.Cluster)
		gauge(clusterRunning, float64(u.RunningTasks), u.Cluster)
		gauge(clusterPending, float64(u.PendingTasks), u.Cluster)
		gauge(clusterInstances, float64(u.Instances), u.Cluster)
	}
	c.keeper.Now(func(task, _, container string, p Point) {
		_, rest, _ := strings.Cut(task, ":task/")
		cluster, id, _ := strings.Cut(rest, "/")
		gauge(containerCPU, float64(p.CPU), cluster, id, container)
		gauge(containerMemory, float64(p.Memory)*(1<<20), cluster, id, container)
		counter(containerRx, p.RxBytes, cluster, id, container)
		counter(containerTx, p.TxBytes, cluster, id, container)
		counter(containerRead, p.ReadBytes, cluster, id, container)
		counter(containerWrite, p.WriteBytes, cluster, id, container)
	})
}
