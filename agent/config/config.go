// Package config holds the settings of the agent. One table (settings.go) says for
// each setting its name, its key in the JSON file, its kind, default and bounds, and
// whether this build acts on it; parsing, validation and docs/settings.md all come
// from that table. The names and rules are those of the agent protocol,
// "Configuration"; Berth's own settings begin with BERTH_.
package config

import (
	"net/netip"
	"time"

	"berth.dev/berth/agent/task"
)

// Config is every setting of the agent, grouped by what it concerns.
type Config struct {
	Cluster  Cluster
	Host     Host
	Engine   Engine
	Images   Images
	Network  Network
	Logging  Logging
	Roles    Roles
	Metadata Metadata
	Features Features
	Updates  Updates
	Berth    Berth

	// Warnings say which values were ignored, raised or lowered, and which names no
	// setting has.
	Warnings []string

	origin map[string]string // setting name or key -> where its value came from
}

// Cluster says which cluster the agent belongs to and how it is reached.
type Cluster struct {
	Name              string // name or ARN; empty means "default", made if it is not there
	BackendHost       string // ECS endpoint; a scheme may be given, https is assumed
	Region            string
	External          bool // no instance metadata service is asked for anything
	AccessKeyID       string
	SecretAccessKey   task.Secret
	SessionToken      task.Secret
	Profile           string // profile in the agent's key file
	Attributes        map[string]string
	Tags              map[string]string
	PropagateTagsFrom string // none or ec2_instance
	NoIID             bool   // do not fetch the instance identity document
	SpotDraining      bool
	WarmPools         bool
	HTTPProxy         string
	HTTPSProxy        string
	NoProxy           string
}

// Host says what of this machine belongs to tasks.
type Host struct {
	ReservedPorts    []uint16
	ReservedPortsUDP []uint16
	ReservedMemory   int64 // MiB withheld from tasks
	DataDir          string
	DataDirOnHost    string
	Checkpoint       bool
	DockerHost       string
	CgroupPath       string
	CgroupCPUPeriod  time.Duration
	TaskLimits       bool
	TaskPidsLimit    int64 // 0 means none
	PropagateMemory  bool
	OSFamily         string // detailed OS family, such as debian_12
	IPCompatibility  string // ipv4, ipv6, or empty for what the host's routes say
}

// Engine says how long things may take and when they are forgotten.
type Engine struct {
	StopTimeout       time.Duration
	StartTimeout      time.Duration
	CreateTimeout     time.Duration
	CleanupWait       time.Duration
	CleanupWaitJitter time.Duration
	PauseLabels       map[string]string
}

// Images says how images are fetched and removed.
type Images struct {
	AuthType          string
	AuthData          task.Secret
	ManifestTimeout   time.Duration
	InactivityTimeout time.Duration
	PullTimeout       time.Duration
	PullBehavior      string // default, always, once or prefer-cached
	PullUpfront       bool
	CleanupDisabled   bool
	CleanupInterval   time.Duration
	MinimumAge        time.Duration
	ForeignMinimumAge time.Duration
	DeletePerCycle    int64
	ForeignPerCycle   int64
	CleanForeign      bool
	Keep              []string
	PauseTarball      string
	PauseName         string
	PauseTag          string
}

// Network says how tasks are connected.
type Network struct {
	TaskENI             bool
	Trunking            bool
	CNIPluginsPath      string
	BlockIMDS           bool
	LocalRoutes         []string
	LocalIPv4           string
	ExcludeIPv6Bindings bool
	DynamicPorts        PortRange // zero means the kernel's local port range
	CNILogLevel         string
	VPCCNILogLevel      string
	VPCCNILogFile       string
	PauseCleanupDelay   int64 // seconds
}

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last uint16 }

// Logging says what tasks may log with and how the agent logs.
type Logging struct {
	Drivers         []string
	AwslogsRole     bool
	FirelensAsync   bool
	Level           string
	LevelOnInstance string
	File            string
	Driver          string
	Rollover        string
	Format          string
	MaxFileSizeMB   string
	MaxRollCount    int64
	AuditFile       string
	AuditDisabled   bool
}

// Roles says which tasks may have roles.
type Roles struct {
	TaskRole       bool
	TaskRoleHost   bool
	IMDSRoles      bool
	NoPrivileged   bool
	SELinux        bool
	AppArmor       bool
	GMSA           bool
	GMSAHostDir    string
	GMSASecretName string
	DomainJoined   bool
}

// Metadata says what tasks can ask about themselves, and what is measured.
type Metadata struct {
	ContainerFile    bool
	Rates            Rates
	AZDisabled       bool
	MetricsDisabled  bool
	PollMetrics      bool
	PollInterval     time.Duration
	HealthDisabled   bool
	RuntimeStats     bool
	RuntimeStatsFile string
	Prometheus       bool
	OTLPEndpoint     string
	OffhostInterface string
	HealthcheckHost  string
}

// Rates limits requests for task metadata, in requests a second.
type Rates struct{ Steady, Burst int64 }

// Features switches kinds of hardware and volumes on.
type Features struct {
	GPU             bool
	NvidiaRuntime   string
	Inferentia      bool
	EBS             bool
	FSx             bool
	VolumePlugin    []string
	SharedStrict    bool // compare options and labels of shared volumes
	CPUUnbounded    bool // Windows only
	MemoryUnbounded bool // Windows only
	CSISocket       string
	NodeStage       time.Duration
	NodeUnstage     time.Duration
}

// Updates says whether the cluster may update the agent.
type Updates struct {
	Enabled     bool
	DownloadDir string
}

// Berth is what only this agent has.
type Berth struct {
	Containerd       string // socket; empty means: find one
	Namespace        string // containerd namespace
	StateDir         string
	RunDir           string
	LogDir           string
	LogFileSize      int64 // bytes
	LogFiles         int64
	LogNoneDropped   bool
	LoggerPath       string
	StartConcurrency int64 // 0 means a number fitting the CPUs
	KeyFile          string
	KeyRotation      time.Duration // 0 means never
	CAFile           string
	IMDSEndpoint     string        // empty means the link-local address
	HostIMDS         bool          // for tasks in the host's network
	DrainAtShutdown  time.Duration // 0 means that a shutdown does not drain
	DebugSocket      string
	Bridge           string // interface of bridge mode; empty means the plugin's default
	BridgeSubnet     netip.Prefix
	BridgeSubnet6    netip.Prefix
	CNIConfigDir     string
	ENIPool          string // none, bridge, bridge:UPLINK or macvlan:UPLINK
	VolumePool       string // none, loop or loop:DIRECTORY
	Cgroup           string // name of the parent cgroup of all tasks; empty means the protocol's
	Snapshotter      string
	OCIRuntime       string
	RegistryHosts    string // directory
	ImageDiskPercent int64
	VerifierDir      string
	VerifierTimeout  time.Duration
	InitPath         string
	VolumeDir        string
	VolumePath       string // of berth-volume
	VolumeDrivers    string // directory
	HostPathsAllowed []string
	EFSTargets       map[string]string
	EFSCAFile        string
	PausePath        string
	SeccompDir       string
	CDIDirs          []string
	GPUKind          string   // VENDOR/CLASS
	NvidiaSMI        string   // program, or off
	Runtimes         []string // NAME=SHIM or NAME=/PATH
}

// Source says where the value of a setting came from: "default", "environment", or
// the path of a file. Names that are no setting give "".
func (c *Config) Source(name string) string { return c.origin[name] }

// Explicit reports whether somebody chose the value of the setting.
func (c *Config) Explicit(name string) bool {
	s := c.origin[name]
	return s != "" && s != fromDefault
}
