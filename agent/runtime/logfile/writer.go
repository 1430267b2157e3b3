package logfile

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	// Name is the name of the current log file in a container's log directory.
	Name = "log.json"
	// MaxLine is the longest piece of a line in one entry (16 KiB, as in Docker).
	MaxLine = 16 << 10
	// DefaultMaxBytes and DefaultFiles bound a container's logs to 5 files of 10 MiB.
	DefaultMaxBytes = 10 << 20
	DefaultFiles    = 5
)

// Stream names in entries. StreamNote carries the writer's own remarks, for example
// that entries were lost to a full disk.
const (
	Stdout     = "stdout"
	Stderr     = "stderr"
	StreamNote = "berth"
)

// Writer appends entries to a rotated log. It never fails: what cannot be written is
// dropped and counted, and the count is noted in the log once writing works again.
// Its methods may be called from several goroutines.
type Writer struct {
	path     string
	maxBytes int64
	files    int

	// Again, if set, is asked when entries could not be stored: true has them tried
	// again, false has them dropped. It may wait, and is called with no lock held.
	Again func(error) bool
	// Compress has rotated files compressed with gzip; a log of one file has none.
	Compress bool

	mu      sync.Mutex
	packing sync.WaitGroup // the newest rotated file is being compressed
	f       *os.File
	size    int64
	head    int64  // size of the open file's head
	entries uint64 // stored so far, in all files
	dropped uint64
	reason  string
	buf     []byte
}

// NewWriter returns a writer to path that keeps up to files files of up to maxBytes
// each; values below 1 mean the defaults. The file is opened at the first write.
func NewWriter(path string, maxBytes int64, files int) *Writer {
	if maxBytes < 1 {
		maxBytes = DefaultMaxBytes
	}
	if files < 1 {
		files = DefaultFiles
	}
	return &Writer{path: path, maxBytes: maxBytes, files: files}
}

// Write stores lines, each with its final newline if it has one, as entries of stream
// with the same time.
func (w *Writer) Write(stream string, at time.Time, lines ...[]byte) {
	for len(lines) > 0 {
		w.mu.Lock()
		stored, failed, err := w.some(stream, at, lines)
		w.mu.Unlock()
		lines = lines[stored:]
		if err == nil || w.Again != nil && w.Again(err) {
			continue
		}
		w.drop(failed, err)
		lines = lines[failed:]
	}
}

func (w *Writer) drop(n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dropped += uint64(n)
	w.reason = err.Error()
}

// some stores as many lines as one file has room for, at least one, and returns their
// number. With an error it returns as well how many of the lines after those were not
// stored for it.
func (w *Writer) some(stream string, at time.Time, lines [][]byte) (stored, failed int, err error) {
	notes := 0
	w.buf = w.buf[:0]
	if w.dropped > 0 {
		note := "berth-logger: " + strconv.FormatUint(w.dropped, 10) + " lines lost: " + w.reason + "\n"
		w.buf = appendEntry(w.buf, StreamNote, at, []byte(note))
		notes = 1
	}
	err = w.open()
	room, n := w.maxBytes-w.size, 0
	for ; n < len(lines); n++ {
		mark := len(w.buf)
		w.buf = appendEntry(w.buf, stream, at, lines[n])
		if int64(len(w.buf)) <= room {
			continue
		}
		if n > 0 {
			w.buf = w.buf[:mark]
			break
		}
		room = w.maxBytes - maxHead // of the next file
	}
	entries := 0
	if err == nil {
		entries, err = w.append()
	}
	w.entries += uint64(entries)
	if entries >= notes && notes > 0 {
		w.dropped = 0
	}
	stored = max(0, entries-notes)
	return stored, n - stored, err
}

// Dropped is how many entries were lost since the last one that was stored.
func (w *Writer) Dropped() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dropped
}

// Close closes the current file, and waits until the last rotated one is compressed.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.packing.Wait()
	if w.f == nil {
		return nil
	}
	err := w.f.Close()
	w.f = nil
	return err
}

// append writes the entries of w.buf to the open file or the next one, and returns how many
// it has stored: all of them, or with an error those that fitted whole.
func (w *Writer) append() (int, error) {
	if w.size > w.head && w.size+int64(len(w.buf)) > w.maxBytes {
		if err := w.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := w.f.Write(w.buf)
	if err != nil && n > 0 {
		// A torn entry would make the file unreadable from there on. Entries that are
		// there whole stay: a reader may have passed them, and would never come back
		// to what was written in their place.
		whole := bytes.LastIndexByte(w.buf[:n], '\n') + 1
		if terr := w.f.Truncate(w.size + int64(whole)); terr == nil {
			n = whole
		}
		w.buf = w.buf[:whole]
	}
	w.size += int64(n)
	return bytes.Count(w.buf[:min(n, len(w.buf))], []byte{'\n'}), err
}

func (w *Writer) open() error {
	if w.f != nil {
		return nil
	}
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	w.size, w.head = 0, 0
	if err = w.begin(f); err != nil {
		f.Close()
		return err
	}
	w.f = f
	return nil
}

// begin writes the head of a new file, or counts on from what is in one that an earlier
// writer of the same log has left.
func (w *Writer) begin(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() > 0 {
		w.size = st.Size()
		h, n, err := countEntries(f)
		if err == nil {
			w.head, w.entries = h.size, h.First+n
		}
		return err
	}
	b := appendHead(nil, w.entries)
	n, err := f.Write(b)
	if err != nil {
		if n > 0 {
			err = errors.Join(err, f.Truncate(0))
		}
		return err
	}
	w.size, w.head = int64(n), int64(n)
	return nil
}

func (w *Writer) rotate() error {
	w.packing.Wait()
	if err := w.retire(); err != nil && !os.IsNotExist(err) {
		return err
	}
	err := w.f.Close()
	w.f = nil
	if err != nil {
		return err
	}
	if w.Compress && w.files > 1 {
		w.packing.Go(func() {
			// What cannot be compressed stays as it is and is rotated like the others.
			_ = pack(Rotated(w.path, 1))
		})
	}
	return w.open()
}

// retire makes the open file the newest rotated one. Where one file is all there is to be,
// it is removed rather than emptied: readers tell a new file by that it is another one.
func (w *Writer) retire() error {
	if w.files == 1 {
		return os.Remove(w.path)
	}
	if err := w.shift(); err != nil {
		return err
	}
	return os.Rename(w.path, Rotated(w.path, 1))
}

// shift makes room for another rotated file.
func (w *Writer) shift() error {
	suffixes := []string{""}
	if w.Compress {
		suffixes = append(suffixes, packedSuffix)
	}
	for _, suffix := range suffixes {
		// The oldest may be there in one form and its successor come in the other.
		if w.Compress {
			if err := os.Remove(Rotated(w.path, w.files-1) + suffix); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
		for i := w.files - 2; i > 0; i-- {
			err := os.Rename(Rotated(w.path, i)+suffix, Rotated(w.path, i+1)+suffix)
			if err != nil && !os.IsNotExist(err) {
				return err
			}
		}
	}
	return nil
}

// Rotated is the name of the i-th rotated file of path; 0 is path itself.
func Rotated(path string, i int) string {
	if i == 0 {
		return path
	}
	return path + "." + strconv.Itoa(i)
}

// appendEntry appends one entry as a JSON line.
func appendEntry(b []byte, stream string, at time.Time, line []byte) []byte {
	b = append(b, `{"log":"`...)
	b = appendEscaped(b, line)
	b = append(b, `","stream":"`...)
	b = append(b, stream...)
	b = append(b, `","time":"`...)
	b = at.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, "\"}\n"...)
}

const hexDigits = "0123456789abcdef"

// appendEscaped appends s as the inside of a JSON string. Bytes that are not UTF-8
// become U+FFFD; control characters, and with them terminal escapes, are escaped.
func appendEscaped(b, s []byte) []byte {
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < 0x7f && c != '"' && c != '\\' {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRune(s[i:])
			if r != utf8.RuneError || n > 1 {
				i += n
				continue
			}
			b = append(append(b, s[start:i]...), `\ufffd`...)
			i++
			start = i
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		start = i
	}
	return append(b, s[start:]...)
}
