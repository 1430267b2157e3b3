package tasks

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/agent/plan"
	agenttask "berth.dev/berth/agent/task"
	"berth.dev/berth/integ/system"
)

// becomes waits until the agent says so of the health of the container "main" and of its
// task, with output that begins as given.
func becomes(status agenttask.HealthStatus, output string) func(t *testing.T, l *lab, tk types.Task) {
	return func(t *testing.T, l *lab, tk types.Task) {
		t.Helper()
		system.Until(t, 20*time.Second, "health", func() error {
			v, err := l.viewOf(*tk.TaskArn)
			if err != nil {
				return err
			}
			h, ok := plan.ContainerHealth(v.Task, &v.Known, "main")
			if of := plan.TaskHealth(v.Task, &v.Known); !ok || h.Status != status || of != status || !strings.HasPrefix(h.Output, output) {
				return fmt.Errorf("%t %+v, of the task %s", ok, h, of)
			}
			return nil
		})
		if now := l.On(t).Describe(*tk.TaskArn)[0]; aws.ToString(now.LastStatus) != "RUNNING" {
			t.Errorf("the task is %s", aws.ToString(now.LastStatus))
		}
		ready("main")(t, l, tk)
	}
}

// startPeriod makes failures of a health check not count for half a second for each 5 s.
func startPeriod(seconds int32) option {
	return func(c *types.ContainerDefinition) { c.HealthCheck.StartPeriod = &seconds }
}

// healthChecks are about what the checks of a container make of its health.
func healthChecks() []scenario {
	ok := stopped(end{"main", 1, ""})
	return []scenario{
		{
			name: "command that succeeds", want: ok, running: becomes(agenttask.HealthHealthy, ""),
			define: task(nil, runs("main", waits(1), checked(3, "CMD", "/bin/true"))),
		},
		{
			name: "shell that succeeds", want: ok, running: becomes(agenttask.HealthHealthy, "all is well\n"),
			define: task(nil, runs("main", waits(1), checked(3, "CMD-SHELL", "echo all is well; exit 0"))),
		},
		{
			name: "shell that fails", want: ok, running: becomes(agenttask.HealthUnhealthy, "all is lost\n"),
			define: task(nil, runs("main", waits(1), checked(2, "CMD-SHELL", "echo all is lost; exit 3"))),
		},
		{
			name: "check that is not there", want: ok, running: becomes(agenttask.HealthUnhealthy, ""),
			define: task(nil, runs("main", waits(1), checked(1, "CMD", "/not/there"))),
		},
		{
			name: "check that hangs", want: ok, running: becomes(agenttask.HealthUnhealthy, "Health check exceeded timeout (2s)"),
			define: task(nil, runs("main", waits(1), checked(1, "CMD-SHELL", "sleep 30; exit 0"))),
		},
		{
			name: "health that goes", want: ok, running: func(t *testing.T, l *lab, tk types.Task) {
				becomes(agenttask.HealthHealthy, "")(t, l, tk)
				becomes(agenttask.HealthUnhealthy, "")(t, l, tk)
			},
			define: task(nil, runs("main", "trap 'exit 1' TERM; echo ready; touch /well; sleep 6; rm /well; "+loop, checked(1, "CMD-SHELL", "test -e /well"))),
		},
		{
			name: "failures while it starts", want: ok, running: func(t *testing.T, l *lab, tk types.Task) {
				becomes(agenttask.HealthUnknown, "")(t, l, tk)
				becomes(agenttask.HealthHealthy, "")(t, l, tk)
				v, err := l.viewOf(*tk.TaskArn)
				if err != nil {
					t.Fatal(err)
				}
				h, _ := plan.ContainerHealth(v.Task, &v.Known, "main")
				if started := l.record(t, tk, "main").Started; h.Since.Before(started.Add(time.Second)) {
					t.Errorf("healthy since %v, and it was started at %v", h.Since, started)
				}
			},
			define: task(nil, runs("main", "trap 'exit 1' TERM; echo ready; sleep 1.5; touch /well; "+loop,
				checked(1, "CMD-SHELL", "test -e /well"), startPeriod(100))),
		},
		{
			name: "unhealthy companion", want: stopped(end{"main", 1, ""}, end{"sick", 2, ""}),
			define:  task(nil, runs("main", waits(1), checked(1, "CMD", "/bin/true")), runs("sick", waits(2), optional, checked(1, "CMD", "/bin/false"))),
			running: becomes(agenttask.HealthHealthy, ""), // of what is essential only
		},
	}
}
