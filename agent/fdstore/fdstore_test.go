package fdstore

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// manager stands for systemd's side of the store.
type manager struct {
	*net.UnixConn
	t *testing.T
}

func newManager(t *testing.T) (*manager, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "fdstore") // the path of a socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() }) //nolint:errcheck // nobody uses it
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return &manager{c, t}, path
}

// next is the next message with the descriptor that came with it, if any.
func (m *manager) next() (state string, f *os.File) {
	m.t.Helper()
	buf, oob := make([]byte, 4096), make([]byte, 4096)
	n, oobn, _, _, err := m.ReadMsgUnix(buf, oob)
	if err != nil {
		m.t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		m.t.Fatal(err)
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil || len(fds) != 1 || f != nil {
			m.t.Fatalf("descriptors: %v, %v", fds, err)
		}
		f = os.NewFile(uintptr(fds[0]), "")
		m.t.Cleanup(func() { f.Close() }) //nolint:errcheck // it may be closed already
	}
	return string(buf[:n]), f
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) //nolint:errcheck // it may be closed already
	return l
}

func TestStore(t *testing.T) {
	m, path := newManager(t)
	t.Setenv("NOTIFY_SOCKET", path)
	s, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	l, key := listen(t), "abc/task"
	if _, ok := s.Take(key); ok {
		t.Error("something is kept that nobody gave")
	}
	if err := s.Keep(key, l); err != nil {
		t.Fatal(err)
	}
	state, f := m.next()
	if state != "FDSTORE=1\nFDNAME="+name(key) || f == nil {
		t.Fatalf("%q, %v", state, f)
	}
	// The agent ends; who connects now waits.
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatalf("while there is no agent: %v", err)
	}
	defer c.Close()
	again, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	in, err := again.Accept()
	if err != nil {
		t.Fatal(err)
	}
	in.Close() //nolint:errcheck // it was there
	if err := s.Drop(key); err != nil {
		t.Fatal(err)
	}
	if state, f = m.next(); state != "FDSTOREREMOVE=1\nFDNAME="+name(key) || f != nil {
		t.Errorf("%q, %v", state, f)
	}
}

func TestRetain(t *testing.T) {
	m, path := newManager(t)
	stays, goes, taken := listen(t), listen(t), listen(t)
	s := &Store{socket: path, kept: map[string]net.Listener{name("stays"): stays, name("goes"): goes, name("taken"): taken}}
	if l, ok := s.Take("taken"); !ok || l != taken {
		t.Error("what is kept is not handed out")
	}
	n, err := s.Retain([]string{"stays", "other"})
	if n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if state, _ := m.next(); state != "FDSTOREREMOVE=1\nFDNAME="+name("goes") {
		t.Errorf("%q", state)
	}
	if err := goes.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("what nobody wants is open: %v", err)
	}
	if _, ok := s.Take("stays"); !ok {
		t.Error("what is wanted was dropped")
	}
	if err := taken.Close(); err != nil {
		t.Errorf("what was taken was closed: %v", err)
	}
}

func TestWithoutServiceManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	s, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Keep("name", listen(t)), s.Drop("name")); err != nil {
		t.Error(err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	if s, err = Open(); err != nil {
		t.Fatal(err)
	}
	if err := s.Keep("name", listen(t)); err == nil || !strings.Contains(err.Error(), "keep name: ") {
		t.Errorf("a service manager that is gone: %v", err)
	}
}

func TestNames(t *testing.T) {
	seen := make(map[string]string)
	for _, key := range []string{"", "a/task", "a:b/\n", strings.Repeat("x", 10_000), "b/task"} {
		n := name(key)
		if len(n) > 255 || strings.ContainsFunc(n, func(r rune) bool { return r <= ' ' || r >= 127 || r == ':' }) {
			t.Errorf("%q is no name (sd_notify(3), FDNAME)", n)
		}
		if other, ok := seen[n]; ok || n != name(key) {
			t.Errorf("%.20q is called %s as %.20q is", key, n, other)
		}
		seen[n] = key
	}
	// All names in one variable, for as many as the unit lets be kept.
	unit, err := os.ReadFile("../../packaging/systemd/berth-agent.service")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(unit), "\nFileDescriptorStoreMax=")
	var most int
	if _, err := fmt.Sscan(text, &most); err != nil {
		t.Fatalf("FileDescriptorStoreMax: %v", err)
	}
	const argument = 128 << 10 // execve(2), MAX_ARG_STRLEN
	if n := len("LISTEN_FDNAMES=") + most*(len(name(""))+1); n >= argument {
		t.Errorf("the names of %d descriptors have %d bytes, so the agent could not be started", most, n)
	}
}

// TestOpen starts this test's program as systemd starts an agent.
func TestOpen(t *testing.T) {
	if os.Getenv("FDSTORE_TEST_CHILD") != "" {
		child()
		return
	}
	keep := listen(t)
	f, err := keep.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	// The shell's process id is the program's, since it is replaced.
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run=^TestOpen$`, os.Args[0])
	cmd.Env = append(os.Environ(), "FDSTORE_TEST_CHILD=1", "LISTEN_FDS=2", "LISTEN_FDNAMES="+name("a")+":pipe", "NOTIFY_SOCKET=")
	cmd.ExtraFiles = []*os.File{f, w}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp4", keep.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	said, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	rest, err := io.ReadAll(out)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		t.Errorf("%v\n%s", err, rest)
	}
	want := "names 1, error true, left \"\"\n"
	if diff := cmp.Diff(want, string(said)); diff != "" {
		t.Error(diff)
	}
}

func child() {
	s, err := Open()
	l, ok := s.Take("a")
	if !ok {
		fmt.Println("nothing was handed over")
		os.Exit(1)
	}
	c, aerr := l.Accept()
	if aerr != nil {
		fmt.Println(aerr)
		os.Exit(1)
	}
	fmt.Fprintf(c, "names %d, error %t, left %q\n", 1+len(s.kept), err != nil && strings.Contains(err.Error(), "pipe"), os.Getenv("LISTEN_FDNAMES"))
	c.Close() //nolint:errcheck // the other side sees it
}
