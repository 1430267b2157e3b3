package api

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// maxPortRanges is how many containerPortRanges a container may have (ECS
// API model).
const maxPortRanges = 100

// portName is the alphabet of port mapping names (ECS API model).
var portName = regexp.MustCompile(`^[a-z0-9_][a-z0-9_-]{0,63}$`)

func checkDefinitionNetwork(d *types.TaskDefinition) error {
	mode := d.NetworkMode
	if requires(d, types.CompatibilityFargate) && mode != types.NetworkModeAwsvpc {
		return clientException("Fargate only supports network mode 'awsvpc'.")
	}
	if requires(d, types.CompatibilityExternal) && mode == types.NetworkModeAwsvpc {
		return clientException("The launch type EXTERNAL does not support network mode 'awsvpc'. Use 'bridge', 'host' or 'none'.")
	}
	taken := make(map[hostPort]string)
	names := make(map[string]bool)
	for i := range d.ContainerDefinitions {
		c := &d.ContainerDefinitions[i]
		if err := checkNames(mode, c); err != nil {
			return err
		}
		if err := checkPorts(mode, c, taken, names); err != nil {
			return err
		}
	}
	return nil
}

// checkNames checks what a container sets of its own names and resolvers.
func checkNames(mode types.NetworkMode, c *types.ContainerDefinition) error {
	bridge := mode == "" || mode == types.NetworkModeBridge
	switch {
	case len(c.Links) > 0 && !bridge:
		return clientException("Links are not supported when networkMode=%s.", mode)
	case aws.ToString(c.Hostname) != "" && (mode == types.NetworkModeAwsvpc || mode == types.NetworkModeHost):
		return clientException("Hostname is not supported on container '%s' when networkMode=%s.", *c.Name, mode)
	case mode != types.NetworkModeAwsvpc:
		return nil
	case len(c.ExtraHosts) > 0:
		return clientException("Extra hosts are not supported on container '%s' when networkMode=awsvpc.", *c.Name)
	case len(c.DnsServers) > 0 || len(c.DnsSearchDomains) > 0:
		return clientException("DNS servers and search domains are not supported on container '%s' when networkMode=awsvpc.", *c.Name)
	}
	return nil
}

// hostPort is a port of the address that a task's containers share.
type hostPort struct {
	port     int32
	protocol types.TransportProtocol
}

func checkPorts(mode types.NetworkMode, c *types.ContainerDefinition, taken map[hostPort]string, names map[string]bool) error {
	if mode == types.NetworkModeNone && len(c.PortMappings) > 0 {
		return clientException("Port mappings are not supported on container '%s' when networkMode=none.", *c.Name)
	}
	protocols := make(map[int32]types.TransportProtocol)
	var ranges []portRange
	for i := range c.PortMappings {
		p := &c.PortMappings[i]
		protocol := p.Protocol
		if protocol == "" {
			protocol = types.TransportProtocolTcp
		}
		if n := aws.ToString(p.Name); n != "" {
			if !portName.MatchString(n) || names[n] {
				return clientException("The port name '%s' of container '%s' is invalid or used more than once.", clip(n), *c.Name)
			}
			names[n] = true
		}
		if p.ContainerPortRange != nil {
			r, err := checkRange(mode, c, p, protocol, ranges)
			if err != nil {
				return err
			}
			ranges = append(ranges, r)
			continue
		}
		if err := checkPort(mode, c, p); err != nil {
			return err
		}
		port := *p.ContainerPort
		if other, used := protocols[port]; used && other == protocol {
			return clientException("The container port %d of container '%s' is mapped more than once.", port, *c.Name)
		} else if used {
			return clientException("The container port %d of container '%s' is mapped for two protocols.", port, *c.Name)
		}
		protocols[port] = protocol
		fixed := aws.ToInt32(p.HostPort)
		if mode == types.NetworkModeHost || mode == types.NetworkModeAwsvpc {
			fixed = port
		}
		if fixed != 0 {
			at := hostPort{fixed, protocol}
			if other, used := taken[at]; used {
				return clientException("The host port %d/%s of container '%s' is used by container '%s' too.", fixed, protocol, *c.Name, other)
			}
			taken[at] = *c.Name
		}
	}
	return nil
}

// checkPort checks the numbers of a mapping of one port.
func checkPort(mode types.NetworkMode, c *types.ContainerDefinition, p *types.PortMapping) error {
	port := aws.ToInt32(p.ContainerPort)
	if port < 1 || port > 65535 {
		return clientException("Invalid 'containerPort' setting for container '%s'. It must be between 1 and 65535.", *c.Name)
	}
	if p.HostPort == nil {
		return nil
	}
	if *p.HostPort < 0 || *p.HostPort > 65535 {
		return clientException("Invalid 'hostPort' setting for container '%s'. It must be between 0 and 65535.", *c.Name)
	}
	if (mode == types.NetworkModeAwsvpc || mode == types.NetworkModeHost) && *p.HostPort != 0 && *p.HostPort != port {
		return clientException("When networkMode=%s, the host ports and container ports in port mappings must match.", mode)
	}
	return nil
}

type portRange struct {
	first, last int
	protocol    types.TransportProtocol
}

func checkRange(mode types.NetworkMode, c *types.ContainerDefinition, p *types.PortMapping, protocol types.TransportProtocol, others []portRange) (portRange, error) {
	text := *p.ContainerPortRange
	from, to, ok := strings.Cut(text, "-")
	first, err1 := strconv.Atoi(from)
	last, err2 := strconv.Atoi(to)
	r := portRange{first, last, protocol}
	switch {
	case !ok || err1 != nil || err2 != nil || first < 1 || last > 65535 || first >= last:
		return r, clientException("Invalid 'containerPortRange' setting for container '%s': %s. It must be like 80-90, within 1-65535.", *c.Name, clip(text))
	case mode == types.NetworkModeHost:
		return r, clientException("A 'containerPortRange' is supported with networkMode 'bridge' and 'awsvpc' only.")
	case p.HostPort != nil || p.ContainerPort != nil:
		return r, clientException("A 'containerPortRange' of container '%s' cannot be given with 'hostPort' or 'containerPort'.", *c.Name)
	case len(others) >= maxPortRanges:
		return r, clientException("Container '%s' has more than %d port ranges.", *c.Name, maxPortRanges)
	}
	for _, o := range others {
		if o.protocol == protocol && r.first <= o.last && o.first <= r.last {
			return r, clientException("The port ranges %d-%d and %s of container '%s' overlap.", o.first, o.last, text, *c.Name)
		}
	}
	return r, nil
}
