package sched

import (
	"fmt"
	"maps"
	"slices"
)

// State is one cluster as placement sees it: its instances, what each has left, and
// the tasks that hold something. Changing one instance or task costs a few
// microseconds whatever the size of the cluster.
type State struct {
	nodes    map[string]*node // by ARN
	tasks    map[string]*held // by ARN
	groups   map[string]*group
	active   int // nodes with StatusActive
	classes  classes
	layouts  map[string]*layout
	key      []byte // scratch of layout keys
	searches uint64 // levels searched so far; marks the classes of the latest
}

// node is an instance with what is left on it.
type node struct {
	Instance
	cpu, memory int64    // remaining
	gpus        []string // free
	tcp, udp    []uint16 // taken, sorted; a port may be in it twice
	tasks       int
	running     int
	held        map[string]*held
	groups      map[*group]int32
	view        View

	class  *class
	member int // position in class.members
}

// held is a reservation with the node it is on.
type held struct {
	Reservation
	node  *node
	group *group
}

// NewState makes the State of a cluster without instances.
func NewState() *State {
	return &State{
		nodes:   map[string]*node{},
		tasks:   map[string]*held{},
		groups:  map[string]*group{},
		classes: newClasses(),
		layouts: map[string]*layout{},
	}
}

// Len is the number of instances, of any status.
func (s *State) Len() int { return len(s.nodes) }

// SetInstance adds an instance, or replaces what is known of it while its tasks keep
// what they hold.
func (s *State) SetInstance(i Instance) {
	n, known := s.nodes[i.ARN]
	if known {
		s.detach(n)
		s.classes.forget(n)
		if n.Status == StatusActive {
			s.active--
		}
	} else {
		n = &node{held: map[string]*held{}, groups: map[*group]int32{}}
		s.nodes[i.ARN] = n
	}
	n.Instance = i
	n.recount()
	n.view = View{
		AgentConnected: i.AgentConnected,
		AgentVersion:   i.AgentVersion,
		EC2InstanceID:  i.EC2InstanceID,
		RegisteredAt:   i.RegisteredAt,
		RunningTasks:   n.running,
		Groups:         n.eachGroup,
		Attributes:     i.Attributes,
	}
	if i.Status == StatusActive {
		s.active++
	}
	s.classes.learn(n)
	s.attach(n)
}

// RemoveInstance forgets an instance and the reservations on it. An unknown one is
// no error.
func (s *State) RemoveInstance(arn string) {
	n, ok := s.nodes[arn]
	if !ok {
		return
	}
	for task := range n.held {
		s.Release(task)
	}
	s.detach(n)
	s.classes.forget(n)
	if n.Status == StatusActive {
		s.active--
	}
	delete(s.nodes, arn)
}

// Reserve records what a task holds, without asking whether it fits: it is how the
// truth of the records gets into the State. It fails for an unknown instance and for
// a task that already holds something.
func (s *State) Reserve(r Reservation) error {
	n, ok := s.nodes[r.Instance]
	if !ok {
		return fmt.Errorf("reserve for task %s: instance %s is not known", r.Task, r.Instance)
	}
	if _, ok := s.tasks[r.Task]; ok {
		return fmt.Errorf("reserve for task %s: it already holds a reservation", r.Task)
	}
	s.reserve(n, r)
	return nil
}

func (s *State) reserve(n *node, r Reservation) *held {
	s.unorder(n)
	h := &held{Reservation: r, node: n, group: s.group(r.Group)}
	if h.GPUs == nil && r.Need.GPUs > 0 {
		h.GPUs = slices.Clone(n.gpus[:min(r.Need.GPUs, len(n.gpus))])
	}
	n.take(h)
	n.held[r.Task] = h
	n.tasks++
	if r.Running {
		n.running++
		n.view.RunningTasks = n.running
	}
	h.group.add(n, 1)
	s.tasks[r.Task] = h
	s.reorder(n)
	return h
}

// Release gives back what a task holds. A task that holds nothing is no error.
func (s *State) Release(task string) {
	h, ok := s.tasks[task]
	if !ok {
		return
	}
	n := h.node
	s.unorder(n)
	delete(s.tasks, task)
	delete(n.held, task)
	n.tasks--
	if h.Running {
		n.running--
		n.view.RunningTasks = n.running
	}
	n.give(h)
	h.group.add(n, -1)
	if h.group.tasks == 0 {
		delete(s.groups, h.group.name)
	}
	s.reorder(n)
}

// SetRunning says whether a task counts for runningTasksCount. A task that holds
// nothing is no error.
func (s *State) SetRunning(task string, running bool) {
	h, ok := s.tasks[task]
	if !ok || h.Running == running {
		return
	}
	h.Running = running
	if running {
		h.node.running++
	} else {
		h.node.running--
	}
	h.node.view.RunningTasks = h.node.running
}

// Reserved returns what a task holds.
func (s *State) Reserved(task string) (Reservation, bool) {
	h, ok := s.tasks[task]
	if !ok {
		return Reservation{}, false
	}
	return h.Reservation, true
}

// Remaining returns what is left on an instance. The taken ports include the
// reserved ones.
func (s *State) Remaining(arn string) (Remaining, bool) {
	n, ok := s.nodes[arn]
	if !ok {
		return Remaining{}, false
	}
	return Remaining{
		CPU: n.cpu, Memory: n.memory, GPUs: slices.Clone(n.gpus),
		TCP: slices.Compact(slices.Clone(n.tcp)), UDP: slices.Compact(slices.Clone(n.udp)),
	}, true
}

// View returns the instance as an expression of the query language sees it. It is
// valid until the next change of the State.
func (s *State) View(arn string) (View, bool) {
	n, ok := s.nodes[arn]
	if !ok {
		return View{}, false
	}
	return n.view, true
}

func (s *State) group(name string) *group {
	g, ok := s.groups[name]
	if !ok {
		g = &group{name: name, nodes: map[*node]int32{}}
		s.groups[name] = g
	}
	return g
}

func (n *node) eachGroup(yield func(string) bool) {
	for g := range n.groups {
		if !yield(g.name) {
			return
		}
	}
}

// recount computes what is left from the registered resources and what tasks hold.
func (n *node) recount() {
	n.cpu, n.memory = n.Total.CPU, n.Total.Memory
	n.gpus = slices.Clone(n.Total.GPUs)
	n.tcp, n.udp = slices.Sorted(slices.Values(n.ReservedTCP)), slices.Sorted(slices.Values(n.ReservedUDP))
	for _, task := range slices.Sorted(maps.Keys(n.held)) {
		n.take(n.held[task])
	}
}

func (n *node) take(h *held) {
	n.cpu -= h.Need.CPU
	n.memory -= h.Need.Memory
	for _, p := range h.Need.TCP {
		n.tcp = addPort(n.tcp, p)
	}
	for _, p := range h.Need.UDP {
		n.udp = addPort(n.udp, p)
	}
	if len(h.GPUs) > 0 {
		n.gpus = slices.DeleteFunc(n.gpus, func(id string) bool { return slices.Contains(h.GPUs, id) })
	}
}

func (n *node) give(h *held) {
	n.cpu += h.Need.CPU
	n.memory += h.Need.Memory
	for _, p := range h.Need.TCP {
		n.tcp = dropPort(n.tcp, p)
	}
	for _, p := range h.Need.UDP {
		n.udp = dropPort(n.udp, p)
	}
	if len(h.GPUs) == 0 {
		return
	}
	// Devices come back in registered order, and only those that still exist and that
	// no other reservation claims.
	var free []string
	for _, id := range n.Total.GPUs {
		taken := false
		for _, other := range n.held {
			taken = taken || slices.Contains(other.GPUs, id)
		}
		if !taken {
			free = append(free, id)
		}
	}
	n.gpus = free
}

func addPort(ports []uint16, p uint16) []uint16 {
	i, _ := slices.BinarySearch(ports, p)
	return slices.Insert(ports, i, p)
}

func dropPort(ports []uint16, p uint16) []uint16 {
	if i, ok := slices.BinarySearch(ports, p); ok {
		return slices.Delete(ports, i, i+1)
	}
	return ports
}

// fits reports whether the node has room. It is the last word on every placement.
func (n *node) fits(need *Need) bool {
	return need.CPU <= max(n.cpu, 0) && need.Memory <= max(n.memory, 0) && need.GPUs <= len(n.gpus) &&
		freePorts(n.tcp, need.TCP) && freePorts(n.udp, need.UDP)
}

func freePorts(taken, want []uint16) bool {
	for _, p := range want {
		if _, found := slices.BinarySearch(taken, p); found {
			return false
		}
	}
	return true
}
