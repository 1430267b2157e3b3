package state

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"berth.dev/berth/agent/task"
)

// Commit makes one commit durable. A nil error means that it is on disk.
//
// A batch for a task that is not stored, and does not store it, may hold only events,
// which are dropped, and changes, which go into the outbox. A task that is stored
// already keeps its first spec. When Commit fails nothing was written, with one
// exception: after an I/O error in the very last write of a transaction the commit may
// be found to have happened; making it again only repeats its events and changes.
//
// Errors carry a class: Invalid for a commit that cannot be stored, Canceled when ctx
// ended while it was waiting, Exhausted when the filesystem is full (then only tasks
// that are known already can be recorded), else Unavailable. A ctx that ends when the
// transaction is under way is not heeded, so that the answer is true.
func (db *DB) Commit(ctx context.Context, c task.Commit) error {
	p, err := prepare(c, time.Now())
	if err != nil {
		return &task.Error{Class: task.Invalid, Err: fmt.Errorf("state: %w", err)}
	}
	return db.submit(ctx, p.accepts, p.apply)
}

// prepared is a commit with everything encoded, which is done by the caller so that the
// one goroutine that writes does not have to.
type prepared struct {
	message  *task.Message
	result   []byte
	sequence int64
	batches  []batch
	attached []record // a nil value forgets
	accepts  bool     // it makes a new task known
	now      time.Time
}

type batch struct {
	id      string
	arn     string // of the task, when spec is set
	spec    []byte
	known   []byte
	records []record
	events  [][]byte
	rows    [][]byte
	remove  bool
}

type record struct{ key, value []byte }

func prepare(c task.Commit, now time.Time) (*prepared, error) {
	p := &prepared{message: c.Message, sequence: c.Sequence, now: now, batches: make([]batch, 0, len(c.Batches))}
	if m := c.Message; m != nil {
		if err := checkKey("message id", m.ID); err != nil {
			return nil, err
		}
		stored := *m
		if stored.At.IsZero() {
			stored.At = now
		}
		p.message = &stored
		var err error
		if p.result, err = encode(stored); err != nil {
			return nil, err
		}
	}
	for i := range c.Batches {
		b, err := prepareBatch(&c.Batches[i], now)
		if err != nil {
			return nil, fmt.Errorf("task %q: %w", c.Batches[i].TaskID, err)
		}
		p.accepts = p.accepts || b.spec != nil
		p.batches = append(p.batches, b)
	}
	var e encoder
	for arn, a := range c.Attachments {
		if err := checkKey("attachment", arn); err != nil {
			return nil, err
		}
		r := record{key: []byte(arn)}
		if a != nil {
			r.value = e.value(a)
		}
		p.attached = append(p.attached, r)
	}
	return p, e.err
}

func prepareBatch(in *task.Batch, now time.Time) (batch, error) {
	b := batch{id: in.TaskID, remove: in.Delete}
	if err := checkKey("task id", in.TaskID); err != nil {
		return b, err
	}
	if strings.Contains(in.TaskID, "/") {
		return b, errors.New("task id contains a slash")
	}
	var e encoder
	if in.Task != nil {
		if in.Task.ID() != in.TaskID {
			return b, fmt.Errorf("it is stored with the ARN %q of another task", in.Task.ARN)
		}
		if err := checkKey("task ARN", in.Task.ARN); err != nil {
			return b, err
		}
		b.arn = in.Task.ARN
		b.spec = e.value(in.Task)
	}
	if in.Known != nil {
		b.known = e.value(in.Known)
	}
	for id, r := range in.Records {
		key := prefixRes + id.String()
		if err := checkKey("resource "+id.String(), key); err != nil {
			return b, err
		}
		if r == nil || id.Kind == "" || strings.Contains(id.Kind, "/") {
			return b, fmt.Errorf("resource %q has no record or no proper kind", id)
		}
		b.records = append(b.records, record{[]byte(key), e.value(r)})
	}
	for i := range in.Events {
		b.events = append(b.events, e.value(&in.Events[i]))
	}
	for i := range in.Changes {
		b.rows = append(b.rows, e.value(Row{TaskID: in.TaskID, At: now, Change: in.Changes[i]}))
	}
	return b, e.err
}

// encoder encodes several values and keeps the first error.
type encoder struct{ err error }

func (e *encoder) value(v any) []byte {
	if e.err != nil {
		return nil
	}
	b, err := encode(v)
	if err == nil && len(b) > maxValue {
		err = fmt.Errorf("%T takes %d bytes, more than %d", v, len(b), maxValue)
	}
	e.err = err
	return b
}

func checkKey(what, key string) error {
	if key == "" {
		return fmt.Errorf("%s is empty", what)
	}
	if len(key) > maxKey {
		return fmt.Errorf("%s is longer than %d bytes", what, maxKey)
	}
	return nil
}

// apply writes the commit. It may be called again in another transaction when that of
// the first call was given up.
func (p *prepared) apply(db *DB, w *writer) error {
	if p.message != nil {
		inbox, err := w.bucket(bucketInbox)
		if err != nil {
			return err
		}
		if err := w.put(inbox, "inbox/", []byte(p.message.ID), p.result); err != nil {
			return err
		}
		w.onCommit = append(w.onCommit, func() { db.inbox.add(p.message.ID, p.message.At) })
	}
	if p.sequence > w.sequence {
		if err := w.putMeta(keySequence, p.sequence); err != nil {
			return err
		}
		w.sequence = p.sequence
		w.onCommit = append(w.onCommit, func() { db.sequence.Store(p.sequence) })
	}
	for i := range p.batches {
		if err := p.batches[i].apply(db, w, p.now); err != nil {
			return err
		}
	}
	return putAttachments(w, p.attached)
}

func (b *batch) apply(db *DB, w *writer, now time.Time) error {
	tasks, err := w.bucket(bucketTasks)
	if err != nil {
		return err
	}
	home := tasks.Bucket([]byte(b.id))
	switch {
	case home == nil && b.spec != nil && !b.remove:
		if home, err = tasks.CreateBucket([]byte(b.id)); err != nil {
			return err
		}
	case home == nil && (b.known != nil || len(b.records) > 0) && !b.remove:
		return &task.Error{Class: task.NotFound, Err: fmt.Errorf("state: task %s is not stored", b.id)}
	}
	switch {
	case home == nil:
	case b.remove:
		if err := b.bury(db, w, tasks, home, now); err != nil {
			return err
		}
	default:
		if err := b.write(w, home); err != nil {
			return err
		}
	}
	return appendRows(db, w, b.rows)
}

// write stores everything but the rows of the outbox.
func (b *batch) write(w *writer, home *bolt.Bucket) error {
	path := "tasks/" + b.id + "/"
	if b.spec != nil && home.Get(keySpec) == nil {
		if err := w.put(home, path, keySpec, b.spec); err != nil {
			return err
		}
	}
	if b.known != nil {
		if err := w.put(home, path, keyKnown, b.known); err != nil {
			return err
		}
	}
	for _, r := range b.records {
		if err := w.put(home, path, r.key, r.value); err != nil {
			return err
		}
	}
	return appendEvents(w, home, path, b.events)
}

// appendEvents adds to the ring of a task: each event takes the next number and the
// key that falls out of the ring is deleted, so that nothing else is rewritten.
func appendEvents(w *writer, home *bolt.Bucket, path string, events [][]byte) error {
	if len(events) == 0 {
		return nil
	}
	ring, err := home.CreateBucketIfNotExists(bucketEvents)
	if err != nil {
		return err
	}
	path += "events/"
	if skip := len(events) - ringSize; skip > 0 {
		events = events[skip:]
	}
	for _, e := range events {
		n, err := ring.NextSequence()
		if err != nil {
			return err
		}
		if err := w.put(ring, path, counterKey(n), e); err != nil {
			return err
		}
		if n > ringSize {
			if _, err := w.remove(ring, counterKey(n-ringSize)); err != nil {
				return err
			}
		}
	}
	return nil
}

// bury forgets a task and remembers its ARN, so that a late copy of the message that
// once started it does not start it again.
func (b *batch) bury(db *DB, w *writer, tasks, home *bolt.Bucket, now time.Time) error {
	path := "tasks/" + b.id + "/"
	var spec struct {
		ARN string `json:"arn"`
	}
	if err := decode(path+string(keySpec), home.Get(keySpec), &spec); err != nil {
		return err
	}
	var known struct {
		DesiredSeq int64 `json:"desiredSeq"`
	}
	if v := home.Get(keyKnown); v != nil {
		if err := decode(path+string(keyKnown), v, &known); err != nil {
			return err
		}
	}
	value, err := encode(tombstone{At: now, DesiredSeq: known.DesiredSeq})
	if err != nil {
		return err
	}
	tombs, err := w.bucket(bucketTombstones)
	if err != nil {
		return err
	}
	if err := w.put(tombs, "tombstones/", []byte(spec.ARN), value); err != nil {
		return err
	}
	if err := w.removeBucket(tasks, []byte(b.id)); err != nil {
		return err
	}
	w.onCommit = append(w.onCommit, func() { db.tombstones.add(spec.ARN, now) })
	return nil
}

// trim deletes a few of the inbox's and the tombstones' entries that are due.
func trim(db *DB, w *writer, now time.Time) error {
	for _, side := range []struct {
		m      *memory
		bucket []byte
	}{{db.inbox, bucketInbox}, {db.tombstones, bucketTombstones}} {
		keys, entries := side.m.due(now, trimMax)
		if entries == 0 {
			continue
		}
		b, err := w.bucket(side.bucket)
		if err != nil {
			return err
		}
		for _, k := range keys {
			if _, err := w.remove(b, []byte(k)); err != nil {
				return err
			}
		}
		w.onCommit = append(w.onCommit, func() { side.m.drop(entries) })
	}
	return nil
}
