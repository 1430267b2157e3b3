package store

import (
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// An Instance is a container instance. What changes with every placement is
// in its Allocation, so that a placement does not rewrite this record.
type Instance struct {
	Instance    types.ContainerInstance
	ClusterName string
	ID          string
	// KeyID is the access key that registered the instance.
	KeyID string
	// Address is the IP address of the host as its registration showed it, or came from.
	Address string `json:",omitempty"`
	// Node is the cluster process that has, or last had, the agent's session.
	Node string
	// Update is the last update of the agent; Instance.AgentUpdateStatus is how far it is.
	Update *AgentUpdate `json:",omitempty"`
	// DeregisteredAt is set while a deregistered instance is still shown as
	// INACTIVE.
	DeregisteredAt *time.Time
}

// An AgentUpdate is which package an agent is brought to.
type AgentUpdate struct {
	ID      string // of the call that asked for it
	Version string
	// File and SHA256 are of the package, Former and FormerSHA256 of the one that the
	// agent goes back to if the new one fails; empty where there is none.
	File, SHA256         string
	Former, FormerSHA256 string
	// Since is when the status was reached.
	Since time.Time
	// Reason is why it failed.
	Reason string `json:",omitempty"`
}

// An Allocation is what is left of an instance's resources.
type Allocation struct {
	// CPU is in units of 1/1024 of a core, Memory in MiB.
	CPU, Memory int64
	// TCP and UDP are the host ports in use, reserved ones included, sorted.
	TCP, UDP []int32
	// GPUs are the ids of the free GPUs.
	GPUs []string
}

// A Task is a task as the API shows it and what the cluster needs to steer it.
type Task struct {
	Task        types.Task
	ClusterName string
	ID          string
	InstanceID  string
	// Held is what the task takes from its instance until it stops.
	Held Held
	// LogMode is the account setting defaultLogDriverMode as it was when the task was
	// launched; empty in records from before it was kept.
	LogMode string
}

// Held is what one task takes from the instance it was placed on.
type Held struct {
	CPU, Memory int64 // units as in Allocation
	TCP, UDP    []int32
	GPUs        []string
}

// A ClientToken remembers the answer of an idempotent call.
type ClientToken struct {
	// Digest is of the request's parameters.
	Digest    string
	TaskARNs  []string
	CreatedAt time.Time
}
