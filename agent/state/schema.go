package state

import (
	"fmt"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"

	"berth.dev/berth/agent/fail"
)

// migration brings a database from schema version To-1 to To. It writes through the
// writer, so that the sum of all values stays right.
//
// Readable is the oldest schema whose programs can go on with the result, so that a
// package can be taken back by one version: a migration that only adds, and that may run
// again on what it has made, has To-1. 0 means To: older programs refuse.
type migration struct {
	To, Readable int
	Do           func(*writer) error
}

// migrations is the history of the layout, in order and never changed afterwards. An
// empty file is version 0.
var migrations = append([]migration{
	{To: 1, Do: createLayout},
}, nextMigrations...)

func createLayout(w *writer) error {
	for _, name := range [][]byte{bucketMeta, bucketTasks, bucketOutbox, bucketInbox, bucketTombstones} {
		if _, err := w.root.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	return nil
}

func latest(ms []migration) int { return ms[len(ms)-1].To }

// readable is the oldest schema whose programs can use what the migrations make.
func readable(ms []migration) int {
	least := 0
	for _, m := range ms {
		if m.Readable == 0 {
			least = m.To
		}
		least = max(least, m.Readable)
	}
	return least
}

// migrate applies what a database lacks, in one transaction, and returns the version it
// had. Before it changes anything it copies a database that has content to state.db.v<n>.
func migrate(db *bolt.DB, ms []migration) (from int, err error) {
	if err := db.View(func(tx *bolt.Tx) error {
		from, err = schemaOf(tx)
		return err
	}); err != nil {
		return from, err
	}
	if from == latest(ms) {
		return from, nil
	}
	// A newer database that this program can use becomes one of its own version, so that
	// the newer program brings it up to date again when it comes back.
	if from > 0 {
		if err := backup(db, fmt.Sprintf("%s.v%d", db.Path(), from)); err != nil {
			return from, fmt.Errorf("copy the database before its migration: %w", err)
		}
	}
	return from, db.Update(func(tx *bolt.Tx) error {
		if _, err := tx.CreateBucketIfNotExists(bucketRoot); err != nil {
			return err
		}
		w, err := newWriter(tx)
		if err != nil {
			return err
		}
		for _, m := range ms {
			if m.To <= from {
				continue
			}
			if err := m.Do(w); err != nil {
				return fmt.Errorf("migrate the database to schema %d: %w", m.To, err)
			}
			if err := fail.Point(fail.MigrateMid); err != nil {
				return err
			}
		}
		if err := w.putMeta(keySchema, latest(ms)); err != nil {
			return err
		}
		if err := w.putMeta(keyReadable, readable(ms)); err != nil {
			return err
		}
		return w.finish()
	})
}

// backup copies the database; an earlier copy of the same version is replaced whole.
func backup(db *bolt.DB, path string) error {
	tmp := path + ".new"
	err := db.View(func(tx *bolt.Tx) error {
		f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		_, err = tx.WriteTo(f)
		if err == nil {
			err = f.Sync()
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// usable returns the schema version, and whether a program with these migrations can use
// the database.
func usable(tx *bolt.Tx, ms []migration) (schema int, can bool, err error) {
	schema, err = schemaOf(tx)
	if err != nil || schema <= latest(ms) {
		return schema, err == nil, err
	}
	value := tx.Bucket(bucketRoot).Bucket(bucketMeta).Get(keyReadable)
	if value == nil {
		return schema, false, nil
	}
	var least int
	if err := decode("meta/readable", value, &least); err != nil {
		return schema, false, fmt.Errorf("%w: %w", ErrBad, err)
	}
	return schema, least <= latest(ms), nil
}

// schemaOf returns the schema version, 0 for an empty database.
func schemaOf(tx *bolt.Tx) (int, error) {
	root := tx.Bucket(bucketRoot)
	if root == nil {
		return 0, nil
	}
	meta := root.Bucket(bucketMeta)
	if meta == nil {
		return 0, errLayout
	}
	var v int
	if err := decode("meta/schema", meta.Get(keySchema), &v); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrBad, err)
	}
	if v < 1 {
		return 0, fmt.Errorf("%w: schema %d does not exist", ErrBad, v)
	}
	return v, nil
}
