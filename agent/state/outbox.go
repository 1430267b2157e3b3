package state

import (
	"context"
	"time"

	bolt "go.etcd.io/bbolt"

	"berth.dev/berth/agent/task"
)

// Row is one change in the outbox.
type Row struct {
	Seq    uint64      `json:"-"` // its key; rises, and is never used twice
	TaskID string      `json:"taskId"`
	At     time.Time   `json:"at"` // when it was committed
	Change task.Change `json:"change"`
}

// maxRows bounds one reading of the outbox.
const maxRows = 1024

// Outbox returns rows with a number above after, in order, and at most 1,024 of them.
func (db *DB) Outbox(ctx context.Context, after uint64) ([]Row, error) {
	if err := ctx.Err(); err != nil {
		return nil, &task.Error{Class: task.Canceled, Err: err}
	}
	var rows []Row
	err := db.view(func(root *bolt.Bucket) error {
		var err error
		rows, err = readRows(root.Bucket(bucketOutbox), after, maxRows)
		return err
	})
	if err != nil {
		return nil, classed(err)
	}
	return rows, nil
}

// Changed has a value after rows were appended to the outbox. It is for one reader,
// which reads the outbox until it is empty each time.
func (db *DB) Changed() <-chan struct{} { return db.changed }

// Pending is the number of rows in the outbox.
func (db *DB) Pending() int { return int(db.pending.Load()) }

// Delivered deletes rows of the outbox and appends an event to the task's log, if the
// task is still stored, in one commit. Rows that are gone already are passed over.
func (db *DB) Delivered(ctx context.Context, taskID string, seqs []uint64, ev task.Event) error {
	event, err := encode(&ev)
	if err != nil {
		return &task.Error{Class: task.Invalid, Err: err}
	}
	return db.submit(ctx, false, func(db *DB, w *writer) error {
		outbox, err := w.bucket(bucketOutbox)
		if err != nil {
			return err
		}
		var gone int64
		for _, seq := range seqs {
			ok, err := w.remove(outbox, counterKey(seq))
			if err != nil {
				return err
			}
			if ok {
				gone++
			}
		}
		w.onCommit = append(w.onCommit, func() { db.pending.Add(-gone) })
		tasks, err := w.bucket(bucketTasks)
		if err != nil {
			return err
		}
		home := tasks.Bucket([]byte(taskID))
		if home == nil {
			return nil
		}
		return appendEvents(w, home, "tasks/"+taskID+"/", [][]byte{event})
	})
}

func appendRows(db *DB, w *writer, rows [][]byte) error {
	if len(rows) == 0 {
		return nil
	}
	outbox, err := w.bucket(bucketOutbox)
	if err != nil {
		return err
	}
	for _, row := range rows {
		n, err := outbox.NextSequence()
		if err != nil {
			return err
		}
		if err := w.put(outbox, "outbox/", counterKey(n), row); err != nil {
			return err
		}
	}
	w.appended = true
	w.onCommit = append(w.onCommit, func() { db.pending.Add(int64(len(rows))) })
	return nil
}
