package acs

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
)

// version is what an agent says of itself.
type version struct{ agent, hash, runtime string }

// settleConnected brings agentConnected of an instance in line with whether there is a
// session now, whichever way it has changed since the caller looked. It tries until it
// has succeeded or ctx ends: placement depends on it. It looks once more after the
// commit: a session that came meanwhile has found nothing to write, because the records
// still said what is true again.
func (s *Server) settleConnected(ctx context.Context, id string, v *version) {
	for again := true; again && ctx.Err() == nil; {
		var connected bool
		s.settle(ctx, id, func(tx *store.Tx) error {
			connected = s.Connected(id)
			s.setConnected(tx, id, connected, v)
			return nil
		})
		again = connected != s.Connected(id)
	}
}

// settle tries a transaction about an instance until it has succeeded or ctx ends.
func (s *Server) settle(ctx context.Context, id string, fn func(tx *store.Tx) error) {
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, 5*time.Second) {
		err := s.Store.Update(ctx, fn)
		if err == nil || ctx.Err() != nil {
			return
		}
		s.Log.Warn("agentConnected cannot be recorded, trying again", "instance", id, "err", err)
		if !wait(ctx, delay) {
			return
		}
	}
}

func (s *Server) setConnected(tx *store.Tx, id string, connected bool, v *version) {
	store.Lookup(tx, store.InstancesByID, id, func(key string, old *store.Instance) bool {
		inst := *old
		if connected {
			inst.Node = s.Node
			inst.Instance.VersionInfo = v.over(old.Instance.VersionInfo)
		} else if old.Node != s.Node {
			return false // another process has the session
		}
		inst.Instance.AgentConnected = connected && aws.ToString(old.Instance.Status) != "INACTIVE"
		if inst.Instance.AgentConnected != old.Instance.AgentConnected ||
			inst.Node != old.Node || inst.Instance.VersionInfo != old.Instance.VersionInfo {
			inst.Instance.Version++
			store.Put(tx, store.Instances, key, &inst)
		}
		return false
	})
}

// over returns old if it says the same.
func (v *version) over(old *types.VersionInfo) *types.VersionInfo {
	if v == nil || *v == (version{}) {
		return old
	}
	if old != nil && (version{aws.ToString(old.AgentVersion), aws.ToString(old.AgentHash), aws.ToString(old.DockerVersion)}) == *v {
		return old
	}
	n := &types.VersionInfo{}
	for to, from := range map[**string]string{&n.AgentVersion: v.agent, &n.AgentHash: v.hash, &n.DockerVersion: v.runtime} {
		if from != "" {
			*to = aws.String(from)
		}
	}
	return n
}

// sweep finds the instances that the records call connected although they are not: to
// this node since before its last end, if they do not come back, and to nodes that are
// no more. It looks when this node has begun and whenever a node goes.
func (s *Server) sweep(ctx context.Context) {
	if !wait(ctx, 5*s.Grace) {
		return
	}
	for {
		for _, id := range s.forsaken() {
			s.settle(ctx, id, func(tx *store.Tx) error { s.setForsaken(tx, id); return nil })
		}
		select {
		case <-ctx.Done():
			return
		case <-s.nodeGone:
		}
		if !wait(ctx, s.Grace) { // in which its agents come to other nodes
			return
		}
	}
}

// forsaken lists instances to settle. Those of nodes that are gone are the leader's.
func (s *Server) forsaken() (ids []string) {
	s.Store.View(func(r store.Reader) {
		leads := s.leads(r)
		store.Scan(r, store.Instances, "", func(_ string, i *store.Instance) bool {
			switch {
			case !i.Instance.AgentConnected:
			case i.Node == s.Node && !s.Connected(i.ID), i.Node != s.Node && leads && !alive(r, i.Node):
				ids = append(ids, i.ID)
			}
			return true
		})
	})
	return ids
}

// setForsaken looks again, in a transaction.
func (s *Server) setForsaken(tx *store.Tx, id string) {
	store.Lookup(tx, store.InstancesByID, id, func(key string, old *store.Instance) bool {
		if old.Node == s.Node {
			s.setConnected(tx, id, s.Connected(id), nil)
			return false
		}
		if !old.Instance.AgentConnected || alive(tx, old.Node) {
			return false
		}
		inst := *old
		inst.Instance.AgentConnected = false
		inst.Instance.Version++
		store.Put(tx, store.Instances, key, &inst)
		return false
	})
}

// leads tells whether this node does what only one should. A process that is alone on
// its records is no node and leads.
func (s *Server) leads(r store.Reader) bool {
	leader := store.Leader(r)
	return leader == "" || leader == s.Node
}

func alive(r store.Reader, node string) bool {
	_, ok := store.Get(r, store.Nodes, node)
	return ok
}

// Rejoined says that other nodes may have taken this one for dead: what they have
// recorded of its sessions is put right.
func (s *Server) Rejoined() {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx := s.ctx
	if ctx == nil {
		return
	}
	for id, ss := range s.sessions {
		s.work.Go(func() { s.settleConnected(ctx, id, ss.version) })
	}
}
