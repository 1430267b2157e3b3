package logfile

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func collect(t *testing.T, path string, o Options) []Entry {
	t.Helper()
	var got []Entry
	if err := Read(t.Context(), path, o, func(e Entry) error { got = append(got, e); return nil }); err != nil {
		t.Fatal(err)
	}
	return got
}

func texts(es []Entry) string {
	var b strings.Builder
	for _, e := range es {
		b.WriteString(e.Log)
	}
	return b.String()
}

func TestCopySplitsLines(t *testing.T) {
	long := strings.Repeat("é", MaxLine) // two bytes each: two pieces and more
	for _, tc := range []struct{ name, in string }{
		{"empty", ""},
		{"lines", "a\nb\n\nc\n"},
		{"no final newline", "a\nb"},
		{"long line of wide characters", "x" + long + "\nend\n"},
		{"exactly one piece", strings.Repeat("y", MaxLine) + "\n"},
		{"escapes", "\x1b[31m\"red\"\\\t\r\x00\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), Name)
			w := NewWriter(path, 0, 0)
			if err := Copy(w, Stdout, iotest(tc.in), func(int) {}); err != nil {
				t.Fatal(err)
			}
			if tc.in == "" {
				return
			}
			es := collect(t, path, Options{Tail: -1})
			if diff := cmp.Diff(tc.in, texts(es)); diff != "" {
				t.Error(diff)
			}
			for _, e := range es {
				if len(e.Log) > MaxLine {
					t.Errorf("entry of %d bytes", len(e.Log))
				}
			}
		})
	}
}

// iotest gives odd-sized reads.
func iotest(s string) io.Reader { return &oddReader{s: s} }

type oddReader struct {
	s string
	n int
}

func (r *oddReader) Read(p []byte) (int, error) {
	if r.s == "" {
		return 0, io.EOF
	}
	r.n = (r.n*7 + 3) % 5003
	n := copy(p[:min(len(p), r.n+1)], r.s)
	r.s = r.s[n:]
	return n, nil
}

func TestRotationBoundsTheLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), Name)
	const size, files = 4096, 3
	w := NewWriter(path, size, files)
	for i := range 1000 {
		w.Write(Stdout, time.Unix(int64(i), 0), fmt.Appendf(nil, "line %d\n", i))
	}
	var total int64
	names, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		st, err := os.Stat(n)
		if err != nil {
			t.Fatal(err)
		}
		total += st.Size()
	}
	if len(names) != files || total > size*files {
		t.Fatalf("%d files with %d bytes, want %d files with at most %d bytes", len(names), total, files, size*files)
	}
	es := collect(t, path, Options{Tail: -1})
	if last := es[len(es)-1].Log; last != "line 999\n" {
		t.Errorf("last line is %q", last)
	}
	for i := 1; i < len(es); i++ {
		if es[i].Time.Sub(es[i-1].Time) != time.Second {
			t.Fatalf("gap between %q and %q", es[i-1].Log, es[i].Log)
		}
	}
	if got := texts(collect(t, path, Options{Tail: 2})); got != "line 998\nline 999\n" {
		t.Errorf("tail of 2 is %q", got)
	}
	if got := texts(collect(t, path, Options{Tail: -1, Since: time.Unix(998, 0)})); got != "line 998\nline 999\n" {
		t.Errorf("since is %q", got)
	}
}

func TestFollowAcrossRotationMissesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), Name)
	w := NewWriter(path, 2048, 50)
	done := make(chan struct{})
	const lines = 1000
	go func() {
		defer close(done)
		for i := range lines {
			w.Write(Stdout, time.Now(), fmt.Appendf(nil, "%d\n", i))
		}
	}()
	n := 0
	err := Read(t.Context(), path, Options{Tail: -1, Follow: true, Done: done}, func(e Entry) error {
		if e.Log != fmt.Sprintf("%d\n", n) {
			return fmt.Errorf("entry %d is %q", n, e.Log)
		}
		n++
		return nil
	})
	if err != nil || n != lines {
		t.Fatalf("read %d of %d: %v", n, lines, err)
	}
}

func TestWriterDropsAndCountsWhenTheDiskFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "missing", Name)
	w := NewWriter(path, 0, 0)
	w.Write(Stdout, time.Now(), []byte("a\n"), []byte("b\n"))
	if w.Dropped() != 2 {
		t.Fatalf("dropped %d, want 2", w.Dropped())
	}
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	w.Write(Stdout, time.Now(), []byte("c\n"))
	es := collect(t, path, Options{Tail: -1})
	if len(es) != 2 || es[0].Stream != StreamNote || !strings.Contains(es[0].Log, "2 lines lost") || es[1].Log != "c\n" {
		t.Errorf("got %+v", es)
	}
}

func TestReadOfMissingLog(t *testing.T) {
	err := Read(context.Background(), filepath.Join(t.TempDir(), Name), Options{Tail: -1}, func(Entry) error { return nil })
	if !os.IsNotExist(errUnwrap(err)) {
		t.Fatalf("got %v", err)
	}
}

func errUnwrap(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		err = u.Unwrap()
	}
}

func FuzzEntry(f *testing.F) {
	f.Add([]byte("plain\n"))
	f.Add([]byte("\xff\xc3\x28\"\\\u2028\x7f\x00"))
	f.Fuzz(func(t *testing.T, line []byte) {
		b := appendEntry(nil, Stdout, time.Unix(1, 5), line)
		if bytes.Count(b, []byte("\n")) != 1 {
			t.Fatalf("%q is not one line", b)
		}
		var e Entry
		if err := json.Unmarshal(b, &e); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if utf8.Valid(line) && e.Log != string(line) {
			t.Fatalf("%q came back as %q", line, e.Log)
		}
	})
}

func TestNoFileExceedsItsLimitWhateverIsWrittenAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), Name)
	w := NewWriter(path, 4096, 4)
	var lines [][]byte
	for i := range 500 {
		lines = append(lines, fmt.Appendf(nil, "%d\n", i))
	}
	w.Write(Stdout, time.Unix(0, 0), lines...)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		st, err := os.Stat(Rotated(path, i))
		if exists := err == nil; exists != (i < 4) {
			t.Errorf("file %d: %v", i, err)
		} else if exists && st.Size() > 4096 {
			t.Errorf("file %d has %d bytes", i, st.Size())
		}
	}
	next := -1
	err := Read(t.Context(), path, Options{Tail: -1}, func(e Entry) error {
		n, err := strconv.Atoi(strings.TrimSpace(e.Log))
		if next >= 0 && n != next {
			t.Errorf("line %d after %d", n, next-1)
		}
		next = n + 1
		return err
	})
	if err != nil || next != 500 {
		t.Errorf("read up to %d: %v", next-1, err)
	}
}
