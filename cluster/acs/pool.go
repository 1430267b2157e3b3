package acs

import (
	"bytes"
	"context"
	"slices"
	"time"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/acs"
)

// poolOrders is what an instance is to do with the volumes in its pool.
func poolOrders(r store.Reader, instanceID string) []acs.PoolOrder {
	var out []acs.PoolOrder
	store.Lookup(r, store.SnapshotsByInstance, instanceID, func(_ string, s *store.Snapshot) bool {
		switch {
		case s.Deleting:
			out = append(out, acs.PoolOrder{Order: acs.PoolDeleteSnapshot, SnapshotID: s.ID})
		case s.State == store.SnapshotPending:
			out = append(out, acs.PoolOrder{Order: acs.PoolCreateSnapshot, SnapshotID: s.ID, VolumeID: s.VolumeID, TaskID: s.TaskID, VolumeName: s.VolumeName})
		}
		return true
	})
	store.Lookup(r, store.VolumesByInstance, instanceID, func(_ string, v *store.Volume) bool {
		if v.State == store.VolumeDeleting {
			out = append(out, acs.PoolOrder{Order: acs.PoolDeleteVolume, VolumeID: v.ID})
		}
		return true
	})
	return out
}

// sendPool tells the agent what to do in its pool of volumes, if that is not what it was
// told last.
func (ss *session) sendPool(ctx context.Context) error {
	ss.mu.Lock()
	look := ss.poolDue
	ss.poolDue = false
	ss.mu.Unlock()
	if !look {
		return nil
	}
	m := &acs.VolumePoolMessage{ClusterARN: ss.clusterARN, ContainerInstanceARN: ss.instance}
	ss.server.Store.View(func(r store.Reader) { m.Orders = poolOrders(r, ss.id) })
	m.Orders = m.Orders[:min(len(m.Orders), maxPoolOrders)] // the others when these are done
	content, err := acs.Encode(m)
	if err != nil {
		ss.log.Error("orders for the volume pool cannot be sent", "err", err)
		return nil
	}
	if bytes.Equal(content, ss.pool) {
		return nil
	}
	ss.pool = content
	if len(m.Orders) == 0 {
		return nil
	}
	m.MessageID = newMessageID()
	return ss.write(ctx, m)
}

// maxPoolOrders bounds those of a message.
const maxPoolOrders = 1024

// dispatchPool tells the sessions that a changed volume or snapshot concerns.
func (s *Server) dispatchPool(c store.Change) {
	var instances []string
	for _, record := range []any{c.Old, c.New} {
		switch r := record.(type) {
		case *store.Volume:
			instances = append(instances, r.InstanceID)
		case *store.Snapshot:
			instances = append(instances, r.InstanceID)
		}
	}
	slices.Sort(instances)
	for _, id := range slices.Compact(instances) {
		if ss := s.session(id); ss != nil {
			ss.lookPool()
		}
	}
}

func (ss *session) lookPool() {
	ss.mu.Lock()
	ss.poolDue = true
	ss.mu.Unlock()
	ss.signal()
}

// poolResult writes down what became of an order. Only those that are open count, and
// only of the instance that tells.
func (ss *session) poolResult(ctx context.Context, m *acs.VolumePoolResult) {
	now := time.Now()
	err := ss.server.Store.Update(ctx, func(tx *store.Tx) error {
		v, haveVolume := store.Get(tx, store.Volumes, m.VolumeID)
		s, haveSnapshot := store.Get(tx, store.Snapshots, m.SnapshotID)
		haveVolume = haveVolume && v.InstanceID == ss.id
		haveSnapshot = haveSnapshot && s.InstanceID == ss.id
		switch {
		case m.Order == acs.PoolDeleteVolume && haveVolume && v.State == store.VolumeDeleting && m.Fault == "":
			store.Delete(tx, store.Volumes, v.ID)
		case m.Order == acs.PoolDeleteSnapshot && haveSnapshot && s.Deleting && m.Fault == "":
			store.Delete(tx, store.Snapshots, s.ID)
		case m.Order == acs.PoolCreateSnapshot && haveSnapshot && s.State == store.SnapshotPending:
			done := *s
			done.State, done.Fault, done.CompletedAt = store.SnapshotCompleted, clip(m.Fault), now
			if m.Fault != "" {
				done.State = store.SnapshotError
			}
			store.Put(tx, store.Snapshots, s.ID, &done)
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		ss.log.Error("what became of a volume or snapshot cannot be recorded; the agent is asked again", "volume", clip(m.VolumeID), "snapshot", clip(m.SnapshotID), "err", err)
		ss.pool = nil
		ss.lookPool()
	}
}
