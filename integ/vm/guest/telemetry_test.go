package guest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/eni"
	"berth.dev/berth/stats"
)

// shared is memory that is a file, which is charged to the group that has written it.
const shared = "/dev/shm/berth-use"

// use is a group of processes that use the machine in their own way.
type use struct {
	name, command string
	quota         string // cpu.max; "" means none
	memory        int64  // bytes that it comes to use at least
}

var uses = []use{
	{name: "busy", command: "while :; do :; done"},
	{name: "idle", command: "exec sleep 1000"},
	{name: "bursty", command: "while :; do sleep 0.05; for i in 1 2 3 4 5 6 7 8 9; do for j in $(seq 500); do :; done; done; done"},
	{name: "throttled", command: "while :; do :; done", quota: "40000 100000"},
	{name: "large", command: "dd if=/dev/zero of=" + shared + " bs=1M count=32 2>/dev/null; exec sleep 1000", memory: 32 << 20},
}

// TestStatisticsOfVersion2 compares what is published of groups on cgroup version 2 with
// readings of the kernel's files right before and right after. What is published has to lie
// between the two, and these have to be so close to each other that it is within 2 % of
// either: where the machine was held up in between, it is done again.
func TestStatisticsOfVersion2(t *testing.T) {
	h, err := stats.FindHierarchies("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if h.Unified == "" {
		t.Fatal("the machine has no cgroup version 2 alone")
	}
	t.Cleanup(func() {
		if err := os.Remove(shared); err != nil {
			t.Error(err)
		}
	})
	parent := filepath.Join(h.Unified, "berth-use")
	if err := os.Mkdir(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, parent) })
	for _, dir := range []string{h.Unified, parent} {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+cpu +memory +pids +io"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("all", func(t *testing.T) {
		for _, u := range uses {
			t.Run(u.name, func(t *testing.T) {
				t.Parallel()
				g := &group{t: t, dir: filepath.Join(parent, u.name)}
				g.start(u)
				c := stats.New(stats.Config{Hierarchies: h, Interval: time.Second})
				c.Follow(stats.Target{ID: u.name, Cgroup: "/berth-use/" + u.name})
				Until(t, "readings that are close enough", func() error { return g.compare(c, u) })
			})
		}
		t.Run("network", func(t *testing.T) {
			t.Parallel()
			networkBytes(t, h)
		})
	})
}

// group is the group of a use.
type group struct {
	t   *testing.T
	dir string
	cmd *exec.Cmd
}

// start starts the processes in their group, and waits until they are what they will be.
func (g *group) start(u use) {
	g.t.Helper()
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { remove(g.t, g.dir) })
	if u.quota != "" {
		if err := os.WriteFile(filepath.Join(g.dir, "cpu.max"), []byte(u.quota), 0o644); err != nil {
			g.t.Fatal(err)
		}
	}
	g.cmd = exec.Command("sh", "-c", fmt.Sprintf("echo $$ > %s/cgroup.procs; %s", g.dir, u.command))
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		if err := os.WriteFile(filepath.Join(g.dir, "cgroup.kill"), []byte("1"), 0o644); err != nil {
			g.t.Error(err)
		}
		g.cmd.Wait() //nolint:errcheck // it was killed
	})
	Until(g.t, "the group is at work", func() error {
		if r := g.read(); r.used < 1000 || r.memory < u.memory {
			return fmt.Errorf("it has used %+v", r)
		}
		return nil
	})
}

func remove(t *testing.T, dir string) {
	Until(t, dir+" is gone", func() error {
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			return err
		}
		return nil
	})
}

// reading is what the kernel's files say at a time.
type reading struct {
	begin, end time.Time // the time is between these
	used       int64     // processor time, in microseconds
	throttled  int64     // of that which was not given, in microseconds
	memory     int64     // what ECS counts as used on version 2: all but inactive page cache
}

func (g *group) read() reading {
	r := reading{begin: time.Now()}
	r.used, r.throttled = g.field("cpu.stat", "usage_usec "), g.field("cpu.stat", "throttled_usec ")
	r.memory = g.field("memory.current", "") - g.field("memory.stat", "inactive_file ")
	r.end = time.Now()
	return r
}

// field is a number of a file of the group with names and numbers.
func (g *group) field(file, name string) int64 {
	b, err := os.ReadFile(filepath.Join(g.dir, file))
	if err != nil {
		g.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			v, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			if err != nil {
				g.t.Fatal(err)
			}
			return v
		}
	}
	g.t.Fatalf("%s has no %s", file, name)
	return 0
}

// bracket is a sample with readings from before and after it.
type bracket struct {
	before, after reading
	sample        stats.Sample
}

func (g *group) sample(c *stats.Collector, name string) bracket {
	b := bracket{before: g.read()}
	c.Sample()
	b.after = g.read()
	var ok bool
	if b.sample, _, ok = c.Latest(name); !ok {
		g.t.Fatal("no statistics")
	}
	return b
}

// compare holds what is published of the time between two samples against the readings. An
// error means that these are too far from each other.
func (g *group) compare(c *stats.Collector, u use) error {
	first := g.sample(c, u.name)
	c.Take(u.name) // is about the time before, if there was any
	<-time.After(time.Second)
	second := g.sample(c, u.name)
	sets, ok := c.Take(u.name)
	if !ok || sets.CPU.Count != 1 {
		g.t.Fatalf("nothing to publish: %+v", sets)
	}
	for _, b := range []bracket{first, second} {
		between(g.t, "processor time", int64(b.sample.CPU.Usage/1000), b.before.used, b.after.used)
		between(g.t, "throttled time", int64(b.sample.CPU.ThrottledTime/1000), b.before.throttled, b.after.throttled)
	}
	percent := func(usec int64, over time.Duration) float64 {
		return 100 * float64(usec) / float64(over.Microseconds()) / float64(runtime.NumCPU())
	}
	least := percent(second.before.used-first.after.used, second.after.begin.Sub(first.before.end))
	most := percent(second.after.used-first.before.used, second.before.end.Sub(first.after.begin))
	if got := sets.CPU.Sum; got < least*0.9999 || got > most*1.0001 { // times are rounded to microseconds
		g.t.Errorf("CPU %.4f %%, by the kernel's files between %.4f and %.4f %%", got, least, most)
	}
	used, low, high := int64(second.sample.Memory.Used()), second.before.memory, second.after.memory
	switch {
	case most-least > 0.02*least:
		return fmt.Errorf("CPU is between %.4f and %.4f %%", least, most)
	case used < min(low, high)*98/100 || used > max(low, high)*102/100:
		return fmt.Errorf("memory %d bytes, the kernel's files say %d and %d", used, low, high) // processes that came or went
	case sets.Memory.Max != float64(used>>20) && sets.Memory.Min != float64(used>>20):
		return fmt.Errorf("memory %+v MiB, and %d bytes", sets.Memory, used)
	case u.quota != "" && second.sample.CPU.Throttled == first.sample.CPU.Throttled:
		return fmt.Errorf("it was not throttled in this time")
	}
	if second.sample.Has&stats.HasPressure == 0 {
		g.t.Error("no pressure")
	}
	g.t.Logf("CPU %.4f %%, between %.4f and %.4f %%; memory %d bytes, %d and %d", sets.CPU.Sum, least, most, used, low, high)
	return nil
}

func between(t *testing.T, what string, got, before, after int64) {
	t.Helper()
	if got < before || got > after {
		t.Errorf("%s %d, by the kernel's files between %d and %d", what, got, before, after)
	}
}

// networkBytes sends so many bytes through a pair of interfaces that all of them are known.
func networkBytes(t *testing.T, h stats.Hierarchies) {
	const datagrams, payload, headers = 25, 1000, 14 + 20 + 8 // Ethernet, IPv4, UDP
	ends := []string{"use-a", "use-b"}
	spaces := make([]*eni.Namespace, len(ends))
	c := stats.New(stats.Config{Hierarchies: h, Interval: time.Second})
	for i, name := range ends {
		Run(t, "ip", "netns", "add", name)
		t.Cleanup(func() { Run(t, "ip", "netns", "del", name) })
		ns, err := eni.OpenNamespace("/run/netns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() }) //nolint:errcheck // it was only entered
		err = ns.Do(func() error {
			// IPv6 would send something of its own.
			return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
		spaces[i] = ns
		// Any group does; it is the namespace that matters.
		c.Follow(stats.Target{ID: name, Cgroup: "/berth-use", Namespace: "/run/netns/" + name})
	}
	Run(t, "ip", "-n", ends[0], "link", "add", "v", "address", "02:00:00:00:00:01", "type", "veth", "peer", "name", "v", "netns", ends[1])
	Run(t, "ip", "-n", ends[0], "address", "add", "192.0.2.1/24", "dev", "v")
	Run(t, "ip", "-n", ends[0], "neighbour", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:02", "dev", "v", "nud", "permanent")
	for _, name := range ends {
		Run(t, "ip", "-n", name, "link", "set", "v", "up")
	}
	err := spaces[0].Do(func() error {
		conn, err := net.Dial("udp4", "192.0.2.2:9")
		if err != nil {
			return err
		}
		defer conn.Close() //nolint:errcheck // everything was sent
		for range datagrams {
			if _, err := conn.Write(make([]byte, payload)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	const want = datagrams * (payload + headers)
	Until(t, "all that was sent has arrived", func() error {
		var arrived string
		err := spaces[1].Do(func() error {
			b, err := os.ReadFile("/proc/thread-self/net/dev")
			arrived = string(b)
			return err
		})
		if err != nil {
			return err
		}
		if !strings.Contains(arrived, fmt.Sprintf(" %d ", want)) {
			return fmt.Errorf("the kernel says\n%s", arrived)
		}
		return nil
	})
	c.Sample()
	for i, want := range []stats.Network{
		{TxBytes: want, TxPackets: datagrams},
		{RxBytes: want, RxPackets: datagrams},
	} {
		s, _, ok := c.Latest(ends[i])
		if !ok || s.Network != want {
			t.Errorf("%s: %+v, want %+v", ends[i], s.Network, want)
		}
	}
}
