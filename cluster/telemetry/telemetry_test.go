package telemetry

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/wire/tcs"
)

const (
	taskARN  = "arn:aws:ecs:us-east-1:000000000000:task/default/1"
	otherARN = "arn:aws:ecs:us-east-1:000000000000:task/other/2"
)

func request(at time.Time, task string, cpu float64) *tcs.PublishMetricsRequest {
	return &tcs.PublishMetricsRequest{Timestamp: tcs.Time{Time: at}, TaskMetrics: []tcs.TaskMetric{{
		TaskARN: task, TaskDefinitionFamily: "f", ContainerMetrics: []tcs.ContainerMetric{{
			ContainerName: "web", CPU: &tcs.Set{Min: 0, Max: 2 * cpu, Sum: 4 * cpu, SampleCount: 4}, Memory: &tcs.Set{Max: 9, Sum: 8, SampleCount: 2},
			Network: &tcs.Network{RxBytes: tcs.NewLongSet(1, 7, 9, 2), RxBytesPerSecond: &tcs.Set{Max: 4, Sum: 4, SampleCount: 2}},
			Storage: &tcs.Storage{WriteSizeBytes: tcs.NewLongSet(1, 5, 9, 2)}, Restart: &tcs.Restart{RestartCount: 1},
		}},
	}}}
}

func TestPoints(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	k := New(func() time.Time { return now })
	k.Take("i", request(now, taskARN, 3))
	k.Take("i", request(now, otherARN, 3))
	want := []Container{{TaskARN: taskARN, InstanceARN: "i", Family: "f", Name: "web", Points: []Point{
		{At: now, CPU: 3, CPUMax: 6, Memory: 4, MemoryMax: 9, RxBytes: 7, RxRate: 2, WriteBytes: 5, Restarts: 1},
	}}}
	if diff := cmp.Diff(want, k.Containers("default", time.Time{})); diff != "" {
		t.Error(diff)
	}
	if got := k.Containers("default", now); len(got) != 0 {
		t.Errorf("points at or before the time asked for: %v", got)
	}
}

// What comes late, out of order or twice makes the same series.
func TestLateAndTwice(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	k := New(func() time.Time { return now })
	for _, i := range []int{0, 3, 1, 1, 2, 0} {
		k.Take("i", request(now.Add(time.Duration(i-3)*20*time.Second), taskARN, float64(i)))
	}
	var got []float32
	for _, p := range k.Containers("default", time.Time{})[0].Points {
		got = append(got, p.CPU)
	}
	if diff := cmp.Diff([]float32{0, 1, 2, 3}, got); diff != "" {
		t.Error(diff)
	}
}

func TestRingKeepsTheNewest(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	k := New(func() time.Time { return now })
	at := func(i int) time.Time { return now.Add(time.Duration(i-200) * time.Second) }
	for i := range 100 {
		k.Take("i", request(at(2*i), taskARN, float64(i)))
	}
	k.Take("i", request(at(0), taskARN, -1))   // older than all that is kept
	k.Take("i", request(at(151), taskARN, -2)) // between others
	points := k.Containers("default", time.Time{})[0].Points
	if len(points) != Points {
		t.Fatalf("%d points", len(points))
	}
	for i, p := range points[1:] {
		if !p.At.After(points[i].At) {
			t.Fatalf("point %d is not after the one before it", i+1)
		}
	}
	if points[0].CPU != 56 || points[Points-1].CPU != 99 {
		t.Errorf("from %v to %v", points[0].CPU, points[Points-1].CPU)
	}
}

func TestOnlyWhatIsFreshIsNow(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	k := New(func() time.Time { return now })
	k.Take("i", request(now.Add(-2*time.Minute), taskARN, 1))
	k.Take("i", request(now.Add(-time.Second), otherARN, 1))
	var got []string
	k.Now(func(task, _, _ string, _ Point) { got = append(got, task) })
	if diff := cmp.Diff([]string{otherARN}, got); diff != "" {
		t.Error(diff)
	}
}

func TestClockFarAhead(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	k := New(func() time.Time { return now })
	k.Take("i", request(now.Add(48*time.Hour), taskARN, 1))
	if at := k.Containers("default", time.Time{})[0].Points[0].At; !at.Equal(now) {
		t.Errorf("the point is at %v", at)
	}
}

func TestSilentContainersAreForgotten(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	k := New(func() time.Time { return now })
	k.Take("i", request(now, taskARN, 1))
	now = now.Add(time.Hour)
	k.Take("i", request(now, otherARN, 1))
	k.Sweep()
	if k.Len() != 1 {
		t.Errorf("%d containers are kept", k.Len())
	}
}

func TestContainersAreBounded(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	k := New(func() time.Time { now = now.Add(time.Millisecond); return now })
	for i := range maxContainers + 10 {
		k.enter(key{fmt.Sprint(i), "c"}, "i", "f", k.now(), Point{At: now})
	}
	if n := k.Len(); n > maxContainers {
		t.Errorf("%d containers", n)
	}
	if k.containers[key{"0", "c"}] != nil {
		t.Error("the longest silent was kept")
	}
}
