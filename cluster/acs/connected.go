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
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, 5*time.Second) {
		var connected bool
		err := s.Store.Update(ctx, func(tx *store.Tx) error {
			connected = s.Connected(id)
			s.setConnected(tx, id, connected, v)
			return nil
		})
		if err == nil && connected == s.Connected(id) || ctx.Err() != nil {
			return
		}
		if err == nil {
			continue
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

// sweep finds the instances that the records call connected to this node since before
// its last end, and that do not come back.
func (s *Server) sweep(ctx context.Context) {
	if !wait(ctx, 5*s.Grace) {
		return
	}
	var ids []string
	s.Store.View(func(r store.Reader) {
		store.Scan(r, store.Instances, "", func(_ string, i *store.Instance) bool {
			if i.Instance.AgentConnected && i.Node == s.Node {
				ids = append(ids, i.ID)
			}
			return true
		})
	})
	for _, id := range ids {
		if !s.Connected(id) {
			s.settleConnected(ctx, id, nil)
		}
	}
}
