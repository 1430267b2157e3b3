// Package volumestest holds what every volume driver must do.
package volumestest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"berth.dev/berth/volumes"
)

// Subject is a driver under test.
type Subject struct {
	// New makes the driver as a fresh start of the agent does, on the same directories
	// each time.
	New func() volumes.Driver
	// Volume is a volume of one task. Two tasks with the same name may share one.
	Volume func(task, name string) *volumes.Volume
	Dirs   volumes.Dirs
	// Shared says that two tasks see the same files.
	Shared bool
	// Kept says that files are there after the last Unmount.
	Kept bool
}

// Run checks a driver. It needs root.
func Run(t *testing.T, s Subject) {
	t.Run("once", func(t *testing.T) { once(t, s) })
	t.Run("restart", func(t *testing.T) { restart(t, s) })
	t.Run("two tasks", func(t *testing.T) { two(t, s) })
	t.Run("many at once", func(t *testing.T) { many(t, s) })
	t.Run("never mounted", func(t *testing.T) { never(t, s) })
	t.Run("bad names", func(t *testing.T) { badNames(t, s) })
	t.Run("swept", func(t *testing.T) { swept(t, s) })
}

func mount(t *testing.T, d volumes.Driver, v *volumes.Volume) volumes.Mounted {
	t.Helper()
	m, err := d.Mount(t.Context(), v)
	if err != nil {
		t.Fatalf("mount %s of %s: %v", v.Name, v.Task, err)
	}
	return m
}

func unmount(t *testing.T, d volumes.Driver, v *volumes.Volume) {
	t.Helper()
	if err := d.Unmount(t.Context(), v); err != nil {
		t.Fatalf("unmount %s of %s: %v", v.Name, v.Task, err)
	}
}

func there(t *testing.T, d volumes.Driver, v *volumes.Volume, want bool) {
	t.Helper()
	got, err := d.Check(t.Context(), v)
	if err != nil || got != want {
		t.Fatalf("check of %s of %s: %t, %v; want %t", v.Name, v.Task, got, err, want)
	}
}

func write(t *testing.T, m volumes.Mounted, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.Path, name), []byte(name), 0o644); err != nil {
		t.Fatal(err)
	}
}

func has(m volumes.Mounted, name string) bool {
	_, err := os.Stat(filepath.Join(m.Path, name))
	return !errors.Is(err, fs.ErrNotExist)
}

// clean fails when something of a task is left.
func clean(t *testing.T, s Subject) {
	t.Helper()
	ids, err := s.Dirs.Tasks()
	if err != nil || len(ids) > 0 {
		t.Errorf("left of tasks: %v, %v", ids, err)
	}
	for _, line := range Mounts(t, s.Dirs.Run) {
		t.Errorf("left mounted: %s", line)
	}
}

// Mounts lists the lines of mountinfo at or below a directory.
func Mounts(t testing.TB, dir string) []string {
	t.Helper()
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); fields[4] == dir || strings.HasPrefix(fields[4], dir+"/") {
			out = append(out, lines.Text())
		}
	}
	return out
}

func once(t *testing.T, s Subject) {
	d, v := s.New(), s.Volume("once", "v")
	there(t, d, v, false)
	m := mount(t, d, v)
	there(t, d, v, true)
	write(t, m, "a")
	if again := mount(t, d, v); again != m {
		t.Errorf("mounted again: %+v, before %+v", again, m)
	}
	if !has(m, "a") {
		t.Error("mounting again has lost a file")
	}
	for _, line := range Mounts(t, s.Dirs.Run) {
		f := strings.Fields(line)
		if !strings.Contains(f[5], "nosuid") || !strings.Contains(f[5], "nodev") || strings.Contains(line, " shared:") || strings.Contains(line, " master:") {
			t.Errorf("not nosuid, nodev and private: %s", line)
		}
	}
	unmount(t, d, v)
	unmount(t, d, v)
	there(t, d, v, s.Kept && s.Shared && len(m.Path) > 0 && !strings.HasPrefix(m.Path, s.Dirs.Run))
	clean(t, s)
	m = mount(t, d, v)
	if has(m, "a") != s.Kept {
		t.Errorf("after the end of the task its file is there: %t, want %t", !s.Kept, s.Kept)
	}
	unmount(t, d, v)
}

func restart(t *testing.T, s Subject) {
	v := s.Volume("restart", "v")
	write(t, mount(t, s.New(), v), "b")
	d := s.New()
	there(t, d, v, true)
	if m := mount(t, d, v); !has(m, "b") {
		t.Error("a restart of the agent has lost a file")
	}
	unmount(t, s.New(), v)
	clean(t, s)
}

func two(t *testing.T, s Subject) {
	d, v, w := s.New(), s.Volume("two-a", "v"), s.Volume("two-b", "v")
	m, n := mount(t, d, v), mount(t, d, w)
	write(t, m, "c")
	if has(n, "c") != s.Shared {
		t.Errorf("the other task sees the file: %t, want %t", !s.Shared, s.Shared)
	}
	unmount(t, d, v)
	there(t, d, w, true)
	write(t, n, "d")
	unmount(t, d, w)
	clean(t, s)
}

func many(t *testing.T, s Subject) {
	d := s.New()
	var wg sync.WaitGroup
	errs := make(chan error, 32)
	for i := range 8 {
		wg.Go(func() {
			for range 4 {
				v := s.Volume(fmt.Sprintf("many-%d", i), "v")
				if _, err := d.Mount(context.WithoutCancel(t.Context()), v); err != nil {
					errs <- err
					return
				}
				if ok, err := d.Check(t.Context(), v); err != nil || !ok {
					errs <- fmt.Errorf("check while others come and go: %t, %w", ok, err)
				}
				if err := d.Unmount(t.Context(), v); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	clean(t, s)
}

func never(t *testing.T, s Subject) {
	d, v := s.New(), s.Volume("never", "v")
	unmount(t, d, v)
	clean(t, s)
}

func badNames(t *testing.T, s Subject) {
	for _, name := range []string{"", ".", "..", "a/b", "../../etc", "a\x00b", strings.Repeat("x", 300)} {
		v := s.Volume("bad", "v")
		v.Name = name
		if _, err := s.New().Mount(t.Context(), v); !errors.Is(err, volumes.ErrInvalid) {
			t.Errorf("mount of a volume named %q: %v", name, err)
		}
		v = s.Volume("bad", "v")
		v.Task = name
		if _, err := s.New().Mount(t.Context(), v); !errors.Is(err, volumes.ErrInvalid) {
			t.Errorf("mount for a task named %q: %v", name, err)
		}
	}
	clean(t, s)
}

func swept(t *testing.T, s Subject) {
	d := s.New()
	mount(t, d, s.Volume("swept", "v"))
	mount(t, d, s.Volume("stays", "v"))
	ids, err := s.Dirs.Tasks()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if id != "stays" {
			if err := s.Dirs.Sweep(id); err != nil {
				t.Errorf("sweep %s: %v", id, err)
			}
		}
	}
	there(t, d, s.Volume("stays", "v"), true)
	unmount(t, d, s.Volume("stays", "v"))
	clean(t, s)
}
