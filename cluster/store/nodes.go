package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// nodeTTL is how long after its end a process that was killed still counts as a node;
// etcd rounds it up to its election timeout.
const nodeTTL = 5 * time.Second

// rejoinDelay is between attempts to become a node again.
const rejoinDelay = time.Second

// leaveTimeout bounds the farewell of a process that ends.
const leaveTimeout = 2 * time.Second

// A Node is one process of the cluster. Its record lives by a lease and so as long as
// the process does.
type Node struct {
	Name   string
	URL    string
	Joined time.Time
}

// Leader is the name of the node that does what only one should: the one that joined
// first. All processes come to the same answer once they have seen the same records; a
// transaction that reads it fails if the answer changes meanwhile. Empty means that
// there are no nodes: the only process is not one.
func Leader(r Reader) string {
	var first *Node
	Scan(r, Nodes, "", func(_ string, n *Node) bool {
		if first == nil || cmp.Or(n.Joined.Compare(first.Joined), cmp.Compare(n.Name, first.Name)) < 0 {
			first = n
		}
		return true
	})
	if first == nil {
		return ""
	}
	return first.Name
}

// Membership is this process's place among the nodes.
type Membership struct {
	s     *Store
	node  Node
	lease clientv3.LeaseID
	once  sync.Once
}

// Join makes this process a node. Another process of the same name loses its place.
func (s *Store) Join(ctx context.Context, n Node) (*Membership, error) {
	m := &Membership{s: s, node: n}
	return m, m.join(ctx)
}

func (m *Membership) join(ctx context.Context) error {
	client := m.s.backend.client
	grant, err := client.Grant(ctx, int64(nodeTTL/time.Second))
	if err != nil {
		return fmt.Errorf("lease of node %s: %w", m.node.Name, err)
	}
	n := m.node
	key := etcdKey{Nodes.table, n.Name}
	put, err := client.Put(ctx, key.String(), string(marshal(&n)), clientv3.WithLease(grant.ID))
	if err != nil {
		return fmt.Errorf("record of node %s: %w", m.node.Name, err)
	}
	m.lease = grant.ID
	return m.s.wait(ctx, put.Header.Revision, true)
}

// Keep keeps the lease until ctx ends, and then gives it up. When the lease was lost,
// because etcd could not be reached or the process stood still, others may have acted as
// if this process were dead: rejoined is called once it is a node again.
func (m *Membership) Keep(ctx context.Context, rejoined func()) error {
	defer m.leave(ctx)
	for {
		if err := m.hold(ctx); ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			m.s.log.Warn("the lease of this node cannot be kept", "node", m.node.Name, "err", err)
		}
		for m.join(ctx) != nil {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(rejoinDelay):
			}
		}
		m.s.log.Warn("this node was away and is back", "node", m.node.Name)
		rejoined()
	}
}

// hold returns when the lease is lost.
func (m *Membership) hold(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	alive, err := m.s.backend.client.KeepAlive(ctx, m.lease)
	if err != nil {
		return err
	}
	for range alive { //nolint:revive // each answer says only that the lease lives
	}
	return errors.New("etcd has let it expire")
}

func (m *Membership) leave(ctx context.Context) {
	m.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
		defer cancel()
		if _, err := m.s.backend.client.Revoke(ctx, m.lease); err != nil {
			m.s.log.Warn("the lease of this node is left to expire", "node", m.node.Name, "err", err)
		}
	})
}
