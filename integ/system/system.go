// Package system starts a whole Berth system for a test: a containerd, the central
// cluster in this process, and the agent as the program that people run, so that it
// can be killed and started again. Everything lives below one directory and in the
// network namespace that the test program runs in (see integ/host).
package system

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth.dev/berth/integ/await"
	"berth.dev/berth/integ/host"
)

// Process is a program that a test started and may kill.
type Process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	out  *tail
	done chan struct{}
	// ends is how long it may take to end.
	ends time.Duration
}

// endsIn is how long a program may take to end on a machine.
const endsIn = 20 * time.Second

// tail keeps the end of what a program prints, for the report of a failed test.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *tail) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.buf.Len() > 1<<20 {
		o.buf.Next(o.buf.Len() - 1<<19)
	}
	return o.buf.Write(p)
}

func (o *tail) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// launch starts a program in a process group of its own.
func launch(t testing.TB, name string, env []string, path string, args ...string) *Process {
	t.Helper()
	p := &Process{t: t, name: name, cmd: exec.Command(path, args...), out: &tail{}, done: make(chan struct{}), ends: endsIn}
	p.cmd.Env = env
	var w io.Writer = p.out
	if os.Getenv("BERTH_TEST_VERBOSE") != "" {
		w = io.MultiWriter(p.out, os.Stderr)
	}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		p.cmd.Wait() //nolint:errcheck // most of them are killed; ExitCode tells
		close(p.done)
	}()
	return p
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Output is the end of what the program printed.
func (p *Process) Output() string { return p.out.String() }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal; a program that has ended is no error.
func (p *Process) Signal(s syscall.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("signal %s: %v", p.name, err)
	}
}

// Kill ends the program at once and waits until it is gone.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Stop asks the program to end and fails the test when it does not in time.
func (p *Process) Stop() int {
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(p.ends):
		p.t.Errorf("%s did not end within %v of SIGTERM:\n%s", p.name, p.ends, p.Output())
		p.Kill()
	}
	return p.cmd.ProcessState.ExitCode()
}

// Until is await.Until.
func Until(t testing.TB, limit time.Duration, what string, cond func() error) {
	t.Helper()
	await.Until(t, limit, what, cond)
}

// Kinds of containerd that the tests run with.
const (
	Containerd1 = "1.6" // Debian's
	Containerd2 = "2.x" // the one that Berth brings
)

// Containerd is a containerd of the test's own.
type Containerd struct {
	*Process
	Kind    string
	Address string
	start   func() *Process
}

// StartContainerd starts a containerd of a kind below dir. For Containerd2, bin holds
// the programs berth and containerd-shim-runc-v2.
func StartContainerd(t testing.TB, kind, dir, bin string) *Containerd {
	t.Helper()
	c := &Containerd{Kind: kind, Address: filepath.Join(dir, "cd.sock")}
	root, state := filepath.Join(dir, "cd-root"), filepath.Join(dir, "cd-state")
	switch kind {
	case Containerd1:
		config := filepath.Join(dir, "cd.toml")
		text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\noom_score = 0\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n address = %q\n[ttrpc]\n address = %q\n",
			root, state, c.Address, c.Address+".ttrpc")
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c.start = func() *Process {
			return launch(t, "containerd", os.Environ(), "/usr/bin/containerd", "-c", config)
		}
	case Containerd2:
		env := append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		c.start = func() *Process {
			return launch(t, "containerd", env, filepath.Join(bin, "berth"), "containerd",
				"--containerd-root", root, "--containerd-state", state, "--address", c.Address)
		}
	default:
		t.Fatalf("no containerd %q", kind)
	}
	c.Restart()
	t.Cleanup(func() {
		if os.Getenv("BERTH_TEST_VERBOSE") == "" && t.Failed() {
			t.Logf("containerd %s printed:\n%s", kind, last(c.Output(), 40))
		}
		c.Stop()
	})
	return c
}

// Restart starts containerd after it was killed, and waits until it answers.
func (c *Containerd) Restart() {
	c.Process = c.start()
	Until(c.t, 2*time.Minute, "containerd answers", func() error {
		select {
		case <-c.done:
			return fmt.Errorf("it ended:\n%s", c.Output())
		default:
		}
		conn, err := net.Dial("unix", c.Address)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// last returns the last n lines of s.
func last(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Programs builds the programs that a system with one kind of containerd needs, once
// for a test, and returns their folder.
func Programs(t testing.TB, kind string, tags ...string) string {
	t.Helper()
	dir := t.TempDir()
	pkgs := []string{
		"berth.dev/berth/cmd/berth-agent",
		"berth.dev/berth/cmd/berth-logger",
		"berth.dev/berth/cmd/berth-shipper",
		"berth.dev/berth/cmd/berth-volume",
		"berth.dev/berth/cmd/berth-pause",
	}
	if kind == Containerd2 {
		pkgs = append(pkgs, "berth.dev/berth/cmd/berth", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2")
	}
	for _, pkg := range pkgs {
		host.Program(t, dir, pkg, tags...)
	}
	return dir
}
