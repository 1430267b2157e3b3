package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"

	"berth.dev/berth/agent/task"
)

// Bounds of what is remembered (architecture, "Persistence for crash safety"; the
// number of tombstones is ours: a task every 5 seconds for a day).
const (
	inboxMax      = 4096
	tombstonesMax = 16384
	remembered    = 24 * time.Hour
	trimMax       = 64 // entries deleted in one transaction
)

// Config is what Open needs.
type Config struct {
	// Dir is the state directory; it is made when it is missing, with mode 0700.
	Dir string
	// Check reads a closed database file in a child process; see ByChild. It returns an
	// error that wraps ErrBad when the file is damaged, and any other when it could not
	// be checked, which makes Open fail and leaves the file alone. Without it the file
	// is checked by this process, which a damaged file may then crash.
	Check func(ctx context.Context, path string) error
	// Trouble, if set, is called when commits begin to fail, and with nil when they
	// succeed again. It is called by the goroutine that commits and must not wait for it.
	Trouble func(error)
	// LockTimeout is how long to wait for another agent to end; 0 is 5 s.
	LockTimeout time.Duration
	// CheckTimeout is how long the check of a file may take before the file counts as
	// bad; 0 is 30 s.
	CheckTimeout time.Duration
	Log          *slog.Logger
}

// Meta is what is stored of the agent itself. State keeps Clean and Generation, and
// ignores them in SetMeta.
type Meta struct {
	InstanceARN string `json:"instanceArn,omitempty"`
	Cluster     string `json:"cluster,omitempty"`
	AZ          string `json:"availabilityZone,omitempty"`
	BootID      string `json:"bootId,omitempty"`
	// Unconfirmed is set in a new database until the cluster has said what it knows of
	// this host: there may be containers that no record tells of.
	Unconfirmed bool `json:"unconfirmed,omitempty"`

	Clean      bool   `json:"-"` // the agent before this one closed the database
	Generation uint64 `json:"-"` // how often the database was opened, this time included
}

// Opening is what Open found.
type Opening struct {
	Fresh        bool   // the database is new and empty
	Lost         error  // why, when there had been one; nil on the first start
	Quarantined  string // where the condemned file is, when there was a file
	MigratedFrom int    // the schema that the file had, when it was migrated
}

// DB is the open database. It is safe for use by many goroutines.
type DB struct {
	dir     string
	log     *slog.Logger
	bolt    *bolt.DB
	unlock  func() error
	opening Opening
	notify  func(error)

	inbox      *memory
	tombstones *memory
	sequence   atomic.Int64
	pending    atomic.Int64
	changed    chan struct{}

	// mu guards what follows and is never held across I/O.
	mu     sync.Mutex
	queue  []*request
	closed bool
	meta   Meta
	failed error

	sidecarMu sync.Mutex // held while state.id is written; taken before mu
	sidecar   sidecar

	ballast  ballast       // the committer's
	wake     chan struct{} // of capacity 1
	stop     chan struct{}
	finished chan struct{}
}

// Opening tells what Open found.
func (db *DB) Opening() Opening { return db.opening }

// Seen reports whether a message was acted on in the last 24 hours.
func (db *DB) Seen(messageID string) bool { return db.inbox.has(messageID, time.Now()) }

// Tombstone reports whether the task with this ARN was forgotten in the last 24 hours,
// so that a message that would start it is late and must not.
func (db *DB) Tombstone(arn string) bool { return db.tombstones.has(arn, time.Now()) }

// Sequence is the highest payload or manifest sequence number seen.
func (db *DB) Sequence() int64 { return db.sequence.Load() }

// Meta returns what is stored of the agent itself. After a database was lost it still
// has the instance ARN and the cluster, which are kept in a second file.
func (db *DB) Meta() Meta {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.meta
}

// SetMeta stores what is known of the agent itself.
func (db *DB) SetMeta(ctx context.Context, m Meta) error {
	db.sidecarMu.Lock()
	defer db.sidecarMu.Unlock()
	err := db.submit(ctx, false, func(_ *DB, w *writer) error { return w.putMeta(keyAgent, m) })
	if err != nil {
		return err
	}
	db.mu.Lock()
	m.Clean, m.Generation = db.meta.Clean, db.meta.Generation
	db.meta = m
	db.mu.Unlock()
	side := db.sidecar
	side.InstanceARN, side.Cluster = m.InstanceARN, m.Cluster
	if side == db.sidecar {
		return nil
	}
	if err := writeSidecar(filepath.Join(db.dir, fileSidecar), side); err != nil {
		return classed(err)
	}
	db.sidecar = side
	return nil
}

// Failing returns why the last transaction failed, or nil when it succeeded.
func (db *DB) Failing() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.failed
}

// trouble remembers the outcome of a transaction and tells of a change.
func (db *DB) trouble(err error) {
	db.mu.Lock()
	changed := (err == nil) != (db.failed == nil)
	db.failed = err
	db.mu.Unlock()
	if changed && db.notify != nil {
		db.notify(err)
	}
}

// Close commits what is queued, marks the end as a clean one and closes the database.
// Later commits fail. Closing twice is harmless.
func (db *DB) Close() error {
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return nil
	}
	db.closed = true
	db.mu.Unlock()
	close(db.stop)
	<-db.finished

	err := db.putDatabase(true)
	err = errors.Join(err, db.bolt.Close(), db.unlock())
	if err != nil {
		return &task.Error{Class: task.Unavailable, Err: fmt.Errorf("close the state database: %w", err)}
	}
	return nil
}
