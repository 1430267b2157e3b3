package api

import (
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// The statuses of a task (ECS API, "Task life"), in the order they are gone through.
const (
	statusProvisioning   = "PROVISIONING"
	statusPending        = "PENDING"
	statusActivating     = "ACTIVATING"
	statusRunning        = "RUNNING"
	statusDeactivating   = "DEACTIVATING"
	statusStopping       = "STOPPING"
	statusDeprovisioning = "DEPROVISIONING"
	statusStopped        = "STOPPED"
)

var statusOrder = []string{
	statusProvisioning, statusPending, statusActivating, statusRunning,
	statusDeactivating, statusStopping, statusDeprovisioning, statusStopped,
}

// laterStatus tells whether b comes after a. A status that is not in the list comes
// before all others.
func laterStatus(a, b string) bool {
	return slices.Index(statusOrder, b) > slices.Index(statusOrder, a)
}

const (
	reasonEssentialExited = "Essential container in task exited"
	reasonStoppedByUser   = "Task stopped by user"
	reasonFailedToStart   = "Task failed to start"
)

// applyTaskChange folds what an agent submitted into t and tells whether t changed. The
// caller owns t and everything it points to that may change (see cloneTask).
//
// Statuses only rise, and STOPPED is final: agents send again what they are not sure we
// got, and a late repetition must not undo anything (agent protocol, "State changes").
func applyTaskChange(t *types.Task, def *types.TaskDefinition, in *ecs.SubmitTaskStateChangeInput, now time.Time) bool {
	if aws.ToString(t.LastStatus) == statusStopped {
		return false
	}
	changed := false
	for i := range in.Containers {
		if applyContainerChange(t, &in.Containers[i]) {
			changed = true
		}
	}
	for i := range in.ManagedAgents {
		if applyManagedAgentChange(t, &in.ManagedAgents[i], now) {
			changed = true
		}
	}
	changed = setTime(&t.PullStartedAt, in.PullStartedAt) || changed
	changed = setTime(&t.PullStoppedAt, in.PullStoppedAt) || changed
	changed = setTime(&t.ExecutionStoppedAt, in.ExecutionStoppedAt) || changed

	status := aws.ToString(in.Status)
	if laterStatus(aws.ToString(t.LastStatus), status) {
		t.LastStatus = aws.String(status)
		changed = true
		switch status {
		case statusRunning:
			t.StartedAt = &now
		case statusStopped:
			stopped(t, def, aws.ToString(in.Reason), now)
		}
	}
	if status != statusStopped && essentialStopped(t, def) && aws.ToString(t.DesiredStatus) != statusStopped {
		// The agent stops the rest by itself; the API shows it already.
		t.DesiredStatus = aws.String(statusStopped)
		t.StopCode = types.TaskStopCodeEssentialContainerExited
		t.StoppedReason = aws.String(reasonEssentialExited)
		t.StoppingAt = &now
		changed = true
	}
	if t.ConnectivityAt == nil {
		t.Connectivity, t.ConnectivityAt = types.ConnectivityConnected, &now
		changed = true
	}
	if changed {
		t.Version++
	}
	return changed
}

// setTime fills a timestamp that is not known yet; agents repeat them with every change.
func setTime(to **time.Time, from *time.Time) bool {
	if from == nil || *to != nil {
		return false
	}
	at := from.UTC()
	*to = &at
	return true
}

// applyContainerChange folds one container entry in. The first reason of a container is
// the one that explains it, so later ones do not replace it.
func applyContainerChange(t *types.Task, in *types.ContainerStateChange) bool {
	c := containerOf(t, aws.ToString(in.ContainerName))
	if c == nil || aws.ToString(c.LastStatus) == statusStopped {
		return false
	}
	changed := false
	set := func(to **string, from *string) {
		if aws.ToString(from) != "" && aws.ToString(*to) != aws.ToString(from) {
			*to, changed = from, true
		}
	}
	set(&c.ImageDigest, in.ImageDigest)
	set(&c.RuntimeId, in.RuntimeId)
	if c.Reason == nil {
		set(&c.Reason, in.Reason)
	}
	if in.ExitCode != nil && c.ExitCode == nil {
		c.ExitCode, changed = in.ExitCode, true
	}
	if len(in.NetworkBindings) > 0 && len(c.NetworkBindings) == 0 {
		c.NetworkBindings, changed = in.NetworkBindings, true
	}
	if status := aws.ToString(in.Status); laterStatus(aws.ToString(c.LastStatus), status) {
		c.LastStatus, changed = aws.String(status), true
	}
	return changed
}

func applyManagedAgentChange(t *types.Task, in *types.ManagedAgentStateChange, now time.Time) bool {
	c := containerOf(t, aws.ToString(in.ContainerName))
	if c == nil {
		return false
	}
	at := slices.IndexFunc(c.ManagedAgents, func(m types.ManagedAgent) bool { return m.Name == in.ManagedAgentName })
	if at < 0 {
		return false
	}
	m := &c.ManagedAgents[at]
	if aws.ToString(m.LastStatus) == aws.ToString(in.Status) && aws.ToString(m.Reason) == aws.ToString(in.Reason) {
		return false
	}
	m.LastStatus, m.Reason = in.Status, in.Reason
	if aws.ToString(in.Status) == statusRunning {
		m.LastStartedAt = &now
	}
	return true
}

func containerOf(t *types.Task, name string) *types.Container {
	for i := range t.Containers {
		if aws.ToString(t.Containers[i].Name) == name {
			return &t.Containers[i]
		}
	}
	return nil
}

// stopped completes a task whose agent says that nothing of it runs any more.
func stopped(t *types.Task, def *types.TaskDefinition, reason string, now time.Time) {
	for i := range t.Containers {
		t.Containers[i].LastStatus = aws.String(statusStopped)
	}
	t.DesiredStatus = aws.String(statusStopped)
	t.StoppedAt = &now
	if t.StoppingAt == nil {
		at := now
		if t.ExecutionStoppedAt != nil && t.ExecutionStoppedAt.Before(now) {
			at = *t.ExecutionStoppedAt
		}
		if t.StartedAt != nil && at.Before(*t.StartedAt) {
			at = *t.StartedAt // it ended before we heard that it had started
		}
		t.StoppingAt = &at
	}
	if t.StopCode != "" {
		return // somebody asked for the stop, and said why
	}
	if why, failed := startFailure(t, def, reason); failed {
		t.StopCode, t.StoppedReason = types.TaskStopCodeTaskFailedToStart, aws.String(why)
		return
	}
	t.StopCode = types.TaskStopCodeEssentialContainerExited
	t.StoppedReason = aws.String(reasonEssentialExited)
	if reason != "" {
		t.StoppedReason = aws.String(reason)
	}
}

// startErrors begin the reasons that agents give a container which never came up (agent
// protocol, "Error names and texts"). Other reasons, such as OutOfMemoryError, explain
// the end of a container that ran.
var startErrors = []string{
	"CannotPull", "CannotCreate", "CannotStart", "ResourceInitializationError", "HostConfigError",
	"DockerClientConfigError", "ContainerNetworkingError", "TaskDependencyError", "InvalidVolumeError",
	"UnrecogniedTaskError", "Timeout waiting for network interface", "TaskStoppedBeforePullBeginError", "VolumeError", "CgroupError", "HostResourcesExhausted",
}

// startFailure tells whether a stopped task never ran, and the text that says why: the
// task's own reason if the agent gave one, else that of an essential container.
func startFailure(t *types.Task, def *types.TaskDefinition, reason string) (string, bool) {
	if t.StartedAt != nil {
		return "", false
	}
	var ran bool
	var essential, other string
	for i := range t.Containers {
		c := &t.Containers[i]
		why := aws.ToString(c.Reason)
		isStart := slices.ContainsFunc(startErrors, func(p string) bool { return strings.HasPrefix(why, p) })
		switch {
		case isStart && isEssential(def, aws.ToString(c.Name)):
			essential = orElse(essential, why)
		case isStart:
			other = orElse(other, why)
		case c.ExitCode != nil:
			ran = true
		case why != "":
			other = orElse(other, why)
		}
	}
	if ran && essential == "" {
		return "", false
	}
	return orElse(reason, orElse(essential, orElse(other, reasonFailedToStart))), true
}

func essentialStopped(t *types.Task, def *types.TaskDefinition) bool {
	for i := range t.Containers {
		c := &t.Containers[i]
		if aws.ToString(c.LastStatus) == statusStopped && isEssential(def, aws.ToString(c.Name)) {
			return true
		}
	}
	return false
}

// isEssential is true for containers whose definition does not say otherwise, and for
// all containers when the definition is gone.
func isEssential(def *types.TaskDefinition, name string) bool {
	if def == nil {
		return true
	}
	for i := range def.ContainerDefinitions {
		c := &def.ContainerDefinitions[i]
		if aws.ToString(c.Name) == name {
			return c.Essential == nil || *c.Essential
		}
	}
	return true
}

// cloneTask copies t as deep as applyTaskChange and StopTask may change it. Values of the
// store are shared with readers and never changed in place.
func cloneTask(t types.Task) types.Task {
	t.Containers = slices.Clone(t.Containers)
	for i := range t.Containers {
		t.Containers[i].ManagedAgents = slices.Clone(t.Containers[i].ManagedAgents)
	}
	t.Attachments = slices.Clone(t.Attachments)
	return t
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
