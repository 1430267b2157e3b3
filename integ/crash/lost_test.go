package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	cacs "berth.dev/berth/cluster/acs"
	"berth.dev/berth/cluster/store"
	"berth.dev/berth/integ/system"
	"berth.dev/berth/wire/acs"
)

// TestStateDatabaseIsLost takes the agent's database away while it is dead. Before the
// cluster has said what it knows nothing is touched; then what runs is adopted, what
// ended meanwhile is reported with its exit code, and what is to stop is stopped.
func TestStateDatabaseIsLost(t *testing.T) {
	bin := system.Programs(t, system.Containerd2)
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			var silent atomic.Bool // the cluster has not said anything yet
			l := start(t, kind, bin, func(c *cacs.Config) {
				c.Faults = &cacs.Faults{Drop: func(m acs.Message) bool {
					switch m.(type) {
					case *acs.PayloadMessage, *acs.TaskManifestMessage:
						return silent.Load()
					}
					return false
				}}
			})
			l.lose(t, &silent)
		})
	}
}

func (l *lab) lose(t *testing.T, silent *atomic.Bool) {
	main := l.container("main", "busybox", waits(3))
	main.PortMappings = []types.PortMapping{{ContainerPort: aws.Int32(80)}}
	def := l.register(t, "lost", main, l.container("side", "busybox", waits(4)))
	ending := l.register(t, "ending", l.container("main", "busybox", "while [ ! -e /stop ]; do sleep 0.1; done; exit 5"))
	arns := l.On(t).Run(def, 3)
	ended := l.On(t).Run(ending, 1)[0]
	before := map[string]types.Task{}
	for _, tk := range l.On(t).Wait("RUNNING", 30*time.Second, append(slices.Clone(arns), ended)...) {
		before[*tk.TaskArn] = tk
	}
	runs, stops, unknown := arns[0], arns[1], arns[2]
	l.started(t, Container{short(runs), "main"}, Container{short(runs), "side"}, Container{short(stops), "main"},
		Container{short(stops), "side"}, Container{short(unknown), "main"}, Container{short(ended), "main"})
	told := len(l.ledger.History().Reports)

	l.Agent.Kill()
	l.On(t).Stop(stops)
	l.forget(t, unknown)
	l.touchInside(t, before[ended])
	l.gone(t, before[ended])
	if err := os.Remove(filepath.Join(l.Dir, "agent", "state.db")); err != nil {
		t.Fatal(err)
	}
	silent.Store(true)
	pids := map[string][]int{}
	for _, arn := range arns {
		pids[arn] = l.tree(before[arn])
	}
	for range 2 { // the second start has a database, which says that it knows nothing
		l.StartAgent()
		l.On(t).WaitConnected(backInStep)
		for _, arn := range arns {
			if now := l.tree(before[arn]); !slices.Equal(now, pids[arn]) {
				t.Fatalf("%s had the processes %v and has %v before the cluster has said anything", arn, pids[arn], now)
			}
		}
		if now := l.ledger.History().Reports; len(now) != told {
			t.Fatalf("reported before the cluster has said anything: %+v", now[told:])
		}
		l.Agent.Kill()
	}
	silent.Store(false)
	l.StartAgent()
	l.On(t).WaitConnected(backInStep)

	l.On(t).Wait("STOPPED", 20*time.Second, ended, stops)
	l.judge(t, Expected{"main": 5}, ended)
	l.judge(t, Expected{"main": 3, "side": 4}, stops)
	system.Until(t, 20*time.Second, "the task that the cluster does not know has ended", func() error {
		if left := l.tree(before[unknown]); len(left) > 0 {
			return fmt.Errorf("its processes %v are left", left)
		}
		return nil
	})
	l.adopted(t, before[runs], pids[runs])
	l.On(t).Stop(runs)
	l.On(t).Wait("STOPPED", 20*time.Second, runs)
	l.judge(t, Expected{"main": 3, "side": 4}, runs)
	for _, r := range l.ledger.History().Reports[told:] {
		if r.Task == short(unknown) {
			t.Errorf("reported although the cluster does not know it: %+v", r)
		}
	}
	l.WaitClean(20 * time.Second)
}

// started waits until containers have told of their start.
func (l *lab) started(t *testing.T, cs ...Container) {
	t.Helper()
	system.Until(t, 10*time.Second, "all have told of their start", func() error {
		h := l.ledger.History()
		for _, c := range cs {
			if h.Starts[c] == 0 {
				return fmt.Errorf("%v has not", c)
			}
		}
		return nil
	})
}

// forget takes a task out of the cluster's records, as if it were of another time.
func (l *lab) forget(t *testing.T, arn string) {
	t.Helper()
	err := l.Cluster.Store.Update(context.Background(), func(tx *store.Tx) error {
		store.Delete(tx, store.Tasks, store.Key("default", filepath.Base(arn)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// touchInside has a container that looks for the file /stop find it.
func (l *lab) touchInside(t *testing.T, tk types.Task) {
	t.Helper()
	pids := l.tree(tk)
	if len(pids) == 0 {
		t.Fatalf("%s has no process", *tk.TaskArn)
	}
	f, err := os.Create(fmt.Sprintf("/proc/%d/root/stop", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	f.Close() //nolint:errcheck // it is empty
}

// gone waits until a task has no process any more.
func (l *lab) gone(t *testing.T, tk types.Task) {
	t.Helper()
	system.Until(t, 10*time.Second, "the task has ended", func() error {
		if left := l.tree(tk); len(left) > 0 {
			return errors.New("it has processes")
		}
		return nil
	})
}

// tree lists the first processes of a task's containers.
func (l *lab) tree(tk types.Task) []int {
	var all []int
	for _, c := range tk.Containers {
		pids := l.processes(*tk.TaskArn, aws.ToString(c.RuntimeId))
		slices.Sort(pids)
		all = append(all, pids[:min(1, len(pids))]...)
	}
	return all
}

// adopted checks that a task goes on as it was, with its published ports and images.
func (l *lab) adopted(t *testing.T, was types.Task, pids []int) {
	t.Helper()
	var now types.Task
	system.Until(t, 10*time.Second, "the agent has the task", func() error {
		st, err := l.AgentState()
		if err == nil && st.Tasks == 0 {
			err = errors.New("it has none")
		}
		return err
	})
	now = l.On(t).Describe(*was.TaskArn)[0]
	if aws.ToString(now.LastStatus) != "RUNNING" {
		t.Fatalf("%s\n%s", system.Explain(now), l.Events(*was.TaskArn))
	}
	if got := l.tree(now); !slices.Equal(got, pids) {
		t.Errorf("the task had the processes %v and has %v", pids, got)
	}
	for i, c := range now.Containers {
		old := was.Containers[i]
		if len(c.NetworkBindings) != len(old.NetworkBindings) || aws.ToString(c.ImageDigest) != aws.ToString(old.ImageDigest) ||
			aws.ToString(c.RuntimeId) != aws.ToString(old.RuntimeId) {
			t.Errorf("container %s was %+v and is %+v", *c.Name, old, c)
		}
		for j, b := range c.NetworkBindings {
			if aws.ToInt32(b.HostPort) != aws.ToInt32(old.NetworkBindings[j].HostPort) {
				t.Errorf("port %d was published as %d and is as %d", aws.ToInt32(b.ContainerPort), aws.ToInt32(old.NetworkBindings[j].HostPort), aws.ToInt32(b.HostPort))
			}
		}
	}
}
