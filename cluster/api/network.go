package api

import (
	"errors"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/sched"
	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/vpc"
)

// Limits of an awsvpcConfiguration (ECS API model).
const (
	maxSubnets = 16
	maxGroups  = 5
)

// attributeInterfacePool is registered by agents that make the interfaces of tasks
// themselves. This cluster plugs no hardware in, so awsvpc tasks need such an agent.
const attributeInterfacePool = "berth.capability.interface-pool"

// attachmentType is how an interface is called in the answers of the API.
const attachmentType = "ElasticNetworkInterface"

// Statuses of an attachment.
const (
	attachmentAttaching = "ATTACHING"
	attachmentAttached  = "ATTACHED"
	attachmentDeleted   = "DELETED"
)

// attachTimeout is how long an agent may take to attach the interface of a task.
const attachTimeout = 5 * time.Minute

// reasonAttachTimeout is what ECS says of a task whose interface, or volume, did not come.
const reasonAttachTimeout = "Timeout waiting for network interface provisioning to complete."

// networkOf checks the network configuration of RunTask or StartTask.
func (a *API) networkOf(r store.Reader, def *types.TaskDefinition, n *types.NetworkConfiguration) (*types.AwsVpcConfiguration, error) {
	awsvpc := def.NetworkMode == types.NetworkModeAwsvpc
	given := n != nil && n.AwsvpcConfiguration != nil
	switch {
	case awsvpc && !given:
		return nil, invalidParameter("Network Configuration must be provided when networkMode 'awsvpc' is specified.")
	case !awsvpc && given:
		return nil, invalidParameter("Network Configuration is not valid for the given networkMode of this task definition.")
	case !awsvpc:
		return nil, nil
	}
	c := n.AwsvpcConfiguration
	switch {
	case len(c.Subnets) == 0:
		return nil, invalidParameter("subnets can not be empty.")
	case len(c.Subnets) > maxSubnets:
		return nil, invalidParameter("subnets can have at most %d items.", maxSubnets)
	case len(c.SecurityGroups) > maxGroups:
		return nil, invalidParameter("securityGroups can have at most %d items.", maxGroups)
	case c.AssignPublicIp == types.AssignPublicIpEnabled:
		return nil, invalidParameter("Assign public IP is not supported for this launch type.")
	}
	var vpcID string
	for _, id := range c.Subnets {
		s, ok := store.Get(r, store.Subnets, id)
		if !ok {
			return nil, invalidParameter("Error retrieving subnet information for [%s]: The subnet ID '%s' does not exist", clip(id), clip(id))
		}
		if vpcID != "" && s.VPCID != vpcID {
			return nil, invalidParameter("The subnets %s and %s are not of the same VPC.", clip(c.Subnets[0]), clip(id))
		}
		vpcID = s.VPCID
	}
	if _, err := vpc.GroupsOf(r, vpcID, c.SecurityGroups); err != nil {
		return nil, invalidParameter("Error retrieving security group information: %s", err)
	}
	return c, nil
}

// networkAttributes are what the instance of a task with a network configuration must have:
// it makes interfaces, and has what any of the subnets needs that may be taken.
func networkAttributes(r store.Reader, c *types.AwsVpcConfiguration) []sched.Attribute {
	out := []sched.Attribute{{Name: attributeInterfacePool}}
	var dual, only bool
	for _, id := range c.Subnets {
		if s, ok := store.Get(r, store.Subnets, id); ok {
			dual = dual || s.IPv6CIDR != ""
			only = only || s.CIDR == ""
		}
	}
	if dual {
		out = append(out, sched.Attribute{Name: ecsCapability + "task-eni.ipv6"})
	}
	if only {
		out = append(out, sched.Attribute{Name: ecsCapability + "ipv6-only"})
	}
	return out
}

// provision leases an interface for a task and puts it into the task's record.
func (a *API) provision(tx *store.Tx, l *launch, t *store.Task) error {
	if l.network == nil {
		return nil
	}
	i, err := vpc.Allocate(tx, vpc.Request{
		Subnets: l.network.Subnets, Groups: l.network.SecurityGroups, Zone: str(t.Task.AvailabilityZone),
		ClusterName: t.ClusterName, TaskID: t.ID, InstanceID: t.InstanceID,
		Interface: store.Interface{ID: vpc.NewID("eni"), AttachmentID: uuid(), MAC: vpc.NewMAC(), CreatedAt: l.now},
	})
	switch {
	case errors.Is(err, vpc.ErrExhausted), errors.Is(err, vpc.ErrNoSubnet), errors.Is(err, vpc.ErrNoGroup):
		return invalidParameter("The network interface of the task cannot be made: %s.", err)
	case err != nil:
		return err
	}
	t.Task.LastStatus = aws.String(statusProvisioning)
	t.Task.Attachments = append(t.Task.Attachments, attachmentOf(i))
	for n := range t.Task.Containers {
		ni := types.NetworkInterface{AttachmentId: &i.AttachmentID}
		if i.IPv4 != "" {
			ni.PrivateIpv4Address = &i.IPv4
		}
		if i.IPv6 != "" {
			ni.Ipv6Address = &i.IPv6
		}
		t.Task.Containers[n].NetworkInterfaces = []types.NetworkInterface{ni}
	}
	return nil
}

// attachmentOf is an interface as clients read it in DescribeTasks.
func attachmentOf(i *store.Interface) types.Attachment {
	at := types.Attachment{Id: &i.AttachmentID, Type: aws.String(attachmentType), Status: aws.String(attachmentAttaching)}
	for _, d := range []struct{ name, value string }{
		{"subnetId", i.SubnetID}, {"networkInterfaceId", i.ID}, {"macAddress", i.MAC},
		{"privateDnsName", i.DNSName}, {"privateIPv4Address", i.IPv4}, {"ipv6Address", i.IPv6},
	} {
		if d.value != "" {
			at.Details = append(at.Details, types.KeyValuePair{Name: aws.String(d.name), Value: aws.String(d.value)})
		}
	}
	return at
}

// attached moves a task on whose interfaces and volumes are all there.
func attached(t *types.Task) {
	if str(t.LastStatus) != statusProvisioning {
		return
	}
	for i := range t.Attachments {
		if str(t.Attachments[i].Status) != attachmentAttached {
			return
		}
	}
	t.LastStatus = aws.String(statusPending)
}

// detach marks the attachments of a task that has ended.
func detach(t *types.Task) {
	for i := range t.Attachments {
		if str(t.Attachments[i].Type) == attachmentType {
			t.Attachments[i].Status = aws.String(attachmentDeleted)
		}
	}
}

// overdueAttachments are the tasks whose interfaces have not come in time.
func (a *API) overdueAttachments() []*store.Task {
	var out []*store.Task
	now := a.now()
	a.Store.View(func(r store.Reader) {
		store.Scan(r, store.Tasks, "", func(_ string, t *store.Task) bool {
			if str(t.Task.LastStatus) == statusProvisioning && t.Task.CreatedAt != nil && now.Sub(*t.Task.CreatedAt) > attachTimeout {
				out = append(out, t)
			}
			return true
		})
	})
	return out
}
