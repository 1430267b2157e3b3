package system

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/cmd/berth/internal/layout"
	"berth.dev/berth/cmd/berth/internal/operator"
)

// How long the parts may take to end.
const (
	tasksGrace   = 3 * time.Minute // the longest stopTimeout of a container is 2 minutes (ECS API)
	programGrace = 15 * time.Second
)

// DownReport is what "berth down" found and ended.
type DownReport struct {
	Tasks    int      `json:"tasksStopped"`
	Programs []string `json:"programsStopped"`
	Left     []string `json:"left"` // what could not be removed; empty is success
	Kept     string   `json:"kept,omitempty"`
}

// Down stops the tasks of this host and then everything of Berth, and removes what
// they leave on the host. Data stays, unless purge is set.
func (s *System) Down(ctx context.Context, purge bool) (*DownReport, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r := &DownReport{Programs: []string{}}
	now, err := s.Layout.ReadSystem()
	if err != nil && !errors.Is(err, layout.ErrNotUp) {
		return nil, err
	}
	var errs []error
	tasks, err := s.taskIDs()
	if err != nil {
		return nil, err
	}
	forced := false
	if r.Tasks, err = s.stopTasks(ctx, tasks); err != nil {
		s.Screen.Note("Tasks could not be stopped in order (%v); ending them directly", err)
		forced = true
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := s.stop(ctx, Agent, r); err != nil {
		return nil, err // with an agent that runs on, nothing can be taken from under it
	}
	if now.Containerd != "" && (forced || purge) {
		if err := s.sweep(ctx, now, purge && !now.Private); err != nil {
			errs = append(errs, err)
		}
	}
	for _, name := range []string{Cluster, Containerd} {
		errs = append(errs, s.stop(ctx, name, r))
	}
	errs = append(errs, s.clearHost(ctx, tasks))
	r.Left = s.leftovers(tasks)
	if purge && len(r.Left) == 0 {
		errs = append(errs, os.RemoveAll(s.Layout.Lib()), os.RemoveAll(s.Layout.Log()))
	} else {
		r.Kept = s.Layout.Lib()
	}
	return r, errors.Join(errs...)
}

func (s *System) stop(ctx context.Context, name string, r *DownReport) error {
	stopped, err := s.Program(name).Stop(ctx, programGrace)
	if stopped && err == nil {
		r.Programs = append(r.Programs, name)
	}
	return err
}

// stopTasks has the cluster stop the tasks of this host, and waits until the agent has
// cleared away what they needed. Without an agent there is nobody to do it.
func (s *System) stopTasks(ctx context.Context, ids []string) (int, error) {
	for _, name := range []string{Agent, Cluster} {
		proc, err := s.Program(name).Running()
		if err != nil {
			return 0, err
		}
		if proc == nil {
			if s.cleared(ids) {
				return 0, nil // no task was left on the host by a program that is gone
			}
			return 0, fmt.Errorf("the %s does not run", name)
		}
	}
	state, err := s.AgentState(ctx)
	if err != nil {
		return 0, err
	}
	api, err := operator.Open(s.Layout)
	if err != nil {
		return 0, err
	}
	cluster := operator.Tail(&state.Cluster)
	if cluster == "" {
		cluster = DefaultCluster
	}
	tasks, err := api.Tasks(ctx, cluster, types.DesiredStatusRunning)
	if err != nil {
		return 0, err
	}
	step := s.Screen.Begin("tasks", "stopping")
	asked := 0
	for _, t := range tasks {
		if aws.ToString(t.ContainerInstanceArn) != state.InstanceARN {
			continue
		}
		if _, err := api.StopTask(ctx, &ecs.StopTaskInput{Cluster: &cluster, Task: t.TaskArn, Reason: aws.String("berth down")}); err != nil {
			step.Fail()
			return asked, api.Explain(err)
		}
		asked++
	}
	err = until(ctx, tasksGrace, func(ctx context.Context) (bool, error) {
		alive, err := s.aliveTasks(ctx)
		step.Say("stopping, %d left", alive)
		return err == nil && alive == 0, err
	})
	if err == nil { // the cluster should know before it is stopped; it is told again if not
		err = until(ctx, programGrace, func(ctx context.Context) (bool, error) {
			state, err := s.AgentState(ctx)
			return err == nil && state.Outbox == 0, err
		})
	}
	if err == nil { // a task has stopped before what it needed is cleared away
		err = until(ctx, programGrace, func(context.Context) (bool, error) { return s.cleared(ids), nil })
	}
	if err != nil {
		step.Fail()
		return asked, err
	}
	if asked == 0 {
		step.Fail()
		return 0, nil
	}
	step.Done("%d stopped", asked)
	return asked, nil
}

// cleared reports whether the agent has cleared away everything that tasks needed.
func (s *System) cleared(ids []string) bool {
	dirs, err := s.cgroupDirs()
	if err != nil {
		return false
	}
	for _, dir := range dirs {
		if len(cgroupsOf(dir, ids)) > 0 {
			return false
		}
	}
	namespaces, err := os.ReadDir(filepath.Join(s.networkDir(), "namespaces"))
	return len(namespaces) == 0 && (err == nil || errors.Is(err, fs.ErrNotExist)) && len(s.shims()) == 0
}

// aliveTasks counts the tasks that have not stopped.
func (s *System) aliveTasks(ctx context.Context) (int, error) {
	tasks, err := s.AgentTasks(ctx)
	if err != nil {
		return 0, err
	}
	return len(slices.DeleteFunc(tasks, func(t AgentTask) bool { return t.Known.Status == task.StatusStopped })), nil
}

// clearHost removes what lies outside Berth's own directories, and the run directory.
func (s *System) clearHost(ctx context.Context, tasks []string) error {
	err := s.teardown(ctx, tasks)
	mounts, mountErr := s.mountsBelow(s.Layout.Run(), s.Layout.Lib())
	if mountErr != nil {
		return errors.Join(err, mountErr)
	}
	for _, path := range mounts {
		if e := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); e != nil {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", path, e))
		}
	}
	if err != nil {
		return err // never remove files through a mount
	}
	return os.RemoveAll(s.Layout.Run())
}

// mountsBelow lists the mount points below directories, the innermost first.
func (s *System) mountsBelow(dirs ...string) ([]string, error) {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, m := range all {
		for _, dir := range dirs {
			if m.Mountpoint == dir || strings.HasPrefix(m.Mountpoint, dir+"/") {
				found = append(found, m.Mountpoint)
			}
		}
	}
	slices.Reverse(found) // mountinfo is in the order of mounting
	return found, nil
}
