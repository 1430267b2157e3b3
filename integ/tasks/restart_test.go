package tasks

import (
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/system"
)

// again gives a container a restart policy, whose period is three seconds: long enough for
// a busy machine to let a program end within it that ends at once.
func again(ignored ...int32) option {
	return func(c *types.ContainerDefinition) {
		c.RestartPolicy = &types.ContainerRestartPolicy{Enabled: aws.Bool(true), IgnoredExitCodes: ignored, RestartAttemptPeriod: aws.Int32(180)}
	}
}

// once is a script that ends with the first code well after the period of a restart
// policy, and when it is run again at once with the second.
func once(first, second int) string {
	return fmt.Sprintf("echo run; test -e /ran && exit %d; touch /ran; sleep 4; exit %d", second, first)
}

// restarted checks how often a container was started again.
func restarted(want int) func(t *testing.T, l *lab, tk types.Task) {
	return func(t *testing.T, l *lab, tk types.Task) {
		t.Helper()
		r := l.record(t, tk, "main")
		if r.Restarts != want || len(r.Earlier) != want {
			t.Errorf("%d restarts after the ends %+v, want %d", r.Restarts, r.Earlier, want)
		}
	}
}

// untilRestarts waits until a container was started again so often, and runs.
func untilRestarts(name string, n int) func(t *testing.T, l *lab, tk types.Task) {
	return func(t *testing.T, l *lab, tk types.Task) {
		t.Helper()
		system.Until(t, 20*time.Second, "restarts", func() error {
			if r := l.record(t, tk, name); r.Restarts < n || !r.Running() {
				return fmt.Errorf("%d restarts, running %t", r.Restarts, r.Running())
			}
			return nil
		})
		if now := l.On(t).Describe(*tk.TaskArn)[0]; aws.ToString(now.LastStatus) != "RUNNING" {
			t.Errorf("the task is %s", aws.ToString(now.LastStatus))
		}
	}
}

// restarts are about containers with a restart policy.
func restarts() []scenario {
	return []scenario{
		{
			name: "one restart", want: exited(end{"main", 9, ""}), output: []string{"run", "run"}, ended: restarted(1),
			define: task(nil, runs("main", once(1, 9), again())),
		},
		{
			name: "restart after success", want: exited(end{"main", 0, ""}), output: []string{"run", "run"}, ended: restarted(1),
			define: task(nil, runs("main", once(0, 0), again())),
		},
		{
			name: "two restarts", want: exited(end{"main", 8, ""}), ended: restarted(2), output: []string{"run", "run", "run"},
			define: task(nil, runs("main", "echo run; test -e /two && exit 8; test -e /one && touch /two; touch /one; sleep 4; exit 1", again())),
		},
		{
			name: "ignored exit code", want: exited(end{"main", 4, ""}), ended: restarted(0),
			define: task(nil, runs("main", "sleep 4; exit 4", again(3, 4))),
		},
		{
			name: "ignored exit code after a restart", want: exited(end{"main", 4, ""}), ended: restarted(1),
			define: task(nil, runs("main", "test -e /ran && sleep 2; test -e /ran && exit 4; touch /ran; sleep 4; exit 1", again(4))),
		},
		{
			name: "end before the period is over", want: exited(end{"main", 1, ""}), ended: restarted(0),
			define: task(nil, runs("main", "sleep 0.2; exit 1", again())),
		},
		{
			name: "policy that is not enabled", want: exited(end{"main", 1, ""}), ended: restarted(0),
			define: task(nil, runs("main", "sleep 4; exit 1", func(c *types.ContainerDefinition) {
				c.RestartPolicy = &types.ContainerRestartPolicy{Enabled: aws.Bool(false), RestartAttemptPeriod: aws.Int32(60)}
			})),
		},
		{
			name: "restart of what is optional", want: stopped(end{"main", 2, ""}, end{"side", 6, ""}),
			define: task(nil, runs("main", waits(2)), runs("side", once(5, 6), again(), optional)),
			running: func(t *testing.T, l *lab, tk types.Task) {
				system.Until(t, 20*time.Second, "the optional container is reported", func() error {
					return containerIs(l.On(t).Describe(*tk.TaskArn)[0], "side", "STOPPED")
				})
				if n := l.record(t, tk, "side").Restarts; n != 1 {
					t.Errorf("%d restarts", n)
				}
			},
		},
		{
			name: "stop of what was started again", want: stopped(end{"main", 7, ""}),
			define: task(nil, runs("main", comesBack(7), again())),
			running: func(t *testing.T, l *lab, tk types.Task) {
				untilRestarts("main", 1)(t, l, tk)
				ready("main")(t, l, tk)
			},
		},
		{
			name: "stop of one that was started again twice", want: stopped(end{"main", 137, ""}), running: untilRestarts("main", 2),
			define: task(nil, runs("main", "test -e /two && "+loop+"; test -e /one && touch /two; touch /one; sleep 4; exit 1", again(), stopTimeout(1))),
		},
		{
			name: "restart beside others", want: exited(end{"main", 3, ""}, end{"second", 4, ""}, end{"third", 5, ""}), ended: restarted(1),
			define: task(nil, runs("main", once(1, 3), again(), after("second", start), after("third", start)), runs("second", waits(4)), runs("third", waits(5), optional)),
		},
		{
			name: "restart of all three", want: stopped(end{"main", 1, ""}, end{"second", 2, ""}, end{"third", 3, ""}),
			define: task(nil, runs("main", comesBack(1), again()), runs("second", comesBack(2), again()), runs("third", comesBack(3), again())),
			running: func(t *testing.T, l *lab, tk types.Task) {
				for _, name := range []string{"main", "second", "third"} {
					untilRestarts(name, 1)(t, l, tk)
				}
				ready("main", "second", "third")(t, l, tk)
			},
		},
		{
			name: "success of one that was started again", want: exited(end{"main", 0, ""}, end{"init", 0, ""}),
			define: task(nil, runs("main", "exit 0", after("init", success)), runs("init", once(1, 0), optional, again())),
		},
		{
			name: "health of one that was started again", want: exited(end{"main", 0, ""}, end{"dep", 2, ""}),
			define: task(nil, runs("main", "exit 0", after("dep", healthy)), runs("dep", comesBack(2), again(), checked(10, "CMD-SHELL", "test -e /ready"))),
		},
	}
}

// comesBack is a script that ends once after the period of a restart policy, and then waits
// for the stop signal.
func comesBack(code int) string {
	return fmt.Sprintf("trap 'exit %d' TERM; test -e /ran && touch /ready; test -e /ready && echo ready; test -e /ready || touch /ran; test -e /ready || sleep 4; test -e /ready || exit 1; %s", code, loop)
}
