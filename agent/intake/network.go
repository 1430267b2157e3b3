package intake

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/acs"
)

// Attachments keeps track of interfaces and block volumes that the cluster has announced.
type Attachments interface {
	// Accept returns when the attachments are durable.
	Accept(ctx context.Context, list []task.Attachment) error
}

// Policies keeps the security groups of interfaces, by MAC address.
type Policies interface {
	// SetPolicies replaces all of them.
	SetPolicies(ctx context.Context, policies map[string]task.TrafficPolicy) error
}

// Limits of what is taken.
const (
	maxInterfaces  = 32      // of a task; more than any instance type has slots for
	maxAddresses   = 64      // of an interface
	maxNames       = 32      // name servers or search domains of an interface
	maxPolicies    = 4096    // interfaces of tasks on an instance
	maxMembers     = 100_000 // addresses of all groups in a message
	maxWaitTimeout = 24 * time.Hour
)

// Attach takes over the announcement of interfaces or a volume. It answers once the announcement is
// durable; that they are there is reported to the ECS API.
func (in *Intake) Attach(ctx context.Context, m acs.AttachMessage, r acs.Responder) error {
	switch m := m.(type) {
	case *acs.AttachTaskNetworkInterfacesMessage:
		if m.TaskARN == "" || !taskARN.MatchString(m.TaskARN) {
			return fmt.Errorf("%s without a usable taskArn", m.TypeName())
		}
		return in.attach(ctx, m, r)
	case *acs.AttachInstanceNetworkInterfacesMessage:
		return in.attach(ctx, &acs.AttachTaskNetworkInterfacesMessage{
			MessageID: m.MessageID, ClusterARN: m.ClusterARN, ContainerInstanceARN: m.ContainerInstanceARN,
			WaitTimeoutMs: m.WaitTimeoutMs, ElasticNetworkInterfaces: m.ElasticNetworkInterfaces,
		}, r)
	case *acs.ConfirmAttachmentMessage:
		return in.confirm(ctx, m, r)
	default:
		return fmt.Errorf("%s: such attachments are not supported by this agent", m.TypeName())
	}
}

func (in *Intake) attach(ctx context.Context, m *acs.AttachTaskNetworkInterfacesMessage, r acs.Responder) error {
	wait := time.Duration(m.WaitTimeoutMs) * time.Millisecond
	switch {
	case in.c.Attachments == nil:
		return errors.New("network interfaces are not supported by this agent")
	case m.MessageID == "" || m.ClusterARN == "" || m.ContainerInstanceARN == "":
		return errors.New("attach message without messageId, clusterArn or containerInstanceArn")
	case m.WaitTimeoutMs <= 0 || wait <= 0 || wait > maxWaitTimeout:
		return fmt.Errorf("attach message with a waitTimeoutMs of %d: must be above 0 and at most a day", m.WaitTimeoutMs)
	case len(m.ElasticNetworkInterfaces) == 0 || len(m.ElasticNetworkInterfaces) > maxInterfaces:
		return fmt.Errorf("attach message with %d network interfaces: must have 1 to %d", len(m.ElasticNetworkInterfaces), maxInterfaces)
	}
	var list []task.Attachment
	for i := range m.ElasticNetworkInterfaces {
		e, err := translateInterface(&m.ElasticNetworkInterfaces[i])
		if err != nil {
			return fmt.Errorf("network interface %d: %w", i, err)
		}
		if e.AttachmentARN == "" {
			return fmt.Errorf("network interface %d: attachmentArn is missing", i)
		}
		list = append(list, task.Attachment{
			ARN: e.AttachmentARN, TaskARN: m.TaskARN, ClusterARN: m.ClusterARN, Interface: *e, Expires: time.Now().Add(wait),
		})
	}
	if err := in.c.Attachments.Accept(ctx, list); err != nil {
		return err
	}
	return r.Send(ctx, &acs.AckRequest{Cluster: m.ClusterARN, ContainerInstance: m.ContainerInstanceARN, MessageID: m.MessageID})
}

// Policy takes over what the security groups of the interfaces here let pass.
func (in *Intake) Policy(ctx context.Context, m *acs.TaskNetworkPolicyMessage) error {
	if in.c.Policies == nil {
		return errors.New("security groups are not supported by this agent")
	}
	policies, err := translatePolicies(m)
	if err != nil {
		return err
	}
	return in.c.Policies.SetPolicies(ctx, policies)
}

func translatePolicies(m *acs.TaskNetworkPolicyMessage) (map[string]task.TrafficPolicy, error) {
	if len(m.Interfaces) > maxPolicies {
		return nil, fmt.Errorf("network policy for %d interfaces, more than %d", len(m.Interfaces), maxPolicies)
	}
	groups := map[string][]netip.Addr{}
	members := 0
	for _, g := range m.Groups {
		list := []netip.Addr{}
		for s := range strings.FieldsSeq(g.Addresses) {
			a, err := netip.ParseAddr(s)
			if members++; err != nil || members > maxMembers {
				return nil, fmt.Errorf("network policy: group %.32q has an entry that is no address, or there are more than %d", g.GroupID, maxMembers)
			}
			list = append(list, a.Unmap())
		}
		groups[g.GroupID] = list
	}
	out := make(map[string]task.TrafficPolicy, len(m.Interfaces))
	for _, i := range m.Interfaces {
		mac, err := parseMAC(i.MACAddress)
		if err != nil {
			return nil, fmt.Errorf("network policy: %w", err)
		}
		p := task.TrafficPolicy{Groups: map[string][]netip.Addr{}}
		for _, side := range []struct {
			from []acs.TrafficRule
			to   *[]task.TrafficRule
		}{{i.Ingress, &p.Ingress}, {i.Egress, &p.Egress}} {
			for _, w := range side.from {
				r, err := translateRule(w)
				if err != nil {
					return nil, fmt.Errorf("network policy of %s: %w", mac, err)
				}
				if r.Group != "" {
					p.Groups[r.Group] = groups[r.Group]
				}
				*side.to = append(*side.to, r)
			}
		}
		out[mac] = p
	}
	return out, nil
}

func translateRule(w acs.TrafficRule) (task.TrafficRule, error) {
	r := task.TrafficRule{Protocol: int(w.Protocol), First: int(w.From), Last: int(w.To), Group: w.GroupID}
	if r.Protocol < -1 || r.Protocol > 255 {
		return r, fmt.Errorf("protocol %d", r.Protocol)
	}
	if r.Group != "" {
		if len(r.Group) > 64 || strings.Trim(r.Group, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return r, errors.New("a security group's id is not one")
		}
		return r, nil
	}
	var err error
	if r.Prefix, err = netip.ParsePrefix(w.CIDR); err != nil {
		return r, fmt.Errorf("cidr: %w", err)
	}
	return r, nil
}

func parseMAC(s string) (string, error) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 {
		return "", fmt.Errorf("macAddress %.32q is not a MAC address of six bytes", s)
	}
	return mac.String(), nil
}

// translateInterface takes an interface (agent protocol, "ENI object").
func translateInterface(w *acs.ElasticNetworkInterface) (*task.Interface, error) {
	mac, err := parseMAC(w.MACAddress)
	if err != nil {
		return nil, err
	}
	i := &task.Interface{
		ID: w.EC2ID, AttachmentARN: w.AttachmentARN, MAC: mac, Domains: w.DomainName, NameServers: w.DomainNameServers,
		PrivateDNSName: w.PrivateDNSName,
	}
	if w.Index != nil {
		i.Index = int(*w.Index)
	}
	switch {
	case w.EC2ID == "" || len(w.EC2ID) > 64:
		return nil, errors.New("ec2Id is missing or too long")
	case i.Index < 0 || i.Index >= maxInterfaces:
		return nil, fmt.Errorf("index %d: must be from 0 to %d", i.Index, maxInterfaces-1)
	case len(w.IPv4Addresses)+len(w.IPv6Addresses) > maxAddresses:
		return nil, fmt.Errorf("more than %d addresses", maxAddresses)
	case len(w.DomainName) > maxNames || len(w.DomainNameServers) > maxNames:
		return nil, fmt.Errorf("more than %d name servers or domains", maxNames)
	}
	if err := interfaceAddresses(w, i); err != nil {
		return nil, err
	}
	for _, s := range i.NameServers {
		if _, err := netip.ParseAddr(s); err != nil {
			return nil, fmt.Errorf("domainNameServers: %w", err)
		}
	}
	if slices.ContainsFunc(append([]string{i.PrivateDNSName}, i.Domains...), func(s string) bool {
		return len(s) > 253 || strings.ContainsAny(s, " \t\r\n#")
	}) {
		return nil, errors.New("privateDnsName or domainName is not a name")
	}
	if p := w.InterfacePoolProperties; p != nil {
		if p.SubnetID == "" || len(p.SubnetID) > 64 {
			return nil, errors.New("subnetId of the interface pool is missing or too long")
		}
		i.Subnet = p.SubnetID
	}
	return i, association(w, i)
}

func interfaceAddresses(w *acs.ElasticNetworkInterface, i *task.Interface) error {
	for _, primary := range []bool{true, false} {
		for _, a := range w.IPv4Addresses {
			if a.Primary != primary {
				continue
			}
			addr, err := netip.ParseAddr(a.PrivateAddress)
			if err != nil || !addr.Is4() {
				return fmt.Errorf("ipv4Addresses: %.32q is not an IPv4 address", a.PrivateAddress)
			}
			i.Addresses = append(i.Addresses, addr)
		}
	}
	v4 := len(i.Addresses) > 0
	for _, primary := range []bool{true, false} {
		for _, a := range w.IPv6Addresses {
			if a.Primary != primary {
				continue
			}
			addr, err := netip.ParseAddr(a.Address)
			if err != nil || !addr.Is6() || addr.Is4In6() || addr.Zone() != "" {
				return fmt.Errorf("ipv6Addresses: %.64q is not an IPv6 address", a.Address)
			}
			i.Addresses = append(i.Addresses, addr)
		}
	}
	if len(i.Addresses) == 0 {
		return errors.New("no addresses")
	}
	var err error
	if v4 {
		if i.GatewayV4, err = netip.ParsePrefix(w.SubnetGatewayIPv4Address); err != nil || !i.GatewayV4.Addr().Is4() {
			return fmt.Errorf("subnetGatewayIpv4Address %.32q: must be ADDRESS/LENGTH", w.SubnetGatewayIPv4Address)
		}
	}
	if w.SubnetGatewayIPv6Address != "" {
		if i.GatewayV6, err = netip.ParsePrefix(w.SubnetGatewayIPv6Address); err != nil || !i.GatewayV6.Addr().Is6() {
			return fmt.Errorf("subnetGatewayIpv6Address %.64q: must be ADDRESS/LENGTH", w.SubnetGatewayIPv6Address)
		}
	} else if !v4 {
		return errors.New("subnetGatewayIpv6Address is missing")
	}
	return nil
}

func association(w *acs.ElasticNetworkInterface, i *task.Interface) error {
	switch w.InterfaceAssociationProtocol {
	case "", "default":
		return nil
	case "vlan":
	default:
		return fmt.Errorf("interfaceAssociationProtocol %.32q is not supported; only default and vlan are", w.InterfaceAssociationProtocol)
	}
	p := w.InterfaceVLANProperties
	if p == nil {
		return errors.New("interfaceVlanProperties are missing")
	}
	id, err := strconv.Atoi(p.VLANID)
	if err != nil || id < 1 || id > 4094 {
		return fmt.Errorf("vlanId %.32q: must be a number from 1 to 4094", p.VLANID)
	}
	i.VLAN = id
	i.Trunk, err = parseMAC(p.TrunkInterfaceMACAddress)
	return err
}

// interfaces takes the interfaces of a task, which go with network mode awsvpc.
func interfaces(t *task.Task, w *acs.Task) error {
	for n := range w.ElasticNetworkInterfaces {
		if n == maxInterfaces {
			return unloadablef("more than %d network interfaces", maxInterfaces)
		}
		i, err := translateInterface(&w.ElasticNetworkInterfaces[n])
		if err != nil {
			return unloadablef("network interface %d: %w", n, err)
		}
		t.Interfaces = append(t.Interfaces, *i)
	}
	slices.SortStableFunc(t.Interfaces, func(a, b task.Interface) int { return a.Index - b.Index })
	for n := range t.Interfaces {
		t.Interfaces[n].Index = n
	}
	if (t.NetworkMode == task.NetworkAWSVPC) != (len(t.Interfaces) > 0) {
		return unloadablef("a task has network interfaces if, and only if, its networkMode is awsvpc")
	}
	return nil
}
