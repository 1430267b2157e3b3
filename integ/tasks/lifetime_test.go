package tasks

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	agenttask "berth.dev/berth/agent/task"
	"berth.dev/berth/integ/system"
)

// lifetimes are about which end of a container ends what, and how tasks are stopped.
func lifetimes() []scenario {
	deaf := "trap '' TERM; echo ready; " + loop
	return []scenario{
		{name: "one that succeeds", want: exited(end{"main", 0, ""}), define: task(nil, runs("main", "exit 0"))},
		{name: "one that fails", want: exited(end{"main", 42, ""}), define: task(nil, runs("main", "sleep 0.2; exit 42"))},
		{
			name: "program that is not there", want: neverStarted(absentReason, end{"main", noExit, absentReason}),
			define: task(nil, runs("main", "", absent)),
		},
		{
			name: "essential beside an essential that cannot start", want: neverStarted(absentReason, end{"main", noExit, absentReason}, end{"other", 4, ""}, end{"gate", 0, ""}),
			define: task(nil, runs("main", "", absent, after("gate", success)), runs("other", waits(4)), runs("gate", waits(0), optional, after("other", start))),
			ends:   "gate", when: ready("other"),
		},
		{
			name: "optional that cannot start", want: exited(end{"main", 0, ""}, end{"side", noExit, absentReason}),
			define: task(nil, runs("main", waits(0)), runs("side", "", optional, absent)),
			ends:   "main", when: optionalStopped("side"),
		},
		{
			name: "first of two essentials", want: exited(end{"main", 1, ""}, end{"other", 2, ""}),
			define: task(nil, runs("main", waits(1), after("other", start)), runs("other", waits(2))),
			ends:   "main", when: ready("other"),
		},
		{
			name: "second of two essentials", want: exited(end{"main", 1, ""}, end{"other", 2, ""}),
			define: task(nil, runs("main", waits(1)), runs("other", waits(2), after("main", start))),
			ends:   "other", when: ready("main"),
		},
		{
			name: "essential that ends while others wait for it to complete", want: exited(end{"main", 3, ""}, end{"side", noExit, ""}, end{"long", 5, ""}),
			define: task(nil, runs("main", waits(3), after("long", start)), runs("side", "exit 0", optional, after("long", complete)), runs("long", waits(5), optional)),
			ends:   "main", when: ready("long"),
		},
		{
			name: "optionals that fail", want: exited(end{"main", 0, ""}, end{"a", 1, ""}, end{"b", 2, ""}, end{"c", 3, ""}),
			define: task(nil, runs("main", "sleep 1; exit 0", after("a", start), after("b", start), after("c", start)), runs("a", "exit 1", optional), runs("b", "exit 2", optional), runs("c", "exit 3", optional)),
		},
		{
			name: "deaf companion", want: exited(end{"main", 0, ""}, end{"deaf", 137, ""}),
			define: task(nil, runs("main", waits(0), after("deaf", start)), runs("deaf", deaf, optional, stopTimeout(1))),
			ends:   "main", when: ready("deaf"),
		},
		{
			name: "stop of one", want: stopped(end{"main", 17, ""}), define: task(nil, runs("main", waits(17))), running: ready("main"),
		},
		{
			name: "stop of one that handles no signal", want: stopped(end{"main", 137, ""}), define: task(nil, runs("main", loop, stopTimeout(2))),
			running: func(*testing.T, *lab, types.Task) {},
		},
		{
			name: "stop of three with a deaf one", want: stopped(end{"main", 1, ""}, end{"deaf", 137, ""}, end{"other", 2, ""}),
			define:  task(nil, runs("main", waits(1)), runs("deaf", deaf, stopTimeout(1)), runs("other", waits(2))),
			running: ready("main", "deaf", "other"),
		},
		{
			name: "stop in reverse order", want: stopped(end{"main", 137, ""}, end{"base", 2, ""}),
			define:  task(nil, runs("main", deaf, after("base", start), stopTimeout(2)), runs("base", waits(2))),
			running: ready("base", "main"),
			ended: func(t *testing.T, l *lab, tk types.Task) {
				if first, last := l.exitOf(t, tk, "main"), l.exitOf(t, tk, "base"); !first.Before(last) {
					t.Errorf("main ended at %v, and base, on which it depends, at %v", first, last)
				}
			},
		},
		{
			name: "stop after what is optional has ended", want: stopped(end{"main", 1, ""}, end{"once", 0, ""}),
			define: task(nil, runs("main", waits(1)), runs("once", "exit 0", optional)),
			running: func(t *testing.T, l *lab, tk types.Task) {
				optionalStopped("once")(t, l, tk)
				ready("main")(t, l, tk)
				if now := l.On(t).Describe(*tk.TaskArn)[0]; aws.ToString(now.LastStatus) != "RUNNING" {
					t.Errorf("the task is %s", aws.ToString(now.LastStatus))
				}
			},
		},
	}
}

// optionalStopped waits until the cluster knows that a container has stopped.
func optionalStopped(name string) func(t *testing.T, l *lab, tk types.Task) {
	return func(t *testing.T, l *lab, tk types.Task) {
		system.Until(t, 20*time.Second, "container "+name+" is reported", func() error {
			return containerIs(l.On(t).Describe(*tk.TaskArn)[0], name, "STOPPED")
		})
	}
}

// record is what the agent knows of a container.
func (l *lab) record(t *testing.T, tk types.Task, name string) *agenttask.Record {
	t.Helper()
	v, err := l.viewOf(*tk.TaskArn)
	if err != nil {
		t.Fatal(err)
	}
	return v.Known.Resource(agenttask.ResourceID{Kind: agenttask.KindContainer, Name: name})
}

// exitOf is when a container ended.
func (l *lab) exitOf(t *testing.T, tk types.Task, name string) time.Time {
	t.Helper()
	r := l.record(t, tk, name)
	if r.Exit == nil {
		t.Fatalf("%s has not ended: %+v", name, *r)
	}
	return r.Exit.At
}
