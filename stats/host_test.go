package stats

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// realGroups makes n cgroups of the kernel and returns their paths.
func realGroups(tb testing.TB, n int) (Hierarchies, []string) {
	tb.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			tb.Fatal("this test needs root")
		}
		tb.Skip("this test needs root")
	}
	h, err := FindHierarchies("/proc/self/mountinfo")
	if err != nil {
		tb.Fatal(err)
	}
	var mounts []string
	if h.Unified != "" {
		mounts = append(mounts, h.Unified)
	} else {
		for _, c := range []string{"cpuacct", "cpu", "memory", "pids", "blkio"} {
			mounts = append(mounts, h.Mounts[c])
		}
	}
	parent := fmt.Sprintf("berth-stats-%d", os.Getpid())
	var groups []string
	for i := -1; i < n; i++ {
		path := parent
		if i >= 0 {
			path = filepath.Join(parent, fmt.Sprint(i))
			groups = append(groups, path)
		}
		for _, m := range mounts {
			dir := filepath.Join(m, path)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				tb.Fatal(err)
			}
			tb.Cleanup(func() {
				if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
					tb.Error(err)
				}
			})
		}
	}
	return h, groups
}

func TestRealGroup(t *testing.T) {
	h, groups := realGroups(t, 1)
	c := New(Config{Hierarchies: h, Interval: time.Second})
	defer c.close()
	c.Follow(Target{ID: "x", Cgroup: groups[0], Namespace: "/proc/self/ns/net"})
	c.Sample()
	now, _, ok := c.Latest("x")
	if !ok || now.Has&(HasCPU|HasMemory|HasPids|HasNetwork) != HasCPU|HasMemory|HasPids|HasNetwork {
		t.Fatalf("sample %+v (%t)", now, ok)
	}
}

// BenchmarkSample reads 500 containers once.
func BenchmarkSample(b *testing.B) {
	const n = 500
	h, groups := realGroups(b, n)
	c := New(Config{Hierarchies: h, Interval: time.Second})
	defer c.close()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for _, g := range groups {
		c.Follow(Target{ID: g, Cgroup: g, Namespace: "/proc/self/ns/net"})
	}
	c.Sample()
	runtime.GC()
	runtime.ReadMemStats(&after)
	for b.Loop() {
		c.Sample()
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "heap-bytes/container")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/container")
}
