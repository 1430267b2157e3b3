package acs

import (
	"fmt"
	"io"
	"log/slog"
)

// Task is one task of a PayloadMessage.
type Task struct {
	ARN                           string                         `json:"arn,omitempty"`
	TaskClusterARN                string                         `json:"taskClusterArn,omitempty"`
	Family                        string                         `json:"family,omitempty"`
	Version                       string                         `json:"version,omitempty"`
	DesiredStatus                 string                         `json:"desiredStatus,omitempty"` // RUNNING or STOPPED
	Overrides                     string                         `json:"overrides,omitempty"`     // JSON text
	Zone                          string                         `json:"zone,omitempty"`
	TaskDefinitionAccountID       string                         `json:"taskDefinitionAccountId,omitempty"`
	LaunchType                    string                         `json:"launchType,omitempty"`
	NetworkMode                   string                         `json:"networkMode,omitempty"`
	CPU                           float64                        `json:"cpu,omitempty"`    // vCPUs
	Memory                        int64                          `json:"memory,omitempty"` // MiB
	PidMode                       string                         `json:"pidMode,omitempty"`
	IpcMode                       string                         `json:"ipcMode,omitempty"`
	ServiceName                   string                         `json:"serviceName,omitempty"`
	Group                         string                         `json:"group,omitempty"`
	AgentConfiguration            string                         `json:"agentConfiguration,omitempty"`
	EnableFaultInjection          bool                           `json:"enableFaultInjection,omitempty"`
	RoleCredentials               *IAMRoleCredentials            `json:"roleCredentials,omitempty"`
	ExecutionRoleCredentials      *IAMRoleCredentials            `json:"executionRoleCredentials,omitempty"`
	ProxyConfiguration            *ProxyConfiguration            `json:"proxyConfiguration,omitempty"`
	TrustedExecutionConfiguration *TrustedExecutionConfiguration `json:"trustedExecutionConfiguration,omitempty"`
	Containers                    []Container                    `json:"containers,omitempty"`
	Volumes                       []Volume                       `json:"volumes,omitempty"`
	ElasticNetworkInterfaces      []ElasticNetworkInterface      `json:"elasticNetworkInterfaces,omitempty"`
	Associations                  []Association                  `json:"associations,omitempty"`
	Attachments                   []Attachment                   `json:"attachments,omitempty"`
	EphemeralStorage              *EphemeralStorage              `json:"ephemeralStorage,omitempty"` // Berth's own
}

// EphemeralStorage is the size of a task's storage. It is Berth's own: other agents do
// not look at it.
type EphemeralStorage struct {
	SizeInGiB int64 `json:"sizeInGiB,omitempty"`
}

// Container is one container of a Task. Most of what a container definition says
// arrives in DockerConfig, as JSON text.
type Container struct {
	Name                   string                  `json:"name,omitempty"`
	Image                  string                  `json:"image,omitempty"`
	Command                []string                `json:"command,omitempty"`
	EntryPoint             *[]string               `json:"entryPoint,omitempty"` // nil keeps the image's; empty clears it
	CPU                    int64                   `json:"cpu,omitempty"`        // shares; 1024 is one vCPU
	Memory                 int64                   `json:"memory,omitempty"`     // MiB, hard limit; 0 means none
	Essential              bool                    `json:"essential,omitempty"`
	Environment            map[string]string       `json:"environment,omitempty"`
	EnvironmentFiles       []EnvironmentFile       `json:"environmentFiles,omitempty"`
	Links                  []string                `json:"links,omitempty"`
	PortMappings           []PortMapping           `json:"portMappings,omitempty"`
	MountPoints            []MountPoint            `json:"mountPoints,omitempty"`
	VolumesFrom            []VolumeFrom            `json:"volumesFrom,omitempty"`
	Overrides              string                  `json:"overrides,omitempty"` // JSON text; only command counts
	DockerConfig           *DockerConfig           `json:"dockerConfig,omitempty"`
	HealthCheckType        string                  `json:"healthCheckType,omitempty"`
	RegistryAuthentication *RegistryAuthentication `json:"registryAuthentication,omitempty"`
	LogsAuthStrategy       string                  `json:"logsAuthStrategy,omitempty"`
	Secrets                []Secret                `json:"secrets,omitempty"`
	DependsOn              []ContainerDependency   `json:"dependsOn,omitempty"`
	StartTimeout           int64                   `json:"startTimeout,omitempty"` // seconds
	StopTimeout            int64                   `json:"stopTimeout,omitempty"`  // seconds
	FirelensConfiguration  *FirelensConfiguration  `json:"firelensConfiguration,omitempty"`
	ContainerARN           string                  `json:"containerArn,omitempty"`
	ManagedAgents          []ManagedAgent          `json:"managedAgents,omitempty"`
	CredentialSpecs        []string                `json:"credentialSpecs,omitempty"`
	LinuxParameters        *LinuxParameters        `json:"linuxParameters,omitempty"`
	Privileged             bool                    `json:"privileged,omitempty"`
	NetworkInterfaceNames  []string                `json:"networkInterfaceNames,omitempty"`
	RestartPolicy          *RestartPolicy          `json:"restartPolicy,omitempty"`
}

// DockerConfig carries the Docker Engine API shapes of a container as JSON text.
type DockerConfig struct {
	Version    string `json:"version,omitempty"`    // lowest Docker API version that will do
	Config     string `json:"config,omitempty"`     // JSON text of a container config
	HostConfig string `json:"hostConfig,omitempty"` // JSON text of a host config
}

// EnvironmentFile is a file of variables.
type EnvironmentFile struct {
	Value string `json:"value,omitempty"` // ARN of an object
	Type  string `json:"type,omitempty"`  // s3
}

// PortMapping asks for a port, or a range of ports, of a container to be published.
type PortMapping struct {
	ContainerPort      int64  `json:"containerPort,omitempty"`
	HostPort           int64  `json:"hostPort,omitempty"`           // 0 asks for a dynamic port
	ContainerPortRange string `json:"containerPortRange,omitempty"` // "a-b", instead of ContainerPort
	Protocol           string `json:"protocol,omitempty"`           // tcp or udp
}

// MountPoint places a volume of the task in a container.
type MountPoint struct {
	SourceVolume  string `json:"sourceVolume,omitempty"`
	ContainerPath string `json:"containerPath,omitempty"`
	ReadOnly      bool   `json:"readOnly,omitempty"`
}

// VolumeFrom mounts what another container mounts.
type VolumeFrom struct {
	SourceContainer string `json:"sourceContainer,omitempty"`
	ReadOnly        bool   `json:"readOnly,omitempty"`
}

// ContainerDependency says what another container must have reached first.
type ContainerDependency struct {
	ContainerName string `json:"containerName,omitempty"`
	Condition     string `json:"condition,omitempty"` // START, COMPLETE, SUCCESS or HEALTHY
}

// RestartPolicy says when a container that ended is started again.
type RestartPolicy struct {
	Enabled              bool    `json:"enabled,omitempty"`
	IgnoredExitCodes     []int64 `json:"ignoredExitCodes,omitempty"`
	RestartAttemptPeriod int64   `json:"restartAttemptPeriod,omitempty"` // seconds
}

// RegistryAuthentication says where the credentials of an image's registry come from.
type RegistryAuthentication struct {
	Type        string       `json:"type,omitempty"` // ecr or asm
	ECRAuthData *ECRAuthData `json:"ecrAuthData,omitempty"`
	ASMAuthData *ASMAuthData `json:"asmAuthData,omitempty"`
}

// ECRAuthData is a registry of type ecr.
type ECRAuthData struct {
	RegistryID       string `json:"registryId,omitempty"`
	Region           string `json:"region,omitempty"`
	EndpointOverride string `json:"endpointOverride,omitempty"`
	UseExecutionRole bool   `json:"useExecutionRole,omitempty"`
}

// ASMAuthData is a registry whose credentials are a secret.
type ASMAuthData struct {
	CredentialsParameter string `json:"credentialsParameter,omitempty"`
	Region               string `json:"region,omitempty"`
}

// Secret is a reference to a secret value; the value itself is never in a message.
type Secret struct {
	Name          string `json:"name,omitempty"`
	ValueFrom     string `json:"valueFrom,omitempty"`
	ContainerPath string `json:"containerPath,omitempty"`
	Type          string `json:"type,omitempty"` // ENVIRONMENT_VARIABLE, MOUNT_POINT or BOOTSTRAP
	Region        string `json:"region,omitempty"`
	Provider      string `json:"provider,omitempty"` // ssm or asm
	Target        string `json:"target,omitempty"`   // CONTAINER or LOG_DRIVER
}

// FirelensConfiguration marks the container that routes the task's logs.
type FirelensConfiguration struct {
	Type    string            `json:"type,omitempty"` // fluentd or fluentbit
	Options map[string]string `json:"options,omitempty"`
}

// ManagedAgent is a program that the agent runs beside a container's own.
type ManagedAgent struct {
	Name       string            `json:"name,omitempty"`
	Properties map[string]string `json:"properties,omitempty"`
}

// LinuxParameters is part of the model; agents that take dockerConfig ignore it.
type LinuxParameters struct {
	Capabilities       *Capabilities `json:"capabilities,omitempty"`
	Devices            []Device      `json:"devices,omitempty"`
	InitProcessEnabled bool          `json:"initProcessEnabled,omitempty"`
	SharedMemorySize   int64         `json:"sharedMemorySize,omitempty"`
}

// Capabilities adds and drops Linux capabilities.
type Capabilities struct {
	Add  []string `json:"add,omitempty"`
	Drop []string `json:"drop,omitempty"`
}

// Device is a device of the host.
type Device struct {
	HostPath      string   `json:"hostPath,omitempty"`
	ContainerPath string   `json:"containerPath,omitempty"`
	Permissions   []string `json:"permissions,omitempty"` // read, write, mknod
}

// Volume is a volume of a task.
type Volume struct {
	Name                                    string                `json:"name,omitempty"`
	Type                                    string                `json:"type,omitempty"` // empty means host
	Host                                    *HostVolume           `json:"host,omitempty"`
	DockerVolumeConfiguration               *DockerVolume         `json:"dockerVolumeConfiguration,omitempty"`
	EFSVolumeConfiguration                  *EFSVolume            `json:"efsVolumeConfiguration,omitempty"`
	FSxWindowsFileServerVolumeConfiguration *FSxWindowsFileServer `json:"fsxWindowsFileServerVolumeConfiguration,omitempty"`
	EBSVolumeConfiguration                  *EBSVolume            `json:"ebsVolumeConfiguration,omitempty"`
	LogDriverVolumeConfiguration            *LogDriverVolume      `json:"logDriverVolumeConfiguration,omitempty"`
}

// HostVolume is a path of the host, or an own empty directory when there is no path.
type HostVolume struct {
	SourcePath string `json:"sourcePath,omitempty"`
}

// DockerVolume is a volume made by a volume driver.
type DockerVolume struct {
	Scope         string            `json:"scope,omitempty"` // task or shared
	Autoprovision bool              `json:"autoprovision,omitempty"`
	Driver        string            `json:"driver,omitempty"`
	DriverOpts    map[string]string `json:"driverOpts,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`
}

// EFSVolume is a network file system.
type EFSVolume struct {
	FileSystemID          string            `json:"fileSystemId,omitempty"`
	RootDirectory         string            `json:"rootDirectory,omitempty"`
	TransitEncryption     string            `json:"transitEncryption,omitempty"` // ENABLED or DISABLED
	TransitEncryptionPort int64             `json:"transitEncryptionPort,omitempty"`
	AuthorizationConfig   *EFSAuthorization `json:"authorizationConfig,omitempty"`
}

// EFSAuthorization says who mounts an EFSVolume.
type EFSAuthorization struct {
	AccessPointID string `json:"accessPointId,omitempty"`
	IAM           string `json:"iam,omitempty"` // ENABLED or DISABLED
}

// FSxWindowsFileServer is a file system for Windows tasks.
type FSxWindowsFileServer struct {
	FileSystemID        string            `json:"fileSystemId,omitempty"`
	RootDirectory       string            `json:"rootDirectory,omitempty"`
	AuthorizationConfig *FSxAuthorization `json:"authorizationConfig,omitempty"`
}

// FSxAuthorization says who mounts an FSxWindowsFileServer.
type FSxAuthorization struct {
	CredentialsParameter string `json:"credentialsParameter,omitempty"`
	Domain               string `json:"domain,omitempty"`
}

// EBSVolume is a block device.
type EBSVolume struct {
	VolumeID            string `json:"volumeId,omitempty"`
	DeleteOnTermination bool   `json:"deleteOnTermination,omitempty"`
	DeviceName          string `json:"deviceName,omitempty"`
	FilesystemType      string `json:"filesystemType,omitempty"`
}

// LogDriverVolume is the volume that a log driver writes to.
type LogDriverVolume struct {
	Driver string `json:"driver,omitempty"`
}

// ElasticNetworkInterface is a network interface that is attached to the instance.
type ElasticNetworkInterface struct {
	Name                         string                     `json:"name,omitempty"`
	MACAddress                   string                     `json:"macAddress,omitempty"`
	AttachmentARN                string                     `json:"attachmentArn,omitempty"`
	EC2ID                        string                     `json:"ec2Id,omitempty"`
	Index                        *int64                     `json:"index,omitempty"`
	InterfaceAssociationProtocol string                     `json:"interfaceAssociationProtocol,omitempty"` // default or vlan
	InterfaceVLANProperties      *InterfaceVLANProperties   `json:"interfaceVlanProperties,omitempty"`
	InterfaceTunnelProperties    *InterfaceTunnelProperties `json:"interfaceTunnelProperties,omitempty"`
	InterfaceVethProperties      *InterfaceVethProperties   `json:"interfaceVethProperties,omitempty"`
	IPv4Addresses                []IPv4Address              `json:"ipv4Addresses,omitempty"`
	IPv6Addresses                []IPv6Address              `json:"ipv6Addresses,omitempty"`
	DomainName                   []string                   `json:"domainName,omitempty"`
	DomainNameServers            []string                   `json:"domainNameServers,omitempty"`
	PrivateDNSName               string                     `json:"privateDnsName,omitempty"`
	SubnetGatewayIPv4Address     string                     `json:"subnetGatewayIpv4Address,omitempty"` // a.b.c.d/len
	SubnetGatewayIPv6Address     string                     `json:"subnetGatewayIpv6Address,omitempty"` // x::y/len

	// InterfacePoolProperties is Berth's own: the agent makes the device itself.
	InterfacePoolProperties *InterfacePoolProperties `json:"interfacePoolProperties,omitempty"`
}

// InterfacePoolProperties say that the cluster handed the interface out for a host where
// nobody plugs hardware in. The agent makes a device with the MAC address and keeps its
// security groups (see TaskNetworkPolicyMessage). Only agents that register the attribute
// berth.capability.interface-pool get such interfaces.
type InterfacePoolProperties struct {
	SubnetID string `json:"subnetId,omitempty"`
}

// InterfaceVLANProperties names the trunk that an interface branches from.
type InterfaceVLANProperties struct {
	VLANID                   string `json:"vlanId,omitempty"`
	TrunkInterfaceMACAddress string `json:"trunkInterfaceMacAddress,omitempty"`
}

// InterfaceTunnelProperties is part of the model; agents refuse such interfaces.
type InterfaceTunnelProperties struct {
	TunnelID           string `json:"tunnelId,omitempty"`
	InterfaceIPAddress string `json:"interfaceIpAddress,omitempty"`
}

// InterfaceVethProperties is part of the model; agents refuse such interfaces.
type InterfaceVethProperties struct {
	PeerInterface string `json:"peerInterface,omitempty"`
}

// IPv4Address is one address of an interface.
type IPv4Address struct {
	PrivateAddress string `json:"privateAddress,omitempty"`
	Primary        bool   `json:"primary,omitempty"`
}

// IPv6Address is one address of an interface.
type IPv6Address struct {
	Address string `json:"address,omitempty"`
	Primary bool   `json:"primary,omitempty"`
}

// Association gives containers something of the host, such as a GPU.
type Association struct {
	Containers []string            `json:"containers,omitempty"`
	Type       string              `json:"type,omitempty"`
	Name       string              `json:"name,omitempty"`
	Content    *AssociationContent `json:"content,omitempty"`
}

// AssociationContent is the value of an Association.
type AssociationContent struct {
	Encoding string `json:"encoding,omitempty"` // identity or base64
	Value    string `json:"value,omitempty"`
}

// ProxyConfiguration names the container that proxies a task's traffic.
type ProxyConfiguration struct {
	Type          string            `json:"type,omitempty"` // APPMESH
	ContainerName string            `json:"containerName,omitempty"`
	Properties    map[string]string `json:"properties,omitempty"`
}

// TrustedExecutionConfiguration asks for isolation.
type TrustedExecutionConfiguration struct {
	IsolationMode string `json:"isolationMode,omitempty"`
}

// Attachment is something that belongs to a task and is described by properties.
type Attachment struct {
	AttachmentARN        string               `json:"attachmentArn,omitempty"`
	AttachmentType       string               `json:"attachmentType,omitempty"`
	AttachmentProperties []AttachmentProperty `json:"attachmentProperties,omitempty"`
}

// Properties of block volumes that are Berth's own.
const (
	// PropertyPool says that the agent makes the volume itself, from a pool of its host.
	PropertyPool = "berthPool"
	// PropertyDelete is "true" where the agent removes such a volume with its task.
	PropertyDelete = "berthDeleteOnTermination"
	// PropertySnapshot is the snapshot whose content such a volume begins with.
	PropertySnapshot = "berthSnapshotId"
)

// AttachmentProperty is one property of an Attachment.
type AttachmentProperty struct {
	Name  string `json:"name,omitempty"`
	Value string `json:"value,omitempty"`
}

// IAMRoleCredentials are credentials of a role. The type prints as its id alone,
// whatever it is printed with; only encoding it as JSON, which is what a frame is
// made of, gives the secrets away.
type IAMRoleCredentials struct {
	CredentialsID   string `json:"credentialsId,omitempty"`
	RoleARN         string `json:"roleArn,omitempty"`
	AccessKeyID     string `json:"accessKeyId,omitempty"`
	SecretAccessKey string `json:"secretAccessKey,omitempty"`
	SessionToken    string `json:"sessionToken,omitempty"`
	Expiration      string `json:"expiration,omitempty"` // RFC 3339; echoed unchanged in the ack
	CredentialScope string `json:"credentialScope,omitempty"`
}

// String redacts all but the id.
func (c IAMRoleCredentials) String() string {
	return "credentials " + c.CredentialsID + " [redacted]"
}

// GoString redacts all but the id.
func (c IAMRoleCredentials) GoString() string { return c.String() }

// Format redacts all but the id, for every verb.
func (c IAMRoleCredentials) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, c.String()) // a fmt.State reports its own errors
}

// LogValue redacts all but the id.
func (c IAMRoleCredentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// LogValue is the task's ARN: a log handler that encodes JSON would otherwise show
// the credentials inside.
func (t Task) LogValue() slog.Value { return slog.StringValue("task " + t.ARN) }

// LogValue is the message's id and size, for the same reason.
func (m PayloadMessage) LogValue() slog.Value {
	return slog.GroupValue(slog.String("messageId", m.MessageID), slog.Int64("seqNum", m.SeqNum), slog.Int("tasks", len(m.Tasks)))
}

// LogValue is the message's id and task, for the same reason.
func (m IAMRoleCredentialsMessage) LogValue() slog.Value {
	return slog.GroupValue(slog.String("messageId", m.MessageID), slog.String("task", m.TaskARN))
}
