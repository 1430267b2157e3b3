package sched

import "slices"

// maxLayouts bounds the remembered layouts; beyond it they are all forgotten.
const maxLayouts = 512

// layout is what a kind of request means for the classes there are: which of them can
// take it, and how its strategies divide them. It is remembered, because requests
// repeat far more often than classes change.
type layout struct {
	epoch uint64
	program

	distinct   bool
	attributes []Attribute     // required, looked at per instance
	checks     []*expr         // of memberOf, evaluated per instance
	classes    []*class        // those that can take the task
	leaves     []*leaf         // the same, divided by the values of the spread attributes
	counted    []counted       // classes whose tasks count for spread
	counts     [][]int32       // scratch: tasks of the group by depth and bucket
	verdicts   []*classVerdict // by class.index
}

// program is a list of strategies brought into the form the index can follow: spread
// over some attributes, then perhaps over instances, then one order. Anything else
// sets scan and is decided by looking at every candidate.
type program struct {
	strategies []Strategy
	spread     []string // attributes
	host       bool
	order      orderKind
	random     bool
	scan       bool
}

// leaf is the classes with the same values of all spread attributes. path[d] is the
// bucket of the first d+1 values.
type leaf struct {
	path    []int
	classes []*class
}

type counted struct {
	class *class
	path  []int
}

var defaultStrategies = []Strategy{{Kind: SpreadAttribute, Attribute: AttributeZone}, {Kind: SpreadInstance}}

func compileProgram(strategies []Strategy) program {
	if len(strategies) == 0 {
		strategies = defaultStrategies
	}
	p := program{strategies: slices.Clone(strategies)}
	i := 0
	for ; i < len(strategies) && strategies[i].Kind == SpreadAttribute; i++ {
		p.spread = append(p.spread, strategies[i].Attribute)
	}
	if i < len(strategies) && strategies[i].Kind == SpreadInstance {
		p.host = true
		i++
	}
	if i == len(strategies) {
		return p
	}
	switch strategies[i].Kind {
	case Random:
		p.random = true
		return p // nothing is tied after it
	case BinpackCPU:
		p.order = orderCPU
	case BinpackMemory:
		p.order = orderMemory
	default:
		p.scan = true
	}
	p.scan = p.scan || i+1 < len(strategies)
	return p
}

// layout finds or makes the layout of a request.
func (s *State) layout(r *Request) *layout {
	s.key = layoutKey(s.key[:0], r)
	if l, ok := s.layouts[string(s.key)]; ok && l.epoch == s.classes.epoch {
		return l
	}
	if len(s.layouts) >= maxLayouts {
		clear(s.layouts)
	}
	l := s.newLayout(r)
	s.layouts[string(s.key)] = l
	return l
}

func layoutKey(b []byte, r *Request) []byte {
	for _, a := range r.Attributes {
		b = append(append(append(append(b, 'A'), a.Name...), 0), a.Value...)
		b = append(b, 0)
	}
	for _, c := range r.Constraints {
		if c.Query == nil {
			b = append(b, 'D', 0)
			continue
		}
		b = append(append(append(b, 'M'), c.Query.text...), 0)
	}
	for _, st := range r.Strategies {
		b = append(append(append(b, 'S', byte(st.Kind)), st.Attribute...), 0)
	}
	return b
}

func (s *State) newLayout(r *Request) *layout {
	l := &layout{epoch: s.classes.epoch, program: compileProgram(r.Strategies)}
	var classAttributes []Attribute
	var classChecks []*expr
	for _, a := range r.Attributes {
		if s.classes.leftOut[a.Name] {
			l.attributes = append(l.attributes, a)
		} else {
			classAttributes = append(classAttributes, a)
		}
	}
	for _, c := range r.Constraints {
		if c.Query == nil {
			l.distinct = true
			continue
		}
		for _, e := range c.Query.parts {
			if e.uses.instance || slices.ContainsFunc(e.uses.attributes, func(a string) bool { return s.classes.leftOut[a] }) {
				l.checks = append(l.checks, e)
			} else {
				classChecks = append(classChecks, e)
			}
		}
	}
	for _, a := range l.spread {
		l.scan = l.scan || s.classes.leftOut[a]
	}
	l.verdicts = make([]*classVerdict, len(s.classes.list))
	d := newDivider(l.spread)
	for _, c := range s.classes.list {
		if c == nil {
			continue
		}
		v := judgeClass(c, classAttributes, classChecks)
		l.verdicts[c.index] = v
		if !c.active {
			continue
		}
		path := d.path(c)
		l.counted = append(l.counted, counted{c, path})
		if !v.passed() {
			continue
		}
		l.classes = append(l.classes, c)
		l.addLeaf(path, c)
	}
	l.counts = d.scratch()
	return l
}

func (l *layout) addLeaf(path []int, c *class) {
	for _, f := range l.leaves {
		if slices.Equal(f.path, path) {
			f.classes = append(f.classes, c)
			return
		}
	}
	l.leaves = append(l.leaves, &leaf{path: path, classes: []*class{c}})
}

// divider numbers the combinations of values of the spread attributes.
type divider struct {
	spread  []string
	buckets []map[string]int // by depth: encoded values, bucket
}

func newDivider(spread []string) *divider {
	d := &divider{spread: spread}
	for range spread {
		d.buckets = append(d.buckets, map[string]int{})
	}
	return d
}

func (d *divider) path(c *class) []int {
	var path []int
	var key []byte
	for depth, name := range d.spread {
		key = appendValue(key, c.attributes, name)
		id, ok := d.buckets[depth][string(key)]
		if !ok {
			id = len(d.buckets[depth])
			d.buckets[depth][string(key)] = id
		}
		path = append(path, id)
	}
	return path
}

// appendValue encodes one value so that absence differs from every value.
func appendValue(b []byte, attributes map[string]string, name string) []byte {
	v, ok := attributes[name]
	if !ok {
		return append(b, 0, 0)
	}
	return append(append(append(b, 1), v...), 0)
}

func (d *divider) scratch() [][]int32 {
	var out [][]int32
	for _, b := range d.buckets {
		out = append(out, make([]int32, len(b)))
	}
	return out
}

// count fills the scratch with the tasks that the group has in each bucket.
func (l *layout) count(g *group) {
	for _, c := range l.counts {
		clear(c)
	}
	if g == nil || len(l.counts) == 0 {
		return
	}
	for _, c := range l.counted {
		n := g.in(c.class).tasks
		for depth, bucket := range c.path {
			l.counts[depth][bucket] += n
		}
	}
}

func (l *layout) compare(a, b *leaf) int {
	for depth, counts := range l.counts {
		if c := int(counts[a.path[depth]]) - int(counts[b.path[depth]]); c != 0 {
			return c
		}
	}
	return 0
}

// next appends the leaves that come after the given one, all equal to each other; nil
// asks for the first.
func (l *layout) next(after *leaf, out []*leaf) []*leaf {
	for _, f := range l.leaves {
		if after != nil && l.compare(f, after) <= 0 {
			continue
		}
		if len(out) > 0 {
			c := l.compare(f, out[0])
			if c > 0 {
				continue
			}
			if c < 0 {
				out = out[:0]
			}
		}
		out = append(out, f)
	}
	return out
}
