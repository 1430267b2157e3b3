package ship

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/logs"
	"berth.dev/berth/agent/logs/link"
	"berth.dev/berth/agent/runtime/logfile"
)

// receiver is a syslog receiver over TCP: the last word of each line is kept.
type receiver struct {
	l net.Listener

	mu    sync.Mutex
	lines []string
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{l: l}
	var open sync.WaitGroup
	open.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open.Go(func() {
				defer c.Close()
				for sc := bufio.NewScanner(c); sc.Scan(); {
					_, text, _ := strings.Cut(sc.Text(), "]: ")
					r.mu.Lock()
					r.lines = append(r.lines, text)
					r.mu.Unlock()
				}
			})
		}
	})
	t.Cleanup(func() { l.Close() })
	return r
}

func (r *receiver) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lines)
}

// host is the directories of a host with one container's log.
type host struct {
	t         *testing.T
	run, root string
	dir       string
}

func newHost(t *testing.T, address string, edit func(*logs.Stream)) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{t: t, run: filepath.Join(dir, "run"), root: filepath.Join(dir, "tasks")}
	h.dir = filepath.Join(h.root, "task", "web")
	for _, d := range []string{h.run, h.dir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := &logs.Stream{TaskID: "task", Container: "web", Driver: logs.Syslog, Options: map[string]string{"syslog-address": "tcp://" + address}, ID: strings.Repeat("0", 32), Name: "web"}
	if edit != nil {
		edit(s)
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, logs.StreamFile), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) write(lines ...string) {
	w := logfile.NewWriter(filepath.Join(h.dir, logfile.Name), 4096, 3)
	for _, l := range lines {
		w.Write(logfile.Stdout, time.Now(), []byte(l+"\n"))
	}
	if err := w.Close(); err != nil {
		h.t.Fatal(err)
	}
}

// serve runs a shipper until it ends by itself or the test ends.
func (h *host) serve(idle time.Duration) (stop func(), done chan error) {
	ctx, cancel := context.WithCancel(h.t.Context())
	done = make(chan error, 1)
	s := New(Config{Run: h.run, Logs: h.root, Idle: idle, Log: slog.New(slog.DiscardHandler)})
	go func() { done <- s.Run(ctx) }()
	return cancel, done
}

func (h *host) until(what string, ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			p, err := ReadPlace(h.dir)
			h.t.Fatalf("not within 30 s: %s; %+v, %v", what, p, err)
		}
	}
}

func (h *host) place() Place {
	h.t.Helper()
	p, err := ReadPlace(h.dir)
	if err != nil {
		h.t.Fatal(err)
	}
	return p
}

func numbers(from, to int) (out []string) {
	for i := from; i < to; i++ {
		out = append(out, fmt.Sprintf("line-%d", i))
	}
	return out
}

// TestLogThatWasLeftUnfinished is taken up without a logger, sent from where it was, and
// done with; the shipper then ends by itself.
func TestLogThatWasLeftUnfinished(t *testing.T) {
	r := newReceiver(t)
	h := newHost(t, r.l.Addr().String(), nil)
	h.write(numbers(0, 20)...)
	_, done := h.serve(time.Millisecond)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	h.until("20 lines", func() bool { return len(r.all()) == 20 })
	if p := h.place(); !p.Done || p.Error != "" || p.Lost != 0 || p.Seq != 20 {
		t.Errorf("%+v", p)
	}
	// What is written later is sent from there by the next one, once a logger comes.
	h.write(numbers(20, 25)...)
	stop, done := h.serve(time.Hour)
	c := link.Dial(link.Config{Run: h.run, Root: h.root, Dir: h.dir, Program: "/does/not/exist"})
	h.until("25 lines", func() bool { return len(r.all()) == 25 })
	c.Close()
	h.until("the end of the log", func() bool { return h.place().Done })
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(numbers(0, 25), r.all()); diff != "" {
		t.Error(diff)
	}
}

// TestLinesThatWereRotatedAway are counted, and the destination is told.
func TestLinesThatWereRotatedAway(t *testing.T) {
	r := newReceiver(t)
	h := newHost(t, r.l.Addr().String(), nil)
	h.write(numbers(0, 1)...)
	if err := writePlace(h.dir, Place{}); err != nil {
		t.Fatal(err)
	}
	h.write(numbers(1, 1000)...)
	_, done := h.serve(time.Millisecond)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	p := h.place()
	h.until("the last line", func() bool { all := r.all(); return len(all) > 0 && all[len(all)-1] == "line-999" })
	all := r.all()
	if want := fmt.Sprintf("berth-shipper: %d lines were not sent: the destination did not take them in time", p.Lost); p.Lost == 0 || !slices.Contains(all, want) {
		t.Errorf("lost %d; told %.100q", p.Lost, all[:min(2, len(all))])
	}
	if got := len(all) - 1 + int(p.Lost); got != 1000 {
		t.Errorf("%d sent and %d lost, want 1000 together", len(all)-1, p.Lost)
	}
}

// TestDestinationThatIsNotThere is told in the file, and tried again.
func TestDestinationThatIsNotThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	h := newHost(t, address, nil)
	h.write(numbers(0, 3)...)
	stop, done := h.serve(time.Hour)
	h.until("the reason", func() bool { return strings.Contains(h.place().Error, "connection refused") })
	if s, err := logs.ReadState(h.dir); err != nil || s.Since.IsZero() || s.Lost != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if l, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sc := bufio.NewScanner(c)
	for i := range 3 {
		if !sc.Scan() || !strings.HasSuffix(sc.Text(), fmt.Sprintf("line-%d", i)) {
			t.Fatalf("line %d is %q", i, sc.Text())
		}
	}
	h.until("no reason any more", func() bool { p := h.place(); return p.Error == "" && p.Done })
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestSecretOptionsNeedTheAgent: without it nothing is sent, and the reason is written
// down without a value.
func TestSecretOptionsNeedTheAgent(t *testing.T) {
	h := newHost(t, "127.0.0.1:1", func(s *logs.Stream) { s.Secrets = []string{"tag"} })
	h.write("x")
	stop, done := h.serve(time.Hour)
	h.until("the reason", func() bool { return strings.HasPrefix(h.place().Error, "the agent does not answer") })
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestOneShipperForARunDirectory(t *testing.T) {
	h := newHost(t, "127.0.0.1:1", nil)
	stop, done := h.serve(time.Hour)
	h.until("the socket", func() bool {
		c, err := net.Dial("unix", filepath.Join(h.run, link.Socket))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	_, second := h.serve(time.Hour)
	if err := <-second; !errors.Is(err, ErrRunning) {
		t.Errorf("a second one: %v", err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestLoggerThatNamesAnotherDirectory gets nothing sent: the path is whatever a program
// on the host writes into the socket.
func TestLoggerThatNamesAnotherDirectory(t *testing.T) {
	h := newHost(t, "127.0.0.1:1", nil)
	s := New(Config{Run: h.run, Logs: h.root, Log: slog.New(slog.DiscardHandler)})
	for _, dir := range []string{"/etc", h.root, filepath.Join(h.root, "task"), h.dir + "/deeper", filepath.Join(h.root, "..", "..", "x"), "task/web", ""} {
		if st, err := s.stream(t.Context(), dir, nil); err == nil {
			t.Errorf("%q is taken: %v", dir, st)
		}
	}
}

// TestLoggerThatMeetsTheEnd is not told that its log is known: it would end, and nobody
// would send what it wrote.
func TestLoggerThatMeetsTheEnd(t *testing.T) {
	h := newHost(t, "127.0.0.1:1", nil)
	s := New(Config{Run: h.run, Logs: h.root, Log: slog.New(slog.DiscardHandler)})
	s.closed = true
	mine, other := net.Pipe()
	done := make(chan struct{})
	go func() { defer close(done); s.serve(t.Context(), other) }()
	if _, err := io.WriteString(mine, h.dir+"\n"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(mine); len(b) > 0 || err != nil {
		t.Errorf("it is told %q, %v", b, err)
	}
	<-done
}

// TestLoggerThatComesAndGoes between two looks has written something nevertheless.
func TestLoggerThatComesAndGoes(t *testing.T) {
	st := newStream(t.TempDir(), &logs.Stream{}, Place{})
	if st.look() || st.live() {
		t.Error("a log without a logger is live")
	}
	l := &logger{}
	st.join(l)
	st.leave(l)
	if !st.live() {
		t.Error("nobody looks at what it wrote")
	}
	if st.look() || st.live() {
		t.Error("it is live after a look")
	}
}

func TestPlaceIsWrittenInPlace(t *testing.T) {
	dir := t.TempDir()
	long := Place{Position: logfile.Position{File: "f", Offset: 1 << 40, Seq: 1 << 50}, State: logs.State{Lost: 7, Error: strings.Repeat("\x01", maxError), Since: time.Now()}}
	for _, p := range []Place{{}, long, {Done: true}} {
		if err := writePlace(dir, p); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(filepath.Join(dir, logs.PlaceFile))
		if err != nil || st.Size() != placeSize {
			t.Errorf("%d bytes, %v", st.Size(), err)
		}
		got, err := ReadPlace(dir)
		if err != nil || got.Position != p.Position || got.Done != p.Done || got.Lost != p.Lost {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, logs.PlaceFile), []byte("{torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := ReadPlace(dir); err == nil || p != (Place{}) {
		t.Errorf("a torn file: %+v, %v", p, err)
	}
}

func FuzzReadPlace(f *testing.F) {
	f.Add([]byte(`{"file":"a","offset":3,"seq":1,"lost":2,"done":true}`))
	f.Add([]byte("   "))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, logs.PlaceFile), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if p, err := ReadPlace(dir); err != nil && p != (Place{}) {
			t.Errorf("%+v with %v", p, err)
		}
	})
}
