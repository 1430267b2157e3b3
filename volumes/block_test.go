package volumes_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/volumes"
	"berth.dev/berth/volumes/block"
	"berth.dev/berth/volumes/loop"
	"berth.dev/berth/volumes/volumestest"
)

// volumeID makes an id of words.
func volumeID(words ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(words, " ")))
	return "vol-" + hex.EncodeToString(sum[:])[:17]
}

// blockVolume is a volume of 16 MiB.
func blockVolume(task, name string) *volumes.Volume {
	return &volumes.Volume{Task: task, Name: name, Block: &volumes.BlockDevice{
		ID: volumeID(task, name), Size: 16 << 20, Kind: "ext4", Path: task + "_" + name,
	}}
}

func TestBlockVolumesOfThePool(t *testing.T) {
	for name, kept := range map[string]bool{"deleted with the task": false, "kept": true} {
		t.Run(name, func(t *testing.T) {
			d := dirs(t)
			pool := &block.Pool{Dir: filepath.Join(t.TempDir(), "pool")}
			volumestest.Run(t, volumestest.Subject{
				Dirs: d, Kept: kept,
				New: func() volumes.Driver { return volumes.NewBlock(volumes.BlockConfig{Dirs: d, Pool: pool}) },
				Volume: func(task, name string) *volumes.Volume {
					v := blockVolume(task, name)
					v.Block.Pooled, v.Block.Delete = true, !kept
					return v
				},
			})
			b := volumes.NewBlock(volumes.BlockConfig{Dirs: d, Pool: pool})
			left, err := b.Tasks() // that of the sweep's own test
			for _, id := range left {
				err = errors.Join(err, b.Sweep(id))
			}
			all, listErr := pool.Volumes()
			if err = errors.Join(err, listErr); err != nil || (len(all) > 0) != kept {
				t.Errorf("in the pool: %v, %v", all, err)
			}
		})
	}
}

// machine is a host whose devices are loop devices that carry serial numbers.
type machine struct {
	t   *testing.T
	sys string

	mu   sync.Mutex
	disk map[string]string // by volume
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, sys: t.TempDir(), disk: make(map[string]string)}
	if err := os.Mkdir(filepath.Join(m.sys, "block"), 0o755); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) finder() block.Finder { return block.Finder{Sys: m.sys} }

// plug makes a disk for a volume, or finds it, and returns its path.
func (m *machine) plug(id string) string {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if d := m.disk[id]; d != "" {
		return d
	}
	file := filepath.Join(m.t.TempDir(), id)
	err := os.WriteFile(file, nil, 0o600)
	if err == nil {
		err = os.Truncate(file, 16<<20)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	f, err := loop.Attach(file)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { f.Close() }) //nolint:errcheck // the test is over
	dir := filepath.Join(m.sys, "block", filepath.Base(f.Name()), "device")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "serial"), []byte(block.Serial(id)+"\n"), 0o644); err != nil {
		m.t.Fatal(err)
	}
	m.disk[id] = f.Name()
	return f.Name()
}

func TestBlockVolumesThatArePluggedIn(t *testing.T) {
	d := dirs(t)
	m := newMachine(t)
	volumestest.Run(t, volumestest.Subject{
		Dirs: d, Kept: true,
		New: func() volumes.Driver { return volumes.NewBlock(volumes.BlockConfig{Dirs: d, Finder: m.finder()}) },
		Volume: func(task, name string) *volumes.Volume {
			v := blockVolume(task, name)
			if volumes.SafeName(name) && volumes.SafeName(task) {
				m.plug(v.Block.ID)
			}
			return v
		},
	})
}

// What is on a device is never overwritten: a file system is made only where there is
// nothing, also where an earlier try was cut short.
func TestBlockVolumeWithContentIsNotTouched(t *testing.T) {
	fill := func(device string, at int64, text string) {
		f, err := os.OpenFile(device, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte(text), at)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string, args ...string) {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	for name, c := range map[string]struct {
		make func(device string)
		want string // of the error; empty means that it is mounted
	}{
		"empty":             {func(string) {}, ""},
		"same file system":  {func(d string) { run("mke2fs", "-q", "-F", "-t", "ext4", d) }, ""},
		"other file system": {func(d string) { run("mke2fs", "-q", "-F", "-t", "ext2", d) }, "the volume holds ext2, not ext4: it is not touched"},
		"partitions": {func(d string) {
			fill(d, 446+4, "\x83")
			fill(d, 454, "\x08")
			fill(d, 458, "\x10")
			fill(d, 510, "\x55\xaa")
		}, "it is not touched"},
		"data at the start":      {func(d string) { fill(d, 1<<20, "somebody's") }, "the volume is not empty"},
		"data at the end":        {func(d string) { fill(d, 16<<20-512, "somebody's") }, "the volume is not empty"},
		"encrypted by some tool": {func(d string) { fill(d, 0, "LUKS\xba\xbe\x00\x01") }, "it is not touched"},
	} {
		t.Run(name, func(t *testing.T) {
			d, m := dirs(t), newMachine(t)
			b := volumes.NewBlock(volumes.BlockConfig{Dirs: d, Finder: m.finder()})
			v := blockVolume("task", "v")
			device := m.plug(v.Block.ID)
			c.make(device)
			before := content(t, device)
			_, err := b.Mount(t.Context(), v)
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
			} else if !errors.Is(err, volumes.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			} else if content(t, device) != before {
				t.Error("the device was written to")
			}
			if err := b.Unmount(t.Context(), v); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("cut short", func(t *testing.T) {
		d, m := dirs(t), newMachine(t)
		b := volumes.NewBlock(volumes.BlockConfig{Dirs: d, Finder: m.finder()})
		v := blockVolume("task", "v")
		device := m.plug(v.Block.ID)
		if err := os.MkdirAll(filepath.Join(d.State, "formatting"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d.State, "formatting", v.Block.ID), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		fill(device, 1<<20, "half a file system")
		if _, err := b.Mount(t.Context(), v); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(filepath.Join(d.State, "formatting")); err != nil || len(left) > 0 {
			t.Errorf("marks left: %v, %v", left, err)
		}
		if err := b.Unmount(t.Context(), v); err != nil {
			t.Error(err)
		}
	})
}

func content(t *testing.T, device string) [32]byte {
	t.Helper()
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 16<<20)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}

// A device that comes late is waited for, and one that does not come is not for ever.
func TestBlockVolumeIsWaitedFor(t *testing.T) {
	d, m := dirs(t), newMachine(t)
	b := volumes.NewBlock(volumes.BlockConfig{Dirs: d, Finder: m.finder()})
	late, never := blockVolume("late", "v"), blockVolume("never", "v")
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.Mount(short, never); !errors.Is(err, volumes.ErrUnavailable) || !strings.Contains(err.Error(), block.Serial(never.Block.ID)) {
		t.Errorf("a device that never comes: %v", err)
	}
	mounted := make(chan error, 1)
	go func() {
		_, err := b.Mount(t.Context(), late)
		mounted <- err
	}()
	m.plug(late.Block.ID)
	if err := <-mounted; err != nil {
		t.Error(err)
	}
	if err := b.Unmount(t.Context(), late); err != nil {
		t.Error(err)
	}
}

// A volume belongs to a group that its containers are in; what was on it before, too.
func TestBlockVolumeBelongsToItsGroup(t *testing.T) {
	d := dirs(t)
	pool := &block.Pool{Dir: filepath.Join(t.TempDir(), "pool")}
	b := volumes.NewBlock(volumes.BlockConfig{Dirs: d, Pool: pool})
	v := blockVolume("task", "v")
	v.Block.Pooled = true
	m, err := b.Mount(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(m.Path, &st); err != nil || st.Gid != m.Group || m.Group < 900000 || m.Group >= 1000000 || st.Mode&0o2777 != 0o2775 {
		t.Errorf("group %d, want %d; mode %o; %v", st.Gid, m.Group, st.Mode, err)
	}
	run := func(script string) error {
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = m.Path
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 12345, Groups: []uint32{m.Group}}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = errors.Join(err, errors.New(string(out)))
		}
		return err
	}
	for _, dir := range []string{filepath.Dir(d.Run), d.Run, filepath.Join(d.Run, "tasks"), filepath.Join(d.Run, "tasks", "task"), filepath.Dir(filepath.Dir(d.Run))} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := run("mkdir a && echo x > a/file && ln -s /etc/passwd a/link"); err != nil {
		t.Error(err)
	}
	used, size, err := b.Usage(t.Context(), v)
	if err != nil || size == 0 || used > size {
		t.Errorf("%d of %d bytes are used, %v", used, size, err)
	}
	if err := b.Unmount(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	var passwd, now unix.Stat_t
	if err := unix.Stat("/etc/passwd", &passwd); err != nil {
		t.Fatal(err)
	}
	v.Block.Path = "another"
	if m, err = b.Mount(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(d.Run, "tasks", "task"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := run("echo y >> a/file && touch a/other"); err != nil {
		t.Errorf("another group on a volume that was used before: %v", err)
	}
	if err := errors.Join(unix.Stat("/etc/passwd", &now)); err != nil || now.Gid != passwd.Gid || now.Mode != passwd.Mode {
		t.Error("a link on the volume was followed")
	}
	if err := b.Unmount(t.Context(), v); err != nil {
		t.Error(err)
	}
}

func TestBlockVolumesThatAreRefused(t *testing.T) {
	b := volumes.NewBlock(volumes.BlockConfig{Dirs: dirs(t)})
	for want, d := range map[string]*volumes.BlockDevice{
		"must be that of a block volume": {ID: "../etc", Path: "p"},
		"file system \"ntfs\"":           {ID: "vol-01234567", Kind: "ntfs", Path: "p"},
		"has no pool":                    {ID: "vol-01234567", Pooled: true, Path: "p"},
	} {
		if _, err := b.Mount(t.Context(), &volumes.Volume{Task: "t", Name: "v", Block: d}); !errors.Is(err, volumes.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	pool := &block.Pool{Dir: t.TempDir()}
	b = volumes.NewBlock(volumes.BlockConfig{Dirs: dirs(t), Pool: pool})
	v := blockVolume("t", "v")
	v.Block.Pooled, v.Block.Size = true, 1<<60
	if _, err := b.Mount(t.Context(), v); !errors.Is(err, block.ErrFull) {
		t.Errorf("a volume larger than the host: %v", err)
	}
	v.Block.Delete = true
	if err := b.Unmount(t.Context(), v); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(pool.Dir); err != nil || len(left) > 0 {
		t.Errorf("left in the pool: %v, %v", left, err)
	}
}
