package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"berth.dev/berth/cluster/awsjson"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// loadPage is how many records one read of the initial load asks for.
const loadPage = 2000

// layoutVersion is the version of the record encoding that is written.
const layoutVersion = 1

// envelope is what an etcd value holds: the layout version and the record.
type envelope struct {
	V int
	D json.RawMessage
}

// load reads all records at one revision.
func load(ctx context.Context, client *clientv3.Client) (map[etcdKey]entry, int64, error) {
	records := make(map[etcdKey]entry)
	var revision int64
	from, end := root, clientv3.GetPrefixRangeEnd(root)
	for {
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(loadPage)}
		if revision != 0 {
			opts = append(opts, clientv3.WithRev(revision))
		}
		r, err := client.Get(ctx, from, opts...)
		if err != nil {
			return nil, 0, fmt.Errorf("load records: %w", err)
		}
		if revision == 0 {
			revision = r.Header.Revision
		}
		for _, kv := range r.Kvs {
			k, ok := split(string(kv.Key))
			if !ok {
				continue
			}
			record, err := k.t.decode(kv.Value)
			if err != nil {
				return nil, 0, fmt.Errorf("load record %s: %w", kv.Key, err)
			}
			records[k] = entry{k.key, kv.ModRevision, record}
		}
		if !r.More {
			return records, revision, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

// follow keeps the mirror in step until ctx ends.
func (s *Store) follow(ctx context.Context) {
	defer close(s.stopped)
	for ctx.Err() == nil {
		err := s.followOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		// The history we need is gone, or the connection is: read all again.
		s.log.Warn("watch of the records ended, reading them again", "err", err)
		if err := s.resync(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("records cannot be read, retrying", "err", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
}

func (s *Store) followOnce(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.RLock()
	next := s.m.revision + 1
	s.mu.RUnlock()
	events := s.backend.client.Watch(clientv3.WithRequireLeader(ctx), root,
		clientv3.WithPrefix(), clientv3.WithRev(next))
	for r := range events {
		if err := r.Err(); err != nil {
			return err
		}
		if r.IsProgressNotify() {
			s.applyBatch(nil, r.Header.Revision)
			continue
		}
		if err := s.apply(r.Events); err != nil {
			return err
		}
	}
	return fmt.Errorf("watch channel closed")
}

// decoded is one event ready for the mirror.
type decoded struct {
	key      etcdKey
	record   any
	revision int64
}

// apply brings the events of whole revisions into the mirror. The revision
// reached is the last event's: a response's header may be ahead of what has
// been delivered.
func (s *Store) apply(events []*clientv3.Event) error {
	batch := make([]decoded, 0, len(events))
	var revision int64
	for _, e := range events {
		revision = e.Kv.ModRevision
		k, ok := split(string(e.Kv.Key))
		if !ok {
			continue
		}
		d := decoded{key: k, revision: e.Kv.ModRevision}
		if e.Type == clientv3.EventTypePut {
			record, err := s.decode(k, string(e.Kv.Key), e.Kv.Value)
			if err != nil {
				return fmt.Errorf("record %s: %w", e.Kv.Key, err)
			}
			d.record = record
		}
		batch = append(batch, d)
	}
	s.applyBatch(batch, revision)
	return nil
}

// decode returns the very record that this process has encoded, if the
// value is the one it wrote, and otherwise decodes it.
func (s *Store) decode(k etcdKey, name string, value []byte) (any, error) {
	s.inflightMu.Lock()
	w, ok := s.inflight[name]
	if ok {
		delete(s.inflight, name)
	}
	s.inflightMu.Unlock()
	if ok && bytes.Equal(w.data, value) {
		return w.record, nil
	}
	return k.t.decode(value)
}

func (s *Store) applyBatch(batch []decoded, revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range batch {
		old := s.m.set(d.key.t, d.key.key, d.record, d.revision)
		if old == nil && d.record == nil {
			continue
		}
		c := Change{Table: d.key.t.name, Key: d.key.key, Old: old, New: d.record, Revision: d.revision}
		for w := range s.watches {
			w.offer(c)
		}
	}
	s.m.revision = max(s.m.revision, revision)
	rest := s.waiters[:0]
	for _, w := range s.waiters {
		if w.revision <= s.m.revision {
			close(w.reached)
		} else {
			rest = append(rest, w)
		}
	}
	clear(s.waiters[len(rest):])
	s.waiters = rest
}

// resync reads everything and applies the difference to the mirror, so that
// watches see it as changes.
func (s *Store) resync(ctx context.Context) error {
	records, revision, err := load(ctx, s.backend.client)
	if err != nil {
		return err
	}
	var batch []decoded
	s.mu.RLock()
	for _, t := range s.m.tables {
		t.records.Ascend(func(e entry) bool {
			k := etcdKey{t.def, e.key}
			now, ok := records[k]
			switch {
			case !ok:
				batch = append(batch, decoded{key: k, revision: revision})
				delete(records, k)
			case now.modified == e.modified:
				delete(records, k)
			}
			return true
		})
	}
	s.mu.RUnlock()
	for k, e := range records {
		batch = append(batch, decoded{k, e.record, e.modified})
	}
	s.applyBatch(batch, revision)
	return nil
}

// marshal writes a record with layoutVersion.
func marshal(record any) []byte {
	b := []byte(`{"v":1,"d":`)
	b = awsjson.Append(b, record)
	return append(b, '}')
}

func unmarshal(b []byte, record any) error {
	var e envelope
	if err := awsjson.Unmarshal(b, &e); err != nil {
		return fmt.Errorf("envelope: %w", err)
	}
	if e.V != layoutVersion {
		return fmt.Errorf("version %d is not %d: written by a newer berth; upgrade this one", e.V, layoutVersion)
	}
	return awsjson.Unmarshal(e.D, record)
}
