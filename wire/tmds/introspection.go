package tmds

import "time"

// AgentMetadata says who the agent is.
type AgentMetadata struct {
	Cluster              string  `json:"Cluster"`
	ContainerInstanceARN *string `json:"ContainerInstanceArn"` // null before registration
	Version              string  `json:"Version"`
}

// AvailableCommands lists the paths of the introspection API.
type AvailableCommands struct {
	Commands []string `json:"AvailableCommands"`
}

// IntrospectedTasks is the list of tasks of the introspection API.
type IntrospectedTasks struct {
	Tasks []IntrospectedTask `json:"Tasks"`
}

// IntrospectedTask is a task of the introspection API.
type IntrospectedTask struct {
	ARN           string                  `json:"Arn"`
	DesiredStatus string                  `json:"DesiredStatus,omitempty"`
	KnownStatus   string                  `json:"KnownStatus"`
	Family        string                  `json:"Family"`
	Version       string                  `json:"Version"`
	Containers    []IntrospectedContainer `json:"Containers"`
}

// IntrospectedContainer is a container of the introspection API.
type IntrospectedContainer struct {
	DockerID   string     `json:"DockerId"`
	DockerName string     `json:"DockerName"`
	Name       string     `json:"Name"`
	Image      string     `json:"Image"`
	ImageID    string     `json:"ImageID"`
	CreatedAt  *time.Time `json:"CreatedAt,omitempty"`
	StartedAt  *time.Time `json:"StartedAt,omitempty"`
	Ports      []Port     `json:"Ports,omitempty"`
	Networks   []Network  `json:"Networks,omitempty"`
	Volumes    []Volume   `json:"Volumes,omitempty"`
}
