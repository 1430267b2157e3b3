package sched

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// world is a random cluster together with a plain account of what each instance
// holds, kept without any of the State's code.
type world struct {
	t         *testing.T
	rng       *rand.Rand
	s         *State
	instances map[string]Instance
	placed    map[string]account // by task
	live      []string           // tasks
	next      int
	queries   []Constraint
}

type account struct {
	instance, group string
	need            Need
}

func newWorld(t *testing.T, seed uint64, size int) *world {
	w := &world{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), s: NewState(),
		instances: map[string]Instance{}, placed: map[string]account{},
		queries: []Constraint{
			{}, query(t, "attribute:stack == prod"), query(t, "attribute:rack in [r1, r2, r3] or attribute:stack !exists"),
			query(t, "not (task:group == g1)"), query(t, "runningTasksCount < 2 and agentConnected == true"), query(t, "attribute:name =~ n.*[05]"),
		},
	}
	for range size {
		w.setInstance(fmt.Sprintf("i%03d", len(w.instances)))
	}
	return w
}

func (w *world) setInstance(arn string) {
	i := host(arn, zone, string(rune('a'+w.rng.IntN(3))), "name", "n"+arn)
	i.Total = Resources{CPU: int64(1024 * (1 + w.rng.IntN(4))), Memory: int64(1024 * (1 + w.rng.IntN(8)))}
	if w.rng.IntN(2) == 0 {
		i.Attributes["stack"] = []string{"prod", "test"}[w.rng.IntN(2)]
	}
	if w.rng.IntN(4) > 0 {
		i.Attributes["rack"] = fmt.Sprint("r", w.rng.IntN(6))
	}
	for g := range w.rng.IntN(3) {
		i.Total.GPUs = append(i.Total.GPUs, fmt.Sprint(arn, "-gpu", g))
	}
	if w.rng.IntN(10) == 0 {
		i.Status = StatusDraining
	}
	i.AgentConnected = w.rng.IntN(10) > 0
	w.s.SetInstance(i)
	w.instances[arn] = i
}

func (w *world) request() Request {
	r := Request{
		Group: fmt.Sprint("g", w.rng.IntN(4)),
		Need:  Need{CPU: int64(128 * w.rng.IntN(8)), Memory: int64(64 * w.rng.IntN(20))},
		Seed:  w.rng.Uint64(),
	}
	for range 1 + w.rng.IntN(10) {
		r.Tasks = append(r.Tasks, fmt.Sprint("t", w.next))
		w.next++
	}
	if w.rng.IntN(4) == 0 {
		r.Need.TCP = []uint16{uint16(80 + w.rng.IntN(3))}
	}
	if w.rng.IntN(6) == 0 {
		r.Need.UDP = []uint16{uint16(53 + w.rng.IntN(2))}
	}
	if w.rng.IntN(6) == 0 {
		r.Need.GPUs = 1
	}
	if w.rng.IntN(4) == 0 {
		r.Attributes = []Attribute{{Name: "rack"}, {Name: "stack", Value: "prod"}}[:1+w.rng.IntN(2)]
	}
	for range w.rng.IntN(3) {
		r.Constraints = append(r.Constraints, w.queries[w.rng.IntN(len(w.queries))])
	}
	for range w.rng.IntN(4) {
		s := Strategy{Kind: Kind(w.rng.IntN(5))}
		if s.Kind == SpreadAttribute {
			s.Attribute = []string{zone, "rack", "name"}[w.rng.IntN(3)]
		}
		r.Strategies = append(r.Strategies, s)
	}
	return r
}

// used is what the account says an instance holds.
func (w *world) used(arn string) (n Need) {
	for _, a := range w.placed {
		if a.instance == arn {
			n.CPU += a.need.CPU
			n.Memory += a.need.Memory
			n.GPUs += a.need.GPUs
			n.TCP = append(n.TCP, a.need.TCP...)
			n.UDP = append(n.UDP, a.need.UDP...)
		}
	}
	return n
}

// takes reports whether the account says that an instance can take one task more.
func (w *world) takes(arn string, r *Request) bool {
	i := w.instances[arn]
	if i.Status != StatusActive || !i.AgentConnected {
		return false
	}
	u := w.used(arn)
	if r.Need.CPU > max(0, i.Total.CPU-u.CPU) || r.Need.Memory > max(0, i.Total.Memory-u.Memory) || r.Need.GPUs > len(i.Total.GPUs)-u.GPUs {
		return false
	}
	for _, p := range r.Need.TCP {
		if slices.Contains(u.TCP, p) || slices.Contains(i.ReservedTCP, p) {
			return false
		}
	}
	for _, p := range r.Need.UDP {
		if slices.Contains(u.UDP, p) || slices.Contains(i.ReservedUDP, p) {
			return false
		}
	}
	for _, a := range r.Attributes {
		if v, ok := i.Attributes[a.Name]; !ok || a.Value != "" && v != a.Value {
			return false
		}
	}
	var groups []string
	for _, a := range w.placed {
		if a.instance == arn {
			groups = append(groups, a.group)
		}
	}
	v := View{AgentConnected: true, Attributes: i.Attributes, Groups: slices.Values(groups)}
	for _, c := range r.Constraints {
		if c.Query == nil && slices.Contains(groups, r.Group) || c.Query != nil && !c.Query.Match(&v) {
			return false
		}
	}
	return true
}

// run places one request task by task and compares every decision with the account
// and with the scan that defines the strategies.
func (w *world) run(r Request) {
	w.t.Helper()
	for i, task := range r.Tasks {
		one := r
		one.Tasks = []string{task}
		one.Seed = r.Seed + uint64(i)
		defined := w.scan(&one)
		got, err := Place(w.s, one)
		if err != nil {
			if w.s.active > 0 {
				w.t.Fatalf("Place: %v", err)
			}
			return
		}
		if len(got.Placed) == 0 {
			w.checkFailure(&one, got.Failed[0], defined)
			continue
		}
		p := got.Placed[0]
		if !w.takes(p.Instance, &one) {
			w.t.Fatalf("%+v was placed on %s, which cannot take it", one, p.Instance)
		}
		random := slices.ContainsFunc(r.Strategies, func(s Strategy) bool { return s.Kind == Random })
		if defined == nil || !random && defined.ARN != p.Instance {
			w.t.Fatalf("%+v was placed on %s, by definition it belongs on %v", one, p.Instance, defined)
		}
		w.placed[task] = account{p.Instance, r.Group, r.Need}
		w.live = append(w.live, task)
	}
}

func (w *world) scan(r *Request) *node {
	q := &search{layout: w.s.layout(r), r: r, task: r.Tasks[0], g: w.s.groups[r.Group], s: w.s}
	return q.scan()
}

func (w *world) checkFailure(r *Request, f Failure, defined *node) {
	w.t.Helper()
	if defined != nil {
		w.t.Fatalf("%+v was not placed (%v) but fits on %s", r, f, defined.ARN)
	}
	for arn := range w.instances {
		if w.takes(arn, r) {
			w.t.Fatalf("%+v was not placed (%v) but %s can take it", r, f, arn)
		}
	}
	if f.Reason == "" || w.instances[f.Instance].Status != StatusActive {
		w.t.Fatalf("%+v: failure %+v does not name a reason and an ACTIVE instance", r, f)
	}
}

func (w *world) stop() {
	if len(w.live) == 0 {
		return
	}
	i := w.rng.IntN(len(w.live))
	task := w.live[i]
	w.live = slices.Delete(w.live, i, i+1)
	w.s.Release(task)
	delete(w.placed, task)
}

// check compares everything the State derives with a computation from scratch.
func (w *world) check() {
	w.t.Helper()
	s := w.s
	for arn, n := range s.nodes {
		u := w.used(arn)
		if n.cpu != n.Total.CPU-u.CPU || n.memory != n.Total.Memory-u.Memory || len(n.gpus) != len(n.Total.GPUs)-u.GPUs {
			w.t.Fatalf("%s has %d CPU %d MiB %v left, the account says %+v of %+v is used", arn, n.cpu, n.memory, n.gpus, u, n.Total)
		}
		if n.class.members[n.member] != n {
			w.t.Fatalf("%s is not where it says it is in its class", arn)
		}
	}
	total := 0
	for _, c := range s.classes.list {
		if c == nil {
			continue
		}
		total += len(c.members)
		for _, o := range c.orders {
			if o != nil {
				w.checkOrder(c, o)
			}
		}
		for _, g := range s.groups {
			w.checkTally(c, g)
		}
	}
	if total != len(s.nodes) {
		w.t.Fatalf("classes have %d members, there are %d instances", total, len(s.nodes))
	}
}

func (w *world) checkOrder(c *class, o *order) {
	w.t.Helper()
	var all []entry
	for _, k := range o.chunks {
		exact := chunk{entries: k.entries}
		exact.measure()
		if exact.cpu != k.cpu || exact.memory != k.memory || exact.gpus != k.gpus {
			w.t.Fatalf("a chunk says it has room for %d CPU, %d MiB, %d GPUs; it is %d, %d, %d", k.cpu, k.memory, k.gpus, exact.cpu, exact.memory, exact.gpus)
		}
		for _, e := range k.entries {
			if e != keyOf(o.kind, e.n) {
				w.t.Fatalf("%s is sorted by an old key", e.n.ARN)
			}
			all = append(all, e)
		}
	}
	if len(all) != len(c.members) || !slices.IsSortedFunc(all, compareEntries) {
		w.t.Fatalf("order %d has %d entries for %d members, or is not sorted", o.kind, len(all), len(c.members))
	}
}

func (w *world) checkTally(c *class, g *group) {
	w.t.Helper()
	var want tally
	for _, n := range c.members {
		if k := n.groups[g]; k > 0 {
			want.shift(0, k)
		}
	}
	got := g.in(c)
	if got.tasks != want.tasks || got.nodes != want.nodes || !slices.Equal(got.with, want.with) {
		w.t.Fatalf("group %s: tally %+v, counted %+v", g.name, got, want)
	}
}

func TestPlaceProperties(t *testing.T) {
	for seed := range uint64(60) {
		size := []int{1, 3, 12, 40, 300}[seed%5]
		w := newWorld(t, seed, size)
		for step := range 120 {
			switch w.rng.IntN(10) {
			case 0:
				arn := fmt.Sprintf("i%03d", w.rng.IntN(size))
				// An instance that shrinks would be over capacity through no fault
				// of placement, so it changes in all but its size.
				old := w.instances[arn]
				w.setInstance(arn)
				i := w.instances[arn]
				i.Total = old.Total
				w.instances[arn] = i
				w.s.SetInstance(i)
			case 1, 2, 3, 4:
				w.stop()
			default:
				w.run(w.request())
			}
			if step%10 == 0 {
				w.check()
			}
		}
		w.check()
	}
}

// With room everywhere, spread keeps every zone, and every instance of a zone, within
// one task of the others.
func TestSpreadStaysEven(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 2))
		s := NewState()
		zones := 1 + rng.IntN(4)
		for i := range zones * (1 + rng.IntN(20)) {
			s.SetInstance(host(fmt.Sprintf("i%03d", i), zone, fmt.Sprint("z", i%zones)))
		}
		for i := range 5 {
			place(t, s, Request{Tasks: tasks(fmt.Sprint("other", i), 3), Group: "other", Need: Need{CPU: 1}, Strategies: []Strategy{{Kind: Random}}, Seed: seed})
		}
		byZone, byInstance := map[string]int{}, map[string]int{}
		for i := range 40 {
			r := place(t, s, Request{Tasks: tasks(fmt.Sprint("t", i, "-"), 1+rng.IntN(10)), Group: "g", Need: Need{CPU: 1}})
			for _, p := range r.Placed {
				byZone[s.nodes[p.Instance].Attributes[zone]]++
				byInstance[p.Instance]++
			}
			if len(r.Failed) > 0 {
				t.Fatalf("failed with room: %v", r.Failed)
			}
		}
		uneven := func(what string, counts map[string]int, of []string) {
			low, high := 1<<30, 0
			for _, k := range of {
				low, high = min(low, counts[k]), max(high, counts[k])
			}
			if high-low > 1 {
				t.Errorf("seed %d: %s have between %d and %d tasks", seed, what, low, high)
			}
		}
		var names []string
		members := map[string][]string{}
		for arn, n := range s.nodes {
			z := n.Attributes[zone]
			if members[z] == nil {
				names = append(names, z)
			}
			members[z] = append(members[z], arn)
		}
		uneven("zones", byZone, names)
		for _, z := range names {
			uneven("instances of "+z, byInstance, members[z])
		}
	}
}

// Binpack uses the instance with the least that still fits, so it opens a new one only
// when no used one has room.
func TestBinpackFillsBeforeItOpens(t *testing.T) {
	for kind, of := range map[Kind]func(*node) int64{
		BinpackCPU:    func(n *node) int64 { return n.cpu },
		BinpackMemory: func(n *node) int64 { return n.memory },
	} {
		rng := rand.New(rand.NewPCG(uint64(kind), 3))
		s := NewState()
		for i := range 200 {
			s.SetInstance(host(fmt.Sprintf("i%03d", i)))
		}
		for i := range 1500 {
			need := Need{CPU: int64(1 + rng.IntN(1000)), Memory: int64(1 + rng.IntN(2000))}
			least := int64(1 << 60)
			for _, n := range s.nodes {
				if n.cpu >= need.CPU && n.memory >= need.Memory {
					least = min(least, of(n))
				}
			}
			task := fmt.Sprint("t", i)
			r := place(t, s, Request{Tasks: []string{task}, Need: need, Strategies: []Strategy{{Kind: kind}}})
			if len(r.Placed) == 0 {
				if least != 1<<60 {
					t.Fatalf("strategy %d: %+v not placed, an instance with %d fits", kind, need, least)
				}
				continue
			}
			n := s.nodes[r.Placed[0].Instance]
			before := of(n) + map[Kind]int64{BinpackCPU: need.CPU, BinpackMemory: need.Memory}[kind]
			if before != least {
				t.Fatalf("strategy %d: placed where %d was left, the least that fits was %d", kind, before, least)
			}
		}
	}
}
