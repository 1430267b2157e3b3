// Package containerdtest starts containerd daemons for tests: the one that is installed
// on the host, and the agent's own. Each has its own directories and socket, and what
// it leaves is taken away at the end of the test.
package containerdtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth.dev/berth/agent/runtime/embedded"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Kind chooses a daemon.
type Kind string

// Daemons.
const (
	Installed Kind = "installed" // the host's containerd program (Debian: 1.6)
	Embedded  Kind = "embedded"  // containerd 2.x from this module
)

// roleVar makes a test binary act as the embedded containerd.
const roleVar = "BERTH_TEST_CONTAINERD_DIR"

// Main is called first by TestMain of packages that use the embedded daemon: the
// program is then started again by Start, as that daemon.
func Main() {
	dir := os.Getenv(roleVar)
	if dir == "" {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := embedded.Main(ctx, embedded.Config{
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Address: filepath.Join(dir, "c.sock"),
		ShimDir: filepath.Join(dir, "bin"),
	})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// RequireRoot skips a test that needs root, or fails it where everything must run.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("this test needs root")
	}
	t.Skip("this test needs root")
}

// Daemon is a running containerd.
type Daemon struct {
	Kind    Kind
	Dir     string // holds everything; short, because sockets are in it
	Address string

	t   testing.TB
	cmd *exec.Cmd
}

// Start starts a daemon and waits until it answers. The test's end stops it and
// everything that runs in it.
func Start(t testing.TB, kind Kind) *Daemon {
	t.Helper()
	RequireRoot(t)
	dir, err := os.MkdirTemp("", "ctd")
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{Kind: kind, Dir: dir, Address: filepath.Join(dir, "c.sock"), t: t}
	t.Cleanup(d.clean)
	switch kind {
	case Installed:
		if _, err := exec.LookPath("containerd"); err != nil {
			t.Skip("no containerd is installed on this host (package containerd)")
		}
		config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"+
			"[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n", dir+"/root", dir+"/state", d.Address, d.Address+".ttrpc")
		if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
	case Embedded:
		Build(t, filepath.Join(dir, "bin", "containerd-shim-runc-v2"), "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2")
	}
	d.Up()
	return d
}

// Build builds a program of this module, or of one that it depends on, as a static one.
func Build(t testing.TB, out, importPath string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, importPath)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v: %s", importPath, err, msg)
	}
}

// Up starts the daemon, again after Kill.
func (d *Daemon) Up() {
	d.t.Helper()
	self, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	out, err := os.OpenFile(d.Dir+"/daemon.log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer out.Close()
	if d.Kind == Installed {
		d.cmd = exec.Command("containerd", "-c", d.Dir+"/config.toml", "-l", "warn")
	} else {
		d.cmd = exec.Command(self)
		d.cmd.Env = append(os.Environ(), roleVar+"="+d.Dir)
	}
	d.cmd.Stdout, d.cmd.Stderr = out, out
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { d.cmd.Process.Wait(); close(ended) }() //nolint:errcheck // only its end matters
	c, err := containerd.New(d.Address, containerd.WithTimeout(100*time.Millisecond))
	if err != nil {
		d.t.Fatal(err)
	}
	defer c.Close()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, err := c.Version(ctx)
		cancel()
		if err == nil {
			return
		}
		select {
		case <-ended:
			d.t.Fatalf("containerd ended: %s", d.said())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("containerd does not answer: %v: %s", err, d.said())
		}
	}
}

// Kill ends the daemon with SIGKILL; its shims go on.
func (d *Daemon) Kill() {
	d.t.Helper()
	if err := d.cmd.Process.Kill(); err != nil && !strings.Contains(err.Error(), "finished") {
		d.t.Fatal(err)
	}
	for deadline := time.Now().Add(2 * time.Minute); syscall.Kill(d.cmd.Process.Pid, 0) == nil; {
		if time.Now().After(deadline) {
			d.t.Fatal("containerd does not end")
		}
		<-time.After(time.Millisecond)
	}
}

// said is what the daemon wrote so far.
func (d *Daemon) said() string {
	b, err := os.ReadFile(d.Dir + "/daemon.log")
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Shims are the process ids of the daemon's shims.
func (d *Daemon) Shims() []int {
	return processes(func(args []string) bool {
		return strings.Contains(args[0], "containerd-shim") && slices.Contains(args, d.Address)
	})
}

// processes lists those whose arguments match.
func processes(match func(args []string) bool) []int {
	var out []int
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil || len(b) == 0 {
			continue
		}
		if match(strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")) {
			var pid int
			if _, err := fmt.Sscanf(n, "/proc/%d/cmdline", &pid); err == nil {
				out = append(out, pid)
			}
		}
	}
	return out
}

// clean stops everything and takes away the directories.
func (d *Daemon) clean() {
	if d.t.Failed() {
		d.t.Logf("containerd said:\n%.4000s", d.said())
	}
	if d.cmd != nil && d.cmd.Process != nil {
		d.Kill()
	}
	var left sync.WaitGroup
	for _, pid := range d.Shims() {
		d.t.Errorf("shim %d was left", pid)
		left.Go(func() { syscall.Kill(pid, syscall.SIGKILL) }) //nolint:errcheck // it may have ended
	}
	left.Wait()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(d.Dir))
	if err != nil {
		d.t.Error(err)
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
			d.t.Errorf("unmounting %s: %v", m.Mountpoint, err)
		}
	}
	if err := os.RemoveAll(d.Dir); err != nil {
		d.t.Error(err)
	}
}
