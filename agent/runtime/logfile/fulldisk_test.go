package logfile

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// smallDisk is a directory on a file system of a few pages, and a function that leaves it
// with a number of bytes to write.
func smallDisk(t *testing.T) (string, func(left int)) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("mounting takes root")
		}
		t.Skip("mounting takes root")
	}
	dir := t.TempDir()
	const size = 16 * 4096
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	ballast := filepath.Join(dir, "ballast")
	return dir, func(left int) {
		if err := os.Remove(ballast); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		if n := int(st.Bavail)*int(st.Bsize) - left; n > 0 {
			if err := os.WriteFile(ballast, make([]byte, n), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A reader may have passed what fitted of a write before the writer knows that the disk is
// full. It must stay where it is then, and be counted as stored.
func TestAReaderFollowsAcrossAFullDisk(t *testing.T) {
	for _, files := range []int{1, 3} {
		t.Run(fmt.Sprint(files), func(t *testing.T) {
			dir, leave := smallDisk(t)
			path := filepath.Join(dir, Name)
			w := NewWriter(path, 1<<20, files)
			t.Cleanup(func() { w.Close() })
			leave(4096)
			var lines [][]byte
			for i := range 200 {
				lines = append(lines, fmt.Appendf(nil, "line %d\n", i))
			}
			w.Write(Stdout, time.Now(), lines...)
			c := NewCursor(path, Position{})
			defer c.Close()
			passed := readAll(t, c)
			if len(passed) == 0 || len(passed) == len(lines) || uint64(len(lines)-len(passed)) != w.Dropped() {
				t.Fatalf("%d of %d lines are there, %d were dropped", len(passed), len(lines), w.Dropped())
			}
			for i, line := range passed {
				if line != string(lines[i]) {
					t.Fatalf("line %d is %q", i, line)
				}
			}
			leave(8192)
			w.Write(Stdout, time.Now(), []byte("after\n"))
			note := fmt.Sprintf("berth-logger: %d lines lost", len(lines)-len(passed))
			if got := readAll(t, c); len(got) != 2 || !bytes.HasPrefix([]byte(got[0]), []byte(note)) || got[1] != "after\n" {
				t.Errorf("got %q, want %q and after", got, note)
			}
			if want := uint64(len(passed) + 2); c.Position().Seq != want {
				t.Errorf("position %d, want %d", c.Position().Seq, want)
			}
			if n := c.Lost(); n != 0 {
				t.Errorf("the reader counts %d as lost", n)
			}
		})
	}
}

func TestAReaderFollowsALogOfOneFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), Name)
	w := NewWriter(path, 4096, 1)
	defer w.Close()
	c := NewCursor(path, Position{})
	defer c.Close()
	buf := make([]byte, ReadSize)
	seen, last := uint64(0), ""
	for i := range 1000 {
		w.Write(Stdout, time.Now(), fmt.Appendf(nil, "line %d\n", i))
		if i%7 != 0 {
			continue
		}
		for {
			err := c.Read(buf, func(e Entry, _ Position) bool { seen++; last = e.Log; return true })
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if want := fmt.Sprintf("line %d\n", i); last != want {
			t.Fatalf("the last line is %q, want %q", last, want)
		}
	}
	if seen == 0 || c.Position().Seq < 990 {
		t.Errorf("saw %d lines, position %d", seen, c.Position().Seq)
	}
}
