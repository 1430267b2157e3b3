package intake

import (
	"slices"

	"berth.dev/berth/agent/task"
)

// logRouters checks the task's log router and has the containers that send to it start
// after it, unless it waits for others itself (agent protocol, "Dependencies").
func logRouters(t *task.Task) error {
	var router *task.Container
	for i := range t.Containers {
		c := &t.Containers[i]
		if c.Router == nil {
			continue
		}
		if router != nil {
			return unloadablef("containers %s and %s both have a firelensConfiguration; a task has one log router", router.Name, c.Name)
		}
		router = c
	}
	for i := range t.Containers {
		c := &t.Containers[i]
		if c.HostConfig.LogConfig.Type != "awsfirelens" {
			continue
		}
		if router == nil {
			return unloadablef("container %s has log driver awsfirelens, and no container of the task has a firelensConfiguration", c.Name)
		}
		if c == router {
			return unloadablef("container %s is the log router and cannot have log driver awsfirelens itself", c.Name)
		}
		on := func(d task.Dependency) bool { return d.Container == router.Name }
		if len(router.DependsOn) == 0 && !slices.ContainsFunc(c.DependsOn, on) {
			c.DependsOn = append(c.DependsOn, task.Dependency{Container: router.Name, Condition: task.ConditionStart})
		}
	}
	return nil
}
