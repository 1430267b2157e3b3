package spec

import (
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// devices are the device nodes of a container besides those that every container has,
// and what it may do with them.
func devices(in Input) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	var nodes []specs.LinuxDevice
	var rules []specs.LinuxDeviceCgroup
	at := map[string]int{}
	add := func(d specs.LinuxDevice) {
		if i, ok := at[d.Path]; ok {
			nodes[i] = d // what the definition names replaces what is there anyway
			return
		}
		at[d.Path] = len(nodes)
		nodes = append(nodes, d)
	}
	if in.Container.HostConfig.Privileged {
		for _, d := range in.Host.Devices {
			add(d)
		}
	}
	for i, d := range in.Devices {
		if strings.Trim(d.Access, "rwm") != "" || d.Access == "" {
			return nil, nil, invalid("devices: permissions %q of %s must be of the letters r, w and m", d.Access, in.Container.HostConfig.Devices[i].PathOnHost)
		}
		for _, n := range d.Nodes {
			if _, err := mountPath("devices", n.Path); err != nil {
				return nil, nil, err
			}
			add(n)
			rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: n.Type, Major: &n.Major, Minor: &n.Minor, Access: d.Access})
		}
	}
	return nodes, rules, nil
}
