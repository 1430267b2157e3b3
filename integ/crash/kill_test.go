package crash

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"

	"berth.dev/berth/integ/system"
)

// What the tests below do, and how often (reliability plan, C5, C7 and C13).
const (
	steady       = 10 // tasks that run all the time
	atATime      = 10 // tasks that come and go
	leastChurned = 20 // fewer tasks that came and went would prove nothing
)

// kills says how often what is killed. Where the kind of containerd matters less, the
// second one is spared the time.
type kills struct{ agent, containerd, cluster int }

func killsFor(kind string) kills {
	if kind == system.Containerd1 {
		return kills{agent: 7, containerd: 10, cluster: 2}
	}
	return kills{agent: 20, containerd: 10, cluster: 5}
}

// TestNothingIsLostWhenPartsAreKilled kills the agent, containerd and the cluster while
// some tasks run and others come and go.
func TestNothingIsLostWhenPartsAreKilled(t *testing.T) {
	bin := system.Programs(t, system.Containerd2) // they serve the other kind as well
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			l := start(t, kind, bin)
			run, n := l.steady(t), killsFor(kind)
			t.Run("agent", func(t *testing.T) { l.killAgent(t, run, n.agent) })
			t.Run("containerd", func(t *testing.T) { l.killContainerd(t, run, n.containerd) })
			t.Run("cluster", func(t *testing.T) { l.stopCluster(t, run, n.cluster) })
			if t.Failed() {
				return
			}
			arns := slices.Sorted(maps.Keys(run))
			l.Stop(arns...)
			l.Wait("STOPPED", 30*time.Second, arns...)
			l.judge(t, Expected{"main": 3}, arns...)
			l.WaitClean(20 * time.Second)
		})
	}
}

// steady starts the tasks that run all the time and returns their processes.
func (l *lab) steady(t *testing.T) map[string][]int {
	t.Helper()
	arns := l.On(t).Run(l.register(t, "steady", l.container("main", "busybox", waits(3))), steady)
	l.On(t).Wait("RUNNING", 30*time.Second, arns...)
	system.Until(t, 10*time.Second, "all have told of their start", func() error {
		h := l.ledger.History()
		for _, arn := range arns {
			if h.Starts[Container{short(arn), "main"}] == 0 {
				return errors.New(arn + " has not")
			}
		}
		return nil
	})
	run := map[string][]int{}
	system.Until(t, 10*time.Second, "all wait", func() error {
		for _, tk := range l.On(t).Describe(arns...) {
			pids := l.processes(*tk.TaskArn, aws.ToString(tk.Containers[0].RuntimeId))
			// The shell, and the sleep that it waits for; before that, what tells of the start.
			// Either may have the lower number: the kernel begins again after the highest.
			if len(pids) != 2 || !slices.ContainsFunc(pids, func(pid int) bool { return program(pid) == "sleep" }) {
				return fmt.Errorf("%s has processes %v", *tk.TaskArn, pids)
			}
			run[*tk.TaskArn] = pids
		}
		return nil
	})
	return run
}

// program is the name of the program that a process runs.
func program(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "" // it has ended
	}
	return strings.TrimSpace(string(b))
}

// inStep waits until agent and cluster agree that they have each other.
func (l *lab) inStep(t *testing.T) {
	t.Helper()
	l.On(t).WaitConnected(backInStep)
	system.Until(t, backInStep, "the cluster knows that the agent is connected", func() error {
		ctx := t.Context()
		list, err := l.ECS.ListContainerInstances(ctx, &ecs.ListContainerInstancesInput{Filter: aws.String("agentConnected==true")})
		if err == nil && len(list.ContainerInstanceArns) != 1 {
			err = fmt.Errorf("%d instances are connected", len(list.ContainerInstanceArns))
		}
		return err
	})
}

// untouched checks that the steady tasks are RUNNING with the processes they had.
func (l *lab) untouched(t *testing.T, run map[string][]int) {
	t.Helper()
	for _, tk := range l.On(t).Describe(slices.Sorted(maps.Keys(run))...) {
		if status := aws.ToString(tk.LastStatus); status != "RUNNING" {
			t.Fatalf("%s\n%s", system.Explain(tk), l.Events(*tk.TaskArn))
		}
		if pids := l.processes(*tk.TaskArn, aws.ToString(tk.Containers[0].RuntimeId)); !slices.Equal(pids, run[*tk.TaskArn]) {
			t.Fatalf("%s had the processes %v and has %v", *tk.TaskArn, run[*tk.TaskArn], pids)
		}
	}
}

// churn lets tasks come and go until it is ended.
type churn struct {
	l    *lab
	t    *testing.T
	def  string
	stop context.CancelFunc
	done chan struct{}

	mu   sync.Mutex
	arns []string
}

const churnExit = 7

func (l *lab) churn(t *testing.T) *churn {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	c := &churn{l: l, t: t, stop: stop, done: make(chan struct{})}
	c.def = l.register(t, "churn", l.container("main", "busybox", fmt.Sprintf("sleep 0.3; exit %d", churnExit)))
	go func() {
		defer close(c.done)
		for ctx.Err() == nil {
			c.batch(ctx)
		}
	}()
	t.Cleanup(func() { stop(); <-c.done })
	return c
}

// batch starts some tasks and waits until they have ended. While the agent is away no
// task is placed, which is not an error here.
func (c *churn) batch(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	out, err := c.l.ECS.RunTask(ctx, &ecs.RunTaskInput{TaskDefinition: &c.def, Count: aws.Int32(atATime)})
	if err != nil || len(out.Tasks) == 0 {
		<-tick.C
		return
	}
	var arns []string
	for _, tk := range out.Tasks {
		arns = append(arns, *tk.TaskArn)
	}
	c.mu.Lock()
	c.arns = append(c.arns, arns...)
	c.mu.Unlock()
	for ctx.Err() == nil {
		<-tick.C
		d, err := c.l.ECS.DescribeTasks(ctx, &ecs.DescribeTasksInput{Tasks: arns})
		if err != nil {
			continue // the last answer counts: end judges
		}
		left := 0
		for _, tk := range d.Tasks {
			if aws.ToString(tk.LastStatus) != "STOPPED" {
				left++
			}
		}
		if left == 0 {
			return
		}
	}
}

// count is how many tasks have come so far.
func (c *churn) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.arns)
}

// pending tells about the tasks that have not ended.
func (c *churn) pending() string {
	c.mu.Lock()
	last := slices.Clone(c.arns[max(0, len(c.arns)-atATime):])
	c.mu.Unlock()
	var out strings.Builder
	for _, tk := range c.l.On(c.t).Describe(last...) {
		if aws.ToString(tk.LastStatus) != "STOPPED" {
			fmt.Fprintln(&out, system.Explain(tk))
			fmt.Fprintln(&out, c.l.Events(*tk.TaskArn))
		}
	}
	return out.String()
}

// moment waits for the n-th moment to kill something, which is by turns when tasks were
// just placed, when half of them have started, and when the first has ended.
func (c *churn) moment(n int) {
	c.t.Helper()
	system.Until(c.t, 30*time.Second, "the moment", func() error {
		c.mu.Lock()
		last := c.arns[max(0, len(c.arns)-atATime):]
		c.mu.Unlock()
		h := c.l.ledger.History()
		started, ended := 0, 0
		for _, arn := range last {
			started += h.Starts[Container{short(arn), "main"}]
			for _, r := range h.Reports {
				if r.Task == short(arn) && r.Status == "STOPPED" {
					ended++
					break
				}
			}
		}
		if len(last) == 0 || n%3 == 1 && started < atATime/2 || n%3 == 2 && ended == 0 {
			return fmt.Errorf("of the last %d tasks %d have started and %d ended", len(last), started, ended)
		}
		return nil
	})
}

// end waits for the tasks that came last and judges all of them.
func (c *churn) end() {
	c.t.Helper()
	system.Until(c.t, 30*time.Second, "enough tasks have come and gone", func() error {
		if n := c.count(); n < leastChurned {
			return fmt.Errorf("only %d", n)
		}
		return nil
	})
	c.stop()
	<-c.done
	for _, arn := range c.arns {
		c.l.On(c.t).Wait("STOPPED", 60*time.Second, arn)
	}
	c.l.judge(c.t, Expected{"main": churnExit}, c.arns...)
	c.t.Logf("%d tasks came and went", len(c.arns))
}

// killAgent ends the agent again and again (C5).
func (l *lab) killAgent(t *testing.T, run map[string][]int, times int) {
	c := l.churn(t)
	var slowest time.Duration
	for i := range times {
		c.moment(i)
		before := c.count()
		l.Agent.Kill()
		begin := time.Now()
		l.StartAgent()
		l.inStep(t)
		slowest = max(slowest, time.Since(begin))
		l.untouched(t, run)
		system.Until(t, 20*time.Second, "tasks come again", func() error {
			if c.count() == before {
				return errors.New("none came; of those before:\n" + c.pending())
			}
			return nil
		})
	}
	c.end()
	t.Logf("back in step after at most %v", slowest)
}

// killContainerd ends containerd again and again; of the steady tasks not one change is
// reported (C7).
func (l *lab) killContainerd(t *testing.T, run map[string][]int, times int) {
	told := l.toldOf(run)
	c := l.churn(t)
	var slowest time.Duration
	for i := range times {
		c.moment(i)
		before := c.count()
		l.Containerd.Kill()
		begin := time.Now()
		l.Containerd.Restart()
		l.inStep(t)
		l.untouched(t, run)
		system.Until(t, 20*time.Second, "tasks come and go again", func() error {
			if c.count() == before {
				return errors.New("none came; of those before:\n" + c.pending())
			}
			return nil
		})
		slowest = max(slowest, time.Since(begin))
	}
	c.end()
	if now := l.toldOf(run); now != told {
		t.Errorf("%d changes of tasks that did not change were reported", now-told)
	}
	t.Logf("tasks come and go again after at most %v", slowest)
}

// toldOf counts the reports about the steady tasks.
func (l *lab) toldOf(run map[string][]int) int {
	n := 0
	for _, r := range l.ledger.History().Reports {
		for arn := range run {
			if r.Task == short(arn) {
				n++
			}
		}
	}
	return n
}

// stopCluster ends the cluster and starts it again on its data (C13). Tasks end in
// between, and their end is reported afterwards.
func (l *lab) stopCluster(t *testing.T, run map[string][]int, times int) {
	def := l.register(t, "short", l.container("main", "busybox", fmt.Sprintf("sleep 0.3; exit %d", churnExit)))
	var slowest time.Duration
	for range times {
		arns := l.On(t).Run(def, atATime)
		system.Until(t, 20*time.Second, "one of them has started", func() error {
			h := l.ledger.History()
			for _, arn := range arns {
				if h.Starts[Container{short(arn), "main"}] > 0 {
					return nil
				}
			}
			return errors.New("none has")
		})
		l.StopCluster()
		system.Until(t, 10*time.Second, "the agent notices", func() error {
			st, err := l.AgentState()
			if err == nil && st.Connected {
				err = errors.New("it is connected")
			}
			return err
		})
		l.StartCluster()
		begin := time.Now()
		l.inStep(t)
		slowest = max(slowest, time.Since(begin))
		l.On(t).Wait("STOPPED", 20*time.Second, arns...)
		l.judge(t, Expected{"main": churnExit}, arns...)
		l.untouched(t, run)
	}
	t.Logf("connected again after at most %v", slowest)
}
