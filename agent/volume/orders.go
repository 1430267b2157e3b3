package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/volumes"
	"berth.dev/berth/volumes/block"
)

// Orders carries out what the cluster wants of the volumes in the pool of this host, one
// after the other. Nothing is remembered: the cluster tells again what has no result yet.
// One to remove something is tried until it succeeds.
type Orders struct {
	volumes *Volumes
	log     *slog.Logger
	wake    chan struct{}

	mu    sync.Mutex
	queue []*order
}

// order is one that is waiting or worked on.
type order struct {
	task.PoolOrder
	tell  func(ctx context.Context, o task.PoolOrder, fault error)
	again time.Time // not before
	delay time.Duration
}

// Delays between tries to remove something.
const (
	removeMin = time.Second
	removeMax = time.Minute
)

// Orders makes what carries them out once Run runs; nil where this host has no pool.
func (s *Volumes) Orders() *Orders {
	if s.c.Pool == nil {
		return nil
	}
	return &Orders{volumes: s, log: s.log, wake: make(chan struct{}, 1)}
}

// Order takes orders and returns. Those that it has already are not taken again. Each
// result is told by the last tell that came with the order.
func (o *Orders) Order(list []task.PoolOrder, tell func(ctx context.Context, o task.PoolOrder, fault error)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	have := make(map[task.PoolOrder]*order, len(o.queue))
	for _, q := range o.queue {
		have[q.PoolOrder] = q
	}
	for _, w := range list {
		if q := have[w]; q != nil {
			q.tell = tell
			continue
		}
		q := &order{PoolOrder: w, tell: tell, delay: removeMin}
		have[w] = q
		o.queue = append(o.queue, q)
	}
	o.signal()
}

func (o *Orders) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends.
func (o *Orders) Run(ctx context.Context) error {
	for {
		q, wait := o.next(time.Now())
		if q != nil {
			o.work(ctx, q)
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-o.wake:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}

// next is the first order that may be worked on, or how long to wait for one.
func (o *Orders) next(now time.Time) (*order, time.Duration) {
	wait := time.Hour
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, q := range o.queue {
		if left := q.again.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		return q, 0
	}
	return nil, wait
}

// work carries out an order and tells of it, or puts it off.
func (o *Orders) work(ctx context.Context, q *order) {
	start := time.Now()
	err := o.volumes.obey(ctx, q.PoolOrder)
	if ctx.Err() != nil {
		return // the cluster asks again
	}
	if err != nil && q.later(err) {
		q.again = time.Now().Add(q.delay)
		o.log.Warn("an order for the pool of block volumes is tried again", "verb", q.Kind, "volume", q.Volume, "snapshot", q.Snapshot, "dur", q.delay, "err", err)
		q.delay = min(2*q.delay, removeMax)
		return
	}
	o.mu.Lock()
	for i, other := range o.queue {
		if other == q {
			o.queue = append(o.queue[:i:i], o.queue[i+1:]...)
			break
		}
	}
	tell := q.tell
	o.mu.Unlock()
	level := slog.LevelInfo
	if err != nil {
		level = slog.LevelWarn
	}
	o.log.Log(ctx, level, "an order for the pool of block volumes is done", "verb", q.Kind, "volume", q.Volume, "snapshot", q.Snapshot, "dur", time.Since(start), "err", err)
	tell(ctx, q.PoolOrder, err)
}

// later reports whether an order that failed is tried again. What is to be removed always
// is; a snapshot only while the volume may be about to be unmounted, because its task has
// just ended.
func (q *order) later(err error) bool {
	return q.Kind != task.PoolCreateSnapshot || errors.Is(err, block.ErrBusy) && q.delay < removeMax
}

// obey carries out one order.
func (s *Volumes) obey(ctx context.Context, o task.PoolOrder) error {
	pool := s.block.Pool()
	switch o.Kind {
	case task.PoolDeleteVolume:
		return s.deleteVolume(pool, o.Volume)
	case task.PoolDeleteSnapshot:
		return pool.DeleteSnapshot(o.Snapshot)
	case task.PoolCreateSnapshot:
		v := &volumes.Volume{Task: o.TaskID, Name: o.Name, Scope: volumes.ScopeTask, Block: &volumes.BlockDevice{ID: o.Volume, Pooled: true}}
		return s.block.Snapshot(ctx, v, o.Snapshot)
	}
	return fmt.Errorf("%s is not known", o.Kind)
}

// deleteVolume removes a volume that no task has any more.
func (s *Volumes) deleteVolume(pool *block.Pool, id string) error {
	all, err := pool.Volumes()
	if err != nil {
		return err
	}
	if of, have := all[id]; have && of.Delete {
		return errors.New("it goes with its task, which has not ended here")
	}
	return pool.Delete(id)
}
