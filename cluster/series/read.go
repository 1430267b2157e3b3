package series

import (
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
)

// Point is the samples of one interval.
type Point struct {
	At  time.Time // when the interval begins
	Set Set
}

// Selector names one metric of one row.
type Selector struct {
	Name   string
	Metric Metric
}

// Read returns the points of each selector from a time on and before another, in order,
// all of rows of one kind. It reads what is kept in the finest resolution, and in a
// coarser one what lies before that.
func (s *Store) Read(k Kind, of []Selector, from, to, now time.Time) ([][]Point, error) {
	out := make([][]Point, len(of))
	wanted := make(map[string][]int, len(of))
	for i, sel := range of {
		wanted[sel.Name] = append(wanted[sel.Name], i)
	}
	err := s.db.View(func(tx *bbolt.Tx) error {
		for r := resolutions - 1; r >= 0 && from.Before(to); r-- {
			end := s.begin(tx, r-1, k, to, now).Add(scales[r].step - 1).Truncate(scales[r].step)
			if end.After(to) {
				end = to
			}
			if !from.Before(end) {
				continue
			}
			if err := s.read(tx, r, k, wanted, of, from, end, out); err != nil {
				return err
			}
			from = end
		}
		return nil
	})
	return out, err
}

// begin is from when on a resolution or a finer one has what was measured: since its first
// segment, but no longer than it is kept for sure. Where none has anything it is none.
func (s *Store) begin(tx *bbolt.Tx, r Resolution, k Kind, none, now time.Time) time.Time {
	begin := none
	for ; r >= 0; r-- {
		b := tx.Bucket([]byte(scales[r].bucket)).Bucket([]byte{byte(k)})
		if b == nil {
			continue
		}
		key, _ := b.Cursor().First()
		if key == nil {
			continue
		}
		at := timeOf(key)
		if kept := now.Add(-Retention(k, r)); at.Before(kept) {
			at = kept
		}
		if at.Before(begin) {
			begin = at
		}
	}
	return begin
}

func (s *Store) read(tx *bbolt.Tx, r Resolution, k Kind, wanted map[string][]int, of []Selector, from, to time.Time, out [][]Point) error {
	var last *segment
	var ids map[uint32][]int
	return s.eachFrame(tx, r, k, from, to, func(at time.Time, g *segment, frame []byte) error {
		if g != last {
			last, ids = g, make(map[uint32][]int)
			for i, name := range g.names {
				if list := wanted[name]; list != nil {
					ids[uint32(i)] = list
				}
			}
		}
		if len(ids) == 0 {
			return nil
		}
		return eachRow(frame, func(id uint32) bool { return ids[id] != nil }, func(id uint32, values []Value) {
			row := Row{Values: values}
			for _, i := range ids[id] {
				if set := row.Get(of[i].Metric); set.Count > 0 {
					out[i] = append(out[i], Point{at, set})
				}
			}
		})
	})
}

// At returns the rows of one minute with certain names, by these.
func (s *Store) At(k Kind, minute time.Time, names map[string]bool) (map[string]Row, error) {
	out := make(map[string]Row)
	minute = minute.Truncate(time.Minute)
	err := s.db.View(func(tx *bbolt.Tx) error {
		return s.eachFrame(tx, Minute, k, minute, minute.Add(time.Minute), func(_ time.Time, g *segment, frame []byte) error {
			return eachRow(frame, func(id uint32) bool { return names[g.name(id)] }, func(id uint32, values []Value) {
				if name := g.name(id); names[name] {
					out[name] = Row{Name: name, Values: slices.Clone(values)}
				}
			})
		})
	})
	return out, err
}

// Named is a row's name and its metrics.
type Named struct {
	Name string
	Has  MetricSet
}

// Names are those of the rows of a kind that there are after a time, sorted, at most limit,
// with the metrics that they had since then, or in the hours around it.
func (s *Store) Names(k Kind, since time.Time, limit int) ([]Named, error) {
	seen := make(map[string]MetricSet)
	err := s.db.View(func(tx *bbolt.Tx) error {
		for _, sc := range scales {
			b := tx.Bucket([]byte(sc.bucket)).Bucket([]byte{byte(k)})
			if b == nil {
				continue
			}
			c := b.Cursor()
			for key, _ := c.Seek(keyOf(since.Truncate(sc.segment))); key != nil; key, _ = c.Next() {
				g, err := s.load(b.Bucket(key))
				if err != nil {
					return err
				}
				has, err := g.metrics()
				if err != nil {
					return err
				}
				for i, n := range g.names {
					seen[n] |= has[i]
				}
			}
		}
		return nil
	})
	names := make([]Named, 0, len(seen))
	for n, has := range seen {
		names = append(names, Named{n, has})
	}
	slices.SortFunc(names, func(a, b Named) int { return strings.Compare(a.Name, b.Name) })
	return names[:min(len(names), limit)], err
}

var samplesBucket = []byte("samples")

// SaveSamples keeps a batch of the last samples, in the form that their owner has for
// them, and removes the batches from before a time.
func (s *Store) SaveSamples(batch []byte, before, now time.Time) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(samplesBucket)
		c := b.Cursor()
		var old [][]byte
		for key, _ := c.First(); key != nil && (len(key) != 16 || timeOf(key[:8]).Before(before)); key, _ = c.Next() {
			old = append(old, append([]byte(nil), key...))
		}
		for _, key := range old {
			if err := b.Delete(key); err != nil {
				return err
			}
		}
		if len(batch) == 0 {
			return nil
		}
		n, err := b.NextSequence()
		if err != nil {
			return err
		}
		return b.Put(binary.BigEndian.AppendUint64(keyOf(now), n), s.codec.pack(batch))
	})
}

// Samples calls f with every batch that is kept, the oldest first.
func (s *Store) Samples(f func(batch []byte) error) error {
	return s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(samplesBucket).ForEach(func(_, v []byte) error {
			batch, err := s.codec.unpack(v)
			if err != nil {
				return err
			}
			return f(batch)
		})
	})
}
