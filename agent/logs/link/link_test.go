package link

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// shipper is the other end of the connection, played by the test.
type shipper struct {
	t *testing.T
	l net.Listener
	c net.Conn
	r *bufio.Reader
}

func newShipper(t *testing.T, run string) *shipper {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(run, Socket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &shipper{t: t, l: l}
}

// accept takes the next connection and reads the name of the log.
func (s *shipper) accept() string {
	s.t.Helper()
	c, err := s.l.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	s.c, s.r = c, bufio.NewReader(c)
	s.t.Cleanup(func() { c.Close() })
	line, err := s.r.ReadString('\n')
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSuffix(line, "\n")
}

func (s *shipper) tell(b byte) {
	s.t.Helper()
	if _, err := s.c.Write([]byte{b}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *shipper) hears(want byte) {
	s.t.Helper()
	if got, err := s.r.ReadByte(); err != nil || got != want {
		s.t.Fatalf("heard %q, %v, want %q", got, err, want)
	}
}

func config(t *testing.T, blocking bool) Config {
	run := t.TempDir()
	return Config{Run: run, Root: filepath.Dir(run), Dir: "/logs/t/c", Blocking: blocking, Program: "/does/not/exist"}
}

func TestLoggerTellsOfGrowthWhenItIsAsked(t *testing.T) {
	c := config(t, false)
	s := newShipper(t, c.Run)
	l := Dial(c)
	if dir := s.accept(); dir != "/logs/t/c" {
		t.Errorf("the log %q", dir)
	}
	s.tell(Known)
	s.tell(AtEnd) // what was written before the connection is told of at once
	s.hears(Grown)
	s.tell(AtEnd)
	for armed := false; !armed; {
		l.mu.Lock()
		armed = l.armed
		l.mu.Unlock()
	}
	l.Wrote(10)
	s.hears(Grown)
	l.Wrote(10) // nobody has asked again
	s.tell(AtEnd)
	s.hears(Grown)
	l.Close()
	if b, err := s.r.ReadByte(); err != io.EOF {
		t.Errorf("after the end: %q, %v", b, err)
	}
}

func TestBlockingLoggerWaitsForItsWindow(t *testing.T) {
	c := config(t, true)
	s := newShipper(t, c.Run)
	l := Dial(c)
	s.accept()
	s.hears(Mark) // of what was there before
	wrote := make(chan int)
	go func() {
		for i := range 2 * marksMax {
			l.Wrote(markEach)
			wrote <- i
		}
		close(wrote)
	}()
	// The first write waits until what was there before has been sent.
	select {
	case <-wrote:
		t.Fatal("wrote before the first mark was answered")
	case <-time.After(20 * time.Millisecond):
	}
	s.tell(Shipped)
	n := 0
	for ; n < marksMax-1; n++ {
		<-wrote
		s.hears(Mark)
	}
	s.hears(Mark) // its write waits
	select {
	case <-wrote:
		t.Fatal("wrote past the window")
	case <-time.After(20 * time.Millisecond):
	}
	s.tell(Shipped)
	<-wrote
	l.Release()
	for range wrote { // nothing waits any more
	}
}

func TestLoggerComesBackWhenTheShipperIsGone(t *testing.T) {
	c := config(t, true)
	s := newShipper(t, c.Run)
	l := Dial(c)
	s.accept()
	s.c.Close()
	if dir := s.accept(); dir != "/logs/t/c" {
		t.Errorf("the log %q", dir)
	}
	s.hears(Mark)
	s.tell(Known)
	s.tell(Shipped)
	l.Wrote(1)
	l.Close()
	if _, err := s.r.ReadByte(); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}

// TestCloseWithoutAShipper gives up after its time: one that is started later finds the
// log by itself.
func TestCloseWithoutAShipper(t *testing.T) {
	l := Dial(config(t, false))
	begin := time.Now()
	l.Close()
	if took := time.Since(begin); took < closeTimeout {
		t.Errorf("gave up after %v", took)
	}
	<-l.ended
}

func TestStopOfAShipperThatIsNotThere(t *testing.T) {
	run := t.TempDir()
	if err := StopShipper(run, time.Second); err != nil {
		t.Errorf("no socket: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(run, Socket)})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := StopShipper(run, time.Second); err != nil {
		t.Errorf("a socket that was left behind: %v", err)
	}
	if _, err := os.Stat(filepath.Join(run, Socket)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}
