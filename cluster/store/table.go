package store

import (
	"strings"
)

// A Table is a set of records of one type, kept in etcd under its own prefix
// and mirrored in memory in key order. The zero value is not usable; the
// tables of the cluster are the variables of this package.
type Table[T any] struct {
	*table
}

// Name is the table's name, as in Change.Table.
func (t Table[T]) Name() string { return t.name }

// An Index is a second order of a table's records: by the values that fn
// returns for a record. It lives in the mirror only.
type Index[T any] struct {
	*table
	slot int
}

// table is the untyped half of Table.
type table struct {
	id      int
	name    string
	decode  func([]byte) (any, error)
	indexes []func(key string, record any) []string
}

// Key joins the parts of a composite key. Parts never hold a slash: they are
// names and ids whose alphabets the API checks.
func Key(parts ...string) string { return strings.Join(parts, "/") }

// Prefix is the key prefix of all records below the given parts.
func Prefix(parts ...string) string { return strings.Join(parts, "/") + "/" }

func newTable[T any](id int, name string) Table[T] {
	return Table[T]{&table{
		id:   id,
		name: name,
		decode: func(b []byte) (any, error) {
			v := new(T)
			if err := unmarshal(b, v); err != nil {
				return nil, err
			}
			return v, nil
		},
	}}
}

// newIndex adds an index to t. It is called while the package's variables
// are made and never later.
func newIndex[T any](t Table[T], fn func(key string, record *T) []string) Index[T] {
	t.indexes = append(t.indexes, func(key string, record any) []string {
		return fn(key, record.(*T))
	})
	return Index[T]{t.table, len(t.indexes) - 1}
}

// A Reader is what records are read from: the mirror inside View, or a
// transaction inside Update.
type Reader interface {
	get(t *table, key string) (any, bool)
	// scan calls fn in key order for the keys with the prefix, from the
	// first key after "after" on, until fn returns false.
	scan(t *table, prefix, after string, fn func(key string, record any) bool)
	lookup(t *table, slot int, value string, fn func(key string, record any) bool)
	// at is the revision of what is read.
	at() int64
}

// Revision is the revision of the records that a View or an Update sees.
func Revision(r Reader) int64 { return r.at() }

// Get returns the record of a key. The record is shared: never modify it.
func Get[T any](r Reader, t Table[T], key string) (*T, bool) {
	v, ok := r.get(t.table, key)
	if !ok {
		return nil, false
	}
	return v.(*T), true
}

// Scan calls fn in key order for every record whose key begins with prefix,
// until fn returns false. Records are shared: never modify them. fn must not
// write to the transaction that is scanned.
func Scan[T any](r Reader, t Table[T], prefix string, fn func(key string, record *T) bool) {
	ScanAfter(r, t, prefix, "", fn)
}

// ScanAfter is Scan from the first key greater than after on; that is how
// pages are continued.
func ScanAfter[T any](r Reader, t Table[T], prefix, after string, fn func(key string, record *T) bool) {
	r.scan(t.table, prefix, after, func(key string, v any) bool { return fn(key, v.(*T)) })
}

// List collects the records whose key begins with prefix, in key order.
func List[T any](r Reader, t Table[T], prefix string) []*T {
	var out []*T
	Scan(r, t, prefix, func(_ string, v *T) bool {
		out = append(out, v)
		return true
	})
	return out
}

// Lookup calls fn in key order for every record that index x holds under
// value, until fn returns false.
func Lookup[T any](r Reader, x Index[T], value string, fn func(key string, record *T) bool) {
	r.lookup(x.table, x.slot, value, func(key string, v any) bool { return fn(key, v.(*T)) })
}

// Put writes a record. The record belongs to the store from here on: it
// becomes the shared one that readers get, so the caller must not modify it.
func Put[T any](tx *Tx, t Table[T], key string, record *T) {
	tx.put(t.table, key, record)
}

// Delete removes a record; removing an absent one does nothing.
func Delete[T any](tx *Tx, t Table[T], key string) {
	tx.delete(t.table, key)
}
