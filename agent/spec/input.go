package spec

import (
	"berth.dev/berth/agent/task"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Input is everything that a container's specification depends on.
type Input struct {
	Task      *task.Task
	Container *task.Container
	Image     Image
	User      User
	Network   Network
	Volumes   map[string]Volume // by name
	Host      Host
	Endpoint  Endpoint
	Given     task.Given // what the definition only refers to

	// Shared are the namespaces that the containers of a task share (pidMode and ipcMode
	// task); empty where they share none.
	Shared Shared
	// Devices are those of hostConfig, in the same order, as they are on the host.
	Devices []Device
	// Seccomp is the profile that dockerSecurityOptions name, for a container that names one.
	Seccomp *specs.LinuxSeccomp
	// SELinux are the labels on a host where they are set; empty elsewhere.
	SELinux SELinux

	// CgroupsPath is the container's cgroup below the root of each hierarchy.
	CgroupsPath string
	// Region is put into AWS_REGION and AWS_DEFAULT_REGION of containers that set
	// neither themselves (agent protocol, "Environment precedence"); "" leaves them out.
	Region string
}

// Image is what a specification takes from the image's configuration.
type Image struct {
	Env        []string
	Entrypoint []string
	Cmd        []string
	WorkingDir string
	User       string
	StopSignal string
	Labels     map[string]string
}

// Volume is a volume of the task as it is on the host.
type Volume struct {
	Path string // of the directory or file
	// What the volume itself is limited to; a mount point may say read-only, too.
	ReadOnly, NoExec bool
}

// User is the container's user as the image's own files resolve it.
type User struct {
	UID, GID       uint32
	AdditionalGIDs []uint32
}

// Endpoint is what a container needs to find its metadata endpoint.
type Endpoint struct {
	Environment map[string]string // stands before everything else (agent protocol, "Environment precedence")
	Mounts      []EndpointMount
}

// EndpointMount is a file or directory of the host that the container may read, or write
// as well.
type EndpointMount struct {
	Source, Destination string
	Writable            bool
}

// Network is the container's network namespace and the files that go with it.
type Network struct {
	Namespace string // path; "" means the host's
	Hostname  string
	// Files to mount over /etc/hosts, /etc/resolv.conf and /etc/hostname; "" leaves
	// the image's own.
	Hosts, Resolv, HostnameFile string
	// ReadOnly mounts them so that the container cannot change them: they are the host's own.
	ReadOnly bool
}

// Shared are the namespaces of a task, by path, and the directory of its shared memory.
type Shared struct{ PID, IPC, Shm string }

// Device is a device of the host, or all devices of a directory, for one container.
type Device struct {
	Nodes  []specs.LinuxDevice // with their paths in the container
	Access string              // of the letters r, w and m
}

// SELinux are the labels of a container's processes and of its files.
type SELinux struct{ Process, Mount string }

// Host is what a specification has to know of the host.
type Host struct {
	Arch         string              // Go architecture name
	CgroupV2     bool                // the unified hierarchy is the only one
	SwapLimit    bool                // the kernel accounts swap per cgroup
	Capabilities []string            // all that a privileged container can get
	Devices      []specs.LinuxDevice // of the host, for a privileged container
	CPUs, Mems   string              // processors and memory nodes that there are, as "0-3,8"; "" is not known
	// Rlimits are the hard limits that can be given, by type ("RLIMIT_NOFILE"), on a host
	// that withholds CAP_SYS_RESOURCE; nil elsewhere.
	Rlimits     map[string]uint64
	HasAppArmor bool
	AppArmor    string // profile for containers that ask for none; "" is unconfined
	HasSELinux  bool
	Init        string // path of a static init program; "" means there is none
	Hold        string // path of berth-pause, which keeps a standard input open; "" means there is none
	PidsLimit   int64  // for containers that set none; 0 means no limit
	// NoX32 says that the kernel lacks the x32 ABI of amd64, as nearly all do. Its
	// system calls then need no rules, which saves a third of the time that a runtime
	// takes to compile the seccomp profile (12 ms of CPU with runc 1.1).
	NoX32 bool
}

// capabilitiesDefault are the capabilities of a container that asks for nothing else
// (the 14 of Docker and containerd).
var capabilitiesDefault = []string{
	"CAP_CHOWN",
	"CAP_DAC_OVERRIDE",
	"CAP_FSETID",
	"CAP_FOWNER",
	"CAP_MKNOD",
	"CAP_NET_RAW",
	"CAP_SETGID",
	"CAP_SETUID",
	"CAP_SETFCAP",
	"CAP_SETPCAP",
	"CAP_NET_BIND_SERVICE",
	"CAP_SYS_CHROOT",
	"CAP_KILL",
	"CAP_AUDIT_WRITE",
}

// capabilitiesAll are the capabilities that Linux 6 knows (capabilities(7)).
var capabilitiesAll = append([]string{
	"CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_BLOCK_SUSPEND", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE", "CAP_DAC_READ_SEARCH", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_LEASE", "CAP_LINUX_IMMUTABLE", "CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE",
	"CAP_NET_ADMIN", "CAP_NET_BROADCAST", "CAP_PERFMON", "CAP_SYSLOG", "CAP_SYS_ADMIN",
	"CAP_SYS_BOOT", "CAP_SYS_MODULE", "CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE",
	"CAP_SYS_RAWIO", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG",
	"CAP_WAKE_ALARM",
}, capabilitiesDefault...)

// maskedPaths are unreadable in an unprivileged container.
var maskedPaths = []string{
	"/proc/acpi",
	"/proc/asound",
	"/proc/interrupts",
	"/proc/kcore",
	"/proc/keys",
	"/proc/latency_stats",
	"/proc/timer_list",
	"/proc/timer_stats",
	"/proc/sched_debug",
	"/proc/scsi",
	"/sys/firmware",
	"/sys/devices/virtual/powercap",
}

// readonlyPaths are read-only in an unprivileged container.
var readonlyPaths = []string{
	"/proc/bus",
	"/proc/fs",
	"/proc/irq",
	"/proc/sys",
	"/proc/sysrq-trigger",
}
