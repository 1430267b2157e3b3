package tasks

import (
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	agenttask "berth.dev/berth/agent/task"
	"berth.dev/berth/integ/system"
)

// option changes a container definition.
type option func(c *types.ContainerDefinition)

// runs is a container with a name that runs a script.
func runs(name, script string, options ...option) types.ContainerDefinition {
	c := named(name, shell(script))
	for _, o := range options {
		o(&c)
	}
	return c
}

func optional(c *types.ContainerDefinition) { c.Essential = aws.Bool(false) }

// absent makes the container's program one that is not there.
func absent(c *types.ContainerDefinition) { c.Command = []string{"/not/there"} }

func after(name string, condition types.ContainerCondition) option {
	return func(c *types.ContainerDefinition) {
		c.DependsOn = append(c.DependsOn, types.ContainerDependency{ContainerName: &name, Condition: condition})
	}
}

func startTimeout(seconds int32) option {
	return func(c *types.ContainerDefinition) { c.StartTimeout = &seconds }
}

func stopTimeout(seconds int32) option {
	return func(c *types.ContainerDefinition) { c.StopTimeout = &seconds }
}

// checked gives a container a health check, twice a second.
func checked(retries int32, test ...string) option {
	return func(c *types.ContainerDefinition) {
		c.HealthCheck = &types.HealthCheck{Command: test, Interval: aws.Int32(5), Timeout: aws.Int32(2), Retries: &retries}
	}
}

const (
	start    = types.ContainerConditionStart
	complete = types.ContainerConditionComplete
	success  = types.ContainerConditionSuccess
	healthy  = types.ContainerConditionHealthy
)

// notResolved is the reason of a container whose dependency cannot come about.
func notResolved(container, on string, condition types.ContainerCondition, why string) string {
	return fmt.Sprintf("CannotStartContainerError: dependency graph: container %s: dependency on %s with condition %s not resolved: %s", container, on, condition, why)
}

// blocked is the outcome of a task whose container "main" never got to run.
func blocked(reason string, others ...end) outcome {
	return neverStarted(reason, append([]end{{"main", 143, reason}}, others...)...)
}

// ready waits until containers that run waits have set their trap.
func ready(names ...string) func(t *testing.T, l *lab, tk types.Task) {
	return func(t *testing.T, l *lab, tk types.Task) {
		if l.fake != nil {
			return
		}
		for _, name := range names {
			l.printed(t, tk, name, "ready")
		}
	}
}

const absentReason = "CannotStartContainerError: /not/there is not there"

// dependencies are about what containers wait for.
func dependencies() []scenario {
	late := "sleep 0.5; exit 0"
	all := []scenario{
		{
			name: "start of one that goes on", want: exited(end{"main", 0, ""}, end{"dep", 5, ""}),
			define: task(nil, runs("main", waits(0), after("dep", start)), runs("dep", waits(5))),
			ends:   "main", when: ready("dep"),
		},
		{
			name: "start of one that has ended", want: exited(end{"main", 0, ""}, end{"dep", 4, ""}),
			define: task(nil, runs("main", "exit 0", after("dep", start)), runs("dep", "exit 4", optional)),
		},
		{
			name: "chain of starts", want: stopped(end{"main", 1, ""}, end{"b", 2, ""}, end{"c", 3, ""}),
			define:  task(nil, runs("main", waits(1), after("b", start)), runs("b", waits(2), after("c", start)), runs("c", waits(3))),
			running: ready("main", "b", "c"),
		},
		{
			name: "completion", want: exited(end{"main", 0, ""}, end{"init", 0, ""}),
			define: task(nil, runs("main", "exit 0", after("init", complete)), runs("init", late, optional)),
		},
		{
			name: "completion with a failure", want: exited(end{"main", 0, ""}, end{"init", 7, ""}),
			define: task(nil, runs("main", "exit 0", after("init", complete)), runs("init", "exit 7", optional)),
		},
		{
			name: "success", want: exited(end{"main", 3, ""}, end{"init", 0, ""}),
			define: task(nil, runs("main", "exit 3", after("init", success)), runs("init", late, optional)),
		},
		{
			name:   "success that fails",
			want:   blocked(notResolved("main", "init", success, "container exited with code 7"), end{"init", 7, ""}),
			define: task(nil, runs("main", "exit 0", after("init", success)), runs("init", "exit 7", optional)),
		},
		{
			name: "three steps to success", want: exited(end{"main", 0, ""}, end{"one", 0, ""}, end{"two", 0, ""}, end{"three", 0, ""}),
			define: task(nil, runs("main", "exit 0", after("three", success)), runs("one", "exit 0", optional),
				runs("two", "exit 0", optional, after("one", success)), runs("three", "exit 0", optional, after("two", success))),
		},
		{
			name: "failure at the first of three steps",
			want: blocked(notResolved("main", "two", success, "dependency did not start"),
				end{"one", 1, ""}, end{"two", 143, notResolved("two", "one", success, "container exited with code 1")}),
			define: task(nil, runs("main", "exit 0", after("two", success)), runs("one", "exit 1", optional),
				runs("two", "exit 0", optional, after("one", success))),
		},
		{
			name: "diamond", want: exited(end{"main", 0, ""}, end{"left", 0, ""}, end{"right", 2, ""}, end{"top", 0, ""}),
			define: task(nil, runs("main", "exit 0", after("left", success), after("right", complete)),
				runs("left", "exit 0", optional, after("top", success)), runs("right", "exit 2", optional, after("top", complete)), runs("top", late, optional)),
		},
		{
			name: "all conditions at once",
			want: exited(end{"main", 0, ""}, end{"started", 1, ""}, end{"completed", 2, ""}, end{"succeeded", 0, ""}, end{"well", 3, ""}),
			define: task(nil,
				runs("main", waits(0), after("started", start), after("completed", complete), after("succeeded", success), after("well", healthy)),
				runs("started", waits(1)), runs("completed", "exit 2", optional), runs("succeeded", "exit 0", optional),
				runs("well", waits(3), checked(1, "CMD-SHELL", "exit 0"))),
			ends: "main", when: ready("started", "well"),
		},
		{
			name: "health", want: exited(end{"main", 0, ""}, end{"dep", 6, ""}),
			define: task(nil, runs("main", "exit 0", after("dep", healthy)), runs("dep", waits(6), checked(3, "CMD", "/bin/true"))),
		},
		{
			name: "health that comes late", want: exited(end{"main", 0, ""}, end{"dep", 6, ""}),
			define: task(nil, runs("main", "exit 0", after("dep", healthy)),
				runs("dep", "trap 'exit 6' TERM; sleep 1.5; touch /tmp/well; "+loop, checked(10, "CMD-SHELL", "test -e /tmp/well"))),
		},
		{
			name: "health of one that has become unhealthy and recovers", want: exited(end{"main", 0, ""}, end{"dep", 6, ""}),
			define: task(nil, runs("main", "exit 0", after("dep", healthy)),
				runs("dep", "trap 'exit 6' TERM; sleep 2; touch /tmp/well; "+loop, checked(1, "CMD-SHELL", "test -e /tmp/well"))),
		},
		{
			name: "health that never comes",
			want: blocked(notResolved("main", "dep", healthy, "dependency on container dep with condition HEALTHY has timed out."), end{"dep", 6, ""}),
			define: task(nil, runs("main", "exit 0", after("dep", healthy)),
				runs("dep", waits(6), checked(2, "CMD-SHELL", "exit 1"), startTimeout(4))),
		},
		{
			name: "health of one that ends",
			want: blocked(notResolved("main", "dep", healthy, "container stopped before it was healthy"), end{"dep", 9, ""}),
			define: task(nil, runs("main", "exit 0", after("dep", healthy)),
				runs("dep", "sleep 0.8; exit 9", optional, checked(10, "CMD-SHELL", "exit 1"))),
		},
		{
			name: "completion that takes too long",
			want: blocked(notResolved("main", "dep", complete, "dependency on container dep with condition COMPLETE has timed out."), end{"dep", 6, ""}),
			define: task(nil, runs("main", "exit 0", after("dep", complete)),
				runs("dep", waits(6), optional, startTimeout(4))),
		},
		{
			name: "success that takes too long",
			want: blocked(notResolved("main", "dep", success, "dependency on container dep with condition SUCCESS has timed out."), end{"dep", 6, ""}),
			define: task(nil, runs("main", "exit 0", after("dep", success)),
				runs("dep", waits(6), optional, startTimeout(4))),
		},
		{
			name: "start knows no timeout", want: exited(end{"main", 0, ""}, end{"dep", 6, ""}),
			define: task(nil, runs("main", waits(0), after("dep", start)), runs("dep", waits(6), startTimeout(1))),
			ends:   "main", when: func(t *testing.T, l *lab, tk types.Task) {
				ready("dep")(t, l, tk)
				r := l.containerRuns(t, tk, "main")
				<-time.After(time.Until(r.Started.Add(2 * time.Second)))
			},
		},
		{
			name: "waiting of what is not essential",
			want: stopped(end{"main", 1, ""}, end{"side", 143, notResolved("side", "init", success, "container exited with code 2")}, end{"init", 2, ""}),
			define: task(nil, runs("main", waits(1)), runs("side", "exit 0", optional, after("init", success)),
				runs("init", "exit 2", optional)),
			running: ready("main"),
		},
		{
			name: "six that wait for one", want: exited(end{"main", 0, ""}, end{"a", 0, ""}, end{"b", 1, ""}, end{"c", 2, ""}, end{"d", 3, ""}, end{"e", 4, ""}, end{"init", 0, ""}),
			define: task(nil, runs("main", "exit 0", after("a", complete), after("b", complete), after("c", complete), after("d", complete), after("e", complete)),
				runs("a", "exit 0", optional, after("init", success)), runs("b", "exit 1", optional, after("init", success)),
				runs("c", "exit 2", optional, after("init", success)), runs("d", "exit 3", optional, after("init", success)),
				runs("e", "exit 4", optional, after("init", success)), runs("init", "exit 0", optional)),
		},
		{
			name: "link", want: exited(end{"main", 0, ""}, end{"dep", 5, ""}),
			define: task(nil, runs("main", waits(0), func(c *types.ContainerDefinition) { c.Links = []string{"dep:other"} }), runs("dep", waits(5))),
			ends:   "main", when: ready("dep"),
		},
		{
			name: "link to one that cannot start", want: blocked(notResolved("main", "dep", start, "dependency did not start"), end{"dep", noExit, absentReason}),
			define: task(nil, runs("main", "exit 0", func(c *types.ContainerDefinition) { c.Links = []string{"dep"} }), runs("dep", "", optional, absent)),
		},
		{
			name: "volumes from one that has ended", want: exited(end{"main", 0, ""}, end{"data", 0, ""}),
			define: task(nil, runs("main", "exit 0", after("data", complete), func(c *types.ContainerDefinition) {
				c.VolumesFrom = []types.VolumeFrom{{SourceContainer: aws.String("data")}}
			}), runs("data", "exit 0", optional)),
		},
		{
			name: "stop while one waits", want: stopped(end{"main", 1, ""}, end{"side", noExit, ""}, end{"dep", 2, ""}),
			define: task(nil, runs("main", waits(1)), runs("side", "exit 0", optional, after("dep", complete)), runs("dep", waits(2), optional)),
			// The task is not RUNNING as long as a container waits.
			waiting: func(t *testing.T, l *lab, tk types.Task) {
				l.containerRuns(t, tk, "main")
				l.containerRuns(t, tk, "dep")
				ready("main", "dep")(t, l, tk)
			},
		},
	}
	for _, condition := range []types.ContainerCondition{start, complete, success} {
		all = append(all, scenario{
			name:   "what cannot start under the condition " + string(condition),
			want:   blocked(notResolved("main", "dep", condition, "dependency did not start"), end{"dep", noExit, absentReason}),
			define: task(nil, runs("main", "exit 0", after("dep", condition)), runs("dep", "", optional, absent)),
		})
	}
	return all
}

// containerRuns waits until the agent counts a container as started.
func (l *lab) containerRuns(t *testing.T, tk types.Task, name string) *agenttask.Record {
	t.Helper()
	var r *agenttask.Record
	system.Until(t, 20*time.Second, name+" runs", func() error {
		v, err := l.viewOf(*tk.TaskArn)
		if err != nil {
			return err
		}
		r = v.Known.Resource(agenttask.ResourceID{Kind: agenttask.KindContainer, Name: name})
		if !r.Running() {
			return fmt.Errorf("%+v", *r)
		}
		return nil
	})
	return r
}

// loop goes on until a signal comes.
const loop = "while :; do sleep 0.05; done"
