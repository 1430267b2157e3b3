package api

import (
	"context"
	"errors"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"berth.dev/berth/cluster/store"
)

const (
	// batchWeight bounds what one commit holds, in records, where the store takes that
	// many: the slower the disk, the more waits for each commit, and the fewer commits
	// it should take.
	batchWeight = 1000
	// placeAttempts is how often a placement is decided anew because another process
	// took the room first. Whenever one loses another has won, and for as many to be
	// lost in a row the cluster has to be out of its depth.
	placeAttempts = 64
	// feedLimit is how long a decision waits at most for the change that spoilt the last
	// one, which is in the records and on its way to the placer.
	feedLimit = 100 * time.Millisecond
)

// errStale is what a job's commit says when the records hold less room than the state
// it was decided on.
var errStale = errors.New("the records have changed since the decision")

// A job is one request's part in a batch of the placer.
type job struct {
	// weight is how many records the commit may write at most.
	weight int
	// decide runs once per attempt, alone, on the placement state; an error ends the
	// job. It may be nil.
	decide func(states *placement) error
	// commit reads and writes records. It may run several times and sets its results
	// anew each time; it must not write before it has returned its last error.
	// errStale asks for another decision. It may be nil: the job is then a question.
	commit func(tx *store.Tx) error
	// undo takes back what decide has reserved; it may be nil.
	undo func(states *placement)

	attempts int
	err      error
	done     chan struct{}
}

// placer is the one goroutine of this process that places tasks and writes their
// records: RunTask, StartTask, StopTask, state changes. One writer has no conflicts with
// itself, and whatever waits is committed together, so the disk's latency is paid per
// batch and not per task. Other processes on the same etcd are found by the revisions of
// the allocations, which every commit compares. The zero value takes jobs; they wait
// until run runs.
type placer struct {
	mu      sync.Mutex
	waiting []*job
	wake    chan struct{} // nil until run
	ended   bool
}

// do queues j and waits for its end.
func (p *placer) do(ctx context.Context, j *job) error {
	j.done = make(chan struct{})
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return store.ErrClosed
	}
	p.waiting = append(p.waiting, j)
	p.signal()
	p.mu.Unlock()
	select {
	case <-j.done:
		return j.err
	case <-ctx.Done():
		// The job may still happen, as any request may whose caller hangs up.
		return ctx.Err()
	}
}

// signal is called with mu held.
func (p *placer) signal() {
	if p.wake == nil {
		return
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take returns what waits, up to a batch of the most records.
func (p *placer) take(most int) []*job {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, weight := 0, 0
	for n < len(p.waiting) && (n == 0 || weight+p.waiting[n].weight <= most) {
		weight += p.waiting[n].weight
		n++
	}
	batch := p.waiting[:n:n]
	p.waiting = p.waiting[n:]
	if len(p.waiting) == 0 {
		p.waiting = nil
	}
	return batch
}

// RunTasks places tasks and writes their records until ctx ends; without it the
// operations on tasks wait. It returns ctx's error, or that of a store that is closed.
func (a *API) RunTasks(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &a.placer
	p.mu.Lock()
	p.wake = make(chan struct{}, 1)
	p.mu.Unlock()
	defer p.end()

	states := newPlacement(a.Log)
	feed := newFeed()
	watched := make(chan error, 1)
	go func() { watched <- a.watchPlacement(ctx, feed) }()
	select {
	case <-feed.started:
	case err := <-watched:
		return err
	}
	most := min(batchWeight, a.Store.MaxOps())
	expire := time.NewTicker(expiryInterval)
	defer expire.Stop()
	p.mu.Lock()
	p.signal()
	p.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-watched:
			return err
		case <-expire.C:
			if !a.Leads() {
				continue
			}
			if err := a.Expire(ctx); err != nil && ctx.Err() == nil {
				a.Log.Warn("records that are past their time cannot be removed", "err", err)
			}
		case <-p.wake:
			for batch := p.take(most); len(batch) > 0 && ctx.Err() == nil; batch = p.take(most) {
				feed.drain(states)
				if stale := a.runBatch(ctx, states, batch); stale {
					feed.wait(ctx)
				}
			}
		}
	}
}

// end answers the jobs that will never run.
func (p *placer) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	for _, j := range p.waiting {
		j.finish(store.ErrClosed)
	}
	p.waiting = nil
}

func (j *job) finish(err error) {
	j.err = err
	close(j.done)
}

// runBatch decides, commits and answers. A job whose commit fails for itself is left out
// of the transaction; an error of the transaction is everybody's. stale says that there
// are jobs to decide anew, once the state is what the records are.
func (a *API) runBatch(ctx context.Context, states *placement, batch []*job) (stale bool) {
	live := batch[:0]
	for _, j := range batch {
		j.attempts++
		if j.decide != nil {
			if err := a.guarded(func() error { return j.decide(states) }); err != nil {
				j.finish(err)
				continue
			}
		}
		if j.commit == nil {
			j.finish(nil)
			continue
		}
		live = append(live, j)
	}
	if len(live) == 0 {
		return false
	}
	err := a.Store.Update(ctx, func(tx *store.Tx) error {
		for _, j := range live {
			j.err = a.guarded(func() error { return j.commit(tx) })
		}
		return nil
	})
	var again []*job
	for _, j := range live {
		own := j.err
		if err != nil {
			own = err
		}
		if own != nil && j.undo != nil {
			j.undo(states)
		}
		if err == nil && errors.Is(own, errStale) && j.attempts < placeAttempts {
			again = append(again, j)
			continue
		}
		j.finish(own)
	}
	if len(again) > 0 {
		a.placer.mu.Lock()
		a.placer.waiting = append(again, a.placer.waiting...)
		a.placer.signal()
		a.placer.mu.Unlock()
	}
	return len(again) > 0
}

// guarded turns a panic, which is a fault of ours, into an error of the one request: the
// placer serves all others.
func (a *API) guarded(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			a.Log.Error("request panicked in the placer", "err", p, "stack", string(debug.Stack()))
			err = &Error{Code: "ServerException", Message: "Internal error.", Status: http.StatusInternalServerError}
		}
	}()
	return fn()
}

// feed carries the store's changes to the placer, which folds them in between batches.
type feed struct {
	started chan struct{}
	news    chan struct{} // holds one token when there may be changes

	mu      sync.Mutex
	reset   *snapshot
	changes []store.Change
}

// snapshot is the state that changes start from.
type snapshot struct {
	instances []*store.Instance
	tasks     []*store.Task
}

func newFeed() *feed { return &feed{started: make(chan struct{}), news: make(chan struct{}, 1)} }

// wait returns when there are changes, or after feedLimit.
func (f *feed) wait(ctx context.Context) {
	t := time.NewTimer(feedLimit)
	defer t.Stop()
	select {
	case <-f.news:
	case <-t.C:
	case <-ctx.Done():
	}
}

// tell is called with mu held.
func (f *feed) tell() {
	select {
	case f.news <- struct{}{}:
	default:
	}
}

// watchPlacement keeps f in step with the store. A watch that lagged starts again from
// a new snapshot.
func (a *API) watchPlacement(ctx context.Context, f *feed) error {
	var once sync.Once
	for {
		err := a.Store.WatchFrom(ctx, func(r store.Reader) {
			f.begin(&snapshot{instances: store.List(r, store.Instances, ""), tasks: store.List(r, store.Tasks, "")})
			once.Do(func() { close(f.started) })
		}, func(c store.Change) {
			if c.Table == store.Instances.Name() || c.Table == store.Tasks.Name() {
				f.add(c)
			}
		})
		if !errors.Is(err, store.ErrLagged) {
			return err
		}
		a.Log.Warn("placement lags behind the records, reading them again")
	}
}

func (f *feed) begin(s *snapshot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reset, f.changes = s, nil
	f.tell()
}

func (f *feed) add(c store.Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changes = append(f.changes, c)
	f.tell()
}

func (f *feed) drain(states *placement) {
	f.mu.Lock()
	reset, changes := f.reset, f.changes
	f.reset, f.changes = nil, nil
	select {
	case <-f.news: // of what is taken here
	default:
	}
	f.mu.Unlock()
	if reset != nil {
		states.load(reset)
	}
	for _, c := range changes {
		switch record := c.New.(type) {
		case *store.Instance:
			states.setInstance(record)
		case *store.Task:
			states.setTask(record)
		default:
			states.remove(c.Old)
		}
	}
}
