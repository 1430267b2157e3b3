package store

import (
	"strings"

	"github.com/google/btree"
)

// mirror is the in-memory copy of all tables at one etcd revision. It does
// no locking; the store does.
type mirror struct {
	revision int64
	tables   []*mirrorTable
}

// mirrorTable holds one table's records in key order, and its indexes.
type mirrorTable struct {
	def     *table
	records *btree.BTreeG[entry]
	indexes []*btree.BTreeG[indexEntry]
}

type entry struct {
	key string
	// modified is the etcd revision that wrote the record.
	modified int64
	record   any
}

type indexEntry struct{ value, key string }

// degree of the trees: about a cache page of entries in a node.
const degree = 32

func newMirror() *mirror {
	m := &mirror{}
	for _, def := range tableList {
		t := &mirrorTable{
			def:     def,
			records: btree.NewG(degree, func(a, b entry) bool { return a.key < b.key }),
		}
		for range def.indexes {
			t.indexes = append(t.indexes, btree.NewG(degree, func(a, b indexEntry) bool {
				if a.value != b.value {
					return a.value < b.value
				}
				return a.key < b.key
			}))
		}
		m.tables = append(m.tables, t)
	}
	return m
}

// set puts a record, or removes it when record is nil, and returns the one
// that was there.
func (m *mirror) set(def *table, key string, record any, revision int64) (old any) {
	t := m.tables[def.id]
	var was entry
	if record == nil {
		was, _ = t.records.Delete(entry{key: key})
	} else {
		was, _ = t.records.ReplaceOrInsert(entry{key, revision, record})
	}
	old = was.record
	for i, fn := range def.indexes {
		if old != nil {
			for _, v := range fn(key, old) {
				t.indexes[i].Delete(indexEntry{v, key})
			}
		}
		if record != nil {
			for _, v := range fn(key, record) {
				t.indexes[i].ReplaceOrInsert(indexEntry{v, key})
			}
		}
	}
	return old
}

func (m *mirror) entry(t *table, key string) (entry, bool) {
	return m.tables[t.id].records.Get(entry{key: key})
}

func (m *mirror) at() int64 { return m.revision }

func (m *mirror) get(t *table, key string) (any, bool) {
	e, ok := m.entry(t, key)
	return e.record, ok
}

func (m *mirror) scan(t *table, prefix, after string, fn func(string, any) bool) {
	from := max(prefix, after)
	m.tables[t.id].records.AscendGreaterOrEqual(entry{key: from}, func(e entry) bool {
		if e.key == after && after != "" {
			return true
		}
		return strings.HasPrefix(e.key, prefix) && fn(e.key, e.record)
	})
}

func (m *mirror) lookup(t *table, slot int, value string, fn func(string, any) bool) {
	m.tables[t.id].indexes[slot].AscendGreaterOrEqual(indexEntry{value: value}, func(x indexEntry) bool {
		if x.value != value {
			return false
		}
		e, ok := m.entry(t, x.key)
		return !ok || fn(e.key, e.record)
	})
}
