package socket

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
)

// Sockets made at the same time are private all of them, and what else is made meanwhile
// has the mode that it should have.
func TestSocketsArePrivate(t *testing.T) {
	dir := t.TempDir()
	var work sync.WaitGroup
	for i := range 50 {
		path := filepath.Join(dir, strconv.Itoa(i))
		work.Go(func() {
			for range 2 { // the second takes the place of the first
				l, err := Listen(path)
				if err != nil {
					t.Error(err)
					return
				}
				l.(*net.UnixListener).SetUnlinkOnClose(false)
				mode(t, path, os.ModeSocket|0o600)
				l.Close()
			}
		})
		work.Go(func() {
			d := path + ".d"
			if err := os.Mkdir(d, 0o700); err != nil {
				t.Error(err)
				return
			}
			mode(t, d, os.ModeDir|0o700)
		})
	}
	work.Wait()
}

func TestSocketInAnInvalidPlace(t *testing.T) {
	if l, err := Listen(filepath.Join(t.TempDir(), "missing", "socket")); err == nil {
		l.Close()
		t.Error("no error for a folder that is not there")
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "taken", "by"), 0o700); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen(filepath.Join(dir, "taken")); err == nil {
		l.Close()
		t.Error("no error for a path at which a folder with something in it is")
	}
}

func mode(t *testing.T, path string, want os.FileMode) {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Error(err)
		return
	}
	if st.Mode() != want {
		t.Errorf("%s has mode %v, want %v", filepath.Base(path), st.Mode(), want)
	}
}
