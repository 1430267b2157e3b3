package api

import (
	"log/slog"
	"slices"

	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/sched"
	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/vpc"
)

// placement is what placement is decided on: one sched.State for each cluster, kept in
// step with the records. Only the placer touches it.
type placement struct {
	clusters map[string]*sched.State
	log      *slog.Logger
}

func newPlacement(log *slog.Logger) *placement {
	return &placement{clusters: make(map[string]*sched.State), log: log}
}

// of returns the state of a cluster; one without instances is empty.
func (p *placement) of(cluster string) *sched.State {
	s, ok := p.clusters[cluster]
	if !ok {
		s = sched.NewState()
		p.clusters[cluster] = s
	}
	return s
}

func (p *placement) load(s *snapshot) {
	p.clusters = make(map[string]*sched.State)
	for _, i := range s.instances {
		p.setInstance(i)
	}
	for _, t := range s.tasks {
		p.setTask(t)
	}
}

func (p *placement) setInstance(i *store.Instance) {
	total, err := totalsOf(i.Instance.RegisteredResources)
	if err != nil {
		p.log.Error("record of a container instance cannot be read, nothing is placed there", "instance", i.ID, "err", err)
		return
	}
	in := sched.Instance{
		ARN:            str(i.Instance.ContainerInstanceArn),
		Status:         str(i.Instance.Status),
		AgentConnected: i.Instance.AgentConnected,
		EC2InstanceID:  str(i.Instance.Ec2InstanceId),
		Attributes:     make(map[string]string, len(i.Instance.Attributes)),
		Total:          sched.Resources{CPU: total.CPU, Memory: total.Memory, GPUs: total.GPUs},
		ReservedTCP:    ports16(total.TCP),
		ReservedUDP:    ports16(total.UDP),
	}
	if v := i.Instance.VersionInfo; v != nil {
		in.AgentVersion = str(v.AgentVersion)
	}
	if at := i.Instance.RegisteredAt; at != nil {
		in.RegisteredAt = *at
	}
	for _, at := range i.Instance.Attributes {
		in.Attributes[str(at.Name)] = str(at.Value)
	}
	p.of(i.ClusterName).SetInstance(in)
}

func (p *placement) setTask(t *store.Task) {
	s, arn := p.of(t.ClusterName), str(t.Task.TaskArn)
	if !holds(t) {
		s.Release(arn)
		return
	}
	running := str(t.Task.LastStatus) == statusRunning
	if _, known := s.Reserved(arn); known {
		s.SetRunning(arn, running)
		return
	}
	err := s.Reserve(sched.Reservation{
		Task: arn, Instance: str(t.Task.ContainerInstanceArn), Group: str(t.Task.Group),
		Need: needOf(&t.Held), GPUs: t.Held.GPUs, Running: running,
	})
	if err != nil {
		p.log.Warn("task without its container instance takes no part in placement", "task", arn, "err", err)
	}
}

// holds tells whether a task takes up resources of an instance.
func holds(t *store.Task) bool {
	return t.InstanceID != "" && str(t.Task.LastStatus) != statusStopped
}

func (p *placement) remove(record any) {
	switch old := record.(type) {
	case *store.Task:
		p.of(old.ClusterName).Release(str(old.Task.TaskArn))
	case *store.Instance:
		p.of(old.ClusterName).RemoveInstance(str(old.Instance.ContainerInstanceArn))
	}
}

func heldOf(n sched.Need, gpus []string) store.Held {
	return store.Held{CPU: n.CPU, Memory: n.Memory, TCP: ports32(n.TCP), UDP: ports32(n.UDP), GPUs: gpus}
}

func needOf(h *store.Held) sched.Need {
	return sched.Need{CPU: h.CPU, Memory: h.Memory, TCP: ports16(h.TCP), UDP: ports16(h.UDP), GPUs: len(h.GPUs)}
}

func ports16(list []int32) []uint16 {
	out := make([]uint16, len(list))
	for i, n := range list {
		out[i] = uint16(n)
	}
	return out
}

func ports32(list []uint16) []int32 {
	var out []int32
	for _, n := range list {
		out = append(out, int32(n))
	}
	return out
}

// fits tells whether the allocation has room for h. It is asked inside the transaction
// that compares the allocation's revision, so it is the last word between processes.
func fits(a *store.Allocation, h *store.Held) bool {
	if a.CPU < h.CPU || a.Memory < h.Memory {
		return false
	}
	for _, p := range h.TCP {
		if _, taken := slices.BinarySearch(a.TCP, p); taken {
			return false
		}
	}
	for _, p := range h.UDP {
		if _, taken := slices.BinarySearch(a.UDP, p); taken {
			return false
		}
	}
	for _, id := range h.GPUs {
		if !slices.Contains(a.GPUs, id) {
			return false
		}
	}
	return true
}

// take and give work on a copy of an allocation that the caller owns; its lists are
// replaced, never changed.
func take(a *store.Allocation, h *store.Held) {
	a.CPU -= h.CPU
	a.Memory -= h.Memory
	a.TCP, a.UDP = withPorts(a.TCP, h.TCP), withPorts(a.UDP, h.UDP)
	a.GPUs = slices.DeleteFunc(slices.Clone(a.GPUs), func(id string) bool { return slices.Contains(h.GPUs, id) })
}

func give(a *store.Allocation, h *store.Held) {
	a.CPU += h.CPU
	a.Memory += h.Memory
	a.TCP, a.UDP = withoutPorts(a.TCP, h.TCP), withoutPorts(a.UDP, h.UDP)
	if len(h.GPUs) > 0 {
		a.GPUs = slices.Concat(a.GPUs, h.GPUs)
		slices.Sort(a.GPUs)
	}
}

func withPorts(list, add []int32) []int32 {
	if len(add) == 0 {
		return list
	}
	out := slices.Concat(list, add)
	slices.Sort(out)
	return slices.Compact(out)
}

func withoutPorts(list, drop []int32) []int32 {
	if len(drop) == 0 {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), func(p int32) bool { return slices.Contains(drop, p) })
}

// release gives back what a task held, in the transaction that records its end.
func release(tx *store.Tx, t *store.Task) {
	if len(t.Task.Attachments) > 0 {
		vpc.Release(tx, t.ID)
		releaseVolumes(tx, t)
		detach(&t.Task)
	}
	if t.InstanceID == "" {
		return
	}
	key := store.Key(t.ClusterName, t.InstanceID)
	old, ok := store.Get(tx, store.Allocations, key)
	if !ok {
		return // the instance was deregistered
	}
	alloc := *old
	give(&alloc, &t.Held)
	store.Put(tx, store.Allocations, key, &alloc)
}

// gpusOf hands the devices chosen for a task out to its containers in their order.
func gpusOf(def *types.TaskDefinition, gpus []string, each func(container int, ids []string)) {
	for i := range def.ContainerDefinitions {
		n := 0
		for _, req := range def.ContainerDefinitions[i].ResourceRequirements {
			if req.Type == types.ResourceTypeGpu {
				n += atoi(str(req.Value))
			}
		}
		if n > 0 && n <= len(gpus) {
			each(i, gpus[:n:n])
			gpus = gpus[n:]
		}
	}
}
