// Package store keeps every durable record of the cluster: etcd behind, an
// in-memory mirror in front.
//
// Reads are served from the mirror, which one etcd watch keeps up to date in
// the order of commits. Writes are optimistic: Update runs a function over
// the mirror, collects what it read and wrote, and commits that as one etcd
// transaction that fails if anything read or written has changed since; the
// function is then run again. After Update returns, the mirror shows its
// result.
//
// In etcd the keys are
//
//	/berth/v1/<table>/<key>  {"v":1,"d":{record}}
package store

import (
	"context"
	"errors"
	"log/slog"
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
type Store struct{}

// A Change is one committed change of a record. Old and New are pointers to
// the record type of the table, nil for absent.
type Change struct {
	Table    string
	Key      string
	Old, New any
	Revision int64
}

// A Tx is one run of an Update function.
type Tx struct{ Reader }

// Open opens the records and returns when the mirror holds all of them.
func Open(ctx context.Context, c Config) (*Store, error) { return nil, errors.ErrUnsupported }

// Close ends all watches and closes the records.
func (s *Store) Close() error { return nil }

// View runs fn on the mirror under a read lock: fn should be short and must
// not call the store.
func (s *Store) View(fn func(r Reader)) {}

// Update runs fn and commits what it wrote, again if anything it read or
// wrote was changed meanwhile by others. fn must have no effect outside tx
// other than setting variables it sets anew in every run, and must not call
// the store. When Update returns, the mirror shows the result. An error of
// fn ends Update without a commit and is returned as it is.
func (s *Store) Update(ctx context.Context, fn func(tx *Tx) error) error { return errors.ErrUnsupported }

// Watch calls fn for every change in commit order until ctx ends. It blocks
// and returns the reason: the context's error, ErrLagged or ErrClosed.
func (s *Store) Watch(ctx context.Context, fn func(Change)) error { return errors.ErrUnsupported }

// WatchFrom is Watch with a look at the state before the first change: start
// runs on the mirror, and fn then gets every later change and no earlier one.
func (s *Store) WatchFrom(ctx context.Context, start func(r Reader), fn func(Change)) error {
	return errors.ErrUnsupported
}

// Peek reads in a transaction without making the commit depend on what is
// read: for views that need not be exact.
func Peek(tx *Tx) Reader { return tx.Reader }

func (tx *Tx) put(t *table, key string, record any) {}
func (tx *Tx) delete(t *table, key string)          {}
func unmarshal(b []byte, v any) error               { return errors.ErrUnsupported }
