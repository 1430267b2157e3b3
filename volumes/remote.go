package volumes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Remote mounts network file systems. Whatever could wait for a server runs in a process
// of its own, which is left to itself when it does not end in time: nothing of the agent
// ever waits in the kernel.
type Remote struct {
	// Program is the path of berth-volume.
	Program string
	// Limit is how long one mount may take.
	Limit time.Duration
}

// remoteMount is one mount, as the program reads it from its standard input.
type remoteMount struct {
	Do       string   `json:"do"` // mount, bind or unmount
	Source   string   `json:"source,omitempty"`
	Target   string   `json:"target"`
	Options  []string `json:"options,omitempty"`
	ReadOnly bool     `json:"readOnly,omitempty"`
	// Client is what the kernel's client calls itself towards the server besides the name of
	// the host; see callItself.
	Client string `json:"client,omitempty"`
	// Wait is how long the server is waited for before the kernel is asked, in milliseconds.
	Wait  int64  `json:"wait,omitempty"`
	Netns string `json:"-"` // path of the network namespace to mount in
}

const (
	// remoteLimit is how long a server may take to answer, unless Limit says otherwise. It
	// is under the limit of one try of the engine, so that the reason is the server's.
	remoteLimit = 45 * time.Second
	// reapLimit is how long a killed process may take to end; one that is stuck in the
	// kernel ends with the server's answer, and is not waited for.
	reapLimit = 500 * time.Millisecond
)

func (r *Remote) limit() time.Duration {
	if r.Limit > 0 {
		return r.Limit
	}
	return remoteLimit
}

func (r *Remote) mount(ctx context.Context, m remoteMount) error {
	m.Do = "mount"
	m.Wait = (r.limit() * 4 / 5).Milliseconds()
	return r.run(ctx, m)
}

// MountIn mounts a directory of an NFS server, as seen from a network namespace, which is
// given by its path; "" is the caller's.
func (r *Remote) MountIn(ctx context.Context, netns, source, target string, options ...string) error {
	return r.mount(ctx, remoteMount{Source: source, Target: target, Options: options, Netns: netns})
}

// Unmount takes a mount away. A server that does not answer is not waited for.
func (r *Remote) Unmount(ctx context.Context, target string) error { return r.unmount(ctx, target) }

func (r *Remote) bind(source, target string) error {
	return r.run(context.Background(), remoteMount{Do: "bind", Source: source, Target: target})
}

func (r *Remote) unmount(ctx context.Context, target string) error {
	there, err := mounted(target)
	if err != nil {
		return err
	}
	if !there {
		return unmount(target) // the directory alone
	}
	return r.run(ctx, remoteMount{Do: "unmount", Target: target})
}

// run has the program do one thing, for no longer than the limit.
func (r *Remote) run(ctx context.Context, m remoteMount) error {
	in, err := json.Marshal(m)
	if err != nil {
		return err
	}
	args := []string{"do"}
	if m.Netns != "" {
		args = []string{"in", m.Netns, "do"}
	}
	late := failf(ErrLate, "%s: the server of %s did not answer in %v", m.Do, m.name(), r.limit())
	text, err := r.start(ctx, late, in, r.Program, args...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		switch exit.ExitCode() {
		case exitInvalid:
			return failf(ErrInvalid, "%s", text)
		case exitUnavailable:
			return failf(ErrUnavailable, "%s", text)
		case exitLate:
			return failf(ErrLate, "%s", text)
		}
		return fmt.Errorf("%w: %s", exit, text)
	}
	return err
}

// exec runs another program that mounts, for no longer than the limit.
func (r *Remote) exec(ctx context.Context, program string, args ...string) error {
	text, err := r.start(ctx, failf(ErrLate, "it did not end in %v", r.limit()), nil, program, args...)
	if err != nil && text != "" {
		return fmt.Errorf("%w: %s", err, text)
	}
	return err
}

// start runs a program and returns what it says on its standard error. After the limit it
// is killed, and left to itself if it is stuck in the kernel.
func (r *Remote) start(ctx context.Context, late error, in []byte, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.limit(), late)
	defer cancel()
	stderr := &limited{left: 8 << 10}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = reapLimit
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("%s: %w", program, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // it ends with the process, which a signal or the server ends
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		select {
		case err = <-ended:
		case <-time.After(2 * reapLimit):
			return "", context.Cause(ctx)
		}
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it has ended well; something that it started may still hold its output
	}
	if ctx.Err() != nil && err != nil {
		return "", context.Cause(ctx)
	}
	return stderr.text(), err
}

func (m remoteMount) name() string {
	if m.Source != "" {
		return m.Source
	}
	return m.Target
}

// limited is a writer that drops what is too much.
type limited struct {
	mu   sync.Mutex
	b    bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(len(p), l.left)
	l.left -= n
	l.b.Write(p[:n])
	return len(p), nil
}

func (l *limited) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.TrimSpace(l.b.String())
}

// Exit codes of the program that say what kind of failure it was.
const (
	exitInvalid     = 2
	exitUnavailable = 3
	exitLate        = 4
)
