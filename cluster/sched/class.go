package sched

import (
	"maps"
	"slices"
)

// maxClasses is how many classes there may be before the attribute with the most
// values is looked at per instance instead. A decision visits every class, so this
// bounds its cost when attributes differ between all instances (names, addresses).
const maxClasses = 256

// class is the instances that are alike in everything that attributes, status and
// connection decide.
type class struct {
	index      int // stable while the class exists; groups count by it
	key        string
	eligible   bool // ACTIVE with a connected agent
	active     bool
	attributes map[string]string // of any member; those left out of classes differ
	members    []*node
	orders     [orderKinds]*order // made when first asked for
	search     uint64             // the latest search that considers it
}

// classes is the set of classes of a State.
type classes struct {
	byKey   map[string]*class
	list    []*class                  // by index; nil where free
	leftOut map[string]bool           // attributes not part of the key
	values  map[string]map[string]int // attribute, value, instances
	nodes   int
	epoch   uint64 // grows when the set or its keys change
}

func newClasses() classes {
	return classes{byKey: map[string]*class{}, leftOut: map[string]bool{}, values: map[string]map[string]int{}}
}

// learn and forget count the values of attributes.
func (cs *classes) learn(n *node) {
	cs.nodes++
	for name, value := range n.Attributes {
		if cs.values[name] == nil {
			cs.values[name] = map[string]int{}
		}
		cs.values[name][value]++
	}
}

func (cs *classes) forget(n *node) {
	cs.nodes--
	for name, value := range n.Attributes {
		if cs.values[name][value]--; cs.values[name][value] == 0 {
			delete(cs.values[name], value)
		}
		if len(cs.values[name]) == 0 {
			delete(cs.values, name)
		}
	}
}

// widest is the attribute with the most values, absence being one.
func (cs *classes) widest() (string, bool) {
	best, most := "", 1
	for _, name := range slices.Sorted(maps.Keys(cs.values)) {
		if cs.leftOut[name] {
			continue
		}
		n, present := len(cs.values[name]), 0
		for _, count := range cs.values[name] {
			present += count
		}
		if present < cs.nodes {
			n++
		}
		if n > most {
			best, most = name, n
		}
	}
	return best, most > 1
}

func (cs *classes) keyOf(n *node) string {
	names := make([]string, 0, len(n.Attributes))
	for name := range n.Attributes {
		if !cs.leftOut[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	b := make([]byte, 0, 1024)
	switch {
	case n.Status == StatusActive && n.AgentConnected:
		b = append(b, 'E')
	case n.Status == StatusActive:
		b = append(b, 'A')
	default:
		b = append(b, 'N')
	}
	for _, name := range names {
		b = append(append(append(append(b, 0), name...), 0), n.Attributes[name]...)
	}
	return string(b)
}

func (cs *classes) of(n *node) *class {
	key := cs.keyOf(n)
	if c, ok := cs.byKey[key]; ok {
		return c
	}
	c := &class{key: key, eligible: key[0] == 'E', active: key[0] != 'N', attributes: n.Attributes}
	if c.index = slices.Index(cs.list, nil); c.index < 0 {
		c.index = len(cs.list)
		cs.list = append(cs.list, nil)
	}
	cs.list[c.index] = c
	cs.byKey[key] = c
	cs.epoch++
	return c
}

func (cs *classes) drop(c *class) {
	delete(cs.byKey, c.key)
	cs.list[c.index] = nil
	cs.epoch++
}

// attach puts a node into its class and the indexes.
func (s *State) attach(n *node) {
	s.join(n, s.classes.of(n))
	for len(s.classes.byKey) > maxClasses {
		name, ok := s.classes.widest()
		if !ok {
			return
		}
		s.classes.leftOut[name] = true
		s.reclass()
	}
}

// reclass sorts all nodes into classes anew.
func (s *State) reclass() {
	s.classes.byKey = map[string]*class{}
	s.classes.list = nil
	s.classes.epoch++
	for _, g := range s.groups {
		g.classes = nil
	}
	for _, arn := range slices.Sorted(maps.Keys(s.nodes)) {
		if n := s.nodes[arn]; n.class != nil {
			s.join(n, s.classes.of(n))
		}
	}
}

func (s *State) join(n *node, c *class) {
	n.class, n.member = c, len(c.members)
	c.members = append(c.members, n)
	for g, count := range n.groups {
		g.tally(c).shift(0, count)
	}
	s.reorder(n)
}

// detach takes a node out of its class and the indexes.
func (s *State) detach(n *node) {
	c := n.class
	s.unorder(n)
	for g, count := range n.groups {
		g.tally(c).shift(count, 0)
	}
	last := len(c.members) - 1
	c.members[n.member] = c.members[last]
	c.members[n.member].member = n.member
	c.members[last] = nil
	c.members = c.members[:last]
	if last == 0 {
		s.classes.drop(c)
	} else {
		// The representative's attributes must be those of a member.
		c.attributes = c.members[0].Attributes
	}
	n.class = nil
}

// unorder and reorder take a node out of the orders of its class and put it back;
// what it is sorted by may only change in between.
func (s *State) unorder(n *node) {
	for _, o := range n.class.orders {
		if o != nil {
			o.remove(n)
		}
	}
}

func (s *State) reorder(n *node) {
	for _, o := range n.class.orders {
		if o != nil {
			o.insert(n)
		}
	}
}

func (c *class) order(kind orderKind) *order {
	if c.orders[kind] == nil {
		c.orders[kind] = newOrder(kind, c.members)
	}
	return c.orders[kind]
}

// group counts the tasks of one task group, by instance and by class.
type group struct {
	name    string
	tasks   int
	nodes   map[*node]int32
	classes []tally // by class.index
}

// tally counts a group in one class.
type tally struct {
	tasks int32   // tasks of the group
	nodes int32   // members with any
	with  []int32 // with[i] members have i+1 tasks
}

func (g *group) tally(c *class) *tally {
	for len(g.classes) <= c.index {
		g.classes = append(g.classes, tally{})
	}
	return &g.classes[c.index]
}

// in is the tally of a class; a group that is nil or was never in it has none.
func (g *group) in(c *class) tally {
	if g == nil || c.index >= len(g.classes) {
		return tally{}
	}
	return g.classes[c.index]
}

// on is the number of the group's tasks on a node.
func (g *group) on(n *node) int32 {
	if g == nil {
		return 0
	}
	return n.groups[g]
}

func (g *group) add(n *node, delta int32) {
	before := n.groups[g]
	after := before + delta
	g.tasks += int(delta)
	if after == 0 {
		delete(n.groups, g)
		delete(g.nodes, n)
	} else {
		n.groups[g], g.nodes[n] = after, after
	}
	g.tally(n.class).shift(before, after)
}

// shift moves one member from having before tasks to having after.
func (t *tally) shift(before, after int32) {
	t.tasks += after - before
	if before > 0 {
		t.with[before-1]--
		t.nodes--
	}
	if after > 0 {
		for int(after) > len(t.with) {
			t.with = append(t.with, 0)
		}
		t.with[after-1]++
		t.nodes++
	}
	for len(t.with) > 0 && t.with[len(t.with)-1] == 0 {
		t.with = t.with[:len(t.with)-1]
	}
}
