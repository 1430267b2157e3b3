// Package store keeps every durable record of the cluster: etcd behind, an
// in-memory mirror in front.
//
// Reads are served from the mirror, which one etcd watch keeps up to date in
// the order of commits. Writes are optimistic: Update runs a function over
// the mirror, collects what it read and wrote, and commits that as one etcd
// transaction that fails if anything read or written has changed since; the
// function is then run again. After Update returns, the mirror shows its
// result, and after Sync what other processes had committed before.
//
// In etcd the keys are
//
//	/berth/v1/<table>/<key>  {"v":1,"d":{record}}
//
// One lock guards the mirror and the lists beside it; it is never held
// across I/O. Update functions run under its read half, so they must be
// short and must not call the store.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Errors of a store.
var (
	// ErrClosed is returned by calls on a closed store.
	ErrClosed = errors.New("store is closed")
	// ErrLagged ends a watch whose receiver is too slow; read the state
	// again and watch again.
	ErrLagged = errors.New("watch lagged behind and was ended; read again")
)

// Config says where the records are.
type Config struct {
	// Dir holds the embedded etcd's data under Dir/etcd. Not used with
	// Endpoints.
	Dir string
	// Endpoints of an existing etcd cluster, as host:port or URL. Empty
	// means an etcd embedded in this process.
	Endpoints []string
	// Log may be nil.
	Log *slog.Logger
}

// A Store is open records.
type Store struct {
	backend *backend
	log     *slog.Logger
	stop    context.CancelFunc // ends the follower
	stopped chan struct{}      // closed when the follower has ended

	mu      sync.RWMutex
	m       *mirror
	closed  bool
	waiters []waiter
	watches map[*watch]struct{}

	inflightMu sync.Mutex
	// inflight holds the records of commits under way by etcd key, so that
	// the follower need not decode what this process has just encoded.
	inflight map[string]written
}

// waiter waits until the mirror has reached a revision.
type waiter struct {
	revision int64
	reached  chan struct{}
}

// A Change is one committed change of a record. Old and New are pointers to
// the record type of the table, nil for absent.
type Change struct {
	Table    string
	Key      string
	Old, New any
	Revision int64
}

// Open opens the records and returns when the mirror holds all of them.
func Open(ctx context.Context, c Config) (*Store, error) {
	b, err := openBackend(ctx, c)
	if err != nil {
		return nil, err
	}
	log := c.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	follow, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &Store{
		backend:  b,
		log:      log,
		stop:     stop,
		stopped:  make(chan struct{}),
		m:        newMirror(),
		watches:  make(map[*watch]struct{}),
		inflight: make(map[string]written),
	}
	records, revision, err := load(ctx, b.client)
	if err != nil {
		stop()
		return nil, errors.Join(err, b.close())
	}
	for k, r := range records {
		s.m.set(k.t, k.key, r.record, r.modified)
	}
	s.m.revision = revision
	go s.follow(follow)
	return s, nil
}

// Close ends all watches and closes the records.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for w := range s.watches {
		w.end(ErrClosed)
	}
	s.mu.Unlock()
	s.stop()
	<-s.stopped
	return s.backend.close()
}

// View runs fn on the mirror under a read lock: fn should be short and must
// not call the store.
func (s *Store) View(fn func(r Reader)) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	fn(s.m)
}

// Update runs fn and commits what it wrote, again if anything it read or
// wrote was changed meanwhile by others. fn must have no effect outside tx
// other than setting variables it sets anew in every run, and must not call
// the store. When Update returns, the mirror shows the result. An error of
// fn ends Update without a commit and is returned as it is.
//
// An error of etcd may leave it unknown whether the commit happened.
func (s *Store) Update(ctx context.Context, fn func(tx *Tx) error) error {
	for attempt := 0; ; attempt++ {
		c, err := s.run(fn)
		if err != nil {
			return err
		}
		if len(c.ops) == 0 {
			return nil
		}
		done, revision, err := s.commit(ctx, c)
		if err != nil {
			return err
		}
		// On a conflict the answer's revision is one at which the change
		// that was in the way is visible, so the next run sees it.
		if err := s.wait(ctx, revision, done); err != nil {
			return err
		}
		if done {
			return nil
		}
		if err := backoff(ctx, attempt); err != nil {
			return err
		}
	}
}

// run runs fn once over the mirror.
func (s *Store) run(fn func(tx *Tx) error) (*commit, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, ErrClosed
	}
	tx := newTx(s.m)
	if err := fn(tx); err != nil {
		return nil, err
	}
	return tx.commit(), nil
}

func (s *Store) commit(ctx context.Context, c *commit) (done bool, revision int64, err error) {
	s.inflightMu.Lock()
	for key, w := range c.records {
		s.inflight[key] = w
	}
	s.inflightMu.Unlock()
	defer func() {
		if done {
			return // the follower takes them out
		}
		s.inflightMu.Lock()
		defer s.inflightMu.Unlock()
		for key := range c.records {
			delete(s.inflight, key)
		}
	}()
	r, err := s.backend.client.Txn(ctx).If(c.compares...).Then(c.ops...).Commit()
	switch {
	case errors.Is(err, rpctypes.ErrTooManyOps):
		return false, 0, fmt.Errorf("commit of %d conditions and %d writes: %w; raise --max-txn-ops of the etcd cluster", len(c.compares), len(c.ops), err)
	case errors.Is(err, rpctypes.ErrNoSpace):
		return false, 0, fmt.Errorf("commit: %w; compact and defragment etcd or raise its quota", err)
	case err != nil:
		return false, 0, fmt.Errorf("commit: %w", err)
	}
	return r.Succeeded, r.Header.Revision, nil
}

// wait returns when the mirror has reached the revision. After a conflict
// the mirror need not get that far: the revision may be another client's
// that is not among our keys, so waiting then is only for a moment.
func (s *Store) wait(ctx context.Context, revision int64, committed bool) error {
	w, err := s.await(revision)
	if w == nil {
		return err
	}
	var moment <-chan time.Time
	if !committed {
		t := time.NewTimer(20 * time.Millisecond)
		defer t.Stop()
		moment = t.C
	}
	select {
	case <-w.reached:
		return nil
	case <-moment:
		return nil
	case <-s.stopped:
		return ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("wait for the commit to be visible: %w", ctx.Err())
	}
}

// backoff spreads the runs of transactions that keep colliding: nothing for
// the first few, then up to 10 ms.
func backoff(ctx context.Context, attempt int) error {
	if attempt < 3 {
		return ctx.Err()
	}
	limit := min(time.Duration(attempt)*500*time.Microsecond, 10*time.Millisecond)
	t := time.NewTimer(rand.N(limit))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// syncAsk is how long Sync waits before it asks etcd how far the watch has come, again
// and again: a revision that is none of ours shows in no change.
const syncAsk = 5 * time.Millisecond

// Sync returns when the mirror shows everything that any process had committed when it
// was called. It costs a question to etcd, and nothing where this process alone has the
// records.
func (s *Store) Sync(ctx context.Context) error {
	if s.backend.embedded != nil {
		return nil
	}
	r, err := s.backend.client.Get(ctx, root, clientv3.WithKeysOnly(), clientv3.WithLimit(1))
	if err != nil {
		return fmt.Errorf("ask etcd: %w", err)
	}
	w, err := s.await(r.Header.Revision)
	if w == nil {
		return err
	}
	ask := time.NewTicker(syncAsk)
	defer ask.Stop()
	for {
		select {
		case <-w.reached:
			return nil
		case <-ask.C:
			// Asking fails while there is no watch, which then begins from what is read.
			if err := s.backend.client.RequestProgress(clientv3.WithRequireLeader(ctx)); err != nil {
				s.log.Debug("etcd cannot be asked how far the watch is", "err", err)
			}
		case <-s.stopped:
			return ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("wait for the records to be up to date: %w", ctx.Err())
		}
	}
}

// await enters a waiter for a revision; nil if the mirror has reached it.
func (s *Store) await(revision int64) (*waiter, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m.revision >= revision {
		return nil, nil
	}
	if s.closed {
		return nil, ErrClosed
	}
	w := waiter{revision, make(chan struct{})}
	s.waiters = append(s.waiters, w)
	return &w, nil
}

// MaxOps is how many records one Update may read and write. An external etcd
// may take more than its default, but does not say so.
func (s *Store) MaxOps() int {
	if s.backend.embedded != nil {
		return maxTxnOps
	}
	return defaultTxnOps
}

// Ping asks etcd for a linearizable answer: nil means records can be read
// and written now.
func (s *Store) Ping(ctx context.Context) error {
	_, err := s.backend.client.Get(ctx, root, clientv3.WithKeysOnly(), clientv3.WithLimit(1))
	if err != nil {
		return fmt.Errorf("ask etcd: %w", err)
	}
	return nil
}
