package stats

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"time"
)

// Target is one container to be read.
type Target struct {
	ID        string // names it for the owner; it stays the same over restarts of the container
	Cgroup    string // path below the mounts; it, or Run, differs after a restart of the container
	Run       string // which run of the container this is
	Namespace string // path of its network namespace, or "" where its traffic is not its own
}

// Config is what a Collector is made of.
type Config struct {
	Hierarchies Hierarchies
	Interval    time.Duration // between two samples of a container
	CPUs        int           // processors of the host; 0 means those that this process sees
	Log         *slog.Logger
}

// Collector reads all targets in one loop. All methods may be called at any time.
type Collector struct {
	c     Config
	start time.Time

	mu    sync.Mutex
	buf   []byte
	one   Sample // the one being read; here, because what a parser is given is on the heap
	items map[string]*item
	nets  map[string]*network
	round uint64
}

// item is one target and what is known of it.
type item struct {
	target  Target
	group   *Group
	net     *network
	now     Sample
	before  Sample
	samples int
	raw     [allCounters]uint64 // as last read
	base    [allCounters]uint64 // what runs before this one have counted
	sets    Sets
}

// network is a namespace that one or more targets share.
type network struct {
	path   string
	users  int
	ns     *Namespace
	round  uint64 // in which it was read last
	sample Sample
}

// bufferSize holds the largest control file, and a datagram of interface counters.
const bufferSize = 32 << 10

// New makes a collector; Run makes it read.
func New(c Config) *Collector {
	if c.CPUs == 0 {
		c.CPUs = runtime.NumCPU()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Collector{c: c, start: time.Now(), buf: make([]byte, bufferSize), items: make(map[string]*item), nets: make(map[string]*network)}
}

// Interval is the time between two samples.
func (c *Collector) Interval() time.Duration { return c.c.Interval }

// Run reads every target once an interval until ctx ends, and then closes what is open.
// Each time it calls before first, in which targets may be followed and forgotten.
func (c *Collector) Run(ctx context.Context, before func()) {
	tick := time.NewTicker(c.c.Interval)
	defer tick.Stop()
	for {
		before()
		c.Sample()
		select {
		case <-ctx.Done():
			c.close()
			return
		case <-tick.C:
		}
	}
}

// Follow begins to read a target, or goes on with another run of it.
func (c *Collector) Follow(t Target) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.items[t.ID]
	switch {
	case it == nil:
		it = &item{}
		c.items[t.ID] = it
	case it.target == t:
		return
	case it.target.Cgroup != t.Cgroup || it.target.Run != t.Run:
		it.closeGroup()
		it.carry(0, cgroupCounters)
	}
	if it.target.Namespace != t.Namespace {
		it.carry(cgroupCounters, allCounters)
		c.release(it)
	}
	it.target = t
}

// Forget stops reading a target.
func (c *Collector) Forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if it := c.items[id]; it != nil {
		it.closeGroup()
		c.release(it)
		delete(c.items, id)
	}
}

// Targets lists the IDs that are followed.
func (c *Collector) Targets() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := make([]string, 0, len(c.items))
	for id := range c.items {
		ids = append(ids, id)
	}
	return ids
}

// Take returns what a target used since the last Take. It is false, and nothing is taken,
// while there are fewer than two samples in all or no new one (agent protocol, TCS cadence
// and sampling).
func (c *Collector) Take(id string) (s Sets, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.items[id]
	if it == nil || it.samples < 2 || it.sets.CPU.Count == 0 || it.sets.Memory.Count == 0 {
		return Sets{}, false
	}
	s, it.sets = it.sets, Sets{}
	return s, true
}

// Latest returns the last sample of a target and the one before it, which is zero when
// there was only one.
func (c *Collector) Latest(id string) (now, before Sample, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.items[id]
	if it == nil || it.samples == 0 {
		return Sample{}, Sample{}, false
	}
	return it.now, it.before, true
}

// Sample reads every target once, now.
func (c *Collector) Sample() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.round++
	for _, it := range c.items {
		c.sample(it)
	}
}

// sample reads one target. A container that is not there yet, or not any more, is left
// as it is; whoever follows it knows which.
func (c *Collector) sample(it *item) {
	if it.group == nil {
		g, err := c.c.Hierarchies.Open(it.target.Cgroup, c.buf)
		if err != nil {
			if !errors.Is(err, ErrGone) {
				c.c.Log.Debug("no statistics of a container", "container", it.target.ID, "err", err)
			}
			return
		}
		it.group = g
	}
	at := time.Now()
	c.one = Sample{At: at, Mono: at.Sub(c.start)}
	s := &c.one
	if err := it.group.Read(s, c.buf); err != nil {
		it.closeGroup()
		if !errors.Is(err, ErrGone) {
			c.c.Log.Debug("no statistics of a container", "container", it.target.ID, "err", err)
		}
		return
	}
	c.readNetwork(it, s)
	it.forward(s)
	var before *Sample
	if it.samples > 0 {
		before = &it.now
	}
	it.sets.add(s, before, c.c.CPUs)
	it.before, it.now = it.now, *s
	it.samples++
}

// readNetwork reads the namespace of a target, once a round for all that share it.
func (c *Collector) readNetwork(it *item, s *Sample) {
	if it.target.Namespace == "" {
		return
	}
	if it.net == nil {
		it.net = c.share(it.target.Namespace)
	}
	n := it.net
	if n.round != c.round {
		n.round = c.round
		n.sample = Sample{}
		if n.ns == nil {
			ns, err := OpenNamespace(n.path)
			if err != nil {
				c.c.Log.Debug("no network statistics", "container", it.target.ID, "err", err)
				return
			}
			n.ns = ns
		}
		if err := n.ns.Read(&n.sample, c.buf); err != nil {
			c.c.Log.Debug("no network statistics", "container", it.target.ID, "err", err)
			n.ns.Close()
			n.ns = nil
			return
		}
	}
	if n.sample.Has&HasNetwork != 0 {
		s.Network = n.sample.Network
		s.Has |= HasNetwork
	}
}

func (c *Collector) share(path string) *network {
	n := c.nets[path]
	if n == nil {
		n = &network{path: path}
		c.nets[path] = n
	}
	n.users++
	return n
}

func (c *Collector) release(it *item) {
	n := it.net
	if n == nil {
		return
	}
	it.net = nil
	if n.users--; n.users > 0 {
		return
	}
	if n.ns != nil {
		n.ns.Close()
	}
	delete(c.nets, n.path)
}

func (c *Collector) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, it := range c.items {
		it.closeGroup()
		c.release(it)
	}
}

func (it *item) closeGroup() {
	if it.group != nil {
		it.group.Close()
		it.group = nil
	}
}

// carry makes counters go on from where they are although they will be read from zero.
func (it *item) carry(from, to int) {
	for i := from; i < to; i++ {
		it.base[i] += it.raw[i]
		it.raw[i] = 0
	}
}

// forward turns the counters of a sample as read into counters that never go back. A
// group that was not read leaves its counters where they were.
func (it *item) forward(s *Sample) {
	for i, v := range s.counters() {
		if i >= cgroupCounters && s.Has&HasNetwork == 0 {
			*v = it.base[i] + it.raw[i]
			continue
		}
		if *v < it.raw[i] { // the kernel began anew
			it.base[i] += it.raw[i]
		}
		it.raw[i] = *v
		*v += it.base[i]
	}
}
