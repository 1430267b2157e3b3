package logfile

import (
	"bytes"
	"io"
	"os"
	"strconv"
	"time"
)

// head is the first line of each file. It tells the files of a log apart, whatever they
// are renamed to, and says how many entries the log had before this file, so that a
// reader that was too slow knows how many it has missed.
type head struct {
	File  string // unlike that of any other file of the log
	First uint64 // number of the file's first entry, from 0
	size  int64  // of the line, in bytes; 0 when the file has no head
}

// maxHead is more than a head takes.
const maxHead = 96

const (
	headOpen  = `{"file":"`
	headFirst = `","first":`
	headClose = "}\n"
)

func appendHead(b []byte, first uint64) []byte {
	b = append(b, headOpen...)
	b = strconv.AppendInt(b, time.Now().UnixNano(), 36)
	b = append(b, '-')
	b = strconv.AppendInt(b, int64(os.Getpid()), 36)
	b = append(b, headFirst...)
	b = strconv.AppendUint(b, first, 10)
	return append(b, headClose...)
}

// parseHead reads the head at the start of b. A file that begins otherwise has none,
// and that is told by size 0.
func parseHead(b []byte) head {
	line, _, ok := bytes.Cut(b[:min(len(b), maxHead)], []byte("\n"))
	if !ok {
		return head{}
	}
	rest, ok := bytes.CutPrefix(line, []byte(headOpen))
	if !ok {
		return head{}
	}
	id, rest, ok := bytes.Cut(rest, []byte(headFirst))
	number, closed := bytes.CutSuffix(rest, []byte("}"))
	if !ok || !closed || len(id) == 0 {
		return head{}
	}
	first, err := strconv.ParseUint(string(number), 10, 64)
	if err != nil {
		return head{}
	}
	return head{File: string(id), First: first, size: int64(len(line)) + 1}
}

// readHead reads the head of an open file.
func readHead(f *os.File) (head, error) {
	b := make([]byte, maxHead)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return head{}, err
	}
	return parseHead(b[:n]), nil
}

// countEntries returns the head of a file and the number of entries in it.
func countEntries(f *os.File) (head, uint64, error) {
	h, err := readHead(f)
	if err != nil {
		return h, 0, err
	}
	buf := make([]byte, 64<<10)
	n := uint64(0)
	for off := h.size; ; {
		k, err := f.ReadAt(buf, off)
		n += uint64(bytes.Count(buf[:k], []byte("\n")))
		off += int64(k)
		if err == io.EOF {
			return h, n, nil
		}
		if err != nil {
			return h, n, err
		}
	}
}
