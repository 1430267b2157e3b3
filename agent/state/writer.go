package state

import (
	"encoding/binary"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// Buckets and keys, as drawn in the package comment.
var (
	bucketRoot        = []byte("v1")
	bucketMeta        = []byte("meta")
	bucketTasks       = []byte("tasks")
	bucketEvents      = []byte("events")
	bucketOutbox      = []byte("outbox")
	bucketInbox       = []byte("inbox")
	bucketTombstones  = []byte("tombstones")
	bucketAttachments = []byte("attachments")

	keyAgent    = []byte("agent")
	keyDatabase = []byte("database")
	keyReadable = []byte("readable")
	keySchema   = []byte("schema")
	keySequence = []byte("sequence")
	keySum      = []byte("sum")
	keySpec     = []byte("spec")
	keyKnown    = []byte("known")
)

const (
	prefixRes = "res/"

	// ringSize is how many events are kept of each task.
	ringSize = 128
	// maxKey is the longest id, ARN or name stored as a key, in bytes; bbolt's own limit
	// is 32,768.
	maxKey = 4096
	// maxValue is the longest value in bytes; four times the largest message that the
	// cluster can send.
	maxValue = 16 << 20
)

// writer is one transaction. All writes go through it, because it keeps meta/sum.
type writer struct {
	root     *bolt.Bucket
	total    total
	onCommit []func()
	appended bool  // rows were put into the outbox
	sequence int64 // the highest seen, this transaction included
}

func newWriter(tx *bolt.Tx) (*writer, error) {
	root := tx.Bucket(bucketRoot)
	if root == nil {
		return nil, errLayout
	}
	w := &writer{root: root}
	var err error
	w.total, err = readTotal(root)
	return w, err
}

var errLayout = fmt.Errorf("%w: a bucket of the layout is missing", ErrBad)

// bucket returns one of the buckets that every database has.
func (w *writer) bucket(name []byte) (*bolt.Bucket, error) {
	b := w.root.Bucket(name)
	if b == nil {
		return nil, errLayout
	}
	return b, nil
}

// put seals a value that encode has made and stores it. Path is that of the bucket,
// with a slash at its end.
func (w *writer) put(b *bolt.Bucket, path string, key, value []byte) error {
	if old := b.Get(key); old != nil {
		if err := w.total.remove(old); err != nil {
			return err
		}
	}
	seal(path+string(key), value)
	if err := b.Put(key, value); err != nil {
		return fmt.Errorf("put %q: %w", path+string(key), err)
	}
	w.total.add(value)
	return nil
}

// remove deletes a key and reports whether there was one.
func (w *writer) remove(b *bolt.Bucket, key []byte) (bool, error) {
	old := b.Get(key)
	if old == nil {
		return false, nil
	}
	if err := w.total.remove(old); err != nil {
		return false, err
	}
	return true, b.Delete(key)
}

// removeBucket deletes a bucket with all that is in it.
func (w *writer) removeBucket(parent *bolt.Bucket, name []byte) error {
	if err := w.forget(parent.Bucket(name)); err != nil {
		return err
	}
	return parent.DeleteBucket(name)
}

func (w *writer) forget(b *bolt.Bucket) error {
	return b.ForEach(func(k, v []byte) error {
		if v == nil {
			return w.forget(b.Bucket(k))
		}
		return w.total.remove(v)
	})
}

// putMeta encodes and stores one value of v1/meta.
func (w *writer) putMeta(key []byte, v any) error {
	b, err := w.bucket(bucketMeta)
	if err != nil {
		return err
	}
	value, err := encode(v)
	if err != nil {
		return err
	}
	return w.put(b, "meta/", key, value)
}

// finish writes the sum; it is the last write of a transaction.
func (w *writer) finish() error {
	b, err := w.bucket(bucketMeta)
	if err != nil {
		return err
	}
	value := make([]byte, envelopeSize+16)
	binary.BigEndian.PutUint64(value[envelopeSize:], w.total.Values)
	binary.BigEndian.PutUint64(value[envelopeSize+8:], w.total.Sum)
	seal("meta/sum", value)
	return b.Put(keySum, value)
}

// readTotal reads meta/sum; a database that is being made has none yet.
func readTotal(root *bolt.Bucket) (total, error) {
	var t total
	b := root.Bucket(bucketMeta)
	if b == nil {
		return t, nil
	}
	value := b.Get(keySum)
	if value == nil {
		return t, nil
	}
	p, err := unseal("meta/sum", value)
	if err != nil || len(p) != 16 {
		return t, fmt.Errorf("%w: meta/sum is damaged", ErrBad)
	}
	t.Values = binary.BigEndian.Uint64(p)
	t.Sum = binary.BigEndian.Uint64(p[8:])
	return t, nil
}

func counterKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
