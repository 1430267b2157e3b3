package logfile

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// Entry is one stored piece of output.
type Entry struct {
	Log    string    `json:"log"`
	Stream string    `json:"stream"`
	Time   time.Time `json:"time"`
}

// Options choose what Read shows.
type Options struct {
	// Tail is how many of the last entries to begin with; negative means all.
	Tail int
	// Since leaves out older entries when it is set.
	Since time.Time
	// Follow goes on with what is written later, until Done is closed or ctx ends.
	Follow bool
	// Done, when closed, says that nothing more will be written: Read returns after
	// what is there. Nil means never.
	Done <-chan struct{}
}

// pollInterval is how often a follower looks for new entries.
const pollInterval = 100 * time.Millisecond

// Read calls show for the entries of the log at path, oldest first, across rotated
// files. Without Follow a log that does not exist is an error that wraps
// fs.ErrNotExist. An error of show ends it and is returned.
func Read(ctx context.Context, path string, o Options, show func(Entry) error) error {
	r := &reader{path: path, show: show, since: o.Since}
	defer r.close()
	if oldest(path) < 0 && !o.Follow {
		return fmt.Errorf("log %s: %w", path, fs.ErrNotExist)
	}
	if o.Tail >= 0 {
		ring, err := r.tail(o.Tail)
		if err != nil {
			return err
		}
		for _, e := range ring {
			if err := r.emit(e); err != nil {
				return err
			}
		}
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	last := !o.Follow
	for {
		if err := r.drain(r.emit); err != nil {
			return err
		}
		if last {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-o.Done:
			last = true
		case <-tick.C:
		}
	}
}

// oldest is the highest number of a file of the log that exists, or -1.
func oldest(path string) int {
	n := -1
	for i := 0; ; i++ {
		if _, err := os.Lstat(Rotated(path, i)); err == nil {
			n = i
		} else if i > 0 {
			return n
		}
	}
}

type reader struct {
	path  string
	show  func(Entry) error
	since time.Time

	f    *os.File
	buf  *bufio.Reader
	part []byte // a line that is not complete yet
}

func (r *reader) close() {
	if r.f != nil {
		r.f.Close()
		r.f = nil
	}
}

func (r *reader) open(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	r.close()
	r.f, r.part = f, nil
	if r.buf == nil {
		r.buf = bufio.NewReaderSize(f, 64<<10)
	} else {
		r.buf.Reset(f)
	}
	return nil
}

// openOldest opens the oldest file of the log; false when there is none.
func (r *reader) openOldest() (bool, error) {
	for {
		i := oldest(r.path)
		if i < 0 {
			return false, nil
		}
		err := r.open(Rotated(r.path, i))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		if oldest(r.path) == i { // else a rotation has moved the oldest on
			return true, nil
		}
	}
}

func (r *reader) emit(e Entry) error {
	if e.Time.Before(r.since) {
		return nil
	}
	return r.show(e)
}

// drain reads from the present position to the end of the newest file.
func (r *reader) drain(emit func(Entry) error) error {
	for {
		if r.f == nil {
			if ok, err := r.openOldest(); !ok {
				return err
			}
		}
		if err := r.lines(emit); err != nil {
			return err
		}
		next, err := r.next()
		if err != nil || next == "" {
			return err
		}
		// What was written between the end that we saw and the rotation.
		if err := r.lines(emit); err != nil {
			return err
		}
		if err := r.open(next); errors.Is(err, fs.ErrNotExist) {
			return nil // the log was removed, or a rotation is under way: ask again later
		} else if err != nil {
			return err
		}
	}
}

// next is the file after the open one, or "" when that is the newest.
func (r *reader) next() (string, error) {
	mine, err := r.f.Stat()
	if err != nil {
		return "", err
	}
	for i := 0; ; i++ {
		st, err := os.Stat(Rotated(r.path, i))
		if errors.Is(err, fs.ErrNotExist) {
			if i == 0 {
				continue // between the two renames of a rotation
			}
			// The open file was rotated away: go on with the oldest there is.
			return Rotated(r.path, i-1), nil
		}
		if err != nil {
			return "", err
		}
		if os.SameFile(mine, st) {
			if i == 0 {
				return "", nil
			}
			return Rotated(r.path, i-1), nil
		}
	}
}

// lines reads every complete line up to the present end of the open file. Lines that
// are not entries are skipped: a crash may have torn one.
func (r *reader) lines(emit func(Entry) error) error {
	for {
		piece, err := r.buf.ReadSlice('\n')
		r.part = append(r.part, piece...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			if len(r.part) > 16*MaxLine {
				r.part = r.part[:0]
			}
			continue
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		var e Entry
		ok := json.Unmarshal(r.part, &e) == nil
		r.part = r.part[:0]
		if !ok {
			continue
		}
		if err := emit(e); err != nil {
			return err
		}
	}
}

// tail reads the whole log and keeps the last n entries, leaving the reader at the end.
func (r *reader) tail(n int) ([]Entry, error) {
	var ring []Entry
	err := r.drain(func(e Entry) error {
		ring = append(ring, e)
		if len(ring) > 2*n+64 {
			ring = append(ring[:0], ring[len(ring)-n:]...)
		}
		return nil
	})
	if len(ring) > n {
		ring = ring[len(ring)-n:]
	}
	return ring, err
}
