package acs

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/vpc"
	"berth.dev/berth/wire/acs"
)

// attachWait is how long an agent waits for an interface (agent protocol, "Server ->
// agent messages": waitTimeoutMs).
const attachWait = 5 * time.Minute

// interfacesOf are the network interfaces of a task, as its agent is told of them.
func (ss *session) interfacesOf(r store.Reader, t *store.Task) []acs.ElasticNetworkInterface {
	if len(t.Task.Attachments) == 0 {
		return nil
	}
	var out []acs.ElasticNetworkInterface
	for n, i := range vpc.OfTask(r, t.ID) {
		w := vpc.Wire(r, i, attachmentARN(t, i.AttachmentID), n)
		if alter := ss.server.Faults.AlterInterface; alter != nil {
			alter(&w)
		}
		out = append(out, w)
	}
	return out
}

// attachmentARN is made of the task's: the last part is what the API shows as its id.
func attachmentARN(t *store.Task, id string) string {
	prefix, _, _ := strings.Cut(aws.ToString(t.Task.TaskArn), ":task/")
	return prefix + ":attachment/" + id
}

// sendAttach tells the agent to attach the interfaces and volumes of a task. What it answers is what
// counts, in SubmitTaskStateChange; the message is repeated until it is acknowledged.
func (ss *session) sendAttach(ctx context.Context, p pair) error {
	now := time.Now()
	wait := attachWait.Milliseconds()
	task := aws.ToString(p.task.Task.TaskArn)
	type message struct {
		id string
		m  acs.Message
	}
	var messages []message
	if len(p.interfaces) > 0 {
		id := newMessageID()
		messages = append(messages, message{id, &acs.AttachTaskNetworkInterfacesMessage{
			MessageID: id, ClusterARN: ss.clusterARN, ContainerInstanceARN: ss.instance, TaskARN: task, TaskClusterARN: ss.clusterARN,
			GeneratedAt: now.UnixMilli(), WaitTimeoutMs: wait, ElasticNetworkInterfaces: p.interfaces,
		}})
	}
	for i := range p.volumes {
		m := &acs.ConfirmAttachmentMessage{
			MessageID: newMessageID(), ClusterARN: ss.clusterARN, ContainerInstanceARN: ss.instance, TaskARN: task, TaskClusterARN: ss.clusterARN,
			GeneratedAt: now.UnixMilli(), WaitTimeoutMs: &wait, Attachment: &p.volumes[i],
		}
		if alter := ss.server.Faults.AlterAttachment; alter != nil {
			alter(m)
		}
		messages = append(messages, message{m.MessageID, m})
	}
	for _, m := range messages {
		frame, err := acs.Encode(m.m)
		if err != nil {
			return err
		}
		ss.queue.sent(&flight{messageID: m.id, frame: frame, message: m.m, orders: []order{p.order}}, now)
		if err := ss.writeFrame(ctx, m.m, frame); err != nil {
			return err
		}
	}
	return nil
}

// sendPolicy tells the agent what the security groups of its interfaces let pass, if that
// is not what it was told last. It goes before whatever else is owed, so that an
// interface has its rules before its task starts.
func (ss *session) sendPolicy(ctx context.Context) error {
	ss.mu.Lock()
	look := ss.policyDue
	ss.policyDue = false
	ss.mu.Unlock()
	if !look {
		return nil
	}
	var m *acs.TaskNetworkPolicyMessage
	ss.server.Store.View(func(r store.Reader) {
		var groups map[string]bool
		m, groups = vpc.Policy(r, ss.id)
		// In here, so that every later change is compared with these.
		ss.mu.Lock()
		ss.groups = groups
		ss.mu.Unlock()
	})
	m.ClusterARN, m.ContainerInstanceARN = ss.clusterARN, ss.instance
	content, err := acs.Encode(m)
	if err != nil {
		ss.log.Error("security groups cannot be sent", "err", err)
		return nil
	}
	if bytes.Equal(content, ss.policy) || ss.policy == nil && len(m.Interfaces) == 0 {
		return nil
	}
	ss.policy = content
	m.MessageID = newMessageID()
	return ss.write(ctx, m)
}

// lookPolicy has the session look at the security groups again, if it has to do with one
// of these or with the instance.
func (ss *session) lookPolicy(instanceID string, groups ...string) {
	ss.mu.Lock()
	due := instanceID == ss.id || slices.ContainsFunc(groups, func(g string) bool { return ss.groups[g] })
	ss.policyDue = ss.policyDue || due
	ss.mu.Unlock()
	if due {
		ss.signal()
	}
}

// dispatchPolicy tells the sessions that a changed rule or interface concerns.
func (s *Server) dispatchPolicy(c store.Change) {
	var instances, groups []string
	for _, record := range []any{c.Old, c.New} {
		switch r := record.(type) {
		case *store.SecurityGroupRule:
			groups = append(groups, r.GroupID)
		case *store.Interface:
			instances = append(instances, r.InstanceID)
			groups = append(groups, r.Groups...)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, ss := range s.sessions {
		own := ""
		if slices.Contains(instances, id) {
			own = id
		}
		ss.lookPolicy(own, groups...)
	}
}
