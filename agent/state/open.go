package state

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"berth.dev/berth/agent/task"
)

// Files of the state directory.
const (
	fileDatabase = "state.db"
	fileSidecar  = "state.id"
	fileLock     = "state.lock"
	fileBallast  = "state.ballast"
	badInfix     = ".bad-"
)

const (
	defaultLockTimeout  = 5 * time.Second
	defaultCheckTimeout = 30 * time.Second
	lockPoll            = 20 * time.Millisecond
	keptBad             = 3 // condemned files that are kept
	// mapSize is how much address space is mapped at once, so that readers do not have
	// to wait for a larger mapping; the file itself is as small as its content.
	mapSize = 64 << 20
	// growBytes is by how much the file grows beyond what is needed.
	growBytes = 1 << 20
)

// ErrNewer is wrapped by the error of Open for a database that a newer agent has made.
var ErrNewer = errors.New("the state database was made by a newer version of the agent")

// Open opens the database of a state directory, or makes it. A damaged one is renamed
// and replaced by an empty one, which Opening tells; a directory that another agent has
// open, that belongs to someone else, or whose database is newer than this program is
// an error and is not changed.
func Open(ctx context.Context, c Config) (*DB, error) { return open(ctx, c, migrations) }

func open(ctx context.Context, c Config, ms []migration) (_ *DB, err error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.LockTimeout == 0 {
		c.LockTimeout = defaultLockTimeout
	}
	if c.CheckTimeout == 0 {
		c.CheckTimeout = defaultCheckTimeout
	}
	if c.Check == nil {
		c.Check = func(_ context.Context, path string) error { return CheckFile(path) }
	}
	if err := prepareDir(c.Dir); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, filepath.Join(c.Dir, fileLock), c.LockTimeout)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unlock())
		}
	}()
	o := opener{Config: c, migrations: ms, path: filepath.Join(c.Dir, fileDatabase)}
	db, err := o.open(ctx)
	if err != nil {
		return nil, err
	}
	db.unlock = unlock
	go db.commitLoop()
	return db, nil
}

// prepareDir makes the state directory, or takes it back to mode 0700.
func prepareDir(dir string) error {
	if dir == "" {
		return errors.New("the state directory (ECS_DATADIR) is not set")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("the state directory: %w", err)
	}
	if err := checkOwner(dir, st); err != nil {
		return err
	}
	if st.Mode().Perm() != 0o700 {
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("the state directory must have mode 0700: %w", err)
		}
	}
	return nil
}

func checkOwner(path string, st fs.FileInfo) error {
	if owner, uid := st.Sys().(*syscall.Stat_t).Uid, os.Geteuid(); int(owner) != uid {
		return fmt.Errorf("%s belongs to user %d and not to the agent's user %d: change its owner, or set another ECS_DATADIR", path, owner, uid)
	}
	return nil
}

// lock holds the lock file until the returned function is called or the process ends.
func lock(ctx context.Context, path string, timeout time.Duration) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the state directory cannot be written: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	again := time.NewTicker(lockPoll)
	defer again.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f.Close, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil, errors.Join(&task.Error{Class: task.Unavailable, Err: fmt.Errorf(
				"%s is locked: another agent uses this state directory; stop it, or set another ECS_DATADIR", path)}, f.Close())
		}
	}
}

// opener is what one Open knows on its way.
type opener struct {
	Config
	migrations []migration
	path       string
	side       *sidecar // nil when there is none
	opening    Opening
}

func (o *opener) open(ctx context.Context) (*DB, error) {
	var err error
	if o.side, err = readSidecar(filepath.Join(o.Dir, fileSidecar)); err != nil {
		return nil, fmt.Errorf("read the id of the state database: %w", err)
	}
	verdict, err := o.judge(ctx)
	switch {
	case err != nil:
		return nil, err
	case verdict != nil:
		if err := o.condemn(verdict); err != nil {
			return nil, err
		}
	}
	if o.opening.Fresh {
		if err := o.create(); err != nil {
			return nil, fmt.Errorf("make a new state database: %w", err)
		}
	}
	db, err := o.load()
	if err != nil {
		return nil, fmt.Errorf("open the state database %s: %w", o.path, err)
	}
	return db, nil
}

// judge looks at the file that is there. A verdict says why it is condemned; an error,
// why nothing can be said or done about it.
func (o *opener) judge(ctx context.Context) (verdict, err error) {
	st, err := os.Lstat(o.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		o.opening.Fresh = true
		if o.side != nil {
			o.opening.Lost = fmt.Errorf("%w: %s is missing", ErrBad, o.path)
			o.Log.Error("the state database is missing; going on with an empty one", "path", o.path)
		}
		return nil, nil
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file: move it away, or set another ECS_DATADIR", o.path)
	}
	if err := checkOwner(o.path, st); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(o.path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("the state database must be writable: %w", err)
	}
	if err := errors.Join(f.Chmod(0o600), f.Close()); err != nil {
		return nil, err
	}
	if st.Size() == 0 {
		return fmt.Errorf("%w: it is empty", ErrBad), nil
	}
	limited, cancel := context.WithTimeout(ctx, o.CheckTimeout)
	defer cancel()
	if err := o.Check(limited, o.path); errors.Is(err, ErrBad) {
		return err, nil
	} else if err != nil {
		return nil, err
	}
	return o.compare()
}

// compare reads what the database says of itself, without changing it.
func (o *opener) compare() (verdict, err error) {
	b, err := bolt.Open(o.path, 0, &bolt.Options{ReadOnly: true, Timeout: o.LockTimeout})
	if err != nil {
		return nil, fmt.Errorf("open the state database %s, which another process may have open: %w", o.path, err)
	}
	var schema int
	var can bool
	var meta metadata
	err = b.View(func(tx *bolt.Tx) error {
		var err error
		schema, can, err = usable(tx, o.migrations)
		if err == nil && can {
			meta, err = readMetadata(tx.Bucket(bucketRoot))
		}
		return err
	})
	err = errors.Join(err, b.Close())
	switch {
	case errors.Is(err, ErrBad):
		return err, nil
	case err != nil:
		return nil, err
	case !can:
		return nil, fmt.Errorf("%w: %s has schema %d and this program knows %d: install the newer version again, or set another ECS_DATADIR", ErrNewer, o.path, schema, latest(o.migrations))
	case o.side == nil:
		return nil, nil
	case meta.Database.ID != o.side.Database:
		return fmt.Errorf("%w: it is not the one that this agent has made (state.id names another)", ErrBad), nil
	case o.side.Generation > meta.Database.Generation+1:
		// state.id is raised first, so it may be ahead by one after a crash.
		return fmt.Errorf("%w: it is an old copy, of opening %d of %d", ErrBad, meta.Database.Generation, o.side.Generation), nil
	}
	return nil, nil
}

// condemn renames the file and keeps it, with the few that were condemned before.
func (o *opener) condemn(verdict error) error {
	bad := o.path + badInfix + time.Now().UTC().Format("20060102T150405.000000000Z")
	if err := os.Rename(o.path, bad); err != nil {
		return fmt.Errorf("put the damaged state database away: %w", err)
	}
	if err := syncDir(o.Dir); err != nil {
		return err
	}
	o.opening.Fresh, o.opening.Lost, o.opening.Quarantined = true, verdict, bad
	o.Log.Error("the state database is condemned; going on with an empty one", "err", verdict, "kept", bad)

	entries, err := os.ReadDir(o.Dir)
	if err != nil {
		return err
	}
	var kept []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), fileDatabase+badInfix) {
			kept = append(kept, e.Name())
		}
	}
	slices.Sort(kept)
	for _, name := range kept[:max(0, len(kept)-keptBad)] {
		if err := os.Remove(filepath.Join(o.Dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// create makes an empty database under another name and renames it when it is whole.
func (o *opener) create() error {
	tmp := o.path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b, err := o.bolt(tmp)
	if err != nil {
		return err
	}
	fresh := sidecar{Database: rand.Text()}
	if o.side != nil {
		fresh.InstanceARN, fresh.Cluster = o.side.InstanceARN, o.side.Cluster
	}
	if _, err = migrate(b, o.migrations); err == nil {
		err = b.Update(func(tx *bolt.Tx) error {
			w, err := newWriter(tx)
			if err != nil {
				return err
			}
			if err := w.putMeta(keyDatabase, database{ID: fresh.Database, Clean: true}); err != nil {
				return err
			}
			if err := w.putMeta(keyAgent, Meta{InstanceARN: fresh.InstanceARN, Cluster: fresh.Cluster, Unconfirmed: true}); err != nil {
				return err
			}
			return w.finish()
		})
	}
	if err = errors.Join(err, b.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, o.path); err != nil {
		return err
	}
	o.side = &fresh
	return writeSidecar(filepath.Join(o.Dir, fileSidecar), fresh) // syncs the directory, too
}

func (o *opener) bolt(path string) (*bolt.DB, error) {
	b, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout: o.LockTimeout, FreelistType: bolt.FreelistMapType, InitialMmapSize: mapSize, NoStatistics: true,
	})
	if err != nil {
		return nil, err
	}
	b.AllocSize = growBytes
	return b, nil
}

// load opens the file for good, raises its generation and reads what is kept in memory.
func (o *opener) load() (_ *DB, err error) {
	b, err := o.bolt(o.path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	from, err := migrate(b, o.migrations)
	if err != nil {
		return nil, err
	}
	if from != latest(o.migrations) {
		o.opening.MigratedFrom = from
	}
	db := &DB{
		dir: o.Dir, log: o.Log, bolt: b, opening: o.opening, notify: o.Trouble,
		changed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		stop: make(chan struct{}), finished: make(chan struct{}),
		ballast: ballast{path: filepath.Join(o.Dir, fileBallast)},
	}
	var meta metadata
	if err := db.view(func(root *bolt.Bucket) error {
		if meta, err = readMetadata(root); err != nil {
			return err
		}
		return db.remember(root)
	}); err != nil {
		return nil, err
	}
	db.meta = meta.Agent
	db.meta.Clean = meta.Database.Clean
	db.meta.Generation = meta.Database.Generation + 1
	db.sequence.Store(meta.Sequence)
	db.sidecar = sidecar{
		Database: meta.Database.ID, Generation: db.meta.Generation,
		InstanceARN: meta.Agent.InstanceARN, Cluster: meta.Agent.Cluster,
	}
	raise := func() error {
		// The file first: see compare.
		if err := writeSidecar(filepath.Join(o.Dir, fileSidecar), db.sidecar); err != nil {
			return err
		}
		return db.putDatabase(false)
	}
	db.ballast.find()
	if err = raise(); errors.Is(err, syscall.ENOSPC) && db.ballast.release() {
		err = raise()
	}
	if err != nil {
		return nil, err
	}
	return db, db.ballast.make()
}

// remember fills what is mirrored in memory.
func (db *DB) remember(root *bolt.Bucket) (err error) {
	if db.inbox, err = readDated(root.Bucket(bucketInbox), "inbox/", inboxMax, remembered); err != nil {
		return err
	}
	if db.tombstones, err = readDated(root.Bucket(bucketTombstones), "tombstones/", tombstonesMax, remembered); err != nil {
		return err
	}
	c := root.Bucket(bucketOutbox).Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		db.pending.Add(1)
	}
	return nil
}

// putDatabase writes meta/database while the committer is not running.
func (db *DB) putDatabase(clean bool) error {
	return db.bolt.Update(func(tx *bolt.Tx) error {
		w, err := newWriter(tx)
		if err != nil {
			return err
		}
		d := database{ID: db.sidecar.Database, Generation: db.sidecar.Generation, Clean: clean}
		if err := w.putMeta(keyDatabase, d); err != nil {
			return err
		}
		return w.finish()
	})
}
