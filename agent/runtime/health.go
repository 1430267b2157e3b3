package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
)

var _ engine.Checker = (*Containers)(nil)

// healthExec names the process of a health check. There is never more than one in a
// container: one that an agent left behind which ended meanwhile is in the way of the
// next, and so it is found and killed.
const healthExec = "health"

// healthNames is how many names the processes of a container's health checks can have: runc
// that is killed while it starts one leaves a file which takes the name for ever.
const healthNames = 4

// Limits of health checks besides those of their definition.
const (
	checkEnds    = 5 * time.Second // a killed check is gone after this
	checkOutput  = task.MaxHealthOutput
	checkFailure = -1 // exit code of a check that was killed or could not be run (Docker Engine)
)

// Check runs the container's health check in it once. Its output is read as it comes and
// kept up to a limit. After the time limit every process of its session is killed.
func (s *Containers) Check(ctx context.Context, t *task.Task, name string, raw task.Handle) (task.Check, error) {
	h, err := s.handleOf(ctx, t, name, raw)
	if err != nil {
		return task.Check{}, err
	}
	def := t.Container(name)
	if def == nil || def.Config.Healthcheck == nil || def.Config.Healthcheck.Args() == nil {
		return task.Check{}, task.Failf(task.Invalid, "", "container %s has no health check", name)
	}
	ctx = s.c.ns(ctx)
	process, err := s.c.processOf(ctx, h.ID, def.Config.Healthcheck.Args())
	if err != nil {
		return task.Check{}, classify(err, "")
	}
	out, err := openOutput(s.c.checkPath(h.ID))
	if err != nil {
		return task.Check{}, classify(fmt.Errorf("output of the health check of container %s: %w", h.ID, err), "")
	}
	defer out.remove()
	e := &execution{c: s.c, h: h, limit: def.Config.Healthcheck.Limit(), id: healthExec}
	check, taken, err := e.run(ctx, process, out.path)
	for n := 1; taken && n < healthNames; n++ {
		e.id, e.pid = fmt.Sprintf("%s-%d", healthExec, n), 0
		check, taken, err = e.run(ctx, process, out.path)
	}
	check.Output += out.text()
	if err == nil && check.ExitCode != 0 && !s.c.running(ctx, h.ID) {
		err = unavailable(fmt.Errorf("container %s ended during its health check", h.ID))
	}
	return check, classify(err, "")
}

// processOf is the container's own process with another command line.
func (c *Client) processOf(ctx context.Context, id string, args []string) (*specs.Process, error) {
	r, err := c.containers.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	var oci specs.Spec
	if err := json.Unmarshal(r.Spec.GetValue(), &oci); err != nil || oci.Process == nil {
		return nil, fmt.Errorf("container %s: its record has no readable process: %w", id, err)
	}
	p := oci.Process
	p.Args, p.Terminal, p.ConsoleSize, p.CommandLine = args, false, nil, ""
	return p, nil
}

func (c *Client) running(ctx context.Context, id string) bool {
	r, err := c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: id})
	return err == nil && r.Process.Status == tasktypes.Status_RUNNING
}

// execution is one run of a health check.
type execution struct {
	c     *Client
	h     handle
	limit time.Duration
	id    string // of the process
	pid   uint32
}

// run runs the check once; taken means that it was not run, because its process cannot have
// its name.
func (e *execution) run(ctx context.Context, p *specs.Process, stdout string) (check task.Check, taken bool, err error) {
	check.Start = time.Now()
	limited, cancel := context.WithTimeout(ctx, e.limit)
	defer cancel()
	if err := e.create(limited, p, stdout); err != nil {
		if late(ctx, limited) {
			err = unavailable(err)
		}
		return check, false, err
	}
	defer func() {
		if derr := e.delete(ctx); derr != nil {
			err = errors.Join(err, derr)
		}
	}()
	r, err := e.c.tasks.Start(limited, &tasks.StartRequest{ContainerID: e.h.ID, ExecID: e.id})
	if err != nil {
		if late(ctx, limited) {
			return check, false, unavailable(err) // the runtime was slow, which says nothing about the container
		}
		switch classOf(err) {
		case task.Unavailable, task.NotFound, task.Canceled:
			return check, false, err
		}
		// It cannot be run in this container, which is a failure like any other.
		check.ExitCode, check.Output = checkFailure, native(err).Error()
		return check, strings.Contains(check.Output, "/."+e.id+".pid: file exists"), nil
	}
	e.pid = r.Pid
	w, err := e.c.tasks.Wait(limited, &tasks.WaitRequest{ContainerID: e.h.ID, ExecID: e.id})
	switch {
	case err == nil:
		check.ExitCode = int(w.ExitStatus)
		return check, false, nil
	case late(ctx, limited):
		check.ExitCode, check.Output = checkFailure, fmt.Sprintf("Health check exceeded timeout (%v): ", e.limit)
		return check, false, nil
	default:
		return check, false, err
	}
}

// early is by how much the runtime may be ahead in seeing a deadline that both have.
const early = 100 * time.Millisecond

// late reports whether a call that failed had its time limit to thank for it.
func late(ctx, limited context.Context) bool {
	deadline, ok := limited.Deadline()
	return ctx.Err() == nil && (limited.Err() != nil || ok && time.Until(deadline) < early)
}

// create makes the process, after that of an earlier agent has been taken away.
func (e *execution) create(ctx context.Context, p *specs.Process, stdout string) error {
	packed, err := typeurl.MarshalAnyToProto(p)
	if err != nil {
		return err
	}
	req := &tasks.ExecProcessRequest{ContainerID: e.h.ID, ExecID: e.id, Stdout: stdout, Stderr: stdout, Spec: packed}
	_, err = e.c.tasks.Exec(ctx, req)
	if !isExists(err) {
		return err
	}
	if r, gerr := e.c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: e.h.ID, ExecID: e.id}); gerr == nil {
		e.pid = r.Process.Pid
	}
	if err := e.delete(ctx); err != nil {
		return err
	}
	e.pid = 0
	_, err = e.c.tasks.Exec(ctx, req)
	return err
}

// delete kills what is left of the check and deletes it, also when ctx has ended.
func (e *execution) delete(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkEnds)
	defer cancel()
	req := &tasks.DeleteProcessRequest{ContainerID: e.h.ID, ExecID: e.id}
	for {
		_, err := e.c.tasks.DeleteProcess(ctx, req)
		if err == nil || isNotFound(err) {
			return nil
		}
		// The error of one that runs has no class.
		if !isPrecondition(err) && classOf(err) != task.Unclassified {
			return err
		}
		if err := e.kill(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("health check of container %s: %w", e.h.ID, err)
		case <-time.After(deletePoll):
		}
	}
}

// kill ends the check and what it started: the processes of the container that are in
// its session. What left that on purpose is the container's own affair.
func (e *execution) kill(ctx context.Context) error {
	_, err := e.c.tasks.Kill(ctx, &tasks.KillRequest{ContainerID: e.h.ID, ExecID: e.id, Signal: uint32(syscall.SIGKILL)})
	if err != nil && !gone(err) {
		return err
	}
	pids, err := e.c.cgs.procs(e.h.Cgroup)
	if err != nil || e.pid == 0 {
		return err
	}
	for _, pid := range pids {
		if session(pid) != int(e.pid) {
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("health check of container %s, process %d: %w", e.h.ID, pid, err)
		}
	}
	return nil
}

// session is the session of a process (proc(5), stat), or 0.
func session(pid int) int {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 4 {
		return 0
	}
	n, _ := strconv.Atoi(fields[3]) // 0 when it is not a number
	return n
}

// output is a named pipe and what was read from it.
type output struct {
	path   string
	keeper *os.File // keeps the pipe open for writing until everything was written
	reader *os.File
	done   chan struct{}
	head   []byte
}

// checkPath is the named pipe for the output of a container's health check.
func (c *Client) checkPath(id string) string { return filepath.Join(c.cfg.StateDir, "health-"+id) }

func openOutput(path string) (*output, error) {
	o := &output{path: path, done: make(chan struct{})}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // of an agent that was killed
		return nil, err
	}
	if err := syscall.Mkfifo(o.path, 0o600); err != nil {
		return nil, err
	}
	var err error
	if o.reader, err = os.OpenFile(o.path, os.O_RDONLY|syscall.O_NONBLOCK, 0); err != nil {
		return nil, errors.Join(err, os.Remove(o.path))
	}
	if o.keeper, err = os.OpenFile(o.path, os.O_WRONLY|syscall.O_NONBLOCK, 0); err != nil {
		return nil, errors.Join(err, o.reader.Close(), os.Remove(o.path))
	}
	go o.read()
	return o, nil
}

// read keeps the beginning and throws the rest away, so that no check waits for a reader.
func (o *output) read() {
	defer close(o.done)
	head, err := io.ReadAll(io.LimitReader(o.reader, checkOutput))
	o.head = head
	if err == nil {
		_, err = io.Copy(io.Discard, o.reader)
	}
	_ = err // the end of a pipe has no other error than the time limit
}

// text is what was written. The check has ended; what it left behind in the container may
// hold the pipe open and is not waited for.
func (o *output) text() string {
	_ = o.keeper.Close() // it was only held
	if err := o.reader.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		_ = o.reader.Close() // ends the reading as well
	}
	<-o.done
	return strings.ToValidUTF8(string(o.head), "")
}

func (o *output) remove() {
	_ = o.keeper.Close() // for the second time, mostly
	_ = o.reader.Close()
	<-o.done
	_ = os.Remove(o.path) // the next check removes it otherwise
}
