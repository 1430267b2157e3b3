package runtime_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/agent/runtime/containerdtest"
	"berth.dev/berth/agent/task"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
)

// BenchmarkStart compares the time from "make the container" to "it is started" with
// that of containerd's own client used as its documentation shows, in turns on the same
// daemon, with containerd's default seccomp profile and its output discarded. ms is the median of ours, bare-ms of the client's, ratio the one by the other.
//
//	go test ./agent/runtime -run xxx -bench Start -benchtime 30x
func BenchmarkStart(b *testing.B) {
	for _, kind := range []containerdtest.Kind{containerdtest.Embedded, containerdtest.Installed} {
		for _, logs := range []bool{true, false} {
			for _, c := range []int{1, 8} {
				b.Run(fmt.Sprintf("%s/logs=%v/concurrency=%d", kind, logs, c), func(b *testing.B) { benchStart(b, kind, logs, c) })
			}
		}
	}
}

func benchStart(b *testing.B, kind containerdtest.Kind, logs bool, concurrency int) {
	n := start(b, kind, nil)
	n.parent = "/berthtest/bench" // in the agent the task's cgroup is there already
	b.Cleanup(func() { cleanCgroups(b, &task.Task{ARN: "bench"}) })
	if !logs {
		n.cfg.LoggerPath = ""
		n.reopen(b)
	}
	cd, err := containerd.New(n.cfg.Address, containerd.WithDefaultNamespace("bare"))
	if err != nil {
		b.Fatal(err)
	}
	defer cd.Close()
	ctx := namespaces.WithNamespace(context.Background(), "berth")
	img, err := cd.GetImage(ctx, "docker.io/library/"+probeImage+":latest")
	if err != nil {
		b.Fatal(err)
	}
	var mu sync.Mutex
	var ours, bare []time.Duration
	round := func(i int) error {
		d, err := startOurs(b, n)
		if err != nil {
			return err
		}
		e, err := startBare(ctx, cd, img, fmt.Sprintf("bare%d", i))
		mu.Lock()
		defer mu.Unlock()
		ours, bare = append(ours, d), append(bare, e)
		return err
	}
	for i := range concurrency { // warm
		if err := round(-1 - i); err != nil {
			b.Fatal(err)
		}
	}
	ours, bare = nil, nil
	var next int
	var workers sync.WaitGroup
	for range concurrency {
		workers.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				if i >= b.N {
					return
				}
				if err := round(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	workers.Wait()
	if b.Failed() {
		return
	}
	slices.Sort(ours)
	slices.Sort(bare)
	m, e := ours[len(ours)/2], bare[len(bare)/2]
	b.ReportMetric(m.Seconds()*1000, "ms")
	b.ReportMetric(e.Seconds()*1000, "bare-ms")
	b.ReportMetric(float64(m)/float64(e), "ratio")
	b.ReportMetric(0, "ns/op")
}

var benchTask sync.Mutex

func startOurs(b *testing.B, n *node) (time.Duration, error) {
	benchTask.Lock()
	tk := n.task(b, container("c", "sleep"))
	benchTask.Unlock()
	d := n.deps(b, tk)
	began := time.Now()
	r, err := n.set.Ensure(b.Context(), tk, "c", d)
	if err != nil {
		return 0, err
	}
	if err := n.set.Start(b.Context(), tk, "c", r.Handle); err != nil {
		return 0, err
	}
	took := time.Since(began)
	return took, n.set.Remove(b.Context(), tk, "c", r.Handle)
}

func startBare(ctx context.Context, cd *containerd.Client, img containerd.Image, id string) (time.Duration, error) {
	began := time.Now()
	c, err := cd.NewContainer(ctx, id, containerd.WithImage(img), containerd.WithNewSnapshot(id, img),
		containerd.WithNewSpec(oci.WithImageConfigArgs(img, []string{"sleep"}), oci.WithHostNamespace("network"), seccomp.WithDefaultProfile()))
	if err != nil {
		return 0, err
	}
	t, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		return 0, err
	}
	ended, err := t.Wait(ctx)
	if err != nil {
		return 0, err
	}
	if err := t.Start(ctx); err != nil {
		return 0, err
	}
	took := time.Since(began)
	if err := t.Kill(ctx, 9); err != nil {
		return 0, err
	}
	<-ended
	if _, err := t.Delete(ctx); err != nil {
		return 0, err
	}
	return took, c.Delete(ctx, containerd.WithSnapshotCleanup)
}

// BenchmarkTaskOfFive is the time to start a task of five containers at once, in units
// of a task of one.
func BenchmarkTaskOfFive(b *testing.B) {
	n := start(b, containerdtest.Embedded, nil)
	run := func(count int) time.Duration {
		var cs []task.Container
		for i := range count {
			cs = append(cs, container(fmt.Sprintf("c%d", i), "sleep"))
		}
		tk := n.task(b, cs...)
		d := n.deps(b, tk)
		began := time.Now()
		var all sync.WaitGroup
		for _, c := range cs {
			all.Go(func() {
				r, err := n.set.Ensure(b.Context(), tk, c.Name, d)
				if err == nil {
					err = n.set.Start(b.Context(), tk, c.Name, r.Handle)
				}
				if err != nil {
					b.Error(err)
				}
			})
		}
		all.Wait()
		took := time.Since(began)
		for _, c := range slices.Backward(cs) {
			if err := n.set.Remove(b.Context(), tk, c.Name, nil); err != nil && task.ClassOf(err) != task.Unavailable {
				b.Error(err)
			}
		}
		return took
	}
	run(1)
	var one, five []time.Duration
	for range b.N {
		one, five = append(one, run(1)), append(five, run(5))
	}
	slices.Sort(one)
	slices.Sort(five)
	b.ReportMetric(one[len(one)/2].Seconds()*1000, "one-ms")
	b.ReportMetric(five[len(five)/2].Seconds()*1000, "five-ms")
	b.ReportMetric(float64(five[len(five)/2])/float64(one[len(one)/2]), "ratio")
	b.ReportMetric(0, "ns/op")
}
