package telemetry

import (
	"time"

	"berth.dev/berth/agent/plan"
	"berth.dev/berth/agent/task"
	wire "berth.dev/berth/wire/tcs"
)

// Health is the present health of every running container that has a health check, for
// the telemetry session (agent protocol, PublishHealthRequest).
func (w *Watcher) Health() []wire.TaskHealth {
	now := time.Now()
	var out []wire.TaskHealth
	for _, v := range w.c.Views() {
		var containers []wire.ContainerHealth
		for i := range v.Task.Containers {
			c := &v.Task.Containers[i]
			r := v.Known.Resources[plan.Container(c.Name)]
			if c.HealthCheckType != "docker" || r == nil || !r.Running() {
				continue
			}
			h := wire.ContainerHealth{ContainerName: c.Name, HealthStatus: string(task.HealthUnknown), StatusSince: wire.Time{Time: now}}
			if r.Health != nil {
				h.HealthStatus = string(r.Health.Status)
				if !r.Health.Since.IsZero() {
					h.StatusSince = wire.Time{Time: r.Health.Since}
				}
			}
			containers = append(containers, h)
		}
		if len(containers) > 0 {
			out = append(out, wire.TaskHealth{
				TaskARN: v.Task.ARN, TaskDefinitionFamily: v.Task.Family, TaskDefinitionVersion: v.Task.Version, Containers: containers,
			})
		}
	}
	return out
}
