package state

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"berth.dev/berth/agent/task"
)

// Load returns every task that is stored, in the order of their ids. Every record is
// marked Unconfirmed.
func (db *DB) Load(ctx context.Context) ([]task.Stored, error) {
	var all []task.Stored
	err := db.view(func(root *bolt.Bucket) error {
		return eachTask(root, func(id string, b *bolt.Bucket) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			s, err := readTask(id, b)
			if err == nil {
				all = append(all, s)
			}
			return err
		})
	})
	return all, err
}

// Events returns what is left of a task's event log, oldest first; nothing for a task
// that is not stored.
func (db *DB) Events(taskID string) ([]task.Event, error) {
	var events []task.Event
	err := db.view(func(root *bolt.Bucket) error {
		b := root.Bucket(bucketTasks).Bucket([]byte(taskID))
		if b == nil {
			return nil
		}
		var err error
		events, err = readEvents(taskID, b.Bucket(bucketEvents))
		return err
	})
	return events, err
}

// view runs fn in a read transaction on the bucket v1 of an open database, where every
// bucket of the layout is known to exist.
func (db *DB) view(fn func(root *bolt.Bucket) error) error {
	return db.bolt.View(func(tx *bolt.Tx) error {
		root := tx.Bucket(bucketRoot)
		for _, name := range [][]byte{bucketMeta, bucketTasks, bucketOutbox, bucketInbox, bucketTombstones} {
			if root == nil || root.Bucket(name) == nil {
				return errLayout
			}
		}
		return fn(root)
	})
}

func eachTask(root *bolt.Bucket, fn func(id string, b *bolt.Bucket) error) error {
	tasks := root.Bucket(bucketTasks)
	return tasks.ForEach(func(k, v []byte) error {
		if v != nil {
			return fmt.Errorf("%w: tasks/%q is not a bucket", ErrBad, k)
		}
		return fn(string(k), tasks.Bucket(k))
	})
}

// readTask decodes all of one task but its events.
func readTask(id string, b *bolt.Bucket) (task.Stored, error) {
	s := task.Stored{Task: &task.Task{}, Known: &task.Known{}}
	path := "tasks/" + id + "/"
	err := b.ForEach(func(k, v []byte) error {
		key := string(k)
		switch {
		case key == string(keySpec):
			return decode(path+key, v, s.Task)
		case key == string(keyKnown):
			return decode(path+key, v, s.Known)
		case key == string(bucketEvents) && v == nil:
			return nil
		case strings.HasPrefix(key, prefixRes):
			kind, name, ok := strings.Cut(key[len(prefixRes):], "/")
			if !ok {
				return fmt.Errorf("%q does not name a resource", path+key)
			}
			r := s.Known.Resource(task.ResourceID{Kind: kind, Name: name})
			r.Unconfirmed = true
			return decode(path+key, v, r)
		default:
			return fmt.Errorf("%q does not belong to a task", path+key)
		}
	})
	switch {
	case err != nil:
	case s.Task.ID() != id:
		err = fmt.Errorf("%q holds the task %q", path, s.Task.ARN)
	}
	if err != nil {
		return s, fmt.Errorf("%w: %w", ErrBad, err)
	}
	return s, nil
}

func readEvents(taskID string, b *bolt.Bucket) ([]task.Event, error) {
	if b == nil {
		return nil, nil
	}
	var events []task.Event
	path := "tasks/" + taskID + "/events/"
	err := b.ForEach(func(k, v []byte) error {
		var e task.Event
		err := decode(path+string(k), v, &e)
		events = append(events, e)
		return err
	})
	if err == nil && len(events) > ringSize {
		events = events[len(events)-ringSize:]
	}
	return events, err
}

// readRows returns the rows of the outbox after the given number, at most limit of them
// when limit is above 0.
func readRows(b *bolt.Bucket, after uint64, limit int) ([]Row, error) {
	var rows []Row
	c := b.Cursor()
	for k, v := c.Seek(counterKey(after + 1)); k != nil && (limit <= 0 || len(rows) < limit); k, v = c.Next() {
		if len(k) != 8 {
			return nil, fmt.Errorf("%w: outbox/%q is not numbered", ErrBad, k)
		}
		r := Row{Seq: binary.BigEndian.Uint64(k)}
		if err := decode("outbox/"+string(k), v, &r); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBad, err)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// tombstone is what is remembered of a task that was forgotten.
type tombstone struct {
	At         time.Time `json:"at"`
	DesiredSeq int64     `json:"desiredSeq,omitempty"`
}

// readDated reads a bucket whose values have a time into memory, oldest first.
func readDated(b *bolt.Bucket, path string, max int, age time.Duration) (*memory, error) {
	m := newMemory(max, age)
	err := b.ForEach(func(k, v []byte) error {
		var d struct {
			At time.Time `json:"at"`
		}
		if err := decode(path+string(k), v, &d); err != nil {
			return err
		}
		m.load(string(k), d.At)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBad, err)
	}
	m.sort()
	return m, nil
}

// database is the value of meta/database.
type database struct {
	ID         string `json:"id"`
	Generation uint64 `json:"generation"`
	Clean      bool   `json:"clean"`
}

// metadata is what v1/meta holds besides the schema and the sum.
type metadata struct {
	Database database
	Agent    Meta
	Sequence int64
}

func readMetadata(root *bolt.Bucket) (metadata, error) {
	var m metadata
	b := root.Bucket(bucketMeta)
	if b == nil {
		return m, errLayout
	}
	for _, part := range []struct {
		key      []byte
		into     any
		optional bool
	}{{keyDatabase, &m.Database, false}, {keyAgent, &m.Agent, true}, {keySequence, &m.Sequence, true}} {
		v := b.Get(part.key)
		if v == nil && part.optional {
			continue
		}
		if err := decode("meta/"+string(part.key), v, part.into); err != nil {
			return m, fmt.Errorf("%w: %w", ErrBad, err)
		}
	}
	return m, nil
}
