package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	failpoint "berth.dev/berth/agent/fail"
	"berth.dev/berth/agent/task"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Start starts the created process.
func (s *Containers) Start(ctx context.Context, t *task.Task, name string, raw task.Handle) error {
	h, err := s.handleOf(ctx, t, name, raw)
	if err != nil {
		return err
	}
	s.c.track(h, t.ID(), name)
	if s.c.begun(h.ID) {
		return nil // by a start that was not heard of any more
	}
	_, err = s.c.tasks.Start(s.c.ns(ctx), &tasks.StartRequest{ContainerID: h.ID})
	if err == nil {
		return nil
	}
	o, perr := s.c.inspect(ctx, h)
	switch {
	case perr != nil:
	case o.Process == task.ProcessRunning:
		return nil // a start that was repeated after a crash finds the process started
	case o.Unstarted:
		return unavailable(fmt.Errorf("container %s: its process ended before it was started: %w", h.ID, native(err)))
	case o.Process == task.ProcessExited && (isPrecondition(err) || overtaken(err)):
		return nil // or ended already
	}
	return explain(classify(err, task.CannotStartContainer))
}

// overtaken reports whether a start came when the process had ended already, in the words
// of runc.
func overtaken(err error) bool {
	s := err.Error()
	return strings.Contains(s, "container process is already dead") || strings.Contains(s, "cannot start a container that has stopped")
}

// When containerd is killed, the shim abandons what it was doing for it, and ends a "runc
// start" that it waits for. The process, whose other end is gone, ends as well; or it has
// been started, and the shim goes on calling it created. OCI runtimes keep a named pipe
// until a start has succeeded, into which the process writes just before it becomes the
// program: that tells which of both it was.

// unstarted reports whether a process that has ended never came to run the container's
// program: the pipe is there and was never written to. What cannot be told counts as
// started.
func (c *Client) unstarted(id string) bool {
	st, err := c.startPipe(id)
	return err == nil && st.Mask&unix.STATX_BTIME != 0 && st.Btime == st.Mtime
}

// begun reports whether a process that was made runs the container's program, or did: the
// pipe is gone while the runtime still has the container. What cannot be told counts as
// not started, and so does a pipe that is there, whatever its times: a container that was
// taken for started would never be.
func (c *Client) begun(id string) bool {
	if _, err := c.startPipe(id); !errors.Is(err, unix.ENOENT) {
		return false
	}
	_, err := os.Lstat(filepath.Join(c.runcRoot(), c.cfg.Namespace, id, "state.json"))
	return err == nil
}

func (c *Client) startPipe(id string) (st unix.Statx_t, err error) {
	path := filepath.Join(c.runcRoot(), c.cfg.Namespace, id, "exec.fifo")
	return st, unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BTIME|unix.STATX_MTIME, &st)
}

// Probe asks what there is of the container. A shim that does not answer is an error
// of class Unavailable and says nothing about the process.
func (s *Containers) Probe(ctx context.Context, t *task.Task, name string, raw task.Handle) (task.Observed, error) {
	h, err := s.handleOf(ctx, t, name, raw)
	if err != nil {
		return task.Observed{}, err
	}
	s.c.track(h, t.ID(), name)
	return s.c.inspect(ctx, h)
}

func (c *Client) inspect(ctx context.Context, h handle) (task.Observed, error) {
	ctx, cancel := context.WithTimeout(c.ns(ctx), askTimeout+stragglerLimit)
	defer cancel()
	r, err := c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: h.ID})
	if isNotFound(err) {
		return c.inspectRecord(ctx, h)
	}
	if err != nil {
		return task.Observed{}, classify(err, task.CannotInspectContainer)
	}
	o := task.Observed{Exists: true, Incarnation: h.Incarnation}
	switch r.Process.Status {
	case tasktypes.Status_CREATED:
		o.Process = task.ProcessCreated
		if c.begun(h.ID) {
			o.Process = task.ProcessRunning
		}
	case tasktypes.Status_RUNNING, tasktypes.Status_PAUSED, tasktypes.Status_PAUSING:
		o.Process = task.ProcessRunning
	case tasktypes.Status_STOPPED:
		exit, err := c.ended(ctx, h, r.Process.ExitStatus, r.Process.ExitedAt)
		if err != nil {
			return task.Observed{}, classify(err, task.CannotInspectContainer)
		}
		o.Process, o.Exit, o.Unstarted = task.ProcessExited, &exit, c.unstarted(h.ID)
	default:
		return task.Observed{}, unavailable(fmt.Errorf("container %s: its shim does not answer (status %s)", h.ID, r.Process.Status))
	}
	return o, nil
}

// inspectRecord is for a container that containerd knows no process of. While the
// cgroup holds processes of a killed shim the container has not ended.
func (c *Client) inspectRecord(ctx context.Context, h handle) (task.Observed, error) {
	if err := c.cgs.empty(ctx, h.Cgroup); err != nil {
		return task.Observed{}, unavailable(fmt.Errorf("container %s: %w", h.ID, err))
	}
	_, err := c.containers.Get(ctx, h.ID)
	if err == nil {
		return task.Observed{Exists: true, Incarnation: h.Incarnation}, nil
	}
	if !isNotFound(err) {
		return task.Observed{}, classify(err, task.CannotInspectContainer)
	}
	_, err = c.snapshots.Stat(ctx, h.snapshot())
	if err != nil && !isNotFound(err) {
		return task.Observed{}, classify(err, task.CannotInspectContainer)
	}
	return task.Observed{Exists: err == nil, Incarnation: h.Incarnation}, nil
}

// ended waits until the last process of the container is gone and says how the first
// one ended.
func (c *Client) ended(ctx context.Context, h handle, status uint32, at *timestamppb.Timestamp) (task.Exit, error) {
	oom := c.cgs.oomKills(h.Cgroup) > 0 || c.sawOOM(h.ID)
	if err := c.cgs.empty(ctx, h.Cgroup); err != nil {
		return task.Exit{}, fmt.Errorf("container %s: %w", h.ID, err)
	}
	e := task.Exit{Code: int(status), At: at.AsTime()}
	if e.Code > 128 && e.Code <= 128+64 {
		e.Signal = e.Code - 128
	}
	// A container that lost a helper process and still ended well was not stopped by it.
	e.OOMKilled = oom && e.Code != 0
	return e, nil
}

// Stop delivers the stop signal to the container's first process.
func (s *Containers) Stop(ctx context.Context, t *task.Task, name string, raw task.Handle) error {
	h, err := s.handleOf(ctx, t, name, raw)
	if err != nil {
		return err
	}
	sig := h.Signal
	if sig == 0 {
		sig = int(syscall.SIGTERM)
	}
	_, err = s.c.tasks.Kill(s.c.ns(ctx), &tasks.KillRequest{ContainerID: h.ID, Signal: uint32(sig)})
	if gone(err) {
		return nil
	}
	return classify(err, task.CannotStopContainer)
}

// Kill ends all processes of the container, by its cgroup where the shim does not help.
func (s *Containers) Kill(ctx context.Context, t *task.Task, name string, raw task.Handle) error {
	h, err := s.handleOf(ctx, t, name, raw)
	if err != nil {
		return err
	}
	return classify(s.c.kill(s.c.ns(ctx), h), task.CannotStopContainer)
}

func (c *Client) kill(ctx context.Context, h handle) error {
	kctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, err := c.tasks.Kill(kctx, &tasks.KillRequest{ContainerID: h.ID, Signal: uint32(syscall.SIGKILL), All: true})
	if err == nil {
		return nil
	}
	// No process known does not mean that there is none, and a stopped shim never answers.
	if kerr := c.cgs.kill(h.Cgroup); kerr != nil {
		return errors.Join(err, kerr)
	}
	if gone(err) || !isRoot(h.Cgroup) {
		return nil // every process of the cgroup was killed, whatever the shim said
	}
	return err
}

// gone reports whether a signal found nothing to be delivered to.
func gone(err error) bool {
	return err == nil || isNotFound(err) || isPrecondition(err) && strings.Contains(err.Error(), "process already finished")
}

// How long a killed process may take until it can be deleted, and how often it is asked
// about: after deletePoll, and then after ever longer, up to deletePollMax.
const (
	deletePoll    = 10 * time.Millisecond
	deletePollMax = 500 * time.Millisecond
	deleteLimit   = 10 * time.Second
)

// errRunning says that a process that was to be retired has not ended.
var errRunning = errors.New("the process has not ended")

// runs reports whether containerd knows that the process has not ended.
func (c *Client) runs(ctx context.Context, id string) bool {
	r, err := c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err != nil {
		return false
	}
	switch r.Process.Status {
	case tasktypes.Status_CREATED, tasktypes.Status_RUNNING, tasktypes.Status_PAUSING, tasktypes.Status_PAUSED:
		return true
	}
	return false
}

// deleteProcess deletes the process; with force it ends one that runs. It also ends
// what is left in the cgroup and removes that.
func (c *Client) deleteProcess(ctx context.Context, h handle, force bool) error {
	deadline := time.Now().Add(deleteLimit)
	poll, killed := deletePoll, false
	for {
		// containerd writes into its log what it refuses: it is asked first while a killed
		// process is dying, which may take as long as its cgroup is throttled.
		var err error
		if killed && c.runs(ctx, h.ID) {
			err = errRunning
		} else if _, err = c.tasks.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: h.ID}); err == nil || isNotFound(err) {
			break
		}
		if !isPrecondition(err) && !force {
			return err
		}
		if !force {
			return unavailable(fmt.Errorf("container %s: %w", h.ID, errRunning))
		}
		if !killed {
			if err := c.kill(ctx, h); err != nil {
				return err
			}
			killed = true
		}
		if time.Now().After(deadline) {
			return unavailable(fmt.Errorf("container %s: %w", h.ID, err))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(poll):
		}
		poll = min(2*poll, deletePollMax)
	}
	if err := failpoint.Point(failpoint.DeleteAfterProcess); err != nil {
		return err
	}
	if err := c.cgs.empty(ctx, h.Cgroup); err != nil {
		return unavailable(fmt.Errorf("container %s: %w", h.ID, err))
	}
	return c.cgs.remove(h.Cgroup)
}
