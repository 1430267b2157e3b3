package ec2

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"

	"berth.dev/berth/cluster/store"
)

func noInstance(id string) error {
	return failure("InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", clip(id))
}

// describeInstances shows the container instances that are registered as what they are at
// AWS: instances, each of a reservation of its own.
func (s *Server) describeInstances(_ context.Context, f form) ([]node, error) {
	look := func(_ store.Reader, i *store.Instance) (string, map[string]string, func(string) ([]string, bool)) {
		m := machineOf(i)
		return m.id, m.tags, func(name string) ([]string, bool) {
			switch name {
			case "instance-id":
				return []string{m.id}, true
			case "instance-state-name":
				return []string{"running"}, true
			case "instance-state-code":
				return []string{"16"}, true
			case "private-ip-address", "network-interface.addresses.private-ip-address":
				return []string{m.address}, true
			case "availability-zone":
				return []string{m.zone}, true
			case "instance-type":
				return []string{m.kind}, true
			case "image-id":
				return []string{m.image}, true
			case "architecture":
				return []string{m.architecture}, true
			case "owner-id":
				return []string{s.Account}, true
			case "vpc-id", "subnet-id", "ip-address", "dns-name", "private-dns-name", "instance.group-id", "instance.group-name", "platform", "key-name", "iam-instance-profile.arn":
				return nil, true
			}
			return nil, false
		}
	}
	items, err := describe(s.Store, f, "InstanceId", store.Instances, noInstance, look, s.reservation)
	shown := node{name: "reservationSet"}
	for _, i := range items {
		if len(i.members) > 0 {
			shown.members = append(shown.members, i)
		}
	}
	return []node{shown}, err
}

// machine is what there is to say of a container instance's host.
type machine struct {
	id, address, zone, kind, image, architecture string
	tags                                         map[string]string
}

func machineOf(i *store.Instance) machine {
	m := machine{id: aws.ToString(i.Instance.Ec2InstanceId), address: i.Address, tags: map[string]string{}}
	for _, a := range i.Instance.Attributes {
		switch aws.ToString(a.Name) {
		case "ecs.availability-zone":
			m.zone = aws.ToString(a.Value)
		case "ecs.instance-type":
			m.kind = aws.ToString(a.Value)
		case "ecs.ami-id":
			m.image = aws.ToString(a.Value)
		case "ecs.cpu-architecture":
			m.architecture = aws.ToString(a.Value)
		}
	}
	for _, t := range i.Instance.Tags {
		m.tags[aws.ToString(t.Key)] = aws.ToString(t.Value)
	}
	if aws.ToString(i.Instance.Status) == "INACTIVE" {
		m.id = "" // it is deregistered, and no id names it any more
	}
	return m
}

// reservation is an instance as DescribeInstances shows it; none for a host that is
// deregistered.
func (s *Server) reservation(_ store.Reader, i *store.Instance) []node {
	m := machineOf(i)
	if m.id == "" {
		return nil
	}
	started := ""
	if at := i.Instance.RegisteredAt; at != nil {
		started = instant(*at)
	}
	return []node{
		text("reservationId", derived("r", m.id)), text("ownerId", s.Account), list("groupSet"),
		list("instancesSet", item(
			text("instanceId", m.id), text("imageId", m.image), list("instanceState", text("code", "16"), text("name", "running")),
			text("privateDnsName", ""), text("dnsName", ""), text("instanceType", m.kind), text("launchTime", started),
			list("placement", text("availabilityZone", m.zone), text("groupName", ""), text("tenancy", "default")),
			list("monitoring", text("state", "disabled")), text("privateIpAddress", m.address), list("groupSet"),
			text("architecture", m.architecture), list("blockDeviceMapping"), text("virtualizationType", "hvm"), text("hypervisor", "xen"),
			list("networkInterfaceSet"), tagSet(m.tags),
		)),
	}
}
