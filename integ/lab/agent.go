package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/agent/acs"
	"berth.dev/berth/cluster"
	"berth.dev/berth/integ/await"
	wire "berth.dev/berth/wire/acs"
)

// Shape is what a simulated container instance has.
type Shape struct {
	Cluster    string            // "" is default
	CPU        int32             // CPU units; 0 is 4096
	Memory     int32             // MiB; 0 is 8192
	Attributes map[string]string // beside those that every agent registers
	GPUs       []string
	// ExitCode is what every container ends with when it is stopped.
	ExitCode int32
	// Quiet instances acknowledge payloads and report nothing.
	Quiet bool
}

// Digest is the image digest that simulated agents report.
const Digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// Agent is a simulated container instance with an open session.
type Agent struct {
	l     *Lab
	shape Shape
	Key   cluster.Key
	ECS   *ecs.Client // with the instance's key
	ARN   string

	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	tasks map[string]*wire.Task // by ARN, until they are stopped
	err   error
}

// Agent registers an instance, opens its session and waits until the cluster knows that
// it is connected.
func (l *Lab) Agent(s Shape) *Agent {
	l.t.Helper()
	a := &Agent{l: l, shape: s, Key: l.InstanceKey(), done: make(chan struct{}), tasks: map[string]*wire.Task{}}
	if a.shape.Cluster == "" {
		a.shape.Cluster = "default"
	}
	a.ECS = l.Client(a.Key)
	if _, err := l.ECS.CreateCluster(context.Background(), &ecs.CreateClusterInput{ClusterName: &a.shape.Cluster}); err != nil {
		l.t.Fatalf("create cluster: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	l.t.Cleanup(func() { a.Leave() })
	out, err := a.ECS.RegisterContainerInstance(ctx, a.registration())
	if err != nil {
		l.t.Fatalf("register container instance: %v", err)
	}
	a.ARN = *out.ContainerInstance.ContainerInstanceArn
	client, err := acs.New(acs.Config{
		Endpoint: a.endpoint, Region: Region, Cluster: a.shape.Cluster, InstanceARN: a.ARN,
		Credentials:  credentials.NewStaticCredentialsProvider(a.Key.AccessKeyID, a.Key.SecretAccessKey, ""),
		AgentVersion: "1.86.0", AgentHash: "simulated", RuntimeVersion: "containerd",
		Handler: (*handler)(a), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		l.t.Fatal(err)
	}
	go func() {
		defer close(a.done)
		_ = client.Run(ctx) // ends with ctx and has no other end
	}()
	a.WaitConnected(true)
	return a
}

func (a *Agent) registration() *ecs.RegisterContainerInstanceInput {
	resource := func(name string, n, usual int32) types.Resource {
		if n == 0 {
			n = usual
		}
		return types.Resource{Name: &name, Type: aws.String("INTEGER"), IntegerValue: n}
	}
	in := &ecs.RegisterContainerInstanceInput{
		Cluster: &a.shape.Cluster,
		TotalResources: []types.Resource{
			resource("CPU", a.shape.CPU, 4096), resource("MEMORY", a.shape.Memory, 8192),
			{Name: aws.String("PORTS"), Type: aws.String("STRINGSET"), StringSetValue: []string{"22", "51678"}},
			{Name: aws.String("PORTS_UDP"), Type: aws.String("STRINGSET"), StringSetValue: []string{}},
		},
		VersionInfo: &types.VersionInfo{AgentVersion: aws.String("1.86.0"), DockerVersion: aws.String("containerd")},
		Attributes:  []types.Attribute{{Name: aws.String("ecs.os-type"), Value: aws.String("linux")}, {Name: aws.String("ecs.os-family"), Value: aws.String("LINUX")}},
	}
	for minor := 17; minor <= 44; minor++ {
		in.Attributes = append(in.Attributes, types.Attribute{Name: aws.String(fmt.Sprintf("com.amazonaws.ecs.capability.docker-remote-api.1.%d", minor))})
	}
	for _, name := range []string{"com.amazonaws.ecs.capability.logging-driver.json-file", "com.amazonaws.ecs.capability.task-iam-role", "ecs.capability.container-health-check"} {
		in.Attributes = append(in.Attributes, types.Attribute{Name: &name})
	}
	for _, name := range slices.Sorted(maps.Keys(a.shape.Attributes)) {
		in.Attributes = append(in.Attributes, types.Attribute{Name: &name, Value: aws.String(a.shape.Attributes[name])})
	}
	for _, id := range a.shape.GPUs {
		in.PlatformDevices = append(in.PlatformDevices, types.PlatformDevice{Id: &id, Type: types.PlatformDeviceTypeGpu})
	}
	return in
}

func (a *Agent) endpoint(ctx context.Context) (string, error) {
	out, err := a.ECS.DiscoverPollEndpoint(ctx, &ecs.DiscoverPollEndpointInput{Cluster: &a.shape.Cluster, ContainerInstance: &a.ARN})
	if err != nil {
		return "", err
	}
	return aws.ToString(out.Endpoint), nil
}

// WaitConnected waits until the API shows agentConnected as given.
func (a *Agent) WaitConnected(want bool) {
	a.l.t.Helper()
	await.Until(a.l.t, 20*time.Second, "agentConnected", func() error {
		out, err := a.l.ECS.DescribeContainerInstances(context.Background(), &ecs.DescribeContainerInstancesInput{
			Cluster: &a.shape.Cluster, ContainerInstances: []string{a.ARN},
		})
		if err != nil {
			return err
		}
		if len(out.ContainerInstances) != 1 || out.ContainerInstances[0].AgentConnected != want {
			return fmt.Errorf("%d instances, want one with agentConnected %v", len(out.ContainerInstances), want)
		}
		return nil
	})
}

// Leave ends the session.
func (a *Agent) Leave() {
	a.cancel()
	if a.ARN != "" {
		<-a.done
	}
}

// Err is the first error of a report.
func (a *Agent) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

// Report tells the cluster of a state of a task that was received.
func (a *Agent) Report(arn, status string, exit int32, reason string) error {
	a.mu.Lock()
	t := a.tasks[arn]
	if status == "STOPPED" {
		delete(a.tasks, arn)
	}
	a.mu.Unlock()
	if t == nil {
		return errors.New("the task is not here: " + arn)
	}
	now := time.Now()
	in := &ecs.SubmitTaskStateChangeInput{
		Cluster: &a.shape.Cluster, Task: &arn, Status: &status, PullStartedAt: &now, PullStoppedAt: &now,
	}
	if reason != "" {
		in.Reason = &reason
	}
	for i := range t.Containers {
		c := &t.Containers[i]
		change := types.ContainerStateChange{ContainerName: &c.Name, Status: &status, RuntimeId: aws.String("run-" + c.Name), ImageDigest: aws.String(Digest)}
		for _, p := range c.PortMappings {
			change.NetworkBindings = append(change.NetworkBindings, types.NetworkBinding{
				BindIP: aws.String("0.0.0.0"), ContainerPort: aws.Int32(int32(p.ContainerPort)), HostPort: aws.Int32(int32(p.HostPort)), Protocol: types.TransportProtocolTcp,
			})
		}
		if status == "STOPPED" {
			change.ExitCode = &exit
			in.ExecutionStoppedAt = &now
		}
		in.Containers = append(in.Containers, change)
	}
	_, err := a.ECS.SubmitTaskStateChange(context.Background(), in)
	return err
}

func (a *Agent) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil {
		a.err = err
	}
}

// handler is the Agent as its session sees it.
type handler Agent

func (h *handler) Payload(ctx context.Context, m *wire.PayloadMessage, r wire.Responder) error {
	a := (*Agent)(h)
	var start, stop []string
	a.mu.Lock()
	for i := range m.Tasks {
		t := m.Tasks[i]
		_, known := a.tasks[t.ARN]
		switch {
		case t.DesiredStatus == "STOPPED" && known:
			stop = append(stop, t.ARN)
		case t.DesiredStatus != "STOPPED" && !known:
			a.tasks[t.ARN] = &t
			start = append(start, t.ARN)
		}
	}
	a.mu.Unlock()
	if err := r.Send(ctx, &wire.AckRequest{Cluster: m.ClusterARN, ContainerInstance: m.ContainerInstanceARN, MessageID: m.MessageID}); err != nil {
		return err
	}
	if a.shape.Quiet {
		return nil
	}
	for _, arn := range start {
		if err := a.Report(arn, "RUNNING", 0, ""); err != nil {
			a.fail(err)
		}
	}
	for _, arn := range stop {
		if err := a.Report(arn, "STOPPED", a.shape.ExitCode, ""); err != nil {
			a.fail(err)
		}
	}
	return nil
}

func (h *handler) Credentials(ctx context.Context, m *wire.IAMRoleCredentialsMessage, r wire.Responder) error {
	if m.RoleCredentials == nil {
		return errors.New("no credentials in the message")
	}
	return r.Send(ctx, &wire.IAMRoleCredentialsAckRequest{
		MessageID: m.MessageID, Expiration: m.RoleCredentials.Expiration, CredentialsID: m.RoleCredentials.CredentialsID,
	})
}

// Attach says that a volume is there as soon as it is announced.
func (h *handler) Attach(ctx context.Context, m wire.AttachMessage, r wire.Responder) error {
	c, ok := m.(*wire.ConfirmAttachmentMessage)
	if !ok || c.Attachment == nil {
		return nil
	}
	if err := r.Send(ctx, &wire.AckRequest{Cluster: c.ClusterARN, ContainerInstance: c.ContainerInstanceARN, MessageID: c.MessageID}); err != nil {
		return err
	}
	_, err := h.ECS.SubmitAttachmentStateChanges(ctx, &ecs.SubmitAttachmentStateChangesInput{
		Cluster: &h.shape.Cluster, Attachments: []types.AttachmentStateChange{{AttachmentArn: &c.Attachment.AttachmentARN, Status: aws.String("ATTACHED")}},
	})
	return err
}

func (h *handler) Policy(context.Context, *wire.TaskNetworkPolicyMessage) error { return nil }

// Pool does what it is told at once.
func (h *handler) Pool(ctx context.Context, m *wire.VolumePoolMessage, r wire.Responder) error {
	for _, o := range m.Orders {
		result := &wire.VolumePoolResult{MessageID: m.MessageID, Order: o.Order, VolumeID: o.VolumeID, SnapshotID: o.SnapshotID}
		if err := r.Send(ctx, result); err != nil {
			return err
		}
	}
	return nil
}

func (h *handler) Manifest(ctx context.Context, m *wire.TaskManifestMessage, r wire.Responder) error {
	return r.Send(ctx, &wire.AckRequest{Cluster: m.ClusterARN, ContainerInstance: m.ContainerInstanceARN, MessageID: m.MessageID})
}

func (h *handler) StopVerified(context.Context, *wire.TaskStopVerificationAck) error { return nil }

func (h *handler) Heartbeat(ctx context.Context, m *wire.HeartbeatMessage, r wire.Responder) error {
	return r.Send(ctx, &wire.HeartbeatAckRequest{MessageID: m.MessageID})
}
