package sched

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
)

// Place chooses an instance for each task of the request and reserves it there, so
// that the next decision counts it. Release takes a placement back. Tasks that fit
// nowhere come back as failures; an error means that nothing was decided or reserved:
// ErrNoInstances, or a request that contradicts the State.
func Place(s *State, r Request) (Result, error) {
	if err := s.validate(&r); err != nil {
		return Result{}, err
	}
	if s.active == 0 {
		return Result{}, ErrNoInstances
	}
	l := s.layout(&r)
	var out Result
	for i, task := range r.Tasks {
		n := s.choose(l, &r, i)
		if n == nil {
			// Nothing changed between this task and the ones after it, which are the
			// same in all that counts.
			f := s.explain(l, &r)
			for _, rest := range r.Tasks[i:] {
				f.Task = rest
				out.Failed = append(out.Failed, f)
			}
			break
		}
		out.Placed = append(out.Placed, s.put(n, &r, task))
	}
	return out, nil
}

// Start is the decision for one named instance (the API's StartTask): every check that
// Place makes, no choice. It takes the first task of the request and reserves it.
func Start(s *State, instance string, r Request) (Result, error) {
	if err := s.validate(&r); err != nil {
		return Result{}, err
	}
	if len(r.Tasks) != 1 {
		return Result{}, fmt.Errorf("start on instance %s: %d tasks given, one is started at a time", instance, len(r.Tasks))
	}
	f := Failure{Task: r.Tasks[0], Instance: instance}
	n, ok := s.nodes[instance]
	switch {
	case !ok:
		f.Reason = ReasonMissing
	case n.Status != StatusActive:
		f.Reason = ReasonInactive
	default:
		f.Reason = s.judge(s.layout(&r), &r, s.groups[r.Group], n).reason
	}
	if f.Reason != "" {
		return Result{Failed: []Failure{f}}, nil
	}
	return Result{Placed: []Placement{s.put(n, &r, r.Tasks[0])}}, nil
}

func (s *State) validate(r *Request) error {
	if r.Need.CPU < 0 || r.Need.Memory < 0 || r.Need.GPUs < 0 {
		return fmt.Errorf("a task cannot need a negative amount: %d CPU units, %d MiB, %d GPUs", r.Need.CPU, r.Need.Memory, r.Need.GPUs)
	}
	for i, task := range r.Tasks {
		if _, ok := s.tasks[task]; ok || slices.Contains(r.Tasks[:i], task) {
			return fmt.Errorf("task %s already has a place", task)
		}
	}
	return nil
}

func (s *State) put(n *node, r *Request, task string) Placement {
	h := s.reserve(n, Reservation{Task: task, Instance: n.ARN, Group: r.Group, Need: r.Need})
	return Placement{Task: task, Instance: n.ARN, GPUs: h.GPUs}
}

// choose finds the node for one task, or nil.
func (s *State) choose(l *layout, r *Request, seq int) *node {
	q := &search{layout: l, r: r, g: s.groups[r.Group], task: r.Tasks[seq], s: s}
	if l.scan {
		return q.scan()
	}
	l.count(q.g)
	var last *leaf
	for {
		level := l.next(last, nil)
		if len(level) == 0 {
			return nil
		}
		if n := q.level(level); n != nil {
			return n
		}
		last = level[0]
	}
}

// search is one decision under way.
type search struct {
	*layout
	r    *Request
	g    *group
	task string // ARN
	s    *State
	pool []*class // classes of the level searched
}

// level searches leaves that the spread attributes leave tied.
func (q *search) level(leaves []*leaf) *node {
	q.s.searches++
	q.pool = q.pool[:0]
	zero, most := false, 0
	for _, f := range leaves {
		for _, c := range f.classes {
			c.search = q.s.searches
			t := q.g.in(c)
			zero = zero || len(c.members) > int(t.nodes)
			most = max(most, len(t.with))
			q.pool = append(q.pool, c)
		}
	}
	if !q.host && !q.distinct {
		return q.pick(anyCount)
	}
	if zero {
		if n := q.pick(0); n != nil {
			return n
		}
	}
	if q.distinct {
		return nil
	}
	for count := int32(1); int(count) <= most; count++ {
		if slices.ContainsFunc(q.pool, func(c *class) bool { return q.members(c, count) > 0 }) {
			if n := q.pick(count); n != nil {
				return n
			}
		}
	}
	return nil
}

// anyCount asks for nodes whatever number of the group's tasks they have.
const anyCount int32 = -1

// members is how many nodes of a class have count tasks of the group.
func (q *search) members(c *class, count int32) int {
	t := q.g.in(c)
	switch {
	case count == anyCount:
		return len(c.members)
	case count == 0:
		return len(c.members) - int(t.nodes)
	case int(count) > len(t.with):
		return 0
	}
	return int(t.with[count-1])
}

// fewNodes is up to how many nodes of a group are looked at one by one instead of
// walking an order.
const fewNodes = 64

// pick finds the best node of the level among those with count tasks of the group.
func (q *search) pick(count int32) *node {
	if q.random {
		return q.draw(count)
	}
	var best entry
	consider := func(e entry) {
		if best.n == nil || compareEntries(e, best) < 0 {
			best = e
		}
	}
	if count > 0 && len(q.g.nodes) <= fewNodes {
		for n, c := range q.g.nodes {
			if c == count && n.class.search == q.s.searches && q.suits(n) {
				consider(keyOf(q.order, n))
			}
		}
		return best.n
	}
	for _, c := range q.pool {
		if e, ok := q.walk(c, count); ok {
			consider(e)
		}
	}
	return best.n
}

// walk finds the first node of a class in the order of the strategy.
func (q *search) walk(c *class, count int32) (entry, bool) {
	left := q.members(c, count)
	if left == 0 {
		return entry{}, false
	}
	o, first := c.order(q.order), 0
	switch q.order {
	case orderCPU:
		first = o.from(q.r.Need.CPU)
	case orderMemory:
		first = o.from(q.r.Need.Memory)
	}
	if count == 0 && q.g.in(c).nodes == 0 {
		count = anyCount // no need to ask each node
	}
	for _, k := range o.chunks[first:] {
		if !k.room(&q.r.Need) {
			continue
		}
		for _, e := range k.entries {
			if count != anyCount && q.g.on(e.n) != count {
				continue
			}
			if q.suits(e.n) {
				return e, true
			}
			if left--; left == 0 {
				return entry{}, false
			}
		}
	}
	return entry{}, false
}

// draws is how often a random node is tried before all are looked at.
const draws = 32

// draw chooses at random, each suitable node being equally likely. It is decided by
// the seed, the task and the history of the State.
func (q *search) draw(count int32) *node {
	total := 0
	for _, c := range q.pool {
		total += len(c.members)
	}
	if total == 0 {
		return nil
	}
	ok := func(n *node) bool { return (count == anyCount || q.g.on(n) == count) && q.suits(n) }
	rng := rand.New(rand.NewPCG(q.r.Seed, hash(0, q.task)))
	for range draws {
		i := rng.IntN(total)
		for _, c := range q.pool {
			if i < len(c.members) {
				if n := c.members[i]; ok(n) {
					return n
				}
				break
			}
			i -= len(c.members)
		}
	}
	var best *node
	var least uint64
	for _, c := range q.pool {
		for _, n := range c.members {
			if h := q.lot(n); (best == nil || h < least) && ok(n) {
				best, least = n, h
			}
		}
	}
	return best
}

// lot gives each node a number that depends on the seed and the task, so that the least
// of any set is a fair choice.
func (q *search) lot(n *node) uint64 { return hash(hash(q.r.Seed, q.task), n.ARN) }

// hash is FNV-1a, finished as in SplitMix64 so that inputs which differ little spread.
func hash(seed uint64, text string) uint64 {
	h := uint64(14695981039346656037) ^ seed
	for i := range len(text) {
		h = (h ^ uint64(text[i])) * 1099511628211
	}
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// suits makes the checks that differ between nodes of a class.
func (q *search) suits(n *node) bool {
	if !n.fits(&q.r.Need) {
		return false
	}
	for _, a := range q.attributes {
		if !a.met(n.Attributes) {
			return false
		}
	}
	for _, e := range q.checks {
		if !e.match(&n.view) {
			return false
		}
	}
	return true
}

func (a Attribute) met(attributes map[string]string) bool {
	v, ok := attributes[a.Name]
	return ok && (a.Value == "" || v == a.Value)
}

// scan looks at every candidate and follows the strategies as they are written. It is
// the meaning of the strategies; everything else is a faster way to the same answer.
func (q *search) scan() *node {
	counts := q.spreadCounts()
	var best *node
	var bestRank []int64
	rank := make([]int64, 0, len(q.strategies)+1)
	for _, c := range q.layout.classes {
		for _, n := range c.members {
			if q.distinct && q.g.on(n) > 0 || !q.suits(n) {
				continue
			}
			rank = q.rank(rank[:0], counts, n)
			c := slices.Compare(rank, bestRank)
			if best == nil || c < 0 || c == 0 && cmp.Compare(n.ARN, best.ARN) < 0 {
				best, bestRank = n, append(bestRank[:0], rank...)
			}
		}
	}
	return best
}

// rank is where a node stands under each strategy, lower being better.
func (q *search) rank(out []int64, counts map[string]int64, n *node) []int64 {
	var key []byte
	for _, s := range q.strategies {
		switch s.Kind {
		case SpreadAttribute:
			key = appendValue(key, n.Attributes, s.Attribute)
			out = append(out, counts[string(key)])
		case SpreadInstance:
			out = append(out, int64(q.g.on(n)))
		case BinpackCPU:
			out = append(out, n.cpu)
		case BinpackMemory:
			out = append(out, n.memory)
		case Random:
			out = append(out, int64(q.lot(n)>>1))
		}
	}
	return append(out, int64(n.tasks))
}

// spreadCounts counts the group's tasks by the values of the first spread attribute,
// of the first two, and so on. Instances that take no tasks any more do not count, so
// that draining one does not keep its zone from getting the replacements.
func (q *search) spreadCounts() map[string]int64 {
	counts := map[string]int64{}
	if q.g == nil {
		return counts
	}
	for n, tasks := range q.g.nodes {
		if n.Status != StatusActive {
			continue
		}
		var key []byte
		for _, s := range q.strategies {
			if s.Kind == SpreadAttribute {
				key = appendValue(key, n.Attributes, s.Attribute)
				counts[string(key)] += int64(tasks)
			}
		}
	}
	return counts
}
