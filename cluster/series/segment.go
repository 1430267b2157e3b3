package series

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

// segment is the frames of one kind over a length of time, the names of their rows, and
// which metrics these have in any frame. Frames have the key 'f' and their time, names the
// key 'n' and the number of the first, metrics the key 'm'.
type segment struct {
	b     *bbolt.Bucket
	codec codec
	names []string
	ids   map[string]uint32
}

var metricsKey = []byte{'m'}

// metrics are those of the rows, by the numbers of their names. Rows from before the
// metrics were kept may have any.
func (g *segment) metrics() ([]MetricSet, error) {
	out := make([]MetricSet, 0, len(g.names))
	if v := g.b.Get(metricsKey); v != nil {
		list, err := g.codec.unpack(v)
		if err != nil {
			return nil, err
		}
		if err := eachSet(list, func(s MetricSet) { out = append(out, s) }); err != nil {
			return nil, err
		}
	}
	for len(out) < len(g.names) {
		out = append(out, allMetrics)
	}
	return out[:len(g.names)], nil
}

// addMetrics enters the metrics that rows have; known is those of before them.
func (g *segment) addMetrics(known []MetricSet, rows []Row) error {
	changed := len(known) < len(g.names)
	for len(known) < len(g.names) {
		known = append(known, 0)
	}
	for i := range rows {
		has := &known[g.ids[rows[i].Name]]
		for _, v := range rows[i].Values {
			changed = changed || !has.Has(v.Metric)
			*has |= 1 << v.Metric
		}
	}
	if !changed {
		return nil
	}
	return g.b.Put(metricsKey, g.codec.pack(appendSets(nil, known)))
}

// segment is the one that a time is in; it is made.
func (s *Store) segment(tx *bbolt.Tx, r Resolution, k Kind, at time.Time) (*segment, error) {
	b, err := tx.Bucket([]byte(scales[r].bucket)).CreateBucketIfNotExists([]byte{byte(k)})
	if err != nil {
		return nil, err
	}
	if b, err = b.CreateBucketIfNotExists(keyOf(at.Truncate(scales[r].segment))); err != nil {
		return nil, err
	}
	return s.load(b)
}

// load reads the names of a segment.
func (s *Store) load(b *bbolt.Bucket) (*segment, error) {
	g := &segment{b: b, codec: s.codec}
	c := b.Cursor()
	for key, v := c.Seek([]byte{'n'}); len(key) == 5 && key[0] == 'n'; key, v = c.Next() {
		list, err := s.codec.unpack(v)
		if err != nil {
			return nil, err
		}
		if err := eachName(list, func(n string) { g.names = append(g.names, n) }); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// name is the name with a number; one that is not there makes no row that anybody asks for.
func (g *segment) name(id uint32) string {
	if int(id) < len(g.names) {
		return g.names[id]
	}
	return ""
}

func (g *segment) index() map[string]uint32 {
	if g.ids == nil {
		g.ids = make(map[string]uint32, len(g.names))
		for i, n := range g.names {
			g.ids[n] = uint32(i)
		}
	}
	return g.ids
}

func frameKey(at time.Time) []byte { return append([]byte{'f'}, keyOf(at)...) }

// merge enters rows into the frame of a time.
func (g *segment) merge(at time.Time, rows []Row) error {
	ids := g.index()
	known, err := g.metrics()
	if err != nil {
		return err
	}
	var fresh []string
	list := make([]numbered, 0, len(rows))
	place := make(map[uint32]int, len(rows)) // in list
	if old := g.b.Get(frameKey(at)); old != nil {
		frame, err := g.codec.unpack(old)
		if err != nil {
			return err
		}
		err = eachRow(frame, nil, func(id uint32, values []Value) {
			place[id] = len(list)
			list = append(list, numbered{id, slices.Clone(values)})
		})
		if err != nil {
			return err
		}
	}
	for i := range rows {
		id, known := ids[rows[i].Name]
		if !known {
			id = uint32(len(g.names) + len(fresh))
			ids[rows[i].Name] = id
			fresh = append(fresh, rows[i].Name)
		}
		at, there := place[id]
		if !there {
			place[id] = len(list)
			list = append(list, numbered{id, rows[i].Values})
			continue
		}
		both := Row{Values: list[at].values}
		for _, v := range rows[i].Values {
			both.Set(v.Metric, v.Set)
		}
		list[at].values = both.Values
	}
	if len(fresh) > 0 {
		key := binary.BigEndian.AppendUint32([]byte{'n'}, uint32(len(g.names)))
		if err := g.b.Put(key, g.codec.pack(appendNames(nil, fresh))); err != nil {
			return err
		}
		g.names = append(g.names, fresh...)
	}
	if err := g.addMetrics(known, rows); err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b numbered) int { return int(a.id) - int(b.id) })
	frame := appendFrame(nil, list)
	if len(frame) > maxFrame {
		return fmt.Errorf("the series of %d rows in one interval are too large to be kept", len(list))
	}
	return g.b.Put(frameKey(at), g.codec.pack(frame))
}

// eachFrame calls f with the frames of a kind from a time on and before another.
func (s *Store) eachFrame(tx *bbolt.Tx, r Resolution, k Kind, from, to time.Time, f func(at time.Time, g *segment, frame []byte) error) error {
	b := tx.Bucket([]byte(scales[r].bucket)).Bucket([]byte{byte(k)})
	if b == nil {
		return nil
	}
	c := b.Cursor()
	for key, _ := c.Seek(keyOf(from.Truncate(scales[r].segment))); key != nil && timeOf(key).Before(to); key, _ = c.Next() {
		g, err := s.load(b.Bucket(key))
		if err != nil {
			return err
		}
		frames := g.b.Cursor()
		for fk, v := frames.Seek(frameKey(from)); len(fk) == 9 && fk[0] == 'f' && timeOf(fk[1:]).Before(to); fk, v = frames.Next() {
			frame, err := s.codec.unpack(v)
			if err != nil {
				return err
			}
			if err := f(timeOf(fk[1:]), g, frame); err != nil {
				return err
			}
		}
	}
	return nil
}
