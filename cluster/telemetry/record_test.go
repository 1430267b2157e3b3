package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/cluster/series"
	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/tcs"
)

// rig is a recorder with records of two instances, each with a task of a service.
type rig struct {
	t       *testing.T
	now     time.Time
	keeper  *Keeper
	store   *store.Store
	path    string
	series  *series.Store
	records *Recorder
}

func newRig(t *testing.T) *rig {
	s, err := store.Open(context.Background(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	err = s.Update(context.Background(), func(tx *store.Tx) error {
		store.Put(tx, store.Clusters, "lab", &store.Cluster{Cluster: types.Cluster{ClusterName: aws.String("lab")}})
		for n := range 2 {
			id := fmt.Sprint(n)
			store.Put(tx, store.Instances, store.Key("lab", id), &store.Instance{ClusterName: "lab", ID: id, Instance: types.ContainerInstance{
				ContainerInstanceArn: aws.String(instanceARN(n)), Status: aws.String("ACTIVE"),
				RegisteredResources: []types.Resource{{Name: aws.String("CPU"), IntegerValue: 2048}, {Name: aws.String("MEMORY"), IntegerValue: 4096}, {Name: aws.String("GPU"), StringSetValue: []string{"GPU-a", "GPU-b"}}},
			}})
			store.Put(tx, store.Tasks, store.Key("lab", id), &store.Task{ClusterName: "lab", ID: id, InstanceID: id, Held: store.Held{CPU: 512, Memory: 1024, GPUs: []string{"GPU-a"}[:n]}, Task: types.Task{
				TaskArn: aws.String("arn:aws:ecs:r:1:task/lab/" + id), LastStatus: aws.String("RUNNING"), Group: aws.String("service:web"),
			}})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, now: time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC), store: s, path: filepath.Join(t.TempDir(), "series.db")}
	r.open()
	t.Cleanup(func() { r.series.Close() }) //nolint:errcheck // a test may have closed it
	return r
}

func instanceARN(n int) string { return fmt.Sprintf("arn:aws:ecs:r:1:container-instance/lab/%d", n) }

func (r *rig) open() {
	var err error
	if r.series, err = series.Open(series.Config{Path: r.path}); err != nil {
		r.t.Fatal(err)
	}
	r.keeper = New(func() time.Time { return r.now })
	if r.records, err = NewRecorder(r.keeper, r.store, r.series, slog.New(slog.DiscardHandler)); err != nil {
		r.t.Fatal(err)
	}
}

// publish has the agent of an instance say what its task used in the 20 s before a time:
// percent of the instance's processors.
func (r *rig) publish(n int, at time.Time, cpu float64) {
	r.keeper.Take(instanceARN(n), &tcs.PublishMetricsRequest{Timestamp: tcs.Time{Time: at}, TaskMetrics: []tcs.TaskMetric{{
		TaskARN:          fmt.Sprintf("arn:aws:ecs:r:1:task/lab/%d", n),
		EphemeralStorage: &tcs.EphemeralStorage{BytesUtilized: tcs.NewLongSet(1<<20, 2<<20, 0, 2)},
		VolumeMetrics: []tcs.VolumeMetric{
			{VolumeID: "a", Utilized: &tcs.Set{Max: 10}, Size: &tcs.Set{Max: 100}}, {VolumeID: "b", Utilized: &tcs.Set{Max: 30}, Size: &tcs.Set{Max: 40}},
		},
		ContainerMetrics: []tcs.ContainerMetric{
			{ContainerName: "web", CPU: &tcs.Set{Sum: cpu, Max: cpu, SampleCount: 1}, Memory: &tcs.Set{Sum: 512, Max: 512, SampleCount: 1}},
		},
	}}})
}

// pass lets a time pass in steps of 20 s, in each of which f is called, and then what is
// new is recorded.
func (r *rig) pass(d time.Duration, f func()) {
	r.t.Helper()
	for end := r.now.Add(d); r.now.Before(end); {
		r.now = r.now.Add(20 * time.Second)
		f()
		if err := r.records.Record(); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) read(k series.Kind, name string, m series.Metric, from, to time.Time) []series.Set {
	r.t.Helper()
	points, err := r.series.Read(k, []series.Selector{{Name: name, Metric: m}}, from, to, r.now)
	if err != nil {
		r.t.Fatal(err)
	}
	var out []series.Set
	for i, p := range points[0] {
		if want := from.Add(time.Duration(i) * time.Minute); !p.At.Equal(want) {
			r.t.Fatalf("%s %s: point %d is of %v, want %v: a gap", k, name, i, p.At, want)
		}
		out = append(out, p.Set)
	}
	return out
}

func same(n int, s series.Set) []series.Set {
	var out []series.Set
	for range n {
		out = append(out, s)
	}
	return out
}

func TestSeriesOfEveryKind(t *testing.T) {
	r := newRig(t)
	begin := r.now
	r.pass(4*time.Minute, func() {
		r.publish(0, r.now, 25)   // of 2048: 512 CPU units
		r.publish(1, r.now, 6.25) // 128
	})
	end := begin.Add(3 * time.Minute)
	for _, c := range []struct {
		kind   series.Kind
		name   string
		metric series.Metric
		want   series.Set
	}{
		{series.Container, "lab/0/web", series.CPUUtilized, series.Set{Min: 512, Max: 512, Sum: 3 * 512, Count: 3}},
		{series.Task, "lab/1", series.CPUUtilization, series.One(25)},
		{series.Task, "lab/1", series.MemoryUtilization, series.One(50)},
		{series.Task, "lab/1", series.VolumeUtilized, series.One(75)},
		{series.Task, "lab/1", series.StorageUtilized, series.One(2 << 20)},
		{series.Service, "lab/web", series.VolumeUtilized, series.Set{Min: 75, Max: 75, Sum: 150, Count: 2}},
		{series.Service, "lab/web", series.CPUUtilization, series.Set{Min: 25, Max: 100, Sum: 125, Count: 2}},
		{series.Service, "lab/web", series.RunningTasks, series.One(2)},
		{series.Instance, "lab/0", series.CPUUtilization, series.One(25)},
		{series.Instance, "lab/0", series.MemoryReservation, series.One(25)},
		{series.Instance, "lab/0", series.RunningTasks, series.One(1)},
		{series.Cluster, "lab", series.CPUUtilization, series.One(100 * 640.0 / 4096)},
		{series.Cluster, "lab", series.CPUReservation, series.One(25)},
		{series.Cluster, "lab", series.GPUReservation, series.One(25)},
		{series.Cluster, "lab", series.MemoryUtilized, series.One(1024)},
		{series.Cluster, "lab", series.Instances, series.One(2)},
	} {
		if diff := cmp.Diff(same(3, c.want), r.read(c.kind, c.name, c.metric, begin, end)); diff != "" {
			t.Errorf("%s %s, metric %d: %s", c.kind, c.name, c.metric, diff)
		}
	}
}

// Ten minutes without a connection leave no gap: what the agent sends afterwards, with its
// own times, is in the series of all kinds, in place of what was worked out without it.
func TestOutageLeavesNoGap(t *testing.T) {
	r := newRig(t)
	begin := r.now
	r.pass(2*time.Minute, func() { r.publish(0, r.now, 25); r.publish(1, r.now, 25) })
	var kept []time.Time
	r.pass(10*time.Minute, func() { r.publish(0, r.now, 25); kept = append(kept, r.now) })
	if got := r.read(series.Cluster, "lab", series.CPUUtilized, begin.Add(3*time.Minute), begin.Add(9*time.Minute)); len(got) != 6 || got[0] != series.One(512) {
		t.Fatalf("meanwhile: %v", got)
	}
	for _, at := range kept {
		r.publish(1, at, 25)
	}
	r.pass(3*time.Minute, func() { r.publish(0, r.now, 25); r.publish(1, r.now, 25) })
	end := begin.Add(14 * time.Minute)
	for _, c := range []struct {
		kind series.Kind
		name string
		want series.Set
	}{
		{series.Container, "lab/1/web", series.Set{Min: 512, Max: 512, Sum: 3 * 512, Count: 3}},
		{series.Task, "lab/1", series.One(512)},
		{series.Instance, "lab/1", series.One(512)},
		{series.Service, "lab/web", series.One(1024)},
		{series.Cluster, "lab", series.One(1024)},
	} {
		if diff := cmp.Diff(same(14, c.want), r.read(c.kind, c.name, series.CPUUtilized, begin, end)); diff != "" {
			t.Errorf("%s %s: %s", c.kind, c.name, diff)
		}
	}
	if diff := cmp.Diff(same(14, series.One(25)), r.read(series.Cluster, "lab", series.CPUReservation, begin, end)); diff != "" {
		t.Errorf("reservation: %s", diff)
	}
}

// A restart loses neither the series nor the last samples, also not those of a minute
// that is not over.
func TestRestart(t *testing.T) {
	r := newRig(t)
	begin := r.now
	r.pass(130*time.Second, func() { r.publish(0, r.now, 25) })
	was := r.keeper.Containers("lab", time.Time{})
	if err := r.series.Close(); err != nil {
		t.Fatal(err)
	}
	r.open()
	now := r.keeper.Containers("lab", time.Time{})
	if len(now) != 1 || len(now[0].Points) != len(was[0].Points) {
		t.Fatalf("%d points were kept, now there are %v", len(was[0].Points), now)
	}
	for i, p := range now[0].Points {
		if !p.At.Equal(was[0].Points[i].At) || p.CPU != was[0].Points[i].CPU {
			t.Errorf("point %d is %v, was %v", i, p, was[0].Points[i])
		}
	}
	r.pass(2*time.Minute, func() { r.publish(0, r.now, 25) })
	want := same(3, series.Set{Min: 512, Max: 512, Sum: 3 * 512, Count: 3})
	if diff := cmp.Diff(want, r.read(series.Container, "lab/0/web", series.CPUUtilized, begin, begin.Add(3*time.Minute))); diff != "" {
		t.Error(diff)
	}
}

// What comes after the points of its time are gone is added to what is there, in whatever
// pieces it comes, and once. Of two agents one was cut off for two hours, and the cluster
// itself did not run for one of them.
func TestLateForHours(t *testing.T) {
	r := newRig(t)
	begin := r.now
	var kept [2][]time.Time
	both := func() { r.publish(0, r.now, 25); r.publish(1, r.now, 25) }
	r.pass(2*time.Minute, both)
	r.pass(time.Hour, func() { r.publish(0, r.now, 25); kept[1] = append(kept[1], r.now) })
	for end := r.now.Add(time.Hour); r.now.Before(end); {
		r.now = r.now.Add(20 * time.Second)
		kept[0], kept[1] = append(kept[0], r.now), append(kept[1], r.now)
	}
	if err := r.series.Close(); err != nil {
		t.Fatal(err)
	}
	r.open()
	late := func(n, count int) {
		for _, at := range kept[n][:min(count, len(kept[n]))] {
			r.publish(n, at, 25)
		}
		kept[n] = kept[n][min(count, len(kept[n])):]
	}
	r.pass(time.Minute, func() { both(); late(0, 77); late(1, 50) }) // in the middle of minutes
	again := kept[1][:10]
	r.pass(5*time.Minute, func() { both(); late(0, 1000); late(1, 55) })
	kept[1] = again // as of a request that was not acknowledged
	r.pass(3*time.Minute, func() { both(); late(1, 4) })
	end := begin.Add(2*time.Hour + 9*time.Minute)
	for _, c := range []struct {
		kind   series.Kind
		name   string
		metric series.Metric
		want   series.Set
	}{
		{series.Container, "lab/0/web", series.CPUUtilized, series.Set{Min: 512, Max: 512, Sum: 3 * 512, Count: 3}},
		{series.Container, "lab/1/web", series.CPUUtilized, series.Set{Min: 512, Max: 512, Sum: 3 * 512, Count: 3}},
		{series.Task, "lab/1", series.MemoryUtilization, series.One(50)},
		{series.Task, "lab/1", series.StorageUtilized, series.One(2 << 20)},
		{series.Instance, "lab/1", series.CPUUtilization, series.One(25)},
		{series.Instance, "lab/1", series.RunningTasks, series.One(1)},
		{series.Instance, "lab/1", series.MemoryReservation, series.One(25)},
		{series.Service, "lab/web", series.CPUUtilized, series.One(1024)},
		{series.Service, "lab/web", series.CPUUtilization, series.Set{Min: 100, Max: 100, Sum: 200, Count: 2}},
		{series.Service, "lab/web", series.VolumeUtilized, series.Set{Min: 75, Max: 75, Sum: 150, Count: 2}},
		{series.Cluster, "lab", series.CPUUtilized, series.One(1024)},
		{series.Cluster, "lab", series.MemoryUtilization, series.One(12.5)},
	} {
		if diff := cmp.Diff(same(129, c.want), r.read(c.kind, c.name, c.metric, begin, end)); diff != "" {
			t.Errorf("%s %s, metric %d: %s", c.kind, c.name, c.metric, diff)
		}
	}
	if r.keeper.late != 0 || len(r.records.late) != 0 {
		t.Errorf("%d points and %d minutes are not entered", r.keeper.late, len(r.records.late))
	}
}

// Late points are bounded: who has more waits until there is room.
func TestLatePointsAreBounded(t *testing.T) {
	r := newRig(t)
	r.keeper.late = maxLate
	receive := r.keeper.Receiver(nil)
	request := &tcs.PublishMetricsRequest{Timestamp: tcs.Time{Time: r.now.Add(-time.Hour)}}
	done := make(chan error, 1)
	go func() { done <- receive(context.Background(), instanceARN(0), request) }()
	fresh := &tcs.PublishMetricsRequest{Timestamp: tcs.Time{Time: r.now}}
	if err := receive(context.Background(), instanceARN(1), fresh); err != nil {
		t.Errorf("what is not late: %v", err)
	}
	r.keeper.mu.Lock()
	r.keeper.late = 0
	r.keeper.mu.Unlock()
	if err := r.records.Record(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	r.keeper.late = maxLate
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := receive(ctx, instanceARN(0), request); err == nil {
		t.Error("it did not wait for room")
	}
}
