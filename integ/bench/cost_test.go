package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/integ/system"
)

// meter adds up the processor time of groups of processes, whatever becomes of them: the
// kernel charges a cgroup for all that ever ran in it or below (kernel documentation,
// cgroup-v1/cpuacct and cgroup-v2, cpu.stat). Unlike the time on a clock this is nearly
// the same on a machine that does other work as well.
type meter struct {
	b    *testing.B
	root string
	v2   bool
}

// Groups of the meter; the tasks' own is that of the system.
const (
	groupContainerd = "/berth-bench-containerd"
	groupAgent      = "/berth-bench-agent"
	groupBare       = "/berth-bench"
)

func newMeter(b *testing.B) *meter {
	b.Helper()
	m := &meter{b: b, root: "/sys/fs/cgroup/cpuacct"}
	if _, err := os.Stat(m.root); errors.Is(err, fs.ErrNotExist) {
		m.root, m.v2 = "/sys/fs/cgroup", true
	}
	for _, g := range []string{groupContainerd, groupAgent} {
		if err := os.Mkdir(filepath.Join(m.root, g), 0o755); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			system.Until(b, 10*time.Second, "the group of the meter is empty", func() error { return os.Remove(filepath.Join(m.root, g)) })
		})
	}
	return m
}

// put moves a process into a group. Its children will be in it as well.
func (m *meter) put(group string, pid int) {
	m.b.Helper()
	if err := os.WriteFile(filepath.Join(m.root, group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		m.b.Fatal(err)
	}
}

// read is the processor time of the groups so far; a group that does not exist has none.
func (m *meter) read(groups ...string) time.Duration {
	m.b.Helper()
	var sum time.Duration
	for _, g := range groups {
		d, err := m.one(g)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.b.Fatal(err)
		}
		sum += d
	}
	return sum
}

func (m *meter) one(group string) (time.Duration, error) {
	if !m.v2 {
		raw, err := os.ReadFile(filepath.Join(m.root, group, "cpuacct.usage"))
		if err != nil {
			return 0, err
		}
		ns, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
		return time.Duration(ns), err
	}
	raw, err := os.ReadFile(filepath.Join(m.root, group, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if us, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(us), 10, 64)
			return time.Duration(n) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("cpu.stat of %s has no usage_usec", group)
}
