// Package tasks runs real containers by the ECS API and compares what DescribeTasks
// shows of them, what they print, and what the kernel says of them, with what their
// definitions promise.
//
// It is a table. A row is a scenario: a task definition, the outcome that DescribeTasks
// must show, the lines that the container "main" must print, and functions that look at
// the task while it runs and after its end. A topic is a list of rows and has a file of
// its own, named after it. To add rows, add them to the list of their topic; to add a
// topic, write its file with a function that returns its rows, and name that function in
// topics. Rows are named in plain words, and no two alike.
//
// All rows run in one system, a bounded number at a time, once on Debian's containerd and
// once on the one that Berth brings, with the settings in agentSettings. They share one
// host, so each keeps to itself: no fixed host port that another row uses, no image of
// one row removed by another, no change of the system. What a row needs of files on the
// host it makes below t.TempDir.
package tasks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/runtime/logfile"
	"berth.dev/berth/agent/runtime/runtimetest"
	services "berth.dev/berth/integ/aws"
	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
	"berth.dev/berth/integ/testimage"
)

func TestMain(m *testing.M) { host.Main(m) }

// lab is a system with what scenarios share.
type lab struct {
	*system.System
	fake     *runtimetest.Fake                    // its containers exist only in memory; nil if they are real
	view     func(arn string) (engine.View, bool) // of the agent in this process; nil asks the agent's socket
	registry *testimage.Registry
	services *services.Server // of AWS
}

// scenario is one task from its definition to its end.
type scenario struct {
	name string
	// define makes the task definition; its family is filled in.
	define func(l *lab) *ecs.RegisterTaskDefinitionInput
	// volume configures the volume of the definition that is configured at launch.
	volume *types.TaskVolumeConfiguration
	// running is called when the task is RUNNING, and the task is stopped afterwards. With
	// nil the task has to end by itself.
	running func(t *testing.T, l *lab, tk types.Task)
	// waiting is called at once, of a task that does not become RUNNING, which is stopped
	// afterwards.
	waiting func(t *testing.T, l *lab, tk types.Task)
	// ends names a container that ends by itself, with the code that it waits for, as soon
	// as when says so: the test signals it behind the agent's back. How long the others
	// take to get ready does not matter then.
	ends string
	when func(t *testing.T, l *lab, tk types.Task)
	want outcome
	// output is what the container "main" must have printed, one string a line.
	output []string
	// ended looks at a task that has stopped.
	ended func(t *testing.T, l *lab, tk types.Task)
}

// outcome is what DescribeTasks shows of a stopped task and is the same every time.
type outcome struct {
	StopCode   types.TaskStopCode
	Reason     string
	Containers []end
}

type end struct {
	Name   string
	Exit   int32 // noExit when there is none
	Reason string
}

const noExit = -1

// exited is the outcome of a task whose essential container ended.
func exited(ends ...end) outcome {
	return outcome{StopCode: types.TaskStopCodeEssentialContainerExited, Reason: "Essential container in task exited", Containers: ends}
}

const stopReason = "the scenario is over"

// stopped is the outcome of a task that the scenario stopped.
func stopped(ends ...end) outcome {
	return outcome{StopCode: types.TaskStopCodeUserInitiated, Reason: stopReason, Containers: ends}
}

// cannotStart is what runtimes say of the program "/not/there", each in words of its own.
var cannotStart = regexp.MustCompile(`^CannotStartContainerError: .*(/not/there).*$`)

func (l *lab) outcomeOf(tk types.Task) outcome {
	// containerd 1.x names the class of an error after its text, and 2.x does not.
	text := func(s *string) string {
		t := strings.TrimSuffix(aws.ToString(s), ": unknown")
		if l.registry != nil {
			t = strings.ReplaceAll(t, l.registry.Host, "REGISTRY")
		}
		return cannotStart.ReplaceAllString(t, "CannotStartContainerError: $1 is not there")
	}
	o := outcome{StopCode: tk.StopCode, Reason: text(tk.StoppedReason)}
	for _, c := range tk.Containers {
		e := end{Name: aws.ToString(c.Name), Exit: noExit, Reason: text(c.Reason)}
		if c.ExitCode != nil {
			e.Exit = *c.ExitCode
		}
		o.Containers = append(o.Containers, e)
	}
	return o
}

// play runs a scenario.
func (l *lab) play(t *testing.T, sc scenario) {
	def := sc.define(l)
	def.Family = aws.String(strings.ReplaceAll(sc.name, " ", "-"))
	d := l.On(t)
	arn := l.launch(t, d.Register(def), sc.volume)
	t.Cleanup(func() {
		if t.Failed() { // it must not be left to run into the others' end
			d.Stop(arn)
		}
	})
	switch {
	case sc.running != nil:
		sc.running(t, l, d.Wait("RUNNING", 30*time.Second, arn)[0])
	case sc.waiting != nil:
		sc.waiting(t, l, d.Describe(arn)[0])
	case sc.ends != "":
		tk := d.Describe(arn)[0]
		sc.when(t, l, tk)
		l.terminate(t, tk, sc.ends)
	}
	if sc.running != nil || sc.waiting != nil {
		if _, err := l.ECS.StopTask(context.Background(), &ecs.StopTaskInput{Task: &arn, Reason: aws.String(stopReason)}); err != nil {
			t.Fatal(err)
		}
	}
	tk := d.Wait("STOPPED", 40*time.Second, arn)[0]
	if diff := cmp.Diff(sc.want, l.outcomeOf(tk)); diff != "" {
		t.Errorf("outcome (-want +got):\n%s\n%s\n%s", diff, system.Explain(tk), l.events(t, arn))
	}
	if l.fake == nil {
		inOrder(t, tk)
	}
	if sc.output != nil && l.fake == nil {
		l.prints(t, tk, sc.output)
	}
	if sc.ended != nil {
		sc.ended(t, l, tk)
	}
}

// terminate sends SIGTERM to the first process of a container.
func (l *lab) terminate(t *testing.T, tk types.Task, name string) {
	t.Helper()
	ready(name)(t, l, tk) // before that nothing handles the signal
	r := l.containerRuns(t, tk, name)
	if l.fake != nil {
		v, err := l.viewOf(*tk.TaskArn)
		if err == nil {
			err = l.fake.Stop(t.Context(), v.Task, name, r.Handle)
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	var h struct{ Cgroup string }
	if err := json.Unmarshal(r.Handle, &h); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/pids", h.Cgroup, "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range strings.Fields(string(b)) {
		status, err := os.ReadFile("/proc/" + pid + "/status")
		if err != nil || !regexp.MustCompile(`(?m)^NSpid:.*\t1$`).Match(status) {
			continue
		}
		n, err := strconv.Atoi(pid)
		if err == nil {
			err = syscall.Kill(n, syscall.SIGTERM)
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("container %s has no first process among %q", name, b)
}

// launch runs one task.
func (l *lab) launch(t *testing.T, def string, volume *types.TaskVolumeConfiguration) string {
	t.Helper()
	if volume == nil {
		return l.On(t).Run(def, 1)[0]
	}
	out, err := l.ECS.RunTask(context.Background(), &ecs.RunTaskInput{TaskDefinition: &def, VolumeConfigurations: []types.TaskVolumeConfiguration{*volume}})
	if err != nil || len(out.Tasks) != 1 {
		t.Fatalf("run %s: %v, %v", def, out, err)
	}
	return *out.Tasks[0].TaskArn
}

// inOrder checks the times of a stopped task: those that must be there are, and none is
// before one that must come earlier.
func inOrder(t *testing.T, tk types.Task) {
	t.Helper()
	var last time.Time
	for _, at := range []struct {
		name string
		time *time.Time
		must bool
	}{
		{"createdAt", tk.CreatedAt, true}, {"pullStartedAt", tk.PullStartedAt, false}, {"pullStoppedAt", tk.PullStoppedAt, false},
		{"startedAt", tk.StartedAt, false}, {"stoppingAt", tk.StoppingAt, true}, {"stoppedAt", tk.StoppedAt, true},
	} {
		switch {
		case at.time == nil && at.must:
			t.Errorf("%s is missing", at.name)
		case at.time != nil && at.time.Before(last):
			t.Errorf("%s is %v, before %v", at.name, at.time, last)
		case at.time != nil:
			last = *at.time
		}
	}
}

// output is what a container printed, line by line.
func (l *lab) output(t *testing.T, tk types.Task, container string) []string {
	t.Helper()
	var lines []string
	path := l.Runtime.LogPath(taskID(tk), container)
	err := logfile.Read(context.Background(), path, logfile.Options{Tail: -1}, func(e logfile.Entry) error {
		lines = append(lines, strings.TrimSuffix(e.Log, "\n"))
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("log of %s: %v", container, err)
	}
	return lines
}

// prints compares what the container "main" of a stopped task has printed. What writes
// the log is a program of its own, which may be a moment behind.
func (l *lab) prints(t *testing.T, tk types.Task, want []string) {
	t.Helper()
	system.Until(t, 5*time.Second, "output (-want +got)", func() error {
		if diff := cmp.Diff(want, l.output(t, tk, "main")); diff != "" {
			return errors.New(diff + system.Explain(tk))
		}
		return nil
	})
}

// printed waits until a container of a running task has printed a line.
func (l *lab) printed(t *testing.T, tk types.Task, container, line string) {
	t.Helper()
	system.Until(t, 10*time.Second, container+" prints "+line, func() error {
		lines := l.output(t, tk, container)
		for _, have := range lines {
			if have == line {
				return nil
			}
		}
		return fmt.Errorf("it printed %q", lines)
	})
}

// container is a busybox container named main.
func container(command ...string) types.ContainerDefinition {
	return types.ContainerDefinition{Name: aws.String("main"), Image: aws.String("busybox"), Memory: aws.Int32(32), Command: command}
}

// shell is a container that runs a script.
func shell(script string) types.ContainerDefinition { return container("sh", "-c", script) }

// named gives a container another name.
func named(name string, c types.ContainerDefinition) types.ContainerDefinition {
	c.Name = aws.String(name)
	return c
}

// waits is a script that ends with a code when it is asked to.
func waits(code int) string {
	return fmt.Sprintf("trap 'exit %d' TERM; echo ready; while :; do sleep 0.05; done", code)
}

// task is a definition of containers, changed by edit.
func task(edit func(in *ecs.RegisterTaskDefinitionInput), cs ...types.ContainerDefinition) func(*lab) *ecs.RegisterTaskDefinitionInput {
	return func(*lab) *ecs.RegisterTaskDefinitionInput {
		in := &ecs.RegisterTaskDefinitionInput{ContainerDefinitions: cs}
		if edit != nil {
			edit(in)
		}
		return in
	}
}

// with changes a container definition.
func with(c types.ContainerDefinition, edit func(c *types.ContainerDefinition)) types.ContainerDefinition {
	edit(&c)
	return c
}

// taskID is the last part of a task's ARN.
func taskID(tk types.Task) string { return filepath.Base(*tk.TaskArn) }
