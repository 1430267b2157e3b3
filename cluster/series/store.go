package series

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.etcd.io/bbolt"
)

// Resolution is the length of the intervals of a series.
type Resolution int

// The resolutions, the finest first.
const (
	Minute Resolution = iota
	FiveMinutes
	Hour
	resolutions
)

// scale is one resolution: how long its intervals and its segments are.
type scale struct {
	bucket        string
	step, segment time.Duration
}

var scales = [resolutions]scale{
	{"minute", time.Minute, time.Hour},
	{"five minutes", 5 * time.Minute, 6 * time.Hour},
	{"hour", time.Hour, 72 * time.Hour},
}

// Step is the length of an interval.
func (r Resolution) Step() time.Duration { return scales[r].step }

const day = 24 * time.Hour

// Retention is how long rows of a kind are kept in a resolution, unless there is no room.
// Those of whole clusters, services and instances go as far back as CloudWatch's in the
// longest; there are many more tasks and containers, and they are soon gone.
func Retention(k Kind, r Resolution) time.Duration {
	if k == Task || k == Container {
		return [resolutions]time.Duration{3 * time.Hour, day, 15 * day}[r]
	}
	return [resolutions]time.Duration{3 * day, 15 * day, 455 * day}[r]
}

// DefaultMaxBytes is the room of a Store.
const DefaultMaxBytes = 256 << 20

// Config says where a Store is. Empty members mean their default.
type Config struct {
	Path     string
	MaxBytes int64 // of the database in use; it may be one segment larger for a while
	Log      *slog.Logger
}

// Store is the series on disk. Its methods may be called by several at once.
type Store struct {
	c     Config
	db    *bbolt.DB
	codec codec
}

// lockTimeout is how long Open waits for another process to let the file go.
const lockTimeout = 2 * time.Second

// Open opens the series, or makes them.
func Open(c Config) (*Store, error) {
	if c.MaxBytes <= 0 {
		c.MaxBytes = DefaultMaxBytes
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	db, err := bbolt.Open(c.Path, 0o600, &bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType, NoFreelistSync: true})
	if err != nil {
		return nil, fmt.Errorf("open the series in %s: %w", c.Path, err)
	}
	s := &Store{c: c, db: db}
	if s.codec, err = newCodec(); err == nil {
		err = db.Update(func(tx *bbolt.Tx) error {
			for _, sc := range scales {
				if _, err := tx.CreateBucketIfNotExists([]byte(sc.bucket)); err != nil {
					return err
				}
			}
			_, err := tx.CreateBucketIfNotExists(samplesBucket)
			return err
		})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the series in %s: %w", c.Path, err), db.Close())
	}
	return s, nil
}

// Close closes the file.
func (s *Store) Close() error {
	err := s.db.Close()
	s.codec.close()
	return err
}

// Rows are the rows of one minute by kind.
type Rows [Kinds][]Row

// Put enters the rows of the minute that begins at a time: the metrics that a row has, in
// place of those that are there. Other rows and metrics stay. Longer intervals that are
// over at until are made of the minutes anew.
func (s *Store) Put(minute, until time.Time, rows *Rows) error {
	minute = minute.Truncate(time.Minute)
	return s.db.Update(func(tx *bbolt.Tx) error {
		for k := range Kinds {
			if len(rows[k]) == 0 {
				continue
			}
			g, err := s.segment(tx, Minute, k, minute)
			if err != nil {
				return err
			}
			if err := g.merge(minute, rows[k]); err != nil {
				return err
			}
			for r := FiveMinutes; r < resolutions; r++ {
				if err := s.rollUp(tx, r, k, minute, until); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// rollUp makes the interval that a minute is in of the finer ones, if it is over.
func (s *Store) rollUp(tx *bbolt.Tx, r Resolution, k Kind, minute, until time.Time) error {
	from := minute.Truncate(scales[r].step)
	to := from.Add(scales[r].step)
	if to.After(until) {
		return nil
	}
	sums := make(map[string]*Row)
	var order []string
	err := s.eachFrame(tx, r-1, k, from, to, func(_ time.Time, g *segment, frame []byte) error {
		return eachRow(frame, nil, func(id uint32, values []Value) {
			name := g.name(id)
			sum := sums[name]
			if sum == nil {
				sum = &Row{Name: name}
				sums[name], order = sum, append(order, name)
			}
			for _, v := range values {
				sum.Add(v.Metric, v.Set)
			}
		})
	})
	if err != nil || len(order) == 0 {
		return err
	}
	rows := make([]Row, len(order))
	for i, name := range order {
		rows[i] = *sums[name]
	}
	g, err := s.segment(tx, r, k, from)
	if err != nil {
		return err
	}
	return g.merge(from, rows)
}

// Sweep removes what is too old, and then what there is no room for.
func (s *Store) Sweep(now time.Time) error {
	for r := range resolutions {
		for k := range Kinds {
			if err := s.expire(r, k, now.Add(-Retention(k, r)-scales[r].segment)); err != nil {
				return err
			}
		}
	}
	for range maxSweep {
		used, err := s.Used()
		if err != nil || used <= s.c.MaxBytes {
			return err
		}
		dropped, err := s.makeRoom()
		if err != nil || !dropped {
			return err
		}
	}
	return nil
}

// maxSweep bounds the segments that one sweep removes for want of room.
const maxSweep = 256

// Used is how many bytes of the file are in use.
func (s *Store) Used() (n int64, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error { n = tx.Size(); return nil })
	return n - int64(s.db.Stats().FreePageN*s.db.Info().PageSize), err
}

// expire removes the segments that begin before a time.
func (s *Store) expire(r Resolution, k Kind, before time.Time) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(scales[r].bucket)).Bucket([]byte{byte(k)})
		if b == nil {
			return nil
		}
		var old [][]byte
		c := b.Cursor()
		for key, _ := c.First(); key != nil && timeOf(key).Before(before); key, _ = c.Next() {
			old = append(old, append([]byte(nil), key...))
		}
		for _, key := range old {
			if err := b.DeleteBucket(key); err != nil {
				return err
			}
		}
		return nil
	})
}

// makeRoom removes the oldest segment of the kind and resolution that take most, but
// never the only one.
func (s *Store) makeRoom() (dropped bool, err error) {
	err = s.db.Update(func(tx *bbolt.Tx) error {
		var from *bbolt.Bucket
		var most int
		for r := range resolutions {
			for k := range Kinds {
				b := tx.Bucket([]byte(scales[r].bucket)).Bucket([]byte{byte(k)})
				if b == nil {
					continue
				}
				first, _ := b.Cursor().First()
				last, _ := b.Cursor().Last()
				if first == nil || string(first) == string(last) {
					continue
				}
				st := b.Stats()
				if n := st.BranchAlloc + st.LeafAlloc; n > most {
					from, most = b, n
				}
			}
		}
		if from == nil {
			return nil
		}
		key, _ := from.Cursor().First()
		s.c.Log.Debug("series were removed for want of room", "from", timeOf(key))
		dropped = true
		return from.DeleteBucket(append([]byte(nil), key...))
	})
	return dropped, err
}

func keyOf(t time.Time) []byte { return binary.BigEndian.AppendUint64(nil, uint64(max(t.Unix(), 0))) }

func timeOf(key []byte) time.Time {
	if len(key) != 8 {
		return time.Time{}
	}
	return time.Unix(int64(binary.BigEndian.Uint64(key)), 0).UTC()
}
