package netns

import (
	"fmt"
	"strconv"
	"strings"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/cni-plugins/ecs-bridge/bridge"
)

// requests are a container's port mappings as package bridge takes them.
func requests(c *task.Container) ([]bridge.Port, error) {
	var out []bridge.Port
	for _, p := range c.Ports {
		first, count, err := span(p)
		if err != nil {
			return nil, &bridge.Error{Kind: bridge.Invalid, Err: fmt.Errorf("container %s: %w", c.Name, err)}
		}
		out = append(out, bridge.Port{
			Protocol: p.Protocol, HostPort: p.HostPort, ContainerPort: first, Count: count, Label: c.Name,
		})
	}
	return out, nil
}

// span is a mapping's first container port and, for a range, how many there are.
func span(p task.Port) (first, count uint16, err error) {
	if p.ContainerRange == "" {
		return p.ContainerPort, 0, nil
	}
	a, b, ok := strings.Cut(p.ContainerRange, "-")
	lo, err1 := strconv.ParseUint(a, 10, 16)
	hi, err2 := strconv.ParseUint(b, 10, 16)
	if !ok || err1 != nil || err2 != nil || lo == 0 || lo > hi || hi-lo == 65535 {
		return 0, 0, fmt.Errorf("containerPortRange %q: must be FIRST-LAST, for example 8000-8010", p.ContainerRange)
	}
	return uint16(lo), uint16(hi - lo + 1), nil
}

// What is reported of where ports are published: on all addresses of a family.
const (
	bindIPv4 = "0.0.0.0"
	bindIPv6 = "::"
)

// bindings are the published ports by container, as they are reported.
func bindings(a *bridge.Attachment) map[string][]task.Binding {
	out := map[string][]task.Binding{}
	for _, p := range a.Ports {
		out[p.Label] = append(out[p.Label], binding(p, bindIPv4))
		if a.Address6.IsValid() {
			out[p.Label] = append(out[p.Label], binding(p, bindIPv6))
		}
	}
	return out
}

func binding(p bridge.Port, on string) task.Binding {
	b := task.Binding{BindIP: on, Protocol: p.Protocol}
	if p.Count == 0 {
		b.ContainerPort, b.HostPort = p.ContainerPort, p.HostPort
		return b
	}
	b.ContainerRange = fmt.Sprintf("%d-%d", p.ContainerPort, int(p.ContainerPort)+int(p.Count)-1)
	b.HostRange = fmt.Sprintf("%d-%d", p.HostPort, int(p.HostPort)+int(p.Count)-1)
	return b
}

// informative are the bindings of host mode, where a container's port is the host's.
func informative(t *task.Task) (map[string][]task.Binding, error) {
	out := map[string][]task.Binding{}
	for i := range t.Containers {
		ports, err := requests(&t.Containers[i])
		if err != nil {
			return nil, err
		}
		for _, p := range ports {
			p.HostPort = p.ContainerPort
			out[p.Label] = append(out[p.Label], binding(p, bindIPv4))
		}
	}
	return out, nil
}
