package api

import (
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// capabilityValues are the Linux capabilities that a definition may name (ECS API model,
// KernelCapabilities; those after WAKE_ALARM came with Linux 5.8 and 5.9).
var capabilityValues = []string{
	"ALL", "AUDIT_CONTROL", "AUDIT_WRITE", "BLOCK_SUSPEND", "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER",
	"FSETID", "IPC_LOCK", "IPC_OWNER", "KILL", "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "MKNOD",
	"NET_ADMIN", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_ADMIN",
	"SYS_BOOT", "SYS_CHROOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO", "SYS_RESOURCE",
	"SYS_TIME", "SYS_TTY_CONFIG", "SYSLOG", "WAKE_ALARM", "AUDIT_READ", "BPF", "CHECKPOINT_RESTORE", "PERFMON",
}

// tmpfsValues are the mount options of a tmpfs (ECS API model, Tmpfs), without the ones
// that would make another mount of it.
var tmpfsValues = []string{
	"defaults", "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "dirsync", "mand", "nomand",
	"atime", "noatime", "diratime", "nodiratime", "unbindable", "runbindable", "private", "rprivate", "shared", "rshared",
	"slave", "rslave", "relatime", "norelatime", "strictatime", "nostrictatime", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol",
}

// runtimeRule is the form of a runtime's name in the label that chooses it.
var runtimeRule = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,62}$`)

// checkSecurity refuses what no host could carry out.
func checkSecurity(_ *types.TaskDefinition, c *types.ContainerDefinition) error {
	for _, o := range c.DockerSecurityOptions {
		kind, value, valued := strings.Cut(strings.Replace(o, "=", ":", 1), ":")
		known := slices.Contains([]string{"seccomp", "apparmor", "label", "credentialspec", "credentialspecdomainless"}, kind)
		if kind == "no-new-privileges" && (!valued || value == "true" || value == "false") || known && value != "" {
			continue
		}
		return clientException("The security option '%s' of container '%s' is invalid. Use no-new-privileges, seccomp:PROFILE, apparmor:PROFILE, label:VALUE or credentialspec:FILE.", clip(o), *c.Name)
	}
	if list, ok := c.DockerLabels[networksLabel]; ok {
		for name := range strings.SplitSeq(list, ",") {
			if !networkRule.MatchString(strings.TrimSpace(name)) {
				return clientException("The label %s of container '%s' must be names of networks with commas between them, such as lan,storage.", networksLabel, *c.Name)
			}
		}
	}
	if name, ok := c.DockerLabels[runtimeLabel]; ok && !runtimeRule.MatchString(name) {
		return clientException("The label %s of container '%s' must be the name of a runtime, such as crun.", runtimeLabel, *c.Name)
	}
	l := c.LinuxParameters
	if l == nil {
		return nil
	}
	if k := l.Capabilities; k != nil {
		for _, name := range slices.Concat(k.Add, k.Drop) {
			if !slices.Contains(capabilityValues, strings.TrimPrefix(strings.ToUpper(name), "CAP_")) {
				return clientException("The capability '%s' of container '%s' does not exist.", clip(name), *c.Name)
			}
		}
	}
	for _, t := range l.Tmpfs {
		for _, o := range t.MountOptions {
			if name, _, _ := strings.Cut(o, "="); !slices.Contains(tmpfsValues, name) {
				return clientException("The mount option '%s' of the tmpfs %s of container '%s' is not supported.", clip(o), clip(aws.ToString(t.ContainerPath)), *c.Name)
			}
		}
	}
	for _, dev := range l.Devices {
		for _, at := range []*string{dev.HostPath, dev.ContainerPath} {
			if at != nil && !strings.HasPrefix(*at, "/") {
				return clientException("The device path '%s' of container '%s' is not absolute.", clip(*at), *c.Name)
			}
		}
	}
	return nil
}
