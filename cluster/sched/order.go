package sched

import (
	"cmp"
	"slices"
	"sort"
)

// orderKind is what the instances of a class are sorted by. The tie is decided by the
// number of tasks and then by ARN.
type orderKind uint8

const (
	orderTasks  orderKind = iota // fewest tasks first
	orderCPU                     // least remaining CPU first
	orderMemory                  // least remaining memory first
	orderKinds
)

// chunkSize is how many entries a chunk may have before it is split in two. A search
// looks at whole chunks first and then inside one, so it is near the square root of
// the number of instances that make one cluster worth indexing.
const chunkSize = 128

// entry is a node with the sort key it had when it was put in.
type entry struct {
	a, b int64
	n    *node
}

func keyOf(kind orderKind, n *node) entry {
	switch kind {
	case orderCPU:
		return entry{n.cpu, int64(n.tasks), n}
	case orderMemory:
		return entry{n.memory, int64(n.tasks), n}
	}
	return entry{int64(n.tasks), 0, n}
}

func compareEntries(x, y entry) int {
	if c := cmp.Compare(x.a, y.a); c != 0 {
		return c
	}
	if c := cmp.Compare(x.b, y.b); c != 0 {
		return c
	}
	return cmp.Compare(x.n.ARN, y.n.ARN)
}

// order keeps nodes sorted in chunks. Each chunk knows the most that any of its nodes
// has left, so that a search passes over a chunk without room in one step.
type order struct {
	kind   orderKind
	chunks []*chunk
}

type chunk struct {
	entries     []entry
	cpu, memory int64 // most remaining of any entry
	gpus        int
}

func newOrder(kind orderKind, nodes []*node) *order {
	all := make([]entry, 0, len(nodes))
	for _, n := range nodes {
		all = append(all, keyOf(kind, n))
	}
	slices.SortFunc(all, compareEntries)
	o := &order{kind: kind}
	for part := range slices.Chunk(all, chunkSize/2) {
		c := &chunk{entries: append(make([]entry, 0, chunkSize), part...)}
		c.measure()
		o.chunks = append(o.chunks, c)
	}
	return o
}

// locate finds the first chunk whose last entry is not before e.
func (o *order) locate(e entry) int {
	return sort.Search(len(o.chunks), func(i int) bool {
		es := o.chunks[i].entries
		return compareEntries(es[len(es)-1], e) >= 0
	})
}

// from finds the first chunk that can hold an entry with room for a, which for nothing
// is every one.
func (o *order) from(a int64) int {
	if a <= 0 {
		return 0
	}
	return sort.Search(len(o.chunks), func(i int) bool {
		es := o.chunks[i].entries
		return es[len(es)-1].a >= a
	})
}

func (o *order) insert(n *node) {
	e := keyOf(o.kind, n)
	if len(o.chunks) == 0 {
		c := &chunk{entries: append(make([]entry, 0, chunkSize), e)}
		c.measure()
		o.chunks = append(o.chunks, c)
		return
	}
	i := min(o.locate(e), len(o.chunks)-1)
	c := o.chunks[i]
	at, _ := slices.BinarySearchFunc(c.entries, e, compareEntries)
	c.entries = slices.Insert(c.entries, at, e)
	if len(c.entries) > chunkSize {
		half := len(c.entries) / 2
		right := &chunk{entries: append(make([]entry, 0, chunkSize), c.entries[half:]...)}
		clear(c.entries[half:])
		c.entries = c.entries[:half]
		c.measure()
		right.measure()
		o.chunks = slices.Insert(o.chunks, i+1, right)
		return
	}
	c.cpu, c.memory, c.gpus = max(c.cpu, n.cpu), max(c.memory, n.memory), max(c.gpus, len(n.gpus))
}

// remove takes n out. n must not have changed since it was inserted.
func (o *order) remove(n *node) {
	e := keyOf(o.kind, n)
	i := o.locate(e)
	if i == len(o.chunks) {
		return
	}
	c := o.chunks[i]
	at, found := slices.BinarySearchFunc(c.entries, e, compareEntries)
	if !found {
		return
	}
	c.entries = slices.Delete(c.entries, at, at+1)
	if len(c.entries) == 0 {
		o.chunks = slices.Delete(o.chunks, i, i+1)
		return
	}
	if n.cpu == c.cpu || n.memory == c.memory || len(n.gpus) > 0 && len(n.gpus) == c.gpus {
		c.measure()
	}
}

func (c *chunk) measure() {
	first := c.entries[0].n
	c.cpu, c.memory, c.gpus = first.cpu, first.memory, len(first.gpus)
	for _, e := range c.entries[1:] {
		c.cpu, c.memory, c.gpus = max(c.cpu, e.n.cpu), max(c.memory, e.n.memory), max(c.gpus, len(e.n.gpus))
	}
}

func (c *chunk) room(n *Need) bool {
	return n.CPU <= max(c.cpu, 0) && n.Memory <= max(c.memory, 0) && n.GPUs <= c.gpus
}
