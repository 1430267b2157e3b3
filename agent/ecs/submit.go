package ecs

import (
	"context"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/agent/task"
)

// Lengths that the API takes (agent protocol, SubmitTaskStateChange).
const (
	maxReason   = 1024
	maxID       = 255
	maxBindings = 100
)

// SubmitTaskStateChange reports a state change. An error of class Invalid means that
// the cluster will never take it; with any other it may be sent again.
func (cl *Client) SubmitTaskStateChange(ctx context.Context, c task.Change) error {
	_, err := cl.api.SubmitTaskStateChange(ctx, cl.change(&c))
	return classed("submit", err)
}

// change makes the request.
func (cl *Client) change(c *task.Change) *ecs.SubmitTaskStateChangeInput {
	if len(c.Attachments) > 0 {
		return attachments(cl.Cluster(), c)
	}
	in := &ecs.SubmitTaskStateChangeInput{
		Cluster: aws.String(cl.Cluster()), Task: aws.String(c.TaskARN), Status: aws.String(c.Status.Wire()),
		Reason:             aws.String(cut(c.Reason, maxReason)),
		PullStartedAt:      instant(c.PullStarted),
		PullStoppedAt:      instant(c.PullStopped),
		ExecutionStoppedAt: instant(c.ExecutionStopped),
		Containers:         make([]types.ContainerStateChange, 0, len(c.Containers)),
		ManagedAgents:      []types.ManagedAgentStateChange{},
		Attachments:        []types.AttachmentStateChange{},
	}
	for i := range c.Containers {
		in.Containers = append(in.Containers, cl.container(&c.Containers[i]))
	}
	return in
}

// attachments makes the form that tells of attached interfaces and nothing else (agent
// protocol, SubmitTaskStateChange).
func attachments(cluster string, c *task.Change) *ecs.SubmitTaskStateChangeInput {
	in := &ecs.SubmitTaskStateChangeInput{Cluster: aws.String(cluster), Task: aws.String(c.TaskARN)}
	for _, a := range c.Attachments {
		in.Attachments = append(in.Attachments, types.AttachmentStateChange{
			AttachmentArn: aws.String(a.ARN), Status: aws.String(a.Status.String()),
		})
	}
	return in
}

func (cl *Client) container(c *task.ContainerChange) types.ContainerStateChange {
	out := types.ContainerStateChange{
		ContainerName: aws.String(c.Name), Status: aws.String(c.Status.Wire()),
		RuntimeId: present(cut(c.RuntimeID, maxID)), ImageDigest: present(cut(c.Digest, maxID)), Reason: present(cut(c.Reason, maxReason)),
		NetworkBindings: make([]types.NetworkBinding, 0, len(c.Bindings)),
	}
	if c.Exit != nil {
		out.ExitCode = aws.Int32(int32(*c.Exit))
	}
	for i := range c.Bindings {
		b := &c.Bindings[i]
		if b.BindIP == "::" && cl.c.Network.ExcludeIPv6Bindings || b.BindIP == "0.0.0.0" && cl.c.Host.IPCompatibility == "ipv6" {
			continue
		}
		if len(out.NetworkBindings) == maxBindings {
			cl.log.Warn("more network bindings than can be reported", "container", c.Name, "bindings", len(c.Bindings))
			break
		}
		out.NetworkBindings = append(out.NetworkBindings, binding(b))
	}
	return out
}

func binding(b *task.Binding) types.NetworkBinding {
	out := types.NetworkBinding{BindIP: aws.String(b.BindIP), Protocol: types.TransportProtocol(b.Protocol)}
	if b.ContainerRange != "" {
		out.ContainerPortRange, out.HostPortRange = aws.String(b.ContainerRange), aws.String(b.HostRange)
		return out
	}
	out.ContainerPort, out.HostPort = aws.Int32(int32(b.ContainerPort)), aws.Int32(int32(b.HostPort))
	return out
}

// SubmitAttachmentState reports that something was attached to the instance.
func (cl *Client) SubmitAttachmentState(ctx context.Context, attachmentARN string, s task.AttachmentStatus) error {
	_, err := cl.api.SubmitAttachmentStateChanges(ctx, &ecs.SubmitAttachmentStateChangesInput{
		Cluster:     aws.String(cl.Cluster()),
		Attachments: []types.AttachmentStateChange{{AttachmentArn: aws.String(attachmentARN), Status: aws.String(s.String())}},
	})
	return classed("submit attachment", err)
}

// instant is a time in the API's form; the zero time is absent.
func instant(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// present makes an absent member of an empty text.
func present(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// cut shortens s to at most n bytes without splitting a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
