package state

import (
	"context"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"berth.dev/berth/agent/task"
)

// Attachments returns the announced interfaces that are stored.
func (db *DB) Attachments(ctx context.Context) ([]task.Attachment, error) {
	if err := ctx.Err(); err != nil {
		return nil, &task.Error{Class: task.Canceled, Err: err}
	}
	var all []task.Attachment
	err := db.view(func(root *bolt.Bucket) error {
		var err error
		all, err = readAttachments(root)
		return err
	})
	if err != nil {
		return nil, classed(err)
	}
	return all, nil
}

func readAttachments(root *bolt.Bucket) ([]task.Attachment, error) {
	b := root.Bucket(bucketAttachments)
	if b == nil {
		return nil, nil
	}
	var all []task.Attachment
	err := b.ForEach(func(k, v []byte) error {
		var a task.Attachment
		if err := decode("attachments/"+string(k), v, &a); err != nil {
			return fmt.Errorf("%w: %w", ErrBad, err)
		}
		all = append(all, a)
		return nil
	})
	return all, err
}

// putAttachments stores or, without a value, forgets attachments.
func putAttachments(w *writer, list []record) error {
	if len(list) == 0 {
		return nil
	}
	b, err := w.root.CreateBucketIfNotExists(bucketAttachments)
	if err != nil {
		return err
	}
	for _, r := range list {
		if r.value == nil {
			_, err = w.remove(b, r.key)
		} else {
			err = w.put(b, "attachments/", r.key, r.value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
