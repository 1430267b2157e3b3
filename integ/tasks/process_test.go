package tasks

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/system"
)

// processes are about what runs in a container.
func processes() []scenario {
	ok := exited(end{"main", 0, ""})
	return []scenario{
		{
			name: "command", define: task(nil, container("echo", "hello", "big world")),
			want: ok, output: []string{"hello big world"},
		},
		{
			name: "entry point and command", want: ok, output: []string{"entry a b"},
			define: task(nil, with(container("a", "b"), func(c *types.ContainerDefinition) { c.EntryPoint = []string{"/bin/echo", "entry"} })),
		},
		{
			name: "command of the image", want: ok, // a shell without input ends
			define: task(nil, container()), output: []string(nil),
		},
		{
			name: "environment", want: ok, output: []string{"A=1", "B=two words", "IMAGE=mine"},
			define: task(nil, with(shell(`echo A=$A; echo "B=$B"; echo IMAGE=$IMAGE`), func(c *types.ContainerDefinition) {
				c.Environment = []types.KeyValuePair{
					{Name: aws.String("A"), Value: aws.String("1")}, {Name: aws.String("B"), Value: aws.String("two words")},
					{Name: aws.String("IMAGE"), Value: aws.String("mine")},
				}
			})),
		},
		{
			name: "user by name", want: ok, output: []string{"uid=1000(app) gid=1001(app) groups=1001(app),2000(extra)"},
			define: task(nil, with(container("id"), func(c *types.ContainerDefinition) { c.User = aws.String("app") })),
		},
		{
			name: "user by number", want: ok, output: []string{"uid=1234 gid=5678 groups=5678"},
			define: task(nil, with(container("id"), func(c *types.ContainerDefinition) { c.User = aws.String("1234:5678") })),
		},
		{
			name: "working directory", want: ok, output: []string{"/tmp"},
			define: task(nil, with(container("pwd"), func(c *types.ContainerDefinition) { c.WorkingDirectory = aws.String("/tmp") })),
		},
		{
			name: "read-only root", want: exited(end{"main", 1, ""}), output: []string{"touch: /x: Read-only file system"},
			define: task(nil, with(container("touch", "/x"), func(c *types.ContainerDefinition) { c.ReadonlyRootFilesystem = aws.Bool(true) })),
		},
		{
			name: "nothing but its own processes", want: ok, output: []string{"1 sh"},
			define: task(nil, shell(`for p in /proc/[0-9]*; do read -r name < $p/comm; echo ${p#/proc/} $name; done`)),
		},
	}
}

// ends are about how tasks end.
func ends() []scenario {
	all := []scenario{
		{
			name: "signal of its own", want: exited(end{"main", 143, ""}),
			define: task(nil, shell("sleep 100 & kill -TERM $!; wait $!")),
		},
		{
			name: "essential of three", want: exited(end{"main", 3, ""}, end{"second", 5, ""}, end{"third", 6, ""}),
			define: task(nil,
				with(shell(waits(3)), func(c *types.ContainerDefinition) {
					c.DependsOn = []types.ContainerDependency{
						{ContainerName: aws.String("second"), Condition: types.ContainerConditionStart},
						{ContainerName: aws.String("third"), Condition: types.ContainerConditionStart},
					}
				}),
				named("second", shell(waits(5))),
				with(named("third", shell(waits(6))), func(c *types.ContainerDefinition) { c.Essential = aws.Bool(false) }),
			),
			ends: "main", when: ready("second", "third"),
		},
		{
			name: "other than essential", want: stopped(end{"main", 0, ""}, end{"once", 4, ""}),
			define: task(nil, shell(waits(0)),
				with(named("once", shell("exit 4")), func(c *types.ContainerDefinition) { c.Essential = aws.Bool(false) })),
			running: func(t *testing.T, l *lab, tk types.Task) {
				system.Until(t, 10*time.Second, "the container that is not essential is reported", func() error {
					return containerIs(l.On(t).Describe(*tk.TaskArn)[0], "once", "STOPPED")
				})
				l.printed(t, tk, "main", "ready")
				if now := l.On(t).Describe(*tk.TaskArn)[0]; aws.ToString(now.LastStatus) != "RUNNING" {
					t.Errorf("the task is %s", aws.ToString(now.LastStatus))
				}
			},
		},
		{
			name: "stop signal", want: stopped(end{"main", 9, ""}), define: task(nil, shell(waits(9))),
			running: func(t *testing.T, l *lab, tk types.Task) { l.printed(t, tk, "main", "ready") },
		},
		{
			name: "stop timeout", want: stopped(end{"main", 137, ""}),
			define: task(nil, with(shell("trap '' TERM; echo ready; while :; do sleep 0.1; done"), func(c *types.ContainerDefinition) {
				c.StopTimeout = aws.Int32(7)
			})),
			running: func(t *testing.T, l *lab, tk types.Task) { l.printed(t, tk, "main", "ready") },
			ended: func(t *testing.T, _ *lab, tk types.Task) {
				// The agent's own setting, that of agentSettings, is shorter.
				if took := tk.StoppedAt.Sub(*tk.StoppingAt); took < 7*time.Second {
					t.Errorf("stopped after %v, want the stop timeout of 7s", took)
				}
			},
		},
	}
	for _, code := range []int32{0, 1, 137, 143, 255} {
		all = append(all, scenario{
			name: "exit code " + itoa(code), want: exited(end{"main", code, ""}), define: task(nil, shell("exit "+itoa(code))),
		})
	}
	return all
}
