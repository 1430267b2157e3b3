package logfile

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// readAll reads what there is now.
func readAll(t *testing.T, c *Cursor) (out []string) {
	t.Helper()
	buf := make([]byte, ReadSize)
	for {
		err := c.Read(buf, func(e Entry, _ Position) bool { out = append(out, e.Log); return true })
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestCursorGoesOnWhereAnotherStopped(t *testing.T) {
	path := filepath.Join(t.TempDir(), Name)
	w := NewWriter(path, 2000, 100)
	var want, got []string
	at := Position{}
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test
	for i := range 1000 {
		line := fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", r.IntN(100)))
		want = append(want, line)
		w.Write(Stdout, time.Now(), []byte(line))
		if r.IntN(20) == 0 {
			c := NewCursor(path, at)
			got = append(got, readAll(t, c)...)
			if n := c.Lost(); n != 0 {
				t.Fatalf("lost %d", n)
			}
			at = c.Position()
			c.Close()
			if r.IntN(3) == 0 { // a logger of the container's next run
				w.Close()
				w = NewWriter(path, 2000, 100)
			}
		}
	}
	got = append(got, readAll(t, NewCursor(path, at))...)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestCursorCountsWhatItMissed(t *testing.T) {
	path := filepath.Join(t.TempDir(), Name)
	w := NewWriter(path, 2000, 3)
	for i := range 10 {
		w.Write(Stdout, time.Now(), fmt.Appendf(nil, "%d\n", i))
	}
	c := NewCursor(path, Position{})
	defer c.Close()
	read := len(readAll(t, c))
	for i := range 500 {
		w.Write(Stderr, time.Now(), fmt.Appendf(nil, "%d\n", i))
	}
	rest := readAll(t, c)
	if n := int(c.Lost()); n == 0 || read+len(rest)+n != 510 || c.Position().Seq != 510 {
		t.Errorf("read %d and %d, lost %d, at %+v; want 510", read, len(rest), n, c.Position())
	}
	if rest[len(rest)-1] != "499\n" {
		t.Errorf("the last is %q", rest[len(rest)-1])
	}
}

func TestCursorWhileFilesAreRotated(t *testing.T) {
	for _, compress := range []bool{false, true} {
		t.Run(fmt.Sprint("compress=", compress), func(t *testing.T) {
			w := NewWriter(filepath.Join(t.TempDir(), Name), 4096, 100)
			w.Compress = compress
			readWhileRotated(t, w)
		})
	}
}

func readWhileRotated(t *testing.T, w *Writer) {
	path := w.path
	const lines = 5000
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range lines {
			w.Write(Stdout, time.Now(), fmt.Appendf(nil, "%d\n", i))
		}
	}()
	c := NewCursor(path, Position{})
	defer c.Close()
	n := 0
	check := func() {
		for _, s := range readAll(t, c) {
			if s != fmt.Sprintf("%d\n", n) {
				t.Fatalf("entry %d is %q", n, s)
			}
			n++
		}
	}
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		check()
	}
	if n != lines || c.Lost() != 0 {
		t.Errorf("read %d of %d", n, lines)
	}
}

func TestCompressedFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), Name)
	write := func(from, to int) {
		w := NewWriter(path, 2000, 4)
		w.Compress = true
		for i := from; i < to; i++ {
			w.Write(Stdout, time.Now(), fmt.Appendf(nil, "%d\n", i))
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write(0, 60)
	c := NewCursor(path, Position{})
	if n := len(readAll(t, c)); n != 60 {
		t.Errorf("read %d of 60", n)
	}
	at := c.Position()
	c.Close()
	write(60, 80)
	// A position in a file that was compressed since.
	again := NewCursor(path, at)
	defer again.Close()
	if got := readAll(t, again); len(got) != 20 || got[0] != "60\n" || again.Lost() != 0 {
		t.Errorf("read %q, lost %d", got, again.Lost())
	}
	// As a crash leaves it: both forms of a file, and a part of one.
	if err := os.WriteFile(Rotated(path, 1)+packedSuffix+".part", []byte("part"), 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := openSource(Rotated(path, 2))
	if err != nil || !src.packed {
		t.Fatal(err, src.packed)
	}
	f, err := src.plain()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	both, err := os.ReadFile(f.Name())
	if err == nil {
		t.Errorf("the copy has a name, and %d bytes", len(both))
	}
	b := make([]byte, 4096)
	n, err := f.ReadAt(b, 0)
	if err != io.EOF {
		t.Fatal(err)
	}
	if err := os.WriteFile(Rotated(path, 2), b[:n], 0o600); err != nil {
		t.Fatal(err)
	}
	all := collect(t, path, Options{Tail: -1})
	first := 80 - len(all)
	for i, e := range all {
		if e.Log != fmt.Sprintf("%d\n", first+i) {
			t.Fatalf("entry %d of %d is %q", i, len(all), e.Log)
		}
	}
	write(80, 400)
	names, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{path, path + ".1.gz", path + ".2.gz", path + ".3.gz"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
	if all := collect(t, path, Options{Tail: -1}); all[len(all)-1].Log != "399\n" {
		t.Errorf("the last is %q", all[len(all)-1].Log)
	}
}

func TestADamagedCompressedFileIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), Name)
	w := NewWriter(path, 2000, 4)
	w.Compress = true
	for i := range 60 {
		w.Write(Stdout, time.Now(), fmt.Appendf(nil, "%d\n", i))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	gz := Rotated(path, 1) + packedSuffix
	st, err := os.Stat(gz)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(gz, st.Size()-9); err != nil {
		t.Fatal(err)
	}
	if err := Read(t.Context(), path, Options{Tail: -1}, func(Entry) error { return nil }); err == nil {
		t.Error("half a file was taken for a whole one")
	}
}

func TestCursorOfALogWithoutHeads(t *testing.T) {
	path := filepath.Join(t.TempDir(), Name)
	old := `{"log":"a\n","stream":"stdout","time":"2026-01-02T03:04:05.6Z"}` + "\n"
	if err := os.WriteFile(path, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	w := NewWriter(path, 0, 0)
	w.Write(Stdout, time.Now(), []byte("b\n"))
	if diff := cmp.Diff([]string{"a\n", "b\n"}, readAll(t, NewCursor(path, Position{}))); diff != "" {
		t.Error(diff)
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add([]byte("plain\n"))
	f.Add([]byte(`{"log":"x`))
	f.Add([]byte("\\n\n"))
	f.Add([]byte("tab\t\"quote\" \\ é \xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		ParseEntry(data) // must not panic
		line := appendEntry(nil, Stderr, time.Unix(3, 4), data)
		e, ok := ParseEntry(line[:len(line)-1])
		if want := strings.ToValidUTF8(string(data), "\ufffd"); !ok || e.Stream != Stderr || !e.Time.Equal(time.Unix(3, 4)) || len(e.Log) < len(want)-len(data) {
			t.Fatalf("%q: %v %+v", line, ok, e)
		}
		if string([]rune(e.Log)) != string([]rune(string(data))) {
			t.Fatalf("%q came back as %q", data, e.Log)
		}
	})
}
