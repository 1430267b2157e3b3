package store

import (
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A Tx is one run of an Update function: it reads the mirror as it was when
// the run began, with the run's own writes on top. What is read with Get is
// compared at commit, and what is read with Scan is compared as a range: a
// record added to it or changed in it since is a conflict, a record removed
// from it is not. A Lookup compares the records it yields.
type Tx struct {
	m      *mirror
	reads  map[etcdKey]int64 // modification revision seen; 0 means absent
	ranges map[etcdKey]struct{}
	writes map[etcdKey]any // nil record means delete
}

type etcdKey struct {
	t   *table
	key string
}

func newTx(m *mirror) *Tx {
	return &Tx{
		m:      m,
		reads:  make(map[etcdKey]int64),
		ranges: make(map[etcdKey]struct{}),
		writes: make(map[etcdKey]any),
	}
}

func (tx *Tx) see(t *table, key string) entry {
	e, _ := tx.m.entry(t, key)
	tx.reads[etcdKey{t, key}] = e.modified
	return e
}

func (tx *Tx) at() int64 { return tx.m.revision }

func (tx *Tx) get(t *table, key string) (any, bool) {
	if v, ok := tx.writes[etcdKey{t, key}]; ok {
		return v, v != nil
	}
	e := tx.see(t, key)
	return e.record, e.record != nil
}

func (tx *Tx) scan(t *table, prefix, after string, fn func(string, any) bool) {
	tx.ranges[etcdKey{t, prefix}] = struct{}{}
	tx.overlay(t, func(yield func(string, any) bool) {
		tx.m.scan(t, prefix, after, yield)
	}, func(key string, _ any) bool {
		return strings.HasPrefix(key, prefix) && key > after
	}, fn)
}

func (tx *Tx) lookup(t *table, slot int, value string, fn func(string, any) bool) {
	tx.overlay(t, func(yield func(string, any) bool) {
		tx.m.lookup(t, slot, value, func(key string, v any) bool {
			tx.see(t, key)
			return yield(key, v)
		})
	}, func(key string, record any) bool {
		return slices.Contains(t.indexes[slot](key, record), value)
	}, fn)
}

// overlay merges the run's own writes that match into what from yields, in
// key order.
func (tx *Tx) overlay(t *table, from func(func(string, any) bool), match func(string, any) bool, fn func(string, any) bool) {
	var own []string
	for k, v := range tx.writes {
		if k.t == t && v != nil && match(k.key, v) {
			own = append(own, k.key)
		}
	}
	slices.Sort(own)
	stopped := false
	from(func(key string, v any) bool {
		for len(own) > 0 && own[0] < key {
			k := own[0]
			own = own[1:]
			if !fn(k, tx.writes[etcdKey{t, k}]) {
				stopped = true
				return false
			}
		}
		if _, mine := tx.writes[etcdKey{t, key}]; mine {
			if len(own) == 0 || own[0] != key {
				return true // deleted, or changed so that it no longer matches
			}
			own = own[1:]
			v = tx.writes[etcdKey{t, key}]
		}
		if !fn(key, v) {
			stopped = true
		}
		return !stopped
	})
	for _, k := range own {
		if stopped || !fn(k, tx.writes[etcdKey{t, k}]) {
			return
		}
	}
}

func (tx *Tx) put(t *table, key string, record any) {
	tx.write(etcdKey{t, key}, record)
}

func (tx *Tx) delete(t *table, key string) {
	tx.write(etcdKey{t, key}, nil)
}

func (tx *Tx) write(k etcdKey, record any) {
	if _, seen := tx.reads[k]; !seen {
		tx.see(k.t, k.key)
	}
	tx.writes[k] = record
}

// Peek reads in a transaction without making the commit depend on what is
// read: for views that need not be exact. It does not see the transaction's
// own writes.
func Peek(tx *Tx) Reader { return tx.m }

// root is the prefix of all keys; the number is the layout's version.
const root = "/berth/v1/"

func (k etcdKey) String() string { return root + k.t.name + "/" + k.key }

// split takes an etcd key apart; ok is false for one that is not ours.
func split(key string) (etcdKey, bool) {
	rest, ok := strings.CutPrefix(key, root)
	if !ok {
		return etcdKey{}, false
	}
	name, key, ok := strings.Cut(rest, "/")
	if !ok {
		return etcdKey{}, false
	}
	for _, t := range tableList {
		if t.name == name {
			return etcdKey{t, key}, true
		}
	}
	return etcdKey{}, false
}

// commit is what a run amounts to: conditions, operations, and the encoded
// records by etcd key.
type commit struct {
	compares []clientv3.Cmp
	ops      []clientv3.Op
	records  map[string]written
}

type written struct {
	data   []byte
	record any
}

func (tx *Tx) commit() *commit {
	c := &commit{records: make(map[string]written, len(tx.writes))}
	for k, revision := range tx.reads {
		c.compares = append(c.compares, clientv3.Compare(clientv3.ModRevision(k.String()), "=", revision))
	}
	for k := range tx.ranges {
		c.compares = append(c.compares,
			clientv3.Compare(clientv3.ModRevision(k.String()), "<", tx.m.revision+1).WithPrefix())
	}
	for k, record := range tx.writes {
		name := k.String()
		if record == nil {
			if tx.reads[k] != 0 {
				c.ops = append(c.ops, clientv3.OpDelete(name))
			}
			continue
		}
		data := marshal(record)
		c.ops = append(c.ops, clientv3.OpPut(name, string(data)))
		c.records[name] = written{data, record}
	}
	return c
}
