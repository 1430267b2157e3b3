package intake

import (
	"slices"
	"strings"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/acs"
)

// visibleDevices is the variable by which a container learns of its GPUs (agent
// protocol, "GPU").
const visibleDevices = "NVIDIA_VISIBLE_DEVICES"

// giveGPUs gives each GPU of the associations to its one container. The words of the
// errors are the protocol's.
func giveGPUs(t *task.Task, associations []acs.Association) error {
	for i := range associations {
		a := &associations[i]
		if len(a.Containers) != 1 || a.Name == "" {
			return unloadablef("could not associate multiple containers to GPU %s", a.Name)
		}
		c := t.Container(a.Containers[0])
		if c == nil {
			return unloadablef("could not find container with name %s for associating GPU %s", a.Containers[0], a.Name)
		}
		if slices.Contains(c.GPUs, a.Name) {
			continue
		}
		c.GPUs = append(c.GPUs, a.Name)
		if c.Environment == nil {
			c.Environment = map[string]string{}
		}
		c.Environment[visibleDevices] = strings.Join(c.GPUs, ",")
	}
	return nil
}
