package state

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"

	"berth.dev/berth/agent/task"
)

// request is one caller's part of a transaction.
type request struct {
	apply   func(*DB, *writer) error
	accepts bool // it makes a new task known, which a full filesystem forbids
	taken   atomic.Int32
	done    chan error // of capacity 1
}

// What a request's taken says: who was first of the committer and a caller that gave up.
const (
	waiting int32 = iota
	taken
	withdrawn
)

var errClosed = &task.Error{Class: task.Unavailable, Err: errors.New("state: the database is closed")}

// submit queues a change and waits for the transaction that it becomes part of.
func (db *DB) submit(ctx context.Context, accepts bool, apply func(*DB, *writer) error) error {
	if err := ctx.Err(); err != nil {
		return &task.Error{Class: task.Canceled, Err: fmt.Errorf("state: commit: %w", err)}
	}
	r := &request{apply: apply, accepts: accepts, done: make(chan error, 1)}
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return errClosed
	}
	db.queue = append(db.queue, r)
	db.mu.Unlock()
	select {
	case db.wake <- struct{}{}:
	default: // the committer is to look at the queue already
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		if r.taken.CompareAndSwap(waiting, withdrawn) {
			return &task.Error{Class: task.Canceled, Err: fmt.Errorf("state: commit: %w", ctx.Err())}
		}
		return <-r.done
	}
}

// commitLoop is the one goroutine that writes. It ends after Close, when everything that
// was queued before is answered.
func (db *DB) commitLoop() {
	defer close(db.finished)
	for {
		select {
		case <-db.wake:
			db.commitQueued()
		case <-db.stop:
			db.commitQueued()
			return
		}
	}
}

func (db *DB) commitQueued() {
	for {
		db.mu.Lock()
		queued := db.queue
		db.queue = nil
		db.mu.Unlock()
		if len(queued) == 0 {
			return
		}
		group := queued[:0]
		for _, r := range queued {
			if r.taken.CompareAndSwap(waiting, taken) {
				group = append(group, r)
			}
		}
		db.commitGroup(group)
	}
}

// commitGroup makes one transaction of a group. A request that cannot be applied is
// answered and the others are tried again without it.
func (db *DB) commitGroup(group []*request) {
	if db.ballast.released() && !db.ballast.restore(time.Now()) {
		group = refuseNewTasks(group)
	}
	for retried := false; len(group) > 0; {
		w, bad, err := db.transact(group)
		switch {
		case err == nil:
			for _, fn := range w.onCommit {
				fn()
			}
			if w.appended {
				select {
				case db.changed <- struct{}{}:
				default: // the reader has not taken the last one yet
				}
			}
			db.trouble(nil)
			answer(group, nil)
			return
		case bad >= 0:
			answer(group[bad:bad+1], classed(err))
			group = append(group[:bad:bad], group[bad+1:]...)
		case errors.Is(err, syscall.ENOSPC) && !retried && db.ballast.release():
			db.log.Warn("the state filesystem is full; the ballast is released and new tasks are refused", "dir", db.dir)
			retried = true
			group = refuseNewTasks(group)
		default:
			err = classed(fmt.Errorf("write the state database in %s: %w", db.dir, err))
			db.trouble(err)
			answer(group, err)
			return
		}
	}
}

// transact applies and commits a group. When one request could not be applied, bad is
// its index; otherwise it is -1.
func (db *DB) transact(group []*request) (w *writer, bad int, err error) {
	tx, err := db.bolt.Begin(true)
	if err != nil {
		return nil, -1, err
	}
	defer func() {
		if err != nil {
			// After a failed Commit the transaction is mostly closed already.
			if rerr := tx.Rollback(); rerr != nil && !errors.Is(rerr, bolt.ErrTxClosed) {
				err = errors.Join(err, rerr)
			}
		}
	}()
	if w, err = newWriter(tx); err != nil {
		return nil, -1, err
	}
	w.sequence = db.sequence.Load()
	// Before anything is added, so that what comes again is not taken for the old one.
	if err := trim(db, w, time.Now()); err != nil {
		return nil, -1, err
	}
	for i, r := range group {
		if err := r.apply(db, w); err != nil {
			return nil, i, err
		}
	}
	if err := w.finish(); err != nil {
		return nil, -1, err
	}
	return w, -1, tx.Commit()
}

// refuseNewTasks answers the requests that would make a new task known and returns the
// others: what space is left is for the end of the tasks that there are.
func refuseNewTasks(group []*request) []*request {
	kept := group[:0:0]
	for _, r := range group {
		if !r.accepts {
			kept = append(kept, r)
			continue
		}
		r.done <- &task.Error{
			Class:  task.Exhausted,
			Reason: task.Reason{Code: task.HostResourcesExhausted, Detail: errFull.Error()},
			Err:    errFull,
		}
	}
	return kept
}

var errFull = fmt.Errorf("the filesystem of the state directory is full, so no new task is accepted: %w", syscall.ENOSPC)

func answer(group []*request, err error) {
	for _, r := range group {
		r.done <- err
	}
}

// classed gives an error of a transaction its class.
func classed(err error) error {
	switch {
	case task.ClassOf(err) != task.Unclassified:
		return err
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &task.Error{Class: task.Exhausted, Err: err}
	default:
		return &task.Error{Class: task.Unavailable, Err: err}
	}
}
