package tmds

import "time"

// Task describes a task. Versions 2 and 3 leave the members of version 4 out.
type Task struct {
	Cluster               string            `json:"Cluster"`
	TaskARN               string            `json:"TaskARN"`
	Family                string            `json:"Family"`
	Revision              string            `json:"Revision"`
	DesiredStatus         string            `json:"DesiredStatus,omitempty"`
	KnownStatus           string            `json:"KnownStatus"`
	Containers            []Container       `json:"Containers,omitempty"`
	Limits                *TaskLimits       `json:"Limits,omitempty"`
	PullStartedAt         *time.Time        `json:"PullStartedAt,omitempty"`
	PullStoppedAt         *time.Time        `json:"PullStoppedAt,omitempty"`
	ExecutionStoppedAt    *time.Time        `json:"ExecutionStoppedAt,omitempty"`
	AvailabilityZone      string            `json:"AvailabilityZone,omitempty"`
	TaskTags              map[string]string `json:"TaskTags,omitempty"`
	ContainerInstanceTags map[string]string `json:"ContainerInstanceTags,omitempty"`

	// Version 4.
	LaunchType            string     `json:"LaunchType,omitempty"`
	Errors                []TagError `json:"Errors,omitempty"`
	AvailabilityZoneID    string     `json:"AvailabilityZoneID,omitempty"`
	VPCID                 string     `json:"VPCID,omitempty"`
	ServiceName           string     `json:"ServiceName,omitempty"`
	FaultInjectionEnabled *bool      `json:"FaultInjectionEnabled,omitempty"` // always there in version 4

	EphemeralStorageMetrics *EphemeralStorage `json:"EphemeralStorageMetrics,omitempty"` // of a task with a limit
}

// EphemeralStorage is how much of its limited storage a task has used, in MiB.
type EphemeralStorage struct {
	Utilized int64 `json:"Utilized"`
	Reserved int64 `json:"Reserved"`
}

// TaskLimits are the limits of the task as a whole; what has none is left out.
type TaskLimits struct {
	CPU    float64 `json:"CPU,omitempty"`    // vCPUs
	Memory int64   `json:"Memory,omitempty"` // MiB
}

// TagError says why tags are missing from a version 4 document.
type TagError struct {
	ErrorField   string `json:"ErrorField"`
	ErrorCode    string `json:"ErrorCode"`
	ErrorMessage string `json:"ErrorMessage"`
	StatusCode   int    `json:"StatusCode"`
	RequestID    string `json:"RequestId,omitempty"`
	ResourceARN  string `json:"ResourceARN,omitempty"`
}

// Container describes a container.
type Container struct {
	DockerID      string            `json:"DockerId"`
	Name          string            `json:"Name"`
	DockerName    string            `json:"DockerName"`
	Image         string            `json:"Image"`
	ImageID       string            `json:"ImageID"`
	Ports         []Port            `json:"Ports,omitempty"`
	Labels        map[string]string `json:"Labels,omitempty"`
	DesiredStatus string            `json:"DesiredStatus"`
	KnownStatus   string            `json:"KnownStatus"`
	ExitCode      *int              `json:"ExitCode,omitempty"`
	Limits        ContainerLimits   `json:"Limits"`
	CreatedAt     *time.Time        `json:"CreatedAt,omitempty"`
	StartedAt     *time.Time        `json:"StartedAt,omitempty"`
	FinishedAt    *time.Time        `json:"FinishedAt,omitempty"`
	Type          string            `json:"Type"`
	Networks      []Network         `json:"Networks,omitempty"`
	Health        *Health           `json:"Health,omitempty"`
	Volumes       []Volume          `json:"Volumes,omitempty"`

	// Version 4.
	LogDriver    string            `json:"LogDriver,omitempty"`
	LogOptions   map[string]string `json:"LogOptions,omitempty"`
	ContainerARN string            `json:"ContainerARN,omitempty"`
	RestartCount *int              `json:"RestartCount,omitempty"`
}

// ContainerLimits are a container's own limits.
type ContainerLimits struct {
	CPU    int64 `json:"CPU"`    // shares; 2 at least
	Memory int64 `json:"Memory"` // MiB; 0 means none
}

// Port is a port of a container. HostIP is of version 4.
type Port struct {
	ContainerPort uint16 `json:"ContainerPort,omitempty"`
	Protocol      string `json:"Protocol,omitempty"`
	HostPort      uint16 `json:"HostPort,omitempty"`
	HostIP        string `json:"HostIp,omitempty"`
}

// Network is a network of a container. What follows the addresses is of version 4 and of
// network interfaces of the task's own.
type Network struct {
	NetworkMode   string   `json:"NetworkMode,omitempty"`
	IPv4Addresses []string `json:"IPv4Addresses,omitempty"`
	IPv6Addresses []string `json:"IPv6Addresses,omitempty"`

	AttachmentIndex          *int     `json:"AttachmentIndex,omitempty"`
	MACAddress               string   `json:"MACAddress,omitempty"`
	IPv4SubnetCIDRBlock      string   `json:"IPv4SubnetCIDRBlock,omitempty"`
	IPv6SubnetCIDRBlock      string   `json:"IPv6SubnetCIDRBlock,omitempty"`
	DomainNameServers        []string `json:"DomainNameServers,omitempty"`
	DomainNameSearchList     []string `json:"DomainNameSearchList,omitempty"`
	PrivateDNSName           string   `json:"PrivateDNSName,omitempty"`
	SubnetGatewayIPv4Address string   `json:"SubnetGatewayIpv4Address,omitempty"`
	SubnetGatewayIPv6Address string   `json:"SubnetGatewayIpv6Address,omitempty"`
}

// Health is the outcome of a container's health check.
type Health struct {
	Status   string     `json:"status,omitempty"` // left out while it is unknown
	Since    *time.Time `json:"statusSince,omitempty"`
	ExitCode int        `json:"exitCode,omitempty"`
	Output   string     `json:"output,omitempty"`
}

// Volume is a volume that is mounted in a container.
type Volume struct {
	DockerName  string `json:"DockerName,omitempty"`
	Source      string `json:"Source,omitempty"`
	Destination string `json:"Destination,omitempty"`
}

// Associations lists the names of a container's associations of one type.
type Associations struct {
	Associations []string `json:"Associations"`
}

// Container types. Only NORMAL is shown of containers that the task definition names.
const TypeNormal = "NORMAL"
