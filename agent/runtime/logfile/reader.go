package logfile

import (
	"context"
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
	if oldest(path) < 0 && !o.Follow {
		return fmt.Errorf("log %s: %w", path, fs.ErrNotExist)
	}
	r := &reader{cursor: NewCursor(path, Position{}), buf: make([]byte, ReadSize), since: o.Since, show: show}
	defer r.cursor.Close()
	if o.Tail >= 0 {
		if err := r.tail(o.Tail); err != nil {
			return err
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
	for i, missing := 0, 0; missing < 2; i++ {
		name := Rotated(path, i)
		_, err := os.Lstat(name)
		if err != nil {
			_, err = os.Lstat(name + packedSuffix)
		}
		if err == nil {
			n, missing = i, 0
		} else {
			missing++ // a rotation in its midst leaves one hole
		}
	}
	return n
}

type reader struct {
	cursor *Cursor
	buf    []byte
	since  time.Time
	show   func(Entry) error
}

func (r *reader) emit(e Entry) error {
	if e.Time.Before(r.since) {
		return nil
	}
	return r.show(e)
}

// drain hands over everything up to the present end of the log.
func (r *reader) drain(emit func(Entry) error) error {
	var stop error
	for {
		err := r.cursor.Read(r.buf, func(e Entry, _ Position) bool {
			stop = emit(e)
			return stop == nil
		})
		switch {
		case stop != nil:
			return stop
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// tail reads the whole log and shows the last n entries.
func (r *reader) tail(n int) error {
	var ring []Entry
	err := r.drain(func(e Entry) error {
		ring = append(ring, e)
		if len(ring) > 2*n+64 {
			ring = append(ring[:0], ring[len(ring)-n:]...)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, e := range ring[max(0, len(ring)-n):] {
		if err := r.emit(e); err != nil {
			return err
		}
	}
	return nil
}
