package state

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ballastSize = 1 << 20
	// ballastRoom is how many bytes must be free before the ballast is made again, so
	// that it does not take the last of the space itself.
	ballastRoom = 4 * ballastSize
	// ballastPause is how often that is looked at.
	ballastPause = time.Second
)

// ballast is a file that is given up when its filesystem is full, so that the end of
// the tasks can still be recorded. Only the committer uses it.
type ballast struct {
	path   string
	out    bool // released, or never made
	looked time.Time
}

func (b *ballast) released() bool { return b.out }

// make writes the file unless it is there. A filesystem without room for it is already
// in the state that the ballast is for.
func (b *ballast) make() error {
	if b.find() {
		return nil
	}
	var free unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(b.path), &free); err != nil {
		return err
	}
	if free.Bavail*uint64(free.Bsize) < ballastRoom {
		return nil
	}
	// Not zeros, which some filesystems do not store.
	if err := writeFile(b.path, bytes.Repeat([]byte("ballast\n"), ballastSize/8)); err != nil {
		return errors.Join(err, b.remove())
	}
	b.out = false
	return nil
}

// find reports whether the file is there.
func (b *ballast) find() bool {
	st, err := os.Lstat(b.path)
	b.out = err != nil || !st.Mode().IsRegular() || st.Size() != ballastSize
	return !b.out
}

// release gives the space back and reports whether there was any.
func (b *ballast) release() bool {
	if b.out {
		return false
	}
	b.out = true
	return b.remove() == nil
}

func (b *ballast) remove() error {
	var all error
	for _, p := range []string{b.path, b.path + ".new"} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = errors.Join(all, err)
		}
	}
	return all
}

// restore makes the ballast again when there is room, looking at most once a second,
// and reports whether it is there.
func (b *ballast) restore(now time.Time) bool {
	if now.Sub(b.looked) < ballastPause && now.After(b.looked) {
		return false
	}
	b.looked = now
	return b.make() == nil && !b.out
}
