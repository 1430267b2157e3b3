package ephemeral_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"berth.dev/berth/volumes/ephemeral"
)

func needRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("quotas need root")
	}
	t.Skip("quotas need root")
}

// onBtrfs is a directory on a btrfs of its own.
func onBtrfs(t *testing.T) string {
	dir := t.TempDir()
	img, at := filepath.Join(dir, "fs.img"), filepath.Join(dir, "fs")
	for _, cmd := range [][]string{
		{"truncate", "-s", "512M", img}, {"mkfs.btrfs", "-q", img}, {"mkdir", at}, {"mount", "-o", "loop", img, at},
	} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", cmd, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return at
}

func TestLoop(t *testing.T) {
	needRoot(t)
	suite(t, t.TempDir(), "loop")
}

func TestBtrfs(t *testing.T) {
	needRoot(t)
	suite(t, onBtrfs(t), "btrfs")
}

const limit = 64 << 20

// suite is what every mechanism must do.
func suite(t *testing.T, dir, mechanism string) {
	s, err := ephemeral.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if s.Mechanism() != mechanism {
		t.Fatalf("mechanism %s, want %s", s.Mechanism(), mechanism)
	}
	t.Cleanup(func() {
		if err := s.Teardown(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
	for _, id := range []string{"one", "two"} {
		if there, err := s.Check(id); err != nil || there {
			t.Fatalf("before: %t, %v", there, err)
		}
		if _, err := s.Create(t.Context(), id, limit); err != nil {
			t.Fatal(err)
		}
	}
	again, err := ephemeral.Open(t.Context(), dir) // as a restart of the agent does
	if err != nil {
		t.Fatal(err)
	}
	one, err := again.Create(t.Context(), "one", limit)
	if err != nil {
		t.Fatal(err)
	}
	if there, err := again.Check("one"); err != nil || !there {
		t.Fatalf("after: %t, %v", there, err)
	}
	if ids, err := again.Tasks(); err != nil || len(ids) != 2 {
		t.Fatalf("tasks %v, %v", ids, err)
	}
	before, err := again.Usage("one")
	if err != nil || before.Limit > limit || before.Limit < limit*8/10 {
		t.Fatalf("usage %+v, %v", before, err)
	}
	overlay(t, one)
	if n, err := fill(filepath.Join(one, "x"), 2*limit); !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) || n > limit {
		t.Errorf("wrote %d bytes: %v", n, err)
	}
	unix.Sync()
	after, err := again.Usage("one")
	if err != nil || after.Used < limit*8/10 || after.Used > limit {
		t.Errorf("usage of a full one %+v, %v", after, err)
	}
	// Its neighbour and the file system below are not full.
	if n, err := fill(filepath.Join(dir, "two", "x"), limit/2); err != nil {
		t.Errorf("the neighbour wrote %d bytes: %v", n, err)
	}
	if n, err := fill(filepath.Join(dir, ".x"), 1<<20); err != nil {
		t.Errorf("the host wrote %d bytes: %v", n, err)
	}
	if err := os.Remove(filepath.Join(dir, ".x")); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := again.Remove("one"); err != nil {
			t.Error(err)
		}
	}
	if there, err := again.Check("one"); err != nil || there {
		t.Errorf("removed: %t, %v", there, err)
	}
	if _, err := again.Create(t.Context(), "../x", limit); err == nil {
		t.Error("a path was taken for a name")
	}
}

// overlay writes through an overlay whose upper directory is limited, as containers do.
func overlay(t *testing.T, dir string) {
	lower, at := t.TempDir(), t.TempDir()
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("overlay", at, "overlay", 0, "lowerdir="+lower+",upperdir="+dir+"/upper,workdir="+dir+"/work"); err != nil {
		t.Fatal(err)
	}
	n, err := fill(filepath.Join(at, "x"), 2*limit)
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) || n > limit {
		t.Errorf("wrote %d bytes through an overlay: %v", n, err)
	}
	if err := errors.Join(os.Remove(filepath.Join(at, "x")), unix.Unmount(at, 0)); err != nil {
		t.Fatal(err)
	}
	unix.Sync()
}

// fill writes to a file until it has size bytes or cannot grow.
func fill(name string, size int) (n int, err error) {
	f, err := os.Create(name)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	block := bytes.Repeat([]byte{0xa5}, 1<<20)
	for n < size {
		w, err := f.Write(block)
		n += w
		if err != nil {
			return n, err
		}
	}
	return n, f.Sync()
}
