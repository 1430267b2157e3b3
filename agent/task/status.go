// Package task is the vocabulary of the agent: the ECS task and its containers,
// their statuses, and what is known of the things on the host that they need.
// It holds values and rules about values; it does no I/O and imports only the
// standard library. A "task" is always the ECS task; what containerd calls a task
// is called a process here and everywhere else.
package task

import "fmt"

// Status is the life of a task as the agent protocol names it (agent protocol,
// "Task engine: states"). The values are ordered and a known status never falls.
type Status int

// Task statuses, in order.
const (
	StatusNone Status = iota
	StatusManifestPulled
	StatusCreated
	StatusRunning
	StatusStopped
)

var statusNames = []string{"NONE", "MANIFEST_PULLED", "CREATED", "RUNNING", "STOPPED"}

// String is the internal name that the task metadata endpoints show.
func (s Status) String() string { return nameOf(statusNames, int(s)) }

// Wire is the name used in SubmitTaskStateChange: RUNNING, STOPPED, or PENDING
// for everything before RUNNING.
func (s Status) Wire() string {
	switch s {
	case StatusRunning, StatusStopped:
		return s.String()
	default:
		return "PENDING"
	}
}

// ParseDesired reads the desiredStatus of a payload: RUNNING or STOPPED.
func ParseDesired(s string) (Status, error) {
	switch s {
	case "RUNNING":
		return StatusRunning, nil
	case "STOPPED":
		return StatusStopped, nil
	default:
		return StatusNone, fmt.Errorf("Unrecognized TaskStatus") //nolint:staticcheck // the protocol's own text
	}
}

// ContainerStatus is the life of one container (agent protocol, "Task engine: states").
type ContainerStatus int

// Container statuses, in order.
const (
	ContainerNone ContainerStatus = iota
	ContainerManifestPulled
	ContainerPulled
	ContainerCreated
	ContainerRunning
	ContainerResourcesProvisioned
	ContainerStopped
)

var containerStatusNames = []string{"NONE", "MANIFEST_PULLED", "PULLED", "CREATED", "RUNNING", "RESOURCES_PROVISIONED", "STOPPED"}

// String is the internal name that the task metadata endpoints show.
func (s ContainerStatus) String() string { return nameOf(containerStatusNames, int(s)) }

// Wire is the name used in SubmitTaskStateChange: RUNNING, STOPPED or PENDING.
func (s ContainerStatus) Wire() string {
	switch s {
	case ContainerRunning, ContainerResourcesProvisioned:
		return "RUNNING"
	case ContainerStopped:
		return "STOPPED"
	default:
		return "PENDING"
	}
}

// Task is what a task counts as when its earliest container has this status.
func (s ContainerStatus) Task() Status {
	switch s {
	case ContainerNone:
		return StatusNone
	case ContainerManifestPulled, ContainerPulled:
		return StatusManifestPulled
	case ContainerCreated:
		return StatusCreated
	case ContainerRunning, ContainerResourcesProvisioned:
		return StatusRunning
	default:
		return StatusStopped
	}
}

// AttachmentStatus is the life of a network interface or volume attachment.
type AttachmentStatus int

// Attachment statuses, in order.
const (
	AttachmentNone AttachmentStatus = iota
	AttachmentAttached
	AttachmentDetached
)

var attachmentStatusNames = []string{"NONE", "ATTACHED", "DETACHED"}

// String is the name used in SubmitAttachmentStateChanges.
func (s AttachmentStatus) String() string { return nameOf(attachmentStatusNames, int(s)) }

// Phase is what is settled about one resource on the host. What is being done to
// it at the moment is its Record's Verb. "Could not ask" is not a phase.
type Phase int

// Resource phases.
const (
	Absent   Phase = iota // nothing is there and nothing was asked for
	Ensuring              // an Ensure was intended and has not settled
	Present               // there, as asked; a process in this phase runs once Started is set
	Stopping              // a process that was told to end
	Ended                 // a process that has ended; its remains are still there
	Removing              // a Remove was intended and has not settled
	Removed               // gone for good
	Failed                // Ensure or Start failed for good; Remove is still owed
)

var phaseNames = []string{"Absent", "Ensuring", "Present", "Stopping", "Ended", "Removing", "Removed", "Failed"}

// String is the name used in the event log.
func (p Phase) String() string { return nameOf(phaseNames, int(p)) }

// Condition is what a dependsOn entry waits for.
type Condition string

// Dependency conditions (API model, ContainerCondition).
const (
	ConditionStart    Condition = "START"
	ConditionComplete Condition = "COMPLETE"
	ConditionSuccess  Condition = "SUCCESS"
	ConditionHealthy  Condition = "HEALTHY"
)

func nameOf(names []string, i int) string {
	if i < 0 || i >= len(names) {
		return fmt.Sprintf("UNKNOWN(%d)", i)
	}
	return names[i]
}
