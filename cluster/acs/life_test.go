package acs_test

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth.dev/berth/cluster/acs/acstest"
	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/acs"
)

// TestWritesOfATaskLife: its placement, its start and its end each write its record
// once, and delivery writes nothing.
func TestWritesOfATaskLife(t *testing.T) {
	l := acstest.NewLab(t, nil, nil)
	prepare(t, l)
	agent(t, l, acstest.Config{Life: func(*acs.Task) (time.Duration, int32) { return 0, 0 }})
	var mu sync.Mutex
	writes := make(map[string]int)
	started := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- l.Store.WatchFrom(ctx, func(store.Reader) { close(started) }, func(c store.Change) {
			mu.Lock()
			defer mu.Unlock()
			writes[c.Table]++
		})
	}()
	<-started
	reach(t, l, "STOPPED", runTasks(t, l, 1)...)
	acstest.WaitFor(t, "the last write to be seen", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return writes[store.Tasks.Name()] >= 3
	})
	cancel()
	<-ended
	mu.Lock()
	defer mu.Unlock()
	if writes[store.Tasks.Name()] != 3 || writes[store.Allocations.Name()] != 2 || writes[store.Instances.Name()] != 0 {
		t.Errorf("writes by table: %v, want 3 of the task and 2 of the allocation", writes)
	}
}

// BenchmarkTaskLife measures whole lives: RunTask, payload, RUNNING, STOPPED, over 100
// agents, everything in one process.
func BenchmarkTaskLife(b *testing.B) {
	l := acstest.NewLab(b, nil, nil)
	prepare(b, l)
	shared := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	for i := range 100 {
		a, err := acstest.Start(context.Background(), acstest.Config{
			Endpoint: l.URL, Region: acstest.LabRegion, Credentials: l.InstanceKey(fmt.Sprintf("AKIABENCH%04d", i)), HTTP: shared,
			CPU: 1 << 20, Memory: 1 << 20,
			Life: func(*acs.Task) (time.Duration, int32) { return 0, 0 },
		})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(a.Close)
		connected(b, l, a.ARN(), true)
	}
	const batch = 10
	var left atomic.Int64
	left.Store(int64(b.N * batch))
	ctx, cancel := context.WithCancel(context.Background())
	over, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- l.Store.Watch(ctx, func(c store.Change) {
			if t, ok := c.New.(*store.Task); ok && t.Task.StoppedAt != nil && left.Add(-1) == 0 {
				close(over)
			}
		})
	}()
	var wg sync.WaitGroup
	limit := make(chan struct{}, 8)
	b.ResetTimer()
	for range b.N {
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			runTasks(b, l, batch)
		})
	}
	wg.Wait()
	<-over
	b.StopTimer()
	cancel()
	<-ended
	b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "lives/s")
}
