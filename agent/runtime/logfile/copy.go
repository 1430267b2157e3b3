package logfile

import (
	"bytes"
	"io"
	"time"
	"unicode/utf8"
)

// Copy reads one stream of a container to its end and writes its lines to w. It holds
// at most 64 KiB of input at a time, however long a line is. stored is called with the
// number of bytes of every read, after their complete lines have been written.
func Copy(w *Writer, stream string, r io.Reader, stored func(int)) error {
	buf := make([]byte, 64<<10)
	lines := make([][]byte, 0, 64)
	held := 0 // bytes of an unfinished line at the start of buf
	for {
		n, err := r.Read(buf[held:])
		data := buf[:held+n]
		lines = lines[:0]
		for {
			cut := cutLine(data, err != nil)
			if cut == 0 {
				break
			}
			lines = append(lines, data[:cut])
			data = data[cut:]
		}
		w.Write(stream, time.Now(), lines...)
		stored(n)
		held = copy(buf, data)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// cutLine returns the length of the first entry in data: a whole line, or a piece of
// MaxLine bytes of a longer one, or what is left at the end. 0 means: read more.
func cutLine(data []byte, end bool) int {
	limit := min(len(data), MaxLine)
	if i := bytes.IndexByte(data[:limit], '\n'); i >= 0 {
		return i + 1
	}
	if len(data) < MaxLine {
		if end {
			return len(data)
		}
		return 0
	}
	// Do not cut a character in two.
	cut := MaxLine
	for cut > MaxLine-utf8.UTFMax && !utf8.RuneStart(data[cut-1]) {
		cut--
	}
	if cut > MaxLine-utf8.UTFMax && data[cut-1] >= utf8.RuneSelf && !utf8.FullRune(data[cut-1:MaxLine]) {
		return cut - 1
	}
	return MaxLine
}
