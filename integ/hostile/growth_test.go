package hostile

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/integ/await"
)

// usage is what a process must not have more of afterwards.
type usage struct {
	goroutines int
	files      int
	heap       uint64 // bytes in use after a collection
	resident   uint64 // bytes
}

func measure(t *testing.T) usage {
	t.Helper()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	u := usage{goroutines: runtime.NumGoroutine(), heap: m.HeapAlloc}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	u.files = len(fds)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(status), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			u.resident = kib << 10
		}
	}
	return u
}

// notGrown waits until goroutines and open files are back where they were, and compares
// memory. Idle connections and the collector's habits are allowed for.
func notGrown(t *testing.T, before usage) {
	t.Helper()
	const slack, heapSlack, residentSlack = 8, 8 << 20, 48 << 20
	await.Until(t, 30*time.Second, "goroutines, files and memory are as before", func() error {
		after := measure(t)
		switch {
		case after.goroutines > before.goroutines+slack:
			return fmt.Errorf("%d goroutines, %d before", after.goroutines, before.goroutines)
		case after.files > before.files+slack:
			return fmt.Errorf("%d open files, %d before", after.files, before.files)
		case after.heap > before.heap+heapSlack:
			return fmt.Errorf("heap of %d KiB, %d before", after.heap>>10, before.heap>>10)
		case after.resident > before.resident+residentSlack:
			return fmt.Errorf("resident %d KiB, %d before", after.resident>>10, before.resident>>10)
		}
		return nil
	})
}
