package report

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/task"
)

var epoch = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func rowsOf(changes ...task.Change) (rows []row) {
	for i, c := range changes {
		rows = append(rows, row{uint64(i + 1), c})
	}
	return rows
}

func web(s task.ContainerStatus) []task.ContainerChange {
	return []task.ContainerChange{{Name: "web", Status: s}}
}

func TestMerge(t *testing.T) {
	code := 137
	early := task.Change{
		TaskARN: "c/t", ClusterARN: "c", Status: task.StatusCreated, PullStarted: epoch, PullStopped: epoch.Add(1),
		Containers: []task.ContainerChange{
			{Name: "web", Status: task.ContainerStopped, RuntimeID: "r", Digest: "d", Exit: &code, Reason: "oom", Bindings: []task.Binding{{HostPort: 80}}},
			{Name: "log", Status: task.ContainerRunning},
		},
	}
	late := task.Change{
		TaskARN: "c/t", Status: task.StatusStopped, Reason: "over", ExecutionStopped: epoch.Add(2),
		Containers: []task.ContainerChange{
			{Name: "new", Status: task.ContainerRunning},
			{Name: "web", Status: task.ContainerRunning},
			{Name: "log", Status: task.ContainerStopped, Reason: "stopped"},
		},
	}
	want := task.Change{
		TaskARN: "c/t", ClusterARN: "c", Status: task.StatusStopped, Reason: "over",
		PullStarted: epoch, PullStopped: epoch.Add(1), ExecutionStopped: epoch.Add(2),
		Containers: []task.ContainerChange{
			early.Containers[0],
			{Name: "log", Status: task.ContainerStopped, Reason: "stopped"},
			{Name: "new", Status: task.ContainerRunning},
		},
	}
	rows := rowsOf(early, late)
	if diff := cmp.Diff(want, mergeAll(rows)); diff != "" {
		t.Error(diff)
	}
	if rows[0].change.Containers[1].Status != task.ContainerRunning {
		t.Error("merging changed a row, which may have to be merged again")
	}
}

// Whatever is merged, no status falls and no exit code or time is lost.
func TestMergeLosesNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	names := []string{"a", "b", "c"}
	for range 2000 {
		var rows []row
		exits, highest := map[string]bool{}, map[string]task.ContainerStatus{}
		var status task.Status
		var ended bool
		for range 1 + r.IntN(6) {
			c := task.Change{Status: task.Status(r.IntN(5))}
			status = max(status, c.Status)
			if r.IntN(4) == 0 {
				c.ExecutionStopped, ended = epoch, true
			}
			for _, n := range names[:r.IntN(4)] {
				cc := task.ContainerChange{Name: n, Status: task.ContainerStatus(r.IntN(7))}
				if r.IntN(3) == 0 {
					cc.Exit, exits[n] = new(int), true
				}
				highest[n] = max(highest[n], cc.Status)
				c.Containers = append(c.Containers, cc)
			}
			rows = append(rows, row{change: c})
		}
		got := mergeAll(rows)
		if got.Status != status || got.ExecutionStopped.IsZero() == ended || len(got.Containers) != len(highest) {
			t.Fatalf("%+v became %+v", rows, got)
		}
		for _, c := range got.Containers {
			if c.Status != highest[c.Name] || (c.Exit != nil) != exits[c.Name] {
				t.Fatalf("%+v became %+v", rows, got)
			}
		}
	}
}

func TestGroupDoesNotSkipRunning(t *testing.T) {
	change := func(s task.Status) task.Change { return task.Change{Status: s} }
	const n, c, r, s = task.StatusNone, task.StatusCreated, task.StatusRunning, task.StatusStopped
	for _, tc := range []struct {
		statuses []task.Status
		want     int
	}{
		{[]task.Status{n}, 1}, {[]task.Status{n, c, c}, 3}, {[]task.Status{n, s, s}, 3},
		{[]task.Status{r, s}, 1}, {[]task.Status{n, c, r, r, s, s}, 4}, {[]task.Status{r, r}, 2},
	} {
		var changes []task.Change
		for _, s := range tc.statuses {
			changes = append(changes, change(s))
		}
		if got := group(rowsOf(changes...)); got != tc.want {
			t.Errorf("%v: the first %d are sent as one, want %d", tc.statuses, got, tc.want)
		}
	}
}

func TestBackoffStaysInItsBounds(t *testing.T) {
	for n := range 200 {
		for range 50 {
			if d := backoff(n); d < 800*time.Millisecond || d > 36*time.Second {
				t.Fatalf("after %d failures: %v", n, d)
			}
		}
	}
	if d := backoff(0); d > 1200*time.Millisecond {
		t.Errorf("the first delay is %v", d)
	}
}
