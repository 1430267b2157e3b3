package logfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// Position is a place in a log, between two entries. It stays good when files are
// rotated. The zero value is the start of the oldest file there is.
type Position struct {
	File   string `json:"file,omitempty"`   // which file, by its head
	Offset int64  `json:"offset,omitempty"` // in bytes
	Seq    uint64 `json:"seq,omitempty"`    // entries of the log before this place
}

// Cursor reads a log from a position onwards, across rotated files, while it is
// written. It keeps one file open and no data. It is for one goroutine.
type Cursor struct {
	path string
	pos  Position
	want Position // where to begin, until a file is open
	f    *os.File
	lost uint64
}

// ReadSize is a size of buffer for Cursor.Read that holds any entry: a piece of a line
// may take six bytes for each of its own.
const ReadSize = 128 << 10

// NewCursor returns a cursor for the log at path that begins at a position. Nothing is
// opened yet.
func NewCursor(path string, at Position) *Cursor {
	return &Cursor{path: path, want: at, pos: at}
}

// Position is the place after the last entry that was returned.
func (c *Cursor) Position() Position { return c.pos }

// Lost returns how many entries were rotated away before they were read, and begins to
// count from zero again.
func (c *Cursor) Lost() uint64 {
	n := c.lost
	c.lost = 0
	return n
}

// Close closes the open file. The cursor may be used again.
func (c *Cursor) Close() {
	if c.f != nil {
		c.f.Close() // it was only read
		c.f = nil
		c.want = c.pos
	}
}

// Read calls show for entries that follow, with the position behind each, as many as fit
// into buf, which should be of ReadSize. show returns false to leave an entry, and those after it, for the next call.
// io.EOF means that there is nothing now; a log that does not exist is at its end.
func (c *Cursor) Read(buf []byte, show func(Entry, Position) bool) error {
	for {
		if c.f == nil {
			if err := c.begin(); err != nil {
				return err
			}
		}
		n, err := c.some(buf, show)
		if n > 0 || err != nil {
			return err
		}
		newest, err := c.newest()
		if err != nil {
			return err
		}
		if newest {
			return io.EOF
		}
		// What was written between the end that we saw and the rotation.
		if n, err := c.some(buf, show); n > 0 || err != nil {
			return err
		}
		if err := c.advance(); err != nil {
			return err
		}
	}
}

// begin opens the file that the position is in or, if that is gone, the oldest.
func (c *Cursor) begin() error {
	if c.want.File != "" {
		for i, missing := 0, 0; missing < 2; i++ {
			err := c.open(Rotated(c.path, i), c.want)
			switch {
			case err == nil:
				return nil
			case errors.Is(err, errOther):
				missing = 0
			case errors.Is(err, fs.ErrNotExist):
				missing++
			default:
				return err
			}
		}
	}
	for range advanceTries {
		if err := c.advance(); err != io.EOF {
			return err
		}
		// A log whose files have no heads: its oldest file.
		last := oldest(c.path)
		if last < 0 {
			return io.EOF
		}
		err := c.openHeadless(Rotated(c.path, last))
		switch {
		case errors.Is(err, errOther): // the log was begun just now, and is found by its heads
		case errors.Is(err, fs.ErrNotExist):
			return io.EOF
		default:
			return err
		}
	}
	return io.EOF
}

// errOther is of a file that is not the one that is wanted.
var errOther = errors.New("another file of the log")

// open opens a file at a position if it is the file of that; if not, the error is
// errOther.
func (c *Cursor) open(path string, at Position) error {
	src, err := openSource(path)
	if err != nil {
		return err
	}
	h, err := src.head()
	if err == nil && h.File != at.File {
		err = errOther
	}
	if err != nil {
		src.close()
		return err
	}
	f, err := src.plain()
	if err != nil {
		return err
	}
	c.Close()
	c.f, c.pos = f, at
	return nil
}

// openHeadless opens a file that has no head, or none yet, at its start; for one that has
// a head the error is errOther.
func (c *Cursor) openHeadless(path string) error {
	src, err := openSource(path)
	if err != nil {
		return err
	}
	h, err := src.head()
	if err == nil && h.size > 0 {
		err = errOther
	}
	if err != nil {
		src.close()
		return err
	}
	f, err := src.plain()
	if err != nil {
		return err
	}
	c.Close()
	c.f = f
	c.enter(h)
	return nil
}

// some shows what can be read at once from the open file and returns how many lines
// it has passed.
func (c *Cursor) some(buf []byte, show func(Entry, Position) bool) (int, error) {
	k, err := c.f.ReadAt(buf, c.pos.Offset)
	if err != nil && err != io.EOF {
		return 0, err
	}
	data, lines := buf[:k], 0
	if c.pos.Offset == 0 { // the file was empty when it was opened
		h := parseHead(data)
		if h.size == 0 && bytes.IndexByte(data, '\n') < 0 && len(data) < maxHead {
			return 0, nil
		}
		c.enter(h)
		data = data[h.size:]
	}
	for {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			break
		}
		next := c.pos
		next.Offset += int64(i) + 1
		next.Seq++
		if e, ok := ParseEntry(data[:i]); ok && !show(e, next) {
			return lines + 1, nil
		}
		lines++
		c.pos = next
		data = data[i+1:]
	}
	if lines == 0 && len(data) == len(buf) {
		// Longer than any entry: not a log of ours. It is passed over.
		c.pos.Offset += int64(len(data))
		return 1, nil
	}
	return lines, nil
}

// newest reports whether the open file is the one that is written.
func (c *Cursor) newest() (bool, error) {
	mine, err := c.f.Stat()
	if err != nil {
		return false, err
	}
	st, err := os.Stat(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // a rotation is under way, or the log was removed
	}
	if err != nil {
		return false, fmt.Errorf("log %s: %w", c.path, err)
	}
	return os.SameFile(mine, st), nil
}

// advanceTries is how often a file is looked for that should be there, while files are
// renamed.
const advanceTries = 5

// advance opens the file after the open one: that whose first entry is the next, or,
// when it was rotated away, the next there is. io.EOF means that there is none now.
func (c *Cursor) advance() error {
	for try := 0; ; try++ {
		f, h, err := c.following()
		if err != nil {
			return err
		}
		if f == nil {
			return io.EOF
		}
		if h.First > c.pos.Seq && try < advanceTries {
			f.Close() // it is the wrong one if a rotation came in between
			continue
		}
		c.Close()
		c.f = f
		c.enter(h)
		return nil
	}
}

// following finds the file with the lowest first entry that is not before the position.
func (c *Cursor) following() (*os.File, head, error) {
	var best source
	var at head
	for i, missing := 0, 0; missing < 2; i++ {
		src, err := openSource(Rotated(c.path, i))
		if errors.Is(err, fs.ErrNotExist) {
			missing++ // a rotation in its midst leaves one hole
			continue
		}
		var h head
		if err == nil {
			missing = 0
			if h, err = src.head(); err != nil {
				src.close()
			}
		}
		if err != nil {
			if best.f != nil {
				best.close()
			}
			return nil, head{}, err
		}
		if h.size == 0 || h.File == c.pos.File || h.First < c.pos.Seq || best.f != nil && h.First >= at.First {
			src.close()
			continue
		}
		if best.f != nil {
			best.close()
		}
		best, at = src, h
	}
	if best.f == nil {
		return nil, at, nil
	}
	f, err := best.plain()
	return f, at, err
}

// enter puts the position at the start of the open file.
func (c *Cursor) enter(h head) {
	if h.First > c.pos.Seq {
		c.lost += h.First - c.pos.Seq
	}
	c.pos = Position{File: h.File, Offset: h.size, Seq: max(h.First, c.pos.Seq)}
}

// ParseEntry decodes one line of a file; false for one that is no entry.
func ParseEntry(line []byte) (Entry, bool) {
	if e, ok := parsePlain(line); ok {
		return e, true
	}
	var e Entry
	return e, json.Unmarshal(line, &e) == nil && e.Stream != ""
}

var plainOpen, plainStream, plainTime, plainClose = []byte(`{"log":"`), []byte(`","stream":"`), []byte(`","time":"`), []byte(`"}`)

// parsePlain decodes an entry as Writer makes them whose text needs no unescaping but
// of its final newline, which nearly all are: ten times as fast as encoding/json.
func parsePlain(line []byte) (Entry, bool) {
	rest, ok := bytes.CutPrefix(line, plainOpen)
	if !ok {
		return Entry{}, false
	}
	end := bytes.IndexByte(rest, '"')
	if end < 0 {
		return Entry{}, false
	}
	text := rest[:end]
	body, newline := bytes.CutSuffix(text, []byte(`\n`))
	if bytes.IndexByte(body, '\\') >= 0 {
		return Entry{}, false
	}
	rest, ok = bytes.CutPrefix(rest[end:], plainStream)
	stream, rest, ok2 := bytes.Cut(rest, plainTime)
	stamp, ok3 := bytes.CutSuffix(rest, plainClose)
	if !ok || !ok2 || !ok3 || len(stream) == 0 || bytes.IndexByte(stream, '\\') >= 0 || bytes.IndexByte(stream, '"') >= 0 {
		return Entry{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return Entry{}, false
	}
	e := Entry{Stream: Stdout, Time: at}
	if string(stream) != Stdout {
		e.Stream = string(stream)
	}
	if newline {
		b := make([]byte, len(body)+1)
		copy(b, body)
		b[len(body)] = '\n'
		e.Log = string(b)
	} else {
		e.Log = string(body)
	}
	return e, true
}
