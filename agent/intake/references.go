package intake

import (
	"strings"

	"berth.dev/berth/agent/task"
)

// checkReferences refuses a task whose containers name volumes that are not there, or
// name each other so that no order is left to start them in.
func checkReferences(t *task.Task) error {
	for i := range t.Containers {
		c := &t.Containers[i]
		for _, m := range c.Mounts {
			if !hasVolume(t, m.Volume) {
				return unloadablef("container %s: mountPoints: no volume is named %q", c.Name, m.Volume)
			}
			if !strings.HasPrefix(m.Path, "/") {
				return unloadablef("container %s: mountPoints: containerPath of volume %q is not absolute", c.Name, m.Volume)
			}
		}
	}
	if !ordered(t) {
		return &Rejection{Reason: "Task dependencies cannot be resolved, taskArn: " + t.ARN}
	}
	return nil
}

func hasVolume(t *task.Task, name string) bool {
	for i := range t.Volumes {
		if t.Volumes[i].Name == name {
			return true
		}
	}
	return false
}

// needs lists the containers that must come before c.
func needs(c *task.Container) []string {
	var names []string
	for _, d := range c.DependsOn {
		names = append(names, d.Container)
	}
	for _, v := range c.VolumesFrom {
		names = append(names, v.Container)
	}
	for _, l := range c.Links {
		name, _, _ := strings.Cut(l, ":")
		names = append(names, name)
	}
	return names
}

// ordered reports whether every container that is needed exists and none needs itself
// by way of others.
func ordered(t *task.Task) bool {
	const (
		unseen = iota
		open
		done
	)
	state := make(map[string]int, len(t.Containers))
	var visit func(c *task.Container) bool
	visit = func(c *task.Container) bool {
		switch {
		case c == nil || state[c.Name] == open:
			return false
		case state[c.Name] == done:
			return true
		}
		state[c.Name] = open
		for _, name := range needs(c) {
			if !visit(t.Container(name)) {
				return false
			}
		}
		state[c.Name] = done
		return true
	}
	for i := range t.Containers {
		if !visit(&t.Containers[i]) {
			return false
		}
	}
	return true
}
