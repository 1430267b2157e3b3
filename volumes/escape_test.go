package volumes_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"berth.dev/berth/volumes"
)

var races = flag.Int("races", 10000, "number of races in TestSwappedLinksNeverEscape")

// A task that can write to a directory of the host swaps a directory below it with a
// link, over and over, while another task is given that directory. It never gets what
// the link leads to.
func TestSwappedLinksNeverEscape(t *testing.T) {
	races := *races
	d := dirs(t)
	root := t.TempDir()
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"a/b", "swap"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(outside, "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "b", "secret"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(root, "a"), unix.AT_FDCWD, filepath.Join(root, "link"), unix.RENAME_EXCHANGE); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	h := &volumes.Host{Dirs: d}
	var got, refused atomic.Int64
	var racers sync.WaitGroup
	const side = 16 // at the same time: a mount mostly waits for the kernel
	for n := range side {
		racers.Go(func() {
			for i := n; i < races; i += side {
				// In turn the last component, one before it, and one that has to be made.
				source := filepath.Join(root, []string{"a", "a/b", "a/made"}[i%3])
				v := &volumes.Volume{Task: fmt.Sprintf("t%d", n), Name: "v", Source: source}
				m, err := h.Mount(t.Context(), v)
				switch {
				case errors.Is(err, volumes.ErrRefused), errors.Is(err, volumes.ErrUnavailable):
					refused.Add(1)
				case err != nil:
					t.Error(err)
				default:
					got.Add(1)
					if _, err := os.Lstat(filepath.Join(m.Path, "secret")); !errors.Is(err, os.ErrNotExist) {
						t.Errorf("escaped after %d races: %v", i, err)
					}
				}
				if err := h.Unmount(t.Context(), v); err != nil {
					t.Error(err)
				}
			}
		})
	}
	racers.Wait()
	close(stop)
	swapper.Wait()
	if _, err := os.Lstat(filepath.Join(outside, "made")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory was made behind the link: %v", err)
	}
	t.Logf("%d races: mounted %d, refused %d", races, got.Load(), refused.Load())
	if min(got.Load(), refused.Load()) < int64(races)/100 {
		t.Errorf("no real race: mounted %d, refused %d", got.Load(), refused.Load())
	}
}

func TestPathsThatAreRefused(t *testing.T) {
	d := dirs(t)
	own := t.TempDir()
	dir := t.TempDir()
	if err := os.Symlink("/etc", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h := &volumes.Host{Dirs: d, Allowed: volumes.Allowed{Own: []string{own, "/run/containerd/containerd.sock"}}}
	for source, kind := range map[string]error{
		"relative": volumes.ErrInvalid, "": volumes.ErrInvalid, "/a\x00b": volumes.ErrInvalid, "/" + strings.Repeat("a/", 3000): volumes.ErrInvalid,
		own: volumes.ErrRefused, own + "/new/one": volumes.ErrRefused, filepath.Dir(own): volumes.ErrRefused, "/": volumes.ErrRefused,
		"/run": volumes.ErrRefused, "/var/run": volumes.ErrRefused, // where that is a link to /run
		"/proc": volumes.ErrRefused, "/proc/sys/kernel": volumes.ErrRefused, "/sys": volumes.ErrRefused, "/sys/fs/cgroup": volumes.ErrRefused,
		"/dev": volumes.ErrRefused, "/dev/null": volumes.ErrRefused, "/proc/self/root/etc": volumes.ErrRefused,
		dir + "/link": volumes.ErrRefused, dir + "/link/ssh": volumes.ErrRefused, dir + "/file/x": volumes.ErrInvalid,
	} {
		_, err := h.Mount(t.Context(), &volumes.Volume{Task: "t", Name: "v", Source: source})
		if !errors.Is(err, kind) {
			t.Errorf("%.60q: error %v, want one of kind %q", source, err, kind)
		}
		if err := h.Unmount(t.Context(), &volumes.Volume{Task: "t", Name: "v"}); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(own, "new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory was made where none may be: %v", err)
	}
	h.Allowed.Always = []string{"/proc/sys"}
	v := &volumes.Volume{Task: "t", Name: "v", Source: "/proc/sys/kernel"}
	if _, err := h.Mount(t.Context(), v); err != nil {
		t.Errorf("allowed by the operator: %v", err)
	}
	if err := h.Unmount(t.Context(), v); err != nil {
		t.Error(err)
	}
	file := &volumes.Volume{Task: "t", Name: "f", Source: filepath.Join(dir, "file")}
	if m, err := h.Mount(t.Context(), file); err != nil {
		t.Error(err)
	} else if st, err := os.Stat(m.Path); err != nil || !st.Mode().IsRegular() {
		t.Errorf("a file as a volume: %v, %v", st, err)
	}
	if err := h.Unmount(t.Context(), file); err != nil {
		t.Error(err)
	}
}

// FuzzPathUnder gives the driver paths below a directory with links in it that lead out.
func FuzzPathUnder(f *testing.F) {
	for _, s := range []string{"a", "a/../b", "link/x", "a/./b//c", "..", "\x00", "ü/ñ", "up/etc", strings.Repeat("a", 4096), "loop/loop"} {
		f.Add(s)
	}
	if os.Geteuid() != 0 {
		f.Skip("needs root")
	}
	root, outside := f.TempDir(), f.TempDir()
	d := volumes.Dirs{Run: filepath.Join(f.TempDir(), "run")}
	f.Cleanup(func() {
		if err := d.Teardown(); err != nil {
			f.Error(err)
		}
	})
	for name, target := range map[string]string{"link": outside, "up": "../../..", "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			f.Fatal(err)
		}
	}
	var want unix.Stat_t
	if err := unix.Stat(root, &want); err != nil {
		f.Fatal(err)
	}
	h := &volumes.Host{Dirs: d}
	f.Fuzz(func(t *testing.T, name string) {
		source := filepath.Join(root, filepath.Clean("/"+name)) // ".." ends at the root
		if strings.Count(source, "/") > 64 {
			return
		}
		v := &volumes.Volume{Task: "t", Name: "v", Source: source}
		m, err := h.Mount(t.Context(), v)
		defer func() {
			if err := h.Unmount(t.Context(), v); err != nil {
				t.Error(err)
			}
		}()
		if err != nil {
			return
		}
		// What was mounted is the directory of that name below the root, no links followed.
		fd, err := unix.Openat2(unix.AT_FDCWD, source, &unix.OpenHow{Flags: unix.O_PATH, Resolve: unix.RESOLVE_NO_SYMLINKS})
		if err != nil {
			t.Fatalf("%q was mounted: %v", name, err)
		}
		defer unix.Close(fd)
		var a, b unix.Stat_t
		if err := errors.Join(unix.Fstat(fd, &a), unix.Stat(m.Path, &b)); err != nil || a.Ino != b.Ino || a.Dev != b.Dev {
			t.Fatalf("%q gave inode %d, want %d (%v)", name, b.Ino, a.Ino, err)
		}
	})
}
