package acs

import (
	"cmp"
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/render"
	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/acs"
)

// maxPayload is the size in bytes that a payload of several tasks may have.
const maxPayload = 1 << 20

// pair is a task with its definition; the definition is nil if it is gone.
type pair struct {
	task *store.Task
	def  *types.TaskDefinition
	order
	interfaces []acs.ElasticNetworkInterface
	volumes    []acs.Attachment
}

// flush sends what the agent is owed and has not been sent.
func (ss *session) flush(ctx context.Context) error {
	if err := ss.sendPolicy(ctx); err != nil {
		return err
	}
	if err := ss.sendUpdate(ctx); err != nil {
		return err
	}
	if err := ss.sendPool(ctx); err != nil {
		return err
	}
	pairs := ss.collect()
	var batch []acs.Task
	var orders []order
	for _, p := range pairs {
		if p.desired == attaching {
			if err := ss.sendAttach(ctx, p); err != nil {
				return err
			}
			continue
		}
		t, err := ss.render(ctx, p)
		if err != nil {
			ss.log.Error("task cannot be sent", "task", p.id, "err", err)
			ss.queue.tell(p.order)
			ss.fail(ctx, p.id, err)
			continue
		}
		if _, alone := ss.queue.alone[p.id]; alone {
			if err := ss.sendPayload(ctx, []acs.Task{*t}, []order{p.order}); err != nil {
				return err
			}
			continue
		}
		batch, orders = append(batch, *t), append(orders, p.order)
		if len(batch) == payloadTasks {
			if err := ss.sendPayload(ctx, batch, orders); err != nil {
				return err
			}
			batch, orders = nil, nil
		}
	}
	if len(batch) == 0 {
		return nil
	}
	return ss.sendPayload(ctx, batch, orders)
}

// collect reads the tasks to look at as they are now, and keeps those that are news.
func (ss *session) collect() []pair {
	ss.mu.Lock()
	changed, all := ss.changed, ss.all
	ss.changed, ss.all = nil, nothing
	ss.mu.Unlock()
	for _, id := range changed {
		ss.queue.look(id)
	}
	var pairs []pair
	ss.server.Store.View(func(r store.Reader) {
		if all != nothing {
			store.Lookup(r, store.TasksByInstance, ss.id, func(_ string, t *store.Task) bool {
				ss.queue.look(t.ID)
				return true
			})
		}
		for _, id := range ss.queue.take() {
			t, ok := store.Get(r, store.Tasks, store.Key(ss.cluster, id))
			if !ok || aws.ToString(t.Task.LastStatus) == stopped {
				ss.queue.forget(id)
				continue
			}
			o, ok := owed(t, all == allLive)
			if !ok || !ss.queue.sends(o) {
				continue
			}
			pairs = append(pairs, pair{t, definition(r, aws.ToString(t.Task.TaskDefinitionArn)), o, ss.interfacesOf(r, t), volumesOf(r, t)})
		}
	})
	return pairs
}

// definition finds a task definition by its ARN.
func definition(r store.Reader, arn string) *types.TaskDefinition {
	family, revision, ok := strings.Cut(arn[strings.LastIndexByte(arn, '/')+1:], ":")
	n, err := strconv.ParseInt(revision, 10, 32)
	if !ok || err != nil {
		return nil
	}
	d, ok := store.Get(r, store.TaskDefinitions, store.DefinitionKey(family, int32(n)))
	if !ok {
		return nil
	}
	return &d.Definition
}

// render makes the wire form of a task. To stop one takes no more than its name; the
// rest is there for an agent that has never seen it.
func (ss *session) render(ctx context.Context, p pair) (*acs.Task, error) {
	if p.def == nil {
		if p.desired == stopped {
			return &acs.Task{
				ARN: aws.ToString(p.task.Task.TaskArn), TaskClusterARN: ss.clusterARN, DesiredStatus: stopped,
				Family: "gone", Version: "0", Containers: []acs.Container{},
			}, nil
		}
		return nil, errDefinitionGone
	}
	def, err := render.Resolve(p.def, p.task.Task.Overrides)
	if err != nil {
		return nil, err
	}
	t, err := render.Task(render.LogMode(def, p.task.LogMode), &p.task.Task)
	if err != nil {
		return nil, err
	}
	t.ElasticNetworkInterfaces, t.Attachments = p.interfaces, p.volumes
	if ss.server.Credentials == nil || p.desired != running {
		return t, nil
	}
	t.RoleCredentials, t.ExecutionRoleCredentials, err = ss.server.Credentials(ctx, p.task)
	return t, err
}

// fail has a task ended that cannot be sent. It does not wait: the records change, and
// the change comes round.
func (ss *session) fail(ctx context.Context, id string, reason error) {
	if ss.server.Fail == nil {
		return
	}
	ss.server.work.Go(func() {
		if err := ss.server.Fail(ctx, ss.cluster, id, "ResourceInitializationError: "+reason.Error()); err != nil && ctx.Err() == nil {
			ss.log.Error("task that cannot be sent cannot be ended", "task", id, "err", err)
		}
	})
}

// sendPayload sends tasks in one message, or in several if it would be too large.
func (ss *session) sendPayload(ctx context.Context, tasks []acs.Task, orders []order) error {
	now := time.Now()
	m := &acs.PayloadMessage{
		MessageID: newMessageID(), ClusterARN: ss.clusterARN, ContainerInstanceARN: ss.instance,
		SeqNum: ss.server.seq.next(now), GeneratedAt: now.UnixMilli(), Tasks: tasks,
	}
	if alter := ss.server.Faults.Alter; alter != nil {
		alter(m)
	}
	frame, err := acs.Encode(m)
	if half := len(tasks) / 2; half > 0 && (err != nil || len(frame) > maxPayload) {
		if err := ss.sendPayload(ctx, tasks[:half], orders[:half]); err != nil {
			return err
		}
		return ss.sendPayload(ctx, tasks[half:], orders[half:])
	}
	if err != nil {
		ss.log.Error("task cannot be sent", "task", orders[0].id, "err", err)
		ss.queue.tell(orders[0])
		ss.fail(ctx, orders[0].id, err)
		return nil
	}
	ss.queue.sent(&flight{messageID: m.MessageID, frame: frame, message: m, orders: orders}, now)
	return ss.writeFrame(ctx, m, frame)
}

// retry repeats payloads that were not acknowledged in time.
func (ss *session) retry(ctx context.Context) error {
	now := time.Now()
	var repeat []*flight
	var gaveUp []order
	ss.server.Store.View(func(r store.Reader) {
		repeat, gaveUp = ss.queue.overdue(now, func(o order) bool {
			t, ok := store.Get(r, store.Tasks, store.Key(ss.cluster, o.id))
			if !ok {
				return false
			}
			current, open := owed(t, false)
			return open && current == o
		})
	})
	for _, o := range gaveUp {
		ss.log.Warn("agent does not acknowledge a task, which is sent again with the next session", "task", o.id)
		ss.server.record(Entry{Kind: EntryGaveUp, Instance: ss.instance, Tasks: []TaskEntry{{ARN: o.id, Desired: o.desired}}})
	}
	for _, f := range repeat {
		ss.queue.sent(f, now)
		if err := ss.writeFrame(ctx, f.message, f.frame); err != nil {
			return err
		}
	}
	return nil
}

// receive acts on one message of the agent.
func (ss *session) receive(ctx context.Context, m acs.Message) error {
	ss.server.record(entryOf(EntryReceived, ss.instance, m))
	switch m := m.(type) {
	case *acs.AckRequest:
		if hold := ss.server.Faults.HoldAck; hold != nil && hold(m.MessageID) {
			return nil
		}
		ss.queue.acked(m.MessageID)
		ss.updateAnswered(m.MessageID, "")
	case *acs.NackRequest:
		ss.updateAnswered(m.MessageID, cmp.Or(m.Reason, "the agent gives no reason"))
		ss.log.Warn("agent refuses a message", "message", clip(m.MessageID), "err", clip(m.Reason))
	case *acs.TaskStopVerificationMessage:
		return ss.verifyStops(ctx, m)
	case *acs.VolumePoolResult:
		ss.poolResult(ctx, m)
	case *acs.HeartbeatAckRequest, *acs.IAMRoleCredentialsAckRequest:
		// That they came is all they say.
	default:
		ss.log.Debug("message is none that an agent sends", "type", m.TypeName())
	}
	return nil
}

// sendManifest lists every task that the instance is believed to have. It is made and
// sent by the goroutine that sends payloads, so a task of a later payload, which is not
// on the list, has a higher sequence number than the list.
func (ss *session) sendManifest(ctx context.Context) error {
	now := time.Now()
	m := &acs.TaskManifestMessage{
		MessageID: newMessageID(), ClusterARN: ss.clusterARN, ContainerInstanceARN: ss.instance, GeneratedAt: now.UnixMilli(),
	}
	ss.server.Store.View(func(r store.Reader) {
		store.Lookup(r, store.TasksByInstance, ss.id, func(_ string, t *store.Task) bool {
			if aws.ToString(t.Task.LastStatus) != stopped {
				m.Tasks = append(m.Tasks, acs.TaskIdentifier{
					TaskARN: aws.ToString(t.Task.TaskArn), TaskClusterARN: ss.clusterARN, DesiredStatus: aws.ToString(t.Task.DesiredStatus),
				})
			}
			return true
		})
	})
	m.Timeline = ss.server.seq.next(now)
	ss.manifests++
	ss.manifest = m.MessageID
	return ss.write(ctx, m)
}

// verifyStops answers an agent that has tasks which the manifest does not list. Only
// those are confirmed that the records call stopped or stopping, do not know, or know on
// another instance: a task placed since the manifest is not.
func (ss *session) verifyStops(ctx context.Context, m *acs.TaskStopVerificationMessage) error {
	if m.MessageID == "" || m.MessageID != ss.manifest {
		return nil // of an older manifest; the agent asks again after the next
	}
	ss.manifest = ""
	answer := &acs.TaskStopVerificationAck{MessageID: m.MessageID, GeneratedAt: time.Now().UnixMilli()}
	ss.server.Store.View(func(r store.Reader) {
		for _, c := range m.StopCandidates {
			id := c.TaskARN[strings.LastIndexByte(c.TaskARN, '/')+1:]
			t, ok := store.Get(r, store.Tasks, store.Key(ss.cluster, id))
			if ok && t.InstanceID == ss.id && aws.ToString(t.Task.DesiredStatus) != stopped {
				continue
			}
			answer.StopTasks = append(answer.StopTasks, acs.TaskIdentifier{
				TaskARN: c.TaskARN, TaskClusterARN: ss.clusterARN, DesiredStatus: stopped,
			})
		}
	})
	if len(answer.StopTasks) == 0 {
		return nil
	}
	ss.log.Warn("agent has tasks that are not in the records, and stops them", "count", len(answer.StopTasks))
	return ss.write(ctx, answer)
}

// clusterARN is the ARN of the cluster of an instance.
func clusterARN(instanceARN, cluster string) string {
	prefix, _, _ := strings.Cut(instanceARN, ":container-instance/")
	return prefix + ":cluster/" + cluster
}
