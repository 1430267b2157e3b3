package link

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// The window of output that a container may be ahead of its destination when it is to
// wait for it: marks are this many bytes apart, and so many may be unanswered.
const (
	markEach = 128 << 10
	marksMax = 8
)

// Window is how many bytes of a blocking log may not be sent yet.
const Window = markEach * marksMax

// closeTimeout is how long a logger that has finished waits for a shipper that has not
// heard of it yet. One that never does finds the log by itself when it is started next.
const closeTimeout = 3 * time.Second

// Config says what a logger tells the shipper.
type Config struct {
	Run     string // directory of the sockets
	Root    string // directory of all logs, for a shipper that has to be started
	Dir     string // the container's own log directory
	Program string // the shipper
	// Blocking has Wrote wait while the destination is more than Window behind.
	Blocking bool
}

// Client is the logger's end. It reconnects by itself.
type Client struct {
	c Config

	mu       sync.Mutex
	changed  *sync.Cond
	fd       *os.File
	armed    bool // the shipper waits for Grown
	grown    bool // it has not been told of the last writes
	since    int  // bytes written since the last mark
	marks    int  // unanswered ones
	catchUp  bool // after a new connection: wait for its first mark alone
	known    bool // the shipper has heard of this log
	released bool // nobody waits any more
	closed   chan struct{}
	ended    chan struct{}
}

// Dial begins to connect and returns at once.
func Dial(c Config) *Client {
	l := &Client{c: c, closed: make(chan struct{}), ended: make(chan struct{})}
	l.changed = sync.NewCond(&l.mu)
	go l.run()
	return l
}

// Wrote says that the log has grown by n bytes.
func (l *Client) Wrote(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.armed {
		l.armed = false
		l.send(Grown)
	} else {
		l.grown = true
	}
	if !l.c.Blocking {
		return
	}
	if l.since += n; l.since >= markEach {
		l.since = 0
		l.marks++
		l.send(Mark)
	}
	for (l.catchUp || l.marks >= marksMax) && !l.released {
		l.changed.Wait()
	}
}

// Release lets everybody go on who waits in Wrote, now and later.
func (l *Client) Release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.released = true
	l.changed.Broadcast()
}

// Close says that nothing will be written any more.
func (l *Client) Close() {
	late := time.AfterFunc(closeTimeout, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.known = true
		l.changed.Broadcast()
	})
	l.mu.Lock()
	for !l.known {
		l.changed.Wait()
	}
	close(l.closed)
	if l.fd != nil {
		// The end of the connection is what the shipper waits for.
		_ = syscall.Shutdown(int(l.fd.Fd()), syscall.SHUT_WR)
	}
	l.mu.Unlock()
	late.Stop()
}

// send writes one byte. So few are ever unanswered that the socket cannot be full; a
// broken connection is noticed by its reader.
func (l *Client) send(b byte) {
	if l.fd != nil {
		_, _ = l.fd.Write([]byte{b})
	}
}

func (l *Client) run() {
	defer close(l.ended)
	delay := 10 * time.Millisecond
	spawned := time.Time{}
	for {
		fd, err := connect(filepath.Join(l.c.Run, Socket))
		if err == nil {
			delay = 10 * time.Millisecond
			l.serve(fd)
		} else if time.Since(spawned) >= time.Second {
			spawned = time.Now()
			l.spawn()
		}
		select {
		case <-l.closed:
			return
		case <-time.After(delay):
			delay = min(2*delay, time.Second)
		}
	}
}

// serve uses one connection until it breaks.
func (l *Client) serve(fd *os.File) {
	l.mu.Lock()
	l.fd, l.armed, l.grown, l.since = fd, false, true, 0
	_, _ = fd.WriteString(l.c.Dir + "\n")
	if l.c.Blocking {
		l.marks, l.catchUp = 1, true
		l.send(Mark)
	}
	l.mu.Unlock()
	buf := make([]byte, 64)
	for {
		n, err := fd.Read(buf)
		for _, b := range buf[:n] {
			l.hear(b)
		}
		if err != nil {
			break
		}
	}
	l.mu.Lock()
	l.fd = nil
	l.mu.Unlock()
	fd.Close()
}

func (l *Client) hear(b byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch b {
	case Known:
		l.known = true
		l.changed.Broadcast()
	case AtEnd:
		if l.grown {
			l.grown = false
			l.send(Grown)
		} else {
			l.armed = true
		}
	case Shipped:
		l.catchUp = false
		l.marks = max(0, l.marks-1)
		l.changed.Broadcast()
	}
}

// connect opens a stream to a unix socket.
func connect(path string) (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		syscall.Close(fd)
		return nil, err
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		syscall.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// spawn starts a shipper, which ends by itself when there is another.
func (l *Client) spawn() {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer null.Close()
	// What it has to say for itself is in its own log.
	p, err := os.StartProcess(l.c.Program, []string{l.c.Program, "-run", l.c.Run, "-logs", l.c.Root}, &os.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []*os.File{null, null, null}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return // tried again, and in the meantime the log is in its file
	}
	go func() { _, _ = p.Wait() }()
}
