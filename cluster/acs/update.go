package acs

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/acs"
)

// order of the statuses of an update, which only goes forward.
var updateOrder = map[types.AgentUpdateStatus]int{
	types.AgentUpdateStatusPending: 1, types.AgentUpdateStatusStaging: 2, types.AgentUpdateStatusStaged: 3, types.AgentUpdateStatusUpdating: 4,
	types.AgentUpdateStatusUpdated: 5, types.AgentUpdateStatusFailed: 5,
}

// updateMessage is what a session sends for an update.
type updateMessage int

const (
	noUpdate updateMessage = iota
	stageUpdate
	beginUpdate // records that the agent changes over, before it is told to
	performUpdate
)

// updateStep says what an agent is to be told. staged tells that the agent has said over
// this session that it has the package: one that has started anew has forgotten that.
func updateStep(status types.AgentUpdateStatus, newProcess, staged bool) updateMessage {
	switch status {
	case types.AgentUpdateStatusPending, types.AgentUpdateStatusStaging:
		return stageUpdate
	case types.AgentUpdateStatusStaged:
		if newProcess && !staged {
			return stageUpdate
		}
		return beginUpdate
	case types.AgentUpdateStatusUpdating:
		if !newProcess || staged {
			return performUpdate // what was sent over another session may be lost
		}
	}
	return noUpdate
}

// updateOutcome says what the first session of an agent's process means to an update. It
// comes when the agent is ready, so a version that has a session works.
func updateOutcome(status types.AgentUpdateStatus, wanted, runs string, newProcess bool) types.AgentUpdateStatus {
	switch {
	case wanted == runs && status != "":
		return types.AgentUpdateStatusUpdated
	case status == types.AgentUpdateStatusUpdating && newProcess:
		return types.AgentUpdateStatusFailed
	}
	return status
}

// updates is what a session knows of the update of its agent. Only serve uses it.
type updates struct {
	id     string // of the update that was sent last
	sent   updateMessage
	stage  string // ids of the messages
	perf   string
	staged bool
}

// sendUpdate sends what the agent is owed of an update.
func (ss *session) sendUpdate(ctx context.Context) error {
	ss.mu.Lock()
	due := ss.updateDue
	ss.updateDue = false
	ss.mu.Unlock()
	if !due {
		return nil
	}
	var inst *store.Instance
	ss.server.Store.View(func(r store.Reader) {
		store.Lookup(r, store.InstancesByID, ss.id, func(_ string, i *store.Instance) bool { inst = i; return false })
	})
	if inst == nil || inst.Update == nil || ss.server.PackageURL == nil {
		return nil
	}
	u := inst.Update
	if u.ID != ss.update.id {
		ss.update = updates{id: u.ID}
	}
	what := updateStep(inst.Instance.AgentUpdateStatus, ss.newProcess, ss.update.staged)
	if what == noUpdate || what <= ss.update.sent {
		return nil
	}
	ss.update.sent = what
	info := &acs.UpdateInfo{Location: ss.server.PackageURL(u.File), Signature: u.SHA256}
	if u.Former != "" {
		info.Former = &acs.UpdateInfo{Location: ss.server.PackageURL(u.Former), Signature: u.FormerSHA256}
	}
	id := newMessageID()
	switch what {
	case stageUpdate:
		ss.update.stage = id
		ss.advance(u.ID, types.AgentUpdateStatusStaging, "")
		return ss.write(ctx, &acs.StageUpdateMessage{MessageID: id, ClusterARN: ss.clusterARN, ContainerInstanceARN: ss.instance, UpdateInfo: info})
	case beginUpdate:
		ss.advance(u.ID, types.AgentUpdateStatusUpdating, "")
		return nil
	}
	ss.update.perf = id
	return ss.write(ctx, &acs.PerformUpdateMessage{MessageID: id, ClusterARN: ss.clusterARN, ContainerInstanceARN: ss.instance, UpdateInfo: info})
}

// updateAnswered takes the agent's answer to a message of an update; reason is why the
// agent refuses it, and empty if it does not.
func (ss *session) updateAnswered(messageID, reason string) {
	switch {
	case messageID == "" || messageID != ss.update.stage && messageID != ss.update.perf:
	case reason != "":
		ss.advance(ss.update.id, types.AgentUpdateStatusFailed, reason)
	case messageID == ss.update.stage:
		ss.update.staged = true
		ss.advance(ss.update.id, types.AgentUpdateStatusStaged, "")
		ss.lookUpdate() // the status may be that already, of an earlier session
	}
}

// advance records that an update has come to a status, unless it is further already. It
// does not wait: the change comes round. It goes on when the session has ended.
func (ss *session) advance(updateID string, to types.AgentUpdateStatus, reason string) {
	ss.server.mu.Lock()
	defer ss.server.mu.Unlock()
	ctx := ss.server.ctx
	if ctx == nil {
		return // shutting down
	}
	ss.server.work.Go(func() {
		ss.server.settle(ctx, ss.id, func(tx *store.Tx) error {
			ss.server.setUpdate(tx, ss.id, func(inst *store.Instance) (types.AgentUpdateStatus, string) {
				if inst.Update.ID != updateID || updateOrder[to] <= updateOrder[inst.Instance.AgentUpdateStatus] {
					return inst.Instance.AgentUpdateStatus, ""
				}
				return to, reason
			})
			return nil
		})
	})
}

// settleUpdate records how an update ended, by who opens a session.
func (s *Server) settleUpdate(ctx context.Context, ss *session) {
	updated := false
	s.Store.View(func(r store.Reader) {
		store.Lookup(r, store.InstancesByID, ss.id, func(_ string, i *store.Instance) bool { updated = i.Update != nil; return false })
	})
	if !updated {
		return
	}
	s.settle(ctx, ss.id, func(tx *store.Tx) error {
		s.setUpdate(tx, ss.id, func(inst *store.Instance) (types.AgentUpdateStatus, string) {
			return updateOutcome(inst.Instance.AgentUpdateStatus, inst.Update.Version, ss.version.agent, ss.newProcess),
				"version " + clip(ss.version.agent) + " has come back; the journal of the unit berth-agent-update on the host tells why"
		})
		return nil
	})
}

// setUpdate gives the update of an instance a status, and a reason if that is FAILED.
func (s *Server) setUpdate(tx *store.Tx, id string, status func(*store.Instance) (types.AgentUpdateStatus, string)) {
	store.Lookup(tx, store.InstancesByID, id, func(key string, old *store.Instance) bool {
		if old.Update == nil || aws.ToString(old.Instance.Status) == "INACTIVE" {
			return false
		}
		to, reason := status(old)
		if to == old.Instance.AgentUpdateStatus {
			return false
		}
		inst, u := *old, *old.Update
		u.Since, u.Reason = time.Now().UTC(), ""
		if to == types.AgentUpdateStatusFailed {
			u.Reason = clip(reason)
		}
		inst.Update = &u
		inst.Instance.AgentUpdateStatus = to
		inst.Instance.Version++
		store.Put(tx, store.Instances, key, &inst)
		s.Log.Info("update of an agent", "instance", id, "version", u.Version, "status", to, "err", u.Reason)
		return false
	})
}

// lookUpdate says that the update of the session's agent may have changed.
func (ss *session) lookUpdate() {
	ss.mu.Lock()
	ss.updateDue = true
	ss.mu.Unlock()
	ss.signal()
}
