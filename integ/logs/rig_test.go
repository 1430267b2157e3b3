// Package logs has the tests of log drivers against real receivers: a container's logger
// and the shipper, without the container.
package logs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.dev/berth/agent/logs"
	"berth.dev/berth/agent/logs/grant"
	"berth.dev/berth/agent/logs/link"
	"berth.dev/berth/agent/logs/ship"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/integ/await"
	"berth.dev/berth/integ/host"
)

func TestMain(m *testing.M) {
	fluentPrepare()
	host.Main(m)
}

// rig is a host's log directories, with the programs.
type rig struct {
	t    testing.TB
	bin  string
	run  string
	root string

	settings logs.Settings
}

func newRig(t testing.TB) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, bin: filepath.Join(dir, "bin"), run: filepath.Join(dir, "run"), root: filepath.Join(dir, "tasks")}
	for _, d := range []string{r.bin, r.run, r.root} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	host.Program(t, r.bin, "berth.dev/berth/cmd/berth-logger")
	host.Program(t, r.bin, "berth.dev/berth/cmd/berth-shipper")
	r.settings = logs.Settings{Run: r.run, Logs: r.root, ExecutionRole: true}
	t.Cleanup(r.endShipper)
	return r
}

// shipper is the process id of the shipper, or 0.
func (r *rig) shipper() int {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, d := range dirs {
		b, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err == nil && strings.Contains(string(b), "berth-shipper\x00-run\x00"+r.run+"\x00") {
			var pid int
			if _, err := fmt.Sscan(filepath.Base(d), &pid); err != nil {
				r.t.Fatal(err)
			}
			return pid
		}
	}
	return 0
}

func (r *rig) endShipper() {
	for range 100 {
		pid := r.shipper()
		if pid == 0 {
			return
		}
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		wait(50 * time.Millisecond)
	}
	r.t.Error("the shipper does not end")
}

// wait lets time pass between two looks at something.
func wait(d time.Duration) { <-time.After(d) }

// container is the output of one container.
type container struct {
	r        *rig
	dir      string
	out, err *os.File
	logger   *exec.Cmd
}

// container starts the logger of a container with a log driver.
func (r *rig) container(driver string, options map[string]string, secrets ...string) *container {
	r.t.Helper()
	name := fmt.Sprintf("c%d", time.Now().UnixNano())
	c := task.Container{
		Name: name, Image: "busybox:latest", Command: []string{"sh", "-c", "true"}, LogsAuth: "ExecutionRole",
		Environment: map[string]string{"STAGE": "test", "OTHER": "x"},
		Config:      task.Config{Labels: map[string]string{"team": "blue"}},
		HostConfig:  task.HostConfig{LogConfig: task.LogConfig{Type: driver, Config: options}},
	}
	t := &task.Task{ARN: "arn:aws:ecs:us-east-1:123456789012:task/default/0123456789abcdef0123456789abcdef", Family: "fam", Version: "7", Containers: []task.Container{c}}
	dir := filepath.Join(r.root, t.ID(), name)
	plan, err := r.settings.Plan(t, &t.Containers[0], logs.About{Dir: dir, ID: "00112233445566778899aabbccddeeff", Image: c.Image, ImageID: "sha256:" + strings.Repeat("ab", 32), Command: c.Command, Secrets: secrets})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		r.t.Fatal(err)
	}
	if plan.Stream != nil {
		b, err := json.Marshal(plan.Stream)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, logs.StreamFile), b, 0o600)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	var args []string
	for k, v := range plan.Args {
		args = append(args, k, v[0])
	}
	k := &container{r: r, dir: dir}
	k.start(args)
	return k
}

func (k *container) start(args []string) {
	t := k.r.t
	t.Helper()
	pipe := func() (*os.File, *os.File) {
		a, b, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		return a, b
	}
	outR, outW := pipe()
	errR, errW := pipe()
	readyR, readyW := pipe()
	k.out, k.err = outW, errW
	k.logger = exec.Command(filepath.Join(k.r.bin, "berth-logger"), args...)
	k.logger.ExtraFiles = []*os.File{outR, errR, readyW}
	if err := k.logger.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{outR, errR, readyW} {
		f.Close()
	}
	t.Cleanup(func() { _ = k.logger.Process.Kill() }) // it has ended where all went well
	if _, err := io.ReadAll(readyR); err != nil {
		t.Fatal(err)
	}
	readyR.Close()
}

// say writes to the container's standard output.
func (k *container) say(text string) {
	k.r.t.Helper()
	if _, err := k.out.WriteString(text); err != nil {
		k.r.t.Fatal(err)
	}
}

// end ends the container and waits for its logger.
func (k *container) end() {
	k.r.t.Helper()
	if err := errors.Join(k.out.Close(), k.err.Close(), k.logger.Wait()); err != nil {
		k.r.t.Fatal(err)
	}
}

// sent waits until all output has been sent.
func (k *container) sent(limit time.Duration) ship.Place {
	k.r.t.Helper()
	var p ship.Place
	await.Until(k.r.t, limit, "all output is sent", func() (err error) {
		p, err = ship.ReadPlace(k.dir)
		if err == nil && !p.Done {
			err = fmt.Errorf("at %+v", p)
		}
		return err
	})
	return p
}

// agent answers the shipper as the agent does, until the test ends or the returned
// function is called.
func (r *rig) agent(give func(grant.Ask) (grant.Grant, error)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := grant.Serve(ctx, filepath.Join(r.run, link.AgentSocket), func(_ context.Context, a grant.Ask) (grant.Grant, error) { return give(a) }, slog.New(slog.DiscardHandler))
		if err != nil {
			r.t.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	r.t.Cleanup(stop)
	return stop
}

// shipperWith starts the shipper with flags that loggers do not give it.
func (r *rig) shipperWith(flags ...string) {
	r.t.Helper()
	cmd := exec.Command(filepath.Join(r.bin, "berth-shipper"), append([]string{"-run", r.run, "-logs", r.root}, flags...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	go cmd.Wait() //nolint:errcheck // it is killed
	await.Until(r.t, 5*time.Second, "the shipper listens", func() error {
		_, err := os.Stat(filepath.Join(r.run, link.Socket))
		return err
	})
}

func placeOf(t testing.TB, c *container) ship.Place {
	t.Helper()
	p, err := ship.ReadPlace(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
