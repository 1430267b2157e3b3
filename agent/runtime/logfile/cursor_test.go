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
	path := filepath.Join(t.TempDir(), Name)
	w := NewWriter(path, 4096, 100)
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
