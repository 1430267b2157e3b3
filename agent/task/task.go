package task

import (
	"cmp"
	"path"
	"slices"
	"strings"
	"time"
)

// Task is one ECS task as the cluster sent it, translated once at intake and never
// changed afterwards. What is known and wanted of it lives in Known.
type Task struct {
	ARN         string  `json:"arn"`
	ClusterARN  string  `json:"clusterArn"`
	Family      string  `json:"family"`
	Version     string  `json:"version"`
	LaunchType  string  `json:"launchType,omitempty"`
	NetworkMode string  `json:"networkMode"`      // bridge, host, none or awsvpc; never empty
	CPU         float64 `json:"cpu,omitempty"`    // vCPUs; 0 means no limit of the task as a whole
	Memory      int64   `json:"memory,omitempty"` // MiB; 0 means no limit of the task as a whole
	PidMode     string  `json:"pidMode,omitempty"`
	IpcMode     string  `json:"ipcMode,omitempty"`
	ServiceName string  `json:"serviceName,omitempty"`
	Group       string  `json:"group,omitempty"`

	// CredentialsID and ExecutionCredentialsID name credentials held in memory by
	// agent/creds. The credentials themselves are never part of a Task.
	CredentialsID          string `json:"credentialsId,omitempty"`
	ExecutionCredentialsID string `json:"executionCredentialsId,omitempty"`

	// FaultInjection lets the task disturb its own network by its metadata endpoint.
	FaultInjection bool          `json:"faultInjection,omitempty"`
	Associations   []Association `json:"associations,omitempty"`

	// Storage is how many bytes the containers' layers and the task's own volumes may hold
	// together; 0 means no limit.
	Storage int64 `json:"storage,omitempty"`

	Containers []Container `json:"containers"`
	Volumes    []Volume    `json:"volumes,omitempty"`
	Interfaces []Interface `json:"interfaces,omitempty"` // of network mode awsvpc, the first one first
}

// Association gives containers of the task something of the host by its name.
type Association struct {
	Containers []string `json:"containers"`
	Type       string   `json:"type"`
	Name       string   `json:"name"`
	Value      string   `json:"value,omitempty"` // the content, as the cluster sent it
}

// Network modes of a task.
const (
	NetworkBridge = "bridge"
	NetworkHost   = "host"
	NetworkNone   = "none"
	NetworkAWSVPC = "awsvpc"
)

// ID is the last element of the task's ARN. Every name on the host derives from it.
func (t *Task) ID() string { return t.ARN[strings.LastIndexByte(t.ARN, '/')+1:] }

// Container returns the container with the given name, or nil.
func (t *Task) Container(name string) *Container {
	for i := range t.Containers {
		if t.Containers[i].Name == name {
			return &t.Containers[i]
		}
	}
	return nil
}

// Container is one container of a task, with the Docker-shaped config and hostConfig
// strings of the protocol already decoded into Config and HostConfig.
type Container struct {
	Name        string            `json:"name"`
	ARN         string            `json:"arn,omitempty"`
	Image       string            `json:"image"`
	Command     []string          `json:"command,omitempty"`
	EntryPoint  *[]string         `json:"entryPoint,omitempty"` // nil keeps the image's; empty clears it
	Environment map[string]string `json:"environment,omitempty"`
	CPU         int64             `json:"cpu,omitempty"`    // shares; 1024 is one vCPU
	Memory      int64             `json:"memory,omitempty"` // MiB, hard limit; 0 means none
	Essential   bool              `json:"essential"`
	Ports       []Port            `json:"ports,omitempty"`
	Mounts      []Mount           `json:"mounts,omitempty"`
	VolumesFrom []VolumesFrom     `json:"volumesFrom,omitempty"`
	Links       []string          `json:"links,omitempty"`
	Networks    []string          `json:"networks,omitempty"` // of the operator's, besides that of the task's mode
	DependsOn   []Dependency      `json:"dependsOn,omitempty"`

	StartTimeout time.Duration `json:"startTimeout,omitempty"` // 0 means no limit on the dependents' wait
	StopTimeout  time.Duration `json:"stopTimeout,omitempty"`  // 0 means the agent's setting

	Secrets  []SecretRef   `json:"secrets,omitempty"`
	EnvFiles []string      `json:"envFiles,omitempty"` // ARNs of S3 objects
	Registry *RegistryAuth `json:"registry,omitempty"` // nil: no credentials, or those of the settings
	// GPUs are the devices that the cluster gave to the container, by the ids that the
	// agent registered.
	GPUs []string `json:"gpus,omitempty"`

	HealthCheckType string     `json:"healthCheckType,omitempty"`
	LogsAuth        string     `json:"logsAuth,omitempty"` // "ExecutionRole": that role sends the log
	Router          *LogRouter `json:"router,omitempty"`   // set in the task's log router (FireLens)
	Restart         *Restart   `json:"restart,omitempty"`
	Config          Config     `json:"config"`
	HostConfig      HostConfig `json:"hostConfig"`
}

// Port is one requested port mapping. A HostPort of 0 asks for a dynamic port.
type Port struct {
	ContainerPort  uint16 `json:"containerPort,omitempty"`
	HostPort       uint16 `json:"hostPort,omitempty"`
	ContainerRange string `json:"containerPortRange,omitempty"` // "a-b", instead of ContainerPort
	Protocol       string `json:"protocol"`                     // tcp or udp
}

// Binding is a port mapping as it was made (agent protocol, networkBinding). A
// range that was mapped to one contiguous host range has the two range members.
type Binding struct {
	BindIP         string `json:"bindIP"`
	ContainerPort  uint16 `json:"containerPort,omitempty"`
	HostPort       uint16 `json:"hostPort,omitempty"`
	ContainerRange string `json:"containerPortRange,omitempty"`
	HostRange      string `json:"hostPortRange,omitempty"`
	Protocol       string `json:"protocol"`
}

// Mount places a volume of the task in a container.
type Mount struct {
	Volume   string `json:"volume"`
	Path     string `json:"path"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// VolumesFrom mounts everything that another container of the task mounts.
type VolumesFrom struct {
	Container string `json:"container"`
	ReadOnly  bool   `json:"readOnly,omitempty"`
}

// Dependency says what another container must have reached before this one goes on.
type Dependency struct {
	Container string    `json:"container"`
	Condition Condition `json:"condition"`
}

// Restart is a container's restart policy (agent protocol, "Restart policy of containers").
type Restart struct {
	IgnoredExitCodes []int         `json:"ignoredExitCodes,omitempty"`
	AttemptPeriod    time.Duration `json:"attemptPeriod"`
}

// Volume is a volume of the task. The members after Type belong to one type each.
type Volume struct {
	Name     string        `json:"name"`
	Type     string        `json:"type"`
	HostPath string        `json:"hostPath,omitempty"` // none: an empty directory of the task's own
	Docker   *DockerVolume `json:"docker,omitempty"`
	EFS      *EFSVolume    `json:"efs,omitempty"`
	Block    *BlockVolume  `json:"block,omitempty"`
}

// Types of volumes (agent protocol, "Volume").
const (
	VolumeHost   = "host"
	VolumeDocker = "docker"
	VolumeEFS    = "efs"
	// VolumeBlock is a block volume, which comes as an attachment of the task.
	VolumeBlock = "block"
)

// BlockVolume is a block volume that is attached for one task (agent protocol, "Volumes
// and EBS").
type BlockVolume struct {
	ID         string `json:"id"`                   // vol-…
	Size       int64  `json:"size,omitempty"`       // bytes
	FileSystem string `json:"fileSystem,omitempty"` // empty means the default
	Path       string `json:"path"`                 // sourceVolumeHostPath: the name that its group is made of
	// Pooled is set for a volume that the agent makes from a pool of its host. Delete has
	// it removed with its task.
	Pooled bool `json:"pooled,omitempty"`
	Delete bool `json:"delete,omitempty"`
	// Snapshot is the one in the pool whose content such a volume begins with.
	Snapshot string `json:"snapshot,omitempty"`
}

// EFSVolume is a network file system (ECS API model, EFSVolumeConfiguration).
type EFSVolume struct {
	FileSystemID string `json:"fileSystemId"`
	Root         string `json:"root,omitempty"`
	Encrypted    bool   `json:"encrypted,omitempty"` // in transit
	Port         int    `json:"port,omitempty"`      // of the host's side of the encryption; 0 means any
	AccessPoint  string `json:"accessPoint,omitempty"`
	IAM          bool   `json:"iam,omitempty"`
}

// DockerVolume is a volume made by a volume driver (ECS API model,
// DockerVolumeConfiguration).
type DockerVolume struct {
	Shared        bool              `json:"shared,omitempty"` // by tasks, and kept; else the task's own
	Autoprovision bool              `json:"autoprovision,omitempty"`
	Driver        string            `json:"driver"`
	Options       map[string]string `json:"options,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`
}

// OfTask reports whether the volume's data goes with the task.
func (v *Volume) OfTask() bool {
	return v.Type == VolumeHost && v.HostPath == "" || v.Type == VolumeDocker && v.Docker != nil && !v.Docker.Shared
}

// MountsOf lists what a container mounts: its own mounts, then those that it has from
// other containers where it has none at the same path (volumesFrom).
func (t *Task) MountsOf(container string) []Mount {
	return t.mountsOf(container, make(map[string]bool))
}

func (t *Task) mountsOf(container string, seen map[string]bool) []Mount {
	c := t.Container(container)
	if c == nil || seen[container] {
		return nil
	}
	seen[container] = true
	mounts := slices.Clone(c.Mounts)
	for _, from := range c.VolumesFrom {
		for _, m := range t.mountsOf(from.Container, seen) {
			m.ReadOnly = m.ReadOnly || from.ReadOnly
			at := path.Clean(m.Path)
			if !slices.ContainsFunc(mounts, func(have Mount) bool { return path.Clean(have.Path) == at }) {
				mounts = append(mounts, m)
			}
		}
	}
	seen[container] = false
	return mounts
}

// Config is what Berth acts on of the Docker Engine container config that the
// protocol carries as a JSON string (agent protocol, "Mapping a container to the
// runtime"). Keys are those of the Docker Engine API and are matched without case.
type Config struct {
	Hostname   string
	Domainname string
	User       string
	Env        []string `json:",omitempty"`
	Labels     map[string]string
	WorkingDir string
	StopSignal string
	Tty        bool
	OpenStdin  bool // the process's standard input stays open, and empty
	// NetworkDisabled leaves the container without any network but the loopback of its own.
	NetworkDisabled bool
	Healthcheck     *Healthcheck `json:",omitempty"`
}

// Healthcheck is the Docker Engine health check; durations are nanoseconds.
type Healthcheck struct {
	Test        []string
	Interval    time.Duration
	Timeout     time.Duration
	StartPeriod time.Duration
	// StartInterval replaces Interval during StartPeriod, until a check has succeeded.
	StartInterval time.Duration
	Retries       int
}

// Defaults of a health check that names no others (Docker Engine, health checks).
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
)

// Wait is the time between two checks; starting is whether none has succeeded and the
// start period is not over.
func (h *Healthcheck) Wait(starting bool) time.Duration {
	if starting {
		return cmp.Or(max(0, h.StartInterval), healthStartInterval)
	}
	return cmp.Or(max(0, h.Interval), healthInterval)
}

// Limit is how long one check may take.
func (h *Healthcheck) Limit() time.Duration { return cmp.Or(max(0, h.Timeout), healthTimeout) }

// Failures is how many failures in a row make a container unhealthy.
func (h *Healthcheck) Failures() int { return cmp.Or(max(0, h.Retries), healthRetries) }

// Args is the command line of a check; nil where none is to be run.
func (h *Healthcheck) Args() []string {
	if len(h.Test) < 2 {
		return nil
	}
	switch h.Test[0] {
	case "CMD":
		return h.Test[1:]
	case "CMD-SHELL":
		return []string{"/bin/sh", "-c", h.Test[1]}
	default: // NONE, and what Docker does not know either
		return nil
	}
}

// HostConfig is what Berth acts on of the Docker Engine host config that the
// protocol carries as a JSON string. Keys are those of the Docker Engine API.
// Memory values are bytes.
type HostConfig struct {
	NetworkMode       string
	PidMode           string // "" and "private" are the task's pidMode, "host" the host's
	IpcMode           string // likewise, and "none" or "shareable"
	UTSMode           string // "" is a name of the container's own, "host" the host's
	CgroupnsMode      string // "private", "host" or "", which is what suits the host
	Runtime           string `json:",omitempty"` // a runtime that the agent knows; "" is the default
	Privileged        bool
	ReadonlyRootfs    bool
	CapAdd            []string        `json:",omitempty"`
	CapDrop           []string        `json:",omitempty"`
	GroupAdd          []string        `json:",omitempty"` // supplementary groups, by number or name of the image
	Devices           []Device        `json:",omitempty"`
	DeviceRequests    []DeviceRequest `json:",omitempty"`
	Ulimits           []Ulimit        `json:",omitempty"`
	Sysctls           map[string]string
	DNS               []string `json:"Dns,omitempty"`
	DNSSearch         []string `json:"DnsSearch,omitempty"`
	DNSOptions        []string `json:"DnsOptions,omitempty"`
	ExtraHosts        []string `json:",omitempty"`
	SecurityOpt       []string `json:",omitempty"`
	Memory            int64
	MemoryReservation int64
	MemorySwap        int64  // memory and swap together; 0 is twice the memory, -1 no limit
	MemorySwappiness  *int64 `json:",omitempty"` // 0 to 100; cgroup version 1 only
	OomKillDisable    bool   // cgroup version 1 only
	OomScoreAdj       int
	PidsLimit         int64
	CPUShares         int64  `json:"CpuShares"`
	CPUPeriod         int64  `json:"CpuPeriod"` // microseconds
	CPUQuota          int64  `json:"CpuQuota"`  // microseconds of each period
	NanoCPUs          int64  `json:"NanoCpus"`  // CPUs in units of 1e-9, instead of quota and period
	CpusetCpus        string `json:",omitempty"`
	CpusetMems        string `json:",omitempty"`
	BlkioWeight       uint16 // 10 to 1000; 0 is the host's default
	Init              *bool  `json:",omitempty"`
	ShmSize           int64
	Tmpfs             map[string]string
	LogConfig         LogConfig
}

// Device is one device of the host that a container may use.
type Device struct {
	PathOnHost        string
	PathInContainer   string // "" is the path on the host
	CgroupPermissions string // of the letters r, w and m; "" is all of them
}

// DeviceRequest asks for devices by the name of their driver.
type DeviceRequest struct {
	Driver       string
	Count        int // -1 is all of them
	DeviceIDs    []string
	Capabilities [][]string
}

// Ulimit is one resource limit of the container's processes.
type Ulimit struct {
	Name string
	Soft int64
	Hard int64
}

// LogRouter makes a container the log router of its task.
type LogRouter struct {
	Type    string            `json:"type"` // fluentd or fluentbit
	Options map[string]string `json:"options,omitempty"`
}

// LogRouter returns the container that is the task's log router, or nil.
func (t *Task) LogRouter() *Container {
	for i := range t.Containers {
		if t.Containers[i].Router != nil {
			return &t.Containers[i]
		}
	}
	return nil
}

// LogConfig chooses the log driver of a container.
type LogConfig struct {
	Type   string
	Config map[string]string
}
