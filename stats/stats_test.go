package stats

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// tree is a cgroup hierarchy of plain files.
func tree(t *testing.T, files map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	for name, text := range files {
		put(t, filepath.Join(root, name), text)
	}
	return root
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func version1Files(cpu, memory string) map[string]string {
	return map[string]string{
		"cpuacct/c/cpuacct.usage":                           cpu,
		"cpuacct/c/cpuacct.usage_user":                      "70\n",
		"cpuacct/c/cpuacct.usage_sys":                       "30\n",
		"cpu/c/cpu.stat":                                    "nr_periods 10\nnr_throttled 4\nthrottled_time 5000\n",
		"memory/c/memory.usage_in_bytes":                    memory,
		"memory/c/memory.stat":                              "cache 1\ntotal_cache 1048576\ntotal_rss 5\ntotal_inactive_file 524288\ntotal_pgfault 9\n",
		"memory/c/memory.max_usage_in_bytes":                "9000000\n",
		"memory/c/memory.limit_in_bytes":                    "9223372036854771712\n",
		"pids/c/pids.current":                               "3\n",
		"pids/c/pids.max":                                   "max\n",
		"blkio/c/blkio.throttle.io_service_bytes_recursive": "8:0 Read 100\n8:0 Write 200\n8:16 READ 1\n8:16 Sync 7\nTotal 301\n",
		"blkio/c/blkio.throttle.io_serviced_recursive":      "8:0 Read 2\n8:0 Write 3\n",
	}
}

func hierarchies1(root string) Hierarchies {
	h := Hierarchies{Mounts: map[string]string{}}
	for _, c := range []string{"cpuacct", "cpu", "memory", "pids", "blkio"} {
		h.Mounts[c] = filepath.Join(root, c)
	}
	return h
}

func TestVersion1(t *testing.T) {
	root := tree(t, version1Files("100\n", "8388608\n"))
	g, err := hierarchies1(root).Open("/c", make([]byte, bufferSize))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	var got Sample
	if err := g.Read(&got, make([]byte, bufferSize)); err != nil {
		t.Fatal(err)
	}
	want := Sample{
		Has:    HasCPU | HasThrottling | HasMemory | HasPids | HasIO,
		CPU:    CPU{Usage: 100, User: 70, System: 30, Periods: 10, Throttled: 4, ThrottledTime: 5000},
		Memory: Memory{Usage: 8 << 20, Cache: 1 << 20, InactiveFile: 1 << 19, RSS: 5, Faults: 9, Peak: 9000000},
		Pids:   Pids{Current: 3},
		IO:     IO{ReadBytes: 101, WriteBytes: 200, Reads: 2, Writes: 3},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if used := got.Memory.Used(); used != 7<<20 {
		t.Errorf("used %d", used)
	}
}

func TestVersion2(t *testing.T) {
	root := tree(t, map[string]string{
		"c/cpu.stat":        "usage_usec 1000\nuser_usec 700\nsystem_usec 300\nnr_periods 5\nnr_throttled 2\nthrottled_usec 4\n",
		"c/memory.current":  "8388608\n",
		"c/memory.stat":     "anon 6\nfile 1048576\ninactive_file 524288\npgfault 4\npgmajfault 1\n",
		"c/memory.max":      "16777216\n",
		"c/pids.current":    "3\n",
		"c/pids.max":        "100\n",
		"c/io.stat":         "8:0 rbytes=100 wbytes=200 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=1\n",
		"c/cpu.pressure":    "some avg10=0.00 avg60=0.00 avg300=0.00 total=11\n",
		"c/memory.pressure": "some avg10=0.00 total=12\nfull avg10=0.00 total=13\n",
		"c/io.pressure":     "some total=14\nfull total=15\n",
	})
	g, err := Hierarchies{Unified: root}.Open("c", make([]byte, bufferSize))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	var got Sample
	if err := g.Read(&got, make([]byte, bufferSize)); err != nil {
		t.Fatal(err)
	}
	want := Sample{
		Has:      HasCPU | HasThrottling | HasMemory | HasPids | HasIO | HasPressure,
		CPU:      CPU{Usage: 1e6, User: 7e5, System: 3e5, Periods: 5, Throttled: 2, ThrottledTime: 4000},
		Memory:   Memory{Usage: 8 << 20, Cache: 1 << 20, InactiveFile: 1 << 19, RSS: 6, Faults: 4, MajorFaults: 1, Limit: 16 << 20, Unified: true},
		Pids:     Pids{Current: 3, Limit: 100},
		IO:       IO{ReadBytes: 101, WriteBytes: 200, Reads: 1, Writes: 2},
		Pressure: Pressure{CPUSome: 11, MemorySome: 12, MemoryFull: 13, IOSome: 14, IOFull: 15},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if used := got.Memory.Used(); used != 8<<20-1<<19 {
		t.Errorf("used %d", used)
	}
}

func TestGroupThatIsNotThere(t *testing.T) {
	root := tree(t, nil)
	if _, err := (Hierarchies{Unified: root}).Open("c", make([]byte, 64)); err == nil {
		t.Fatal("a cgroup that does not exist was opened")
	}
}

func TestSets(t *testing.T) {
	var s Sets
	first := Sample{Mono: time.Second, Has: HasCPU | HasMemory | HasNetwork, CPU: CPU{Usage: 1e9}, Memory: Memory{Usage: 3<<20 + 5}, Network: Network{RxBytes: 10}}
	second := Sample{Mono: 3 * time.Second, Has: HasCPU | HasMemory | HasNetwork, CPU: CPU{Usage: 2e9}, Memory: Memory{Usage: 5 << 20}, Network: Network{RxBytes: 30}}
	s.add(&first, nil, 4)
	s.add(&second, &first, 4)
	// One second of processor time in two seconds of four processors is an eighth.
	if diff := cmp.Diff(Set{Min: 12.5, Max: 12.5, Sum: 12.5, Count: 1}, s.CPU); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(Set{Min: 3, Max: 5, Sum: 8, Count: 2}, s.Memory); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(CounterSet{Min: 10, Max: 30, Sum: 40, Count: 2}, s.Network.RxBytes); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(Set{Min: 10, Max: 10, Sum: 10, Count: 1}, s.Network.RxRate); diff != "" {
		t.Error(diff)
	}
}

func TestCounterSetStaysAtTheLargest(t *testing.T) {
	var s CounterSet
	s.add(math.MaxUint64 - 1)
	s.add(5)
	if s.Sum != math.MaxUint64 || s.Min != 5 || s.Max != math.MaxUint64-1 {
		t.Errorf("%+v", s)
	}
}

// usage writes a counter and reads what the collector makes of it.
func TestCountersNeverGoBack(t *testing.T) {
	root := tree(t, version1Files("1000\n", "8388608\n"))
	c := New(Config{Hierarchies: hierarchies1(root), Interval: time.Second, CPUs: 1})
	defer c.close()
	usage := func() uint64 {
		c.Sample()
		now, _, ok := c.Latest("t/web")
		if !ok {
			t.Fatal("no sample")
		}
		return now.CPU.Usage
	}
	c.Follow(Target{ID: "t/web", Cgroup: "/c", Run: "1"})
	if u := usage(); u != 1000 {
		t.Errorf("first sample %d", u)
	}
	put(t, filepath.Join(root, "cpuacct/c/cpuacct.usage"), "400\n")
	if u := usage(); u != 1400 {
		t.Errorf("after the kernel began anew: %d, want 1400", u)
	}
	// A new run has used more already than the one before had: only its name tells.
	put(t, filepath.Join(root, "cpuacct/c/cpuacct.usage"), "500\n")
	c.Follow(Target{ID: "t/web", Cgroup: "/c", Run: "2"})
	if u := usage(); u != 1900 {
		t.Errorf("after a restart: %d, want 1900", u)
	}
}

func TestTakeNeedsTwoSamplesAndANewOne(t *testing.T) {
	root := tree(t, version1Files("1000\n", "8388608\n"))
	c := New(Config{Hierarchies: hierarchies1(root), Interval: time.Second})
	defer c.close()
	c.Follow(Target{ID: "a", Cgroup: "/c"})
	for i, want := range []bool{false, true, true} {
		c.Sample()
		if _, ok := c.Take("a"); ok != want {
			t.Errorf("after sample %d: %t", i+1, ok)
		}
		if _, ok := c.Take("a"); ok {
			t.Errorf("after sample %d the same was taken twice", i+1)
		}
	}
	c.Forget("a")
	if len(c.Targets()) != 0 || len(c.nets) != 0 {
		t.Error("something is left of a target that was forgotten")
	}
}

func TestSamplingDoesNotAllocate(t *testing.T) {
	root := tree(t, version1Files("1000\n", "8388608\n"))
	c := New(Config{Hierarchies: hierarchies1(root), Interval: time.Second})
	defer c.close()
	for i := range 10 {
		c.Follow(Target{ID: fmt.Sprint(i), Cgroup: "/c"})
	}
	c.Sample()
	if n := testing.AllocsPerRun(20, c.Sample); n > 0 {
		t.Errorf("%v allocations a round", n)
	}
}

// FuzzCgroupStats feeds every parser with anything.
func FuzzCgroupStats(f *testing.F) {
	f.Add([]byte("nr_periods 10\nthrottled_time 5\n8:0 Read 100\n8:0 rbytes=1\nsome avg10=0.00 total=12\nmax\n"))
	f.Add([]byte("99999999999999999999999 \n \n=\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var s Sample
		for _, list := range [][]file{version1, version2} {
			for _, file := range list {
				file.parse(&s, text)
			}
		}
		s.Memory.Used()
		s.Memory.WorkingSet()
	})
}

// FuzzNetlinkStats feeds the reader of interface counters with anything.
func FuzzNetlinkStats(f *testing.F) {
	f.Add(make([]byte, 200))
	f.Fuzz(func(t *testing.T, data []byte) {
		var n Network
		_, _ = sumLinks(&n, data, 0) // neither outcome is a panic
	})
}

// TestGroupAtRest reads all files of a group when its processes ran, and else only now
// and then.
func TestGroupAtRest(t *testing.T) {
	root := tree(t, version1Files("100\n", "8388608\n"))
	g, err := hierarchies1(root).Open("c", make([]byte, bufferSize))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	read := func() Sample {
		t.Helper()
		s := Sample{Mono: time.Second}
		if err := g.Read(&s, make([]byte, bufferSize)); err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := read()
	if first.Pids.Current != 3 || first.Has&HasIO == 0 {
		t.Fatalf("first reading: %+v", first)
	}
	overwrite(t, filepath.Join(root, "pids/c/pids.current"), "7\n")
	readings := 0
	for read().Pids.Current == 3 {
		if readings++; readings > restAtLeast {
			t.Fatal("a group at rest is never read again")
		}
	}
	if readings == 0 {
		t.Error("a group at rest was read as if its processes ran")
	}
	overwrite(t, filepath.Join(root, "pids/c/pids.current"), "8\n")
	overwrite(t, filepath.Join(root, "cpuacct/c/cpuacct.usage"), "200\n")
	if s := read(); s.Pids.Current != 8 || s.CPU.Usage != 200 || s.Mono != time.Second {
		t.Errorf("after the processes ran: %+v", s)
	}
}

// TestGroupThatMayNotRun has a group that is throttled all the time, which is all that its
// CPU file tells.
func TestGroupThatMayNotRun(t *testing.T) {
	const text = "usage_usec 9\nnr_periods %d\nnr_throttled %d\nthrottled_usec %d\n"
	root := tree(t, map[string]string{"c/cpu.stat": fmt.Sprintf(text, 1, 1, 100), "c/memory.current": "1\n", "c/memory.stat": "inactive_file 0\n"})
	g, err := Hierarchies{Unified: root}.Open("c", make([]byte, bufferSize))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for i := range uint64(2 * restAtLeast) {
		overwrite(t, filepath.Join(root, "c/cpu.stat"), fmt.Sprintf(text, i, i, 100*i))
		var s Sample
		if err := g.Read(&s, make([]byte, bufferSize)); err != nil {
			t.Fatal(err)
		}
		if want := (CPU{Usage: 9000, Periods: i, Throttled: i, ThrottledTime: 100_000 * i}); s.CPU != want {
			t.Errorf("reading %d: %+v, want %+v", i, s.CPU, want)
		}
	}
}

// overwrite changes a file that is open elsewhere.
func overwrite(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(text)
	if cerr := f.Close(); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
}
