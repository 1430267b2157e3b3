// Package ephemeraltest holds what every way to limit the storage of tasks must do.
package ephemeraltest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"berth.dev/berth/volumes/ephemeral"
)

const limit = 64 << 20

// Run checks the mechanism that is expected for a directory on its own file system.
func Run(t *testing.T, dir, mechanism string) {
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
	if err := errors.Join(os.Remove(filepath.Join(at, "x")), unix.Unmount(at, unix.MNT_DETACH)); err != nil {
		t.Fatal(err)
	}
	unix.Sync()
}

// fill writes to a file until it has size bytes or cannot grow. It does so as a task
// would, without CAP_SYS_RESOURCE, with which ext4 lets root exceed a quota.
func fill(name string, size int) (n int, err error) {
	ended := make(chan struct{})
	go func() { // on a thread of its own, which ends with it
		defer close(ended)
		runtime.LockOSThread()
		if err = withoutResource(); err == nil {
			n, err = write(name, size)
		}
	}()
	<-ended
	return n, err
}

func withoutResource() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&head, &caps[0]); err != nil {
		return err
	}
	caps[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	return unix.Capset(&head, &caps[0])
}

func write(name string, size int) (n int, err error) {
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
