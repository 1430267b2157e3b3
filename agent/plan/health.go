package plan

import (
	"fmt"
	"strings"
	"time"

	"berth.dev/berth/agent/task"
)

// healthReturn is the time that an adapter has, after the limit of a check, to kill it and
// to read what it said.
const healthReturn = time.Minute

// healthcheck is the health check that the agent runs for a container, or nil. That of
// an image is never used (agent protocol, "Health checks").
func healthcheck(c *task.Container, s Settings) *task.Healthcheck {
	if c == nil || s.NoHealthChecks || c.HealthCheckType != "docker" || c.Config.Healthcheck == nil {
		return nil
	}
	if c.Config.Healthcheck.Args() == nil {
		return nil
	}
	return c.Config.Healthcheck
}

// checkHealth has the health of running containers checked when it is time.
func (d *decision) checkHealth() {
	if d.k.Desired == task.StatusStopped {
		return
	}
	for i := range d.t.Containers {
		c := &d.t.Containers[i]
		id := Container(c.Name)
		r := d.rec(id)
		h := healthcheck(c, d.s)
		if h == nil || !r.Running() || r.Verb != task.VerbNone || r.Unconfirmed || r.Checking {
			continue
		}
		if r.CheckAt.IsZero() {
			r.CheckAt = r.Started.Add(untilCheck(h, r, r.Started))
			if r.CheckAt.Before(d.now) {
				// The agent was away: its containers are not all asked at once.
				r.CheckAt = d.now.Add(spread(untilCheck(h, r, d.now), d.t.ARN, i))
			}
		}
		if d.now.Before(r.CheckAt) {
			d.wake(r.CheckAt)
			continue
		}
		r.Checking = true
		d.step.Do = append(d.step.Do, Action{
			Resource: id, Verb: task.VerbCheck, Incarnation: r.Incarnation, Deadline: h.Limit() + healthReturn,
		})
	}
}

// untilCheck is the time from the end of one check, or the start of the process, to the
// next check.
func untilCheck(h *task.Healthcheck, r *task.Record, now time.Time) time.Duration {
	starting := r.Health == nil || r.Health.Status == task.HealthUnknown
	return h.Wait(starting && now.Before(r.Started.Add(h.StartPeriod)))
}

// checked enters the outcome of a health check, and returns words for the event log when
// it changes the status. A check that could not be made says nothing.
func checked(c *task.Container, r *task.Record, f task.Fact) string {
	r.Checking = false
	if c == nil || c.Config.Healthcheck == nil {
		return ""
	}
	check := c.Config.Healthcheck
	defer func() { r.CheckAt = f.At.Add(untilCheck(check, r, f.At)) }()
	if f.Failure != nil || f.Result.Check == nil || !r.Running() {
		return ""
	}
	result := f.Result.Check
	h := task.Health{Status: task.HealthUnknown, Since: r.Started}
	if r.Health != nil {
		h = *r.Health
	}
	before := h.Status
	h.ExitCode, h.Output = result.ExitCode, clip(result.Output, task.MaxHealthOutput)
	switch {
	case h.ExitCode == 0:
		h.Status, h.Failures = task.HealthHealthy, 0
	case h.Status == task.HealthUnknown && result.Start.Before(r.Started.Add(check.StartPeriod)):
		// It may fail while it starts.
	default:
		h.Failures++
		if h.Failures >= check.Failures() {
			h.Status = task.HealthUnhealthy
		}
	}
	if h.Status != before {
		h.Since = f.At
	}
	r.Health = &h
	if h.Status == before {
		return ""
	}
	text := fmt.Sprintf("%s after %s: exit code %d", h.Status, before, h.ExitCode)
	if out := strings.TrimSpace(clip(h.Output, 200)); out != "" {
		text += ": " + out
	}
	return text
}

// clip shortens text to n bytes, and leaves no part of a character behind.
func clip(text string, n int) string {
	if len(text) > n {
		text = text[:n]
	}
	return strings.ToValidUTF8(text, "")
}

// ContainerHealth is the health of a container; ok is false for one whose health the
// agent does not check, of which nothing is told.
func ContainerHealth(t *task.Task, k *task.Known, name string) (h task.Health, ok bool) {
	c := t.Container(name)
	if healthcheck(c, Settings{}) == nil {
		return task.Health{Status: task.HealthUnknown}, false
	}
	r := k.Resource(Container(name))
	if r.Health != nil {
		return *r.Health, true
	}
	return task.Health{Status: task.HealthUnknown, Since: r.Started}, true
}

// TaskHealth is the health of a task: that of its essential containers with a health
// check. One that is UNHEALTHY makes it so, then one that is UNKNOWN; without any it is
// UNKNOWN (ECS API, Task healthStatus).
func TaskHealth(t *task.Task, k *task.Known) task.HealthStatus {
	status := task.HealthUnknown
	found := false
	for i := range t.Containers {
		c := &t.Containers[i]
		h, ok := ContainerHealth(t, k, c.Name)
		if !ok || !c.Essential {
			continue
		}
		switch {
		case h.Status == task.HealthUnhealthy:
			return task.HealthUnhealthy
		case !found:
			status, found = h.Status, true
		case h.Status == task.HealthUnknown:
			status = task.HealthUnknown
		}
	}
	return status
}
