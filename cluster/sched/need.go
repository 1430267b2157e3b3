package sched

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// NeedOf computes what one task of the definition takes: the task's CPU and memory
// where given, else the sum over its containers (memoryReservation before memory),
// its GPUs, and the fixed host ports in bridge and host mode. In awsvpc mode a task
// has its own address and takes no host port. Overrides may be nil. The error names
// the member that cannot be understood.
func NeedOf(td *types.TaskDefinition, o *types.TaskOverride) (Need, error) {
	var n Need
	byName := map[string]*types.ContainerOverride{}
	cpu, memory := td.Cpu, td.Memory
	if o != nil {
		if o.Cpu != nil {
			cpu = o.Cpu
		}
		if o.Memory != nil {
			memory = o.Memory
		}
		for i := range o.ContainerOverrides {
			if c := &o.ContainerOverrides[i]; c.Name != nil {
				byName[*c.Name] = c
			}
		}
	}
	for i := range td.ContainerDefinitions {
		c := &td.ContainerDefinitions[i]
		if err := n.addContainer(c, byName[deref(c.Name)], td.NetworkMode); err != nil {
			return Need{}, fmt.Errorf("container %q: %w", deref(c.Name), err)
		}
	}
	if given(cpu) {
		v, err := ParseCPU(*cpu)
		if err != nil {
			return Need{}, err
		}
		n.CPU = v
	}
	if given(memory) {
		v, err := ParseMemory(*memory)
		if err != nil {
			return Need{}, err
		}
		n.Memory = v
	}
	n.TCP, n.UDP = uniquePorts(n.TCP), uniquePorts(n.UDP)
	return n, nil
}

func (n *Need) addContainer(c *types.ContainerDefinition, o *types.ContainerOverride, mode types.NetworkMode) error {
	cpu, memory, soft, gpus := int64(c.Cpu), c.Memory, c.MemoryReservation, c.ResourceRequirements
	if o != nil {
		if o.Cpu != nil {
			cpu = int64(*o.Cpu)
		}
		if o.Memory != nil {
			memory = o.Memory
		}
		if o.MemoryReservation != nil {
			soft = o.MemoryReservation
		}
		if o.ResourceRequirements != nil {
			gpus = o.ResourceRequirements
		}
	}
	if cpu < 0 || memory != nil && *memory < 0 || soft != nil && *soft < 0 {
		return errors.New("cpu and memory cannot be negative")
	}
	n.CPU += cpu
	switch {
	case soft != nil:
		n.Memory += int64(*soft)
	case memory != nil:
		n.Memory += int64(*memory)
	}
	for _, r := range gpus {
		if r.Type != types.ResourceTypeGpu {
			continue
		}
		v, err := strconv.Atoi(deref(r.Value))
		if err != nil || v < 0 || v > 1024 {
			return fmt.Errorf("resourceRequirements: GPU value %q is not a count", deref(r.Value))
		}
		n.GPUs += v
	}
	return n.addPorts(c.PortMappings, mode)
}

func (n *Need) addPorts(mappings []types.PortMapping, mode types.NetworkMode) error {
	if mode == types.NetworkModeAwsvpc || mode == types.NetworkModeNone {
		return nil
	}
	for _, m := range mappings {
		var port int32
		if m.HostPort != nil {
			port = *m.HostPort
		}
		// In host mode the container's port is the host's; in bridge mode a host
		// port of 0 is chosen on the instance and is no resource.
		if port == 0 && mode == types.NetworkModeHost && m.ContainerPort != nil {
			port = *m.ContainerPort
		}
		if port == 0 {
			continue
		}
		if port < 0 || port > math.MaxUint16 {
			return fmt.Errorf("portMappings: host port %d is not between 1 and 65535", port)
		}
		if m.Protocol == types.TransportProtocolUdp {
			n.UDP = append(n.UDP, uint16(port))
		} else {
			n.TCP = append(n.TCP, uint16(port))
		}
	}
	return nil
}

// ParseCPU reads a task's cpu: units ("1024") or virtual CPUs ("1 vCPU", ".5 vcpu").
func ParseCPU(s string) (int64, error) {
	if v, err := parseAmount(s, "vcpu", 1024); err == nil {
		return v, nil
	}
	return 0, fmt.Errorf("cpu %q is neither CPU units (\"1024\") nor virtual CPUs (\"1 vCPU\")", s)
}

// ParseMemory reads a task's memory in MiB: "1024", or "1GB", "0.5 GB".
func ParseMemory(s string) (int64, error) {
	if v, err := parseAmount(s, "gb", 1024); err == nil {
		return v, nil
	}
	return 0, fmt.Errorf("memory %q is neither MiB (\"1024\") nor gigabytes (\"1 GB\")", s)
}

var errAmount = errors.New("not an amount")

func parseAmount(s, unit string, scale float64) (int64, error) {
	s = strings.ToLower(strings.TrimSpace(s))
	if rest, ok := strings.CutSuffix(s, unit); ok {
		v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
		if err != nil || !(v >= 0 && v <= 1<<30) {
			return 0, errAmount
		}
		return int64(math.Round(v * scale)), nil
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || v < 0 || v > 1<<40 {
		return 0, errAmount
	}
	return v, nil
}

// PlatformAttributes are the attributes that a definition's runtimePlatform requires
// of an instance. A Windows family is compared as given; empty members require nothing.
func PlatformAttributes(p *types.RuntimePlatform) []Attribute {
	var as []Attribute
	if p == nil {
		return nil
	}
	if p.OperatingSystemFamily != "" {
		as = append(as, Attribute{AttributeOSFamily, string(p.OperatingSystemFamily)})
	}
	if p.CpuArchitecture != "" {
		as = append(as, Attribute{AttributeArchitecture, strings.ToLower(string(p.CpuArchitecture))})
	}
	return as
}

func uniquePorts(ports []uint16) []uint16 {
	slices.Sort(ports)
	return slices.Compact(ports)
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func given(s *string) bool { return s != nil && *s != "" }
