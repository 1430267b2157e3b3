package spec

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"berth.dev/berth/agent/task"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// version is the specification version that every runtime in use knows; crun before
// 1.9 refuses newer ones.
const version = "1.0.2"

// Limits of CPU shares (kernel docs, cgroup-v1/cpu; agent protocol, "Base host configuration").
const (
	minShares = 2
	maxShares = 262144
)

// minMemory is the smallest memory limit in bytes (agent protocol, "Base host
// configuration"); smaller ones are raised to it.
const minMemory = 4 << 20

// defaultShm is the size of /dev/shm in bytes where none is asked for, as in Docker.
const defaultShm = 64 << 20

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// initPath is where the init program is mounted in a container that asks for one.
const initPath = "/dev/init"

// Build translates. Errors name the field of the container definition that is wrong.
func Build(in Input) (*specs.Spec, error) {
	c, hc := in.Container, &in.Container.HostConfig
	args, err := command(in)
	if err != nil {
		return nil, err
	}
	cwd, err := workdir(in)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(in)
	if err != nil {
		return nil, err
	}
	limits, err := rlimits(hc.Ulimits)
	if err != nil {
		return nil, err
	}
	sec, err := parseSecurity(in, caps)
	if err != nil {
		return nil, err
	}
	mounts, err := mounts(in, sec)
	if err != nil {
		return nil, err
	}
	sysctls, err := sysctls(in)
	if err != nil {
		return nil, err
	}
	resources, err := resources(in)
	if err != nil {
		return nil, err
	}
	namespaces, err := namespaces(in)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version:  version,
		Root:     &specs.Root{Path: "rootfs", Readonly: hc.ReadonlyRootfs},
		Hostname: hostname(in),
		Mounts:   mounts,
		Process: &specs.Process{
			Terminal: c.Config.Tty,
			Args:     args,
			Env:      environment(in),
			Cwd:      cwd,
			User: specs.User{
				UID: in.User.UID, GID: in.User.GID, AdditionalGids: in.User.AdditionalGIDs,
			},
			Capabilities: &specs.LinuxCapabilities{
				Bounding: caps, Effective: caps, Permitted: caps,
			},
			Rlimits:         limits,
			NoNewPrivileges: sec.noNewPrivileges,
			ApparmorProfile: sec.appArmor,
		},
		Linux: &specs.Linux{
			CgroupsPath:   in.CgroupsPath,
			Resources:     resources,
			Namespaces:    namespaces,
			Sysctl:        sysctls,
			Seccomp:       sec.seccomp,
			MaskedPaths:   sec.masked,
			ReadonlyPaths: sec.readonly,
		},
	}
	if hc.Privileged {
		s.Linux.Devices = in.Host.Devices
	}
	return s, nil
}

func invalid(format string, args ...any) error {
	return task.Failf(task.Invalid, task.CannotCreateContainer, format, args...)
}

// command joins entry point and command as Docker does: an entry point of the
// definition, even an empty one, replaces the image's, and one that is not empty also
// drops the image's command (agent protocol, "Base configuration").
func command(in Input) ([]string, error) {
	entry, cmd := in.Image.Entrypoint, in.Container.Command
	replaced := false
	if e := in.Container.EntryPoint; e != nil {
		entry, replaced = *e, len(*e) > 0
	}
	if len(cmd) == 0 && !replaced {
		cmd = in.Image.Cmd
	}
	args := slices.Concat(entry, cmd)
	if len(args) == 0 || args[0] == "" {
		return nil, invalid("no command specified: set command or entryPoint, or use an image that has one")
	}
	if i := in.Container.HostConfig.Init; i != nil && *i {
		if in.Host.Init == "" {
			return nil, invalid("initProcessEnabled: this agent has no init program configured")
		}
		args = append([]string{initPath, "--"}, args...)
	}
	return args, nil
}

func workdir(in Input) (string, error) {
	dir := in.Container.Config.WorkingDir
	if dir == "" {
		dir = in.Image.WorkingDir
	}
	dir = path.Join("/", dir)
	if err := CheckWorkdir(dir); err != nil {
		return "", err
	}
	return dir, nil
}

// CheckWorkdir refuses working directories in the process and kernel file systems,
// which have been a way out of a container. The caller passes what it resolved
// symbolic links to.
func CheckWorkdir(dir string) error {
	for _, bad := range []string{"/proc", "/sys", "/dev/fd"} {
		if dir == bad || strings.HasPrefix(dir, bad+"/") {
			return invalid("workingDirectory: %s is not allowed", dir)
		}
	}
	if strings.ContainsRune(dir, 0) {
		return invalid("workingDirectory: contains a zero byte")
	}
	return nil
}

func hostname(in Input) string {
	if h := in.Container.Config.Hostname; h != "" {
		return h
	}
	return in.Network.Hostname
}

// environment gives each key once: a secret's value, else the container's own, else that
// of an environment file, else the image's, else the default (agent protocol,
// "Environment precedence").
func environment(in Input) []string {
	c := in.Container
	var env []string
	seen := map[string]bool{}
	add := func(kv string) {
		k, _, ok := strings.Cut(kv, "=")
		if !ok || k == "" || seen[k] || strings.ContainsRune(kv, 0) {
			return
		}
		seen[k] = true
		env = append(env, kv)
	}
	for _, k := range slices.Sorted(mapKeys(in.Endpoint.Environment)) {
		add(k + "=" + in.Endpoint.Environment[k])
	}
	if n := len(env); c.Config.Env != nil {
		// A present list replaces the environment; its last value of a key wins.
		for _, kv := range slices.Backward(c.Config.Env) {
			add(kv)
		}
		slices.Reverse(env[n:])
	} else {
		for _, k := range slices.Sorted(mapKeys(in.Given.Environment)) {
			add(k + "=" + in.Given.Environment[k].Reveal())
		}
		for _, k := range slices.Sorted(mapKeys(c.Environment)) {
			add(k + "=" + c.Environment[k])
		}
		for _, k := range slices.Sorted(mapKeys(in.Given.Defaults)) {
			add(k + "=" + in.Given.Defaults[k].Reveal())
		}
	}
	for _, kv := range in.Image.Env {
		add(kv)
	}
	if in.Region != "" && !seen["AWS_REGION"] && !seen["AWS_DEFAULT_REGION"] {
		add("AWS_REGION=" + in.Region)
		add("AWS_DEFAULT_REGION=" + in.Region)
	}
	add(defaultPath)
	if h := hostname(in); h != "" {
		add("HOSTNAME=" + h)
	}
	if c.Config.Tty {
		add("TERM=xterm")
	}
	return env
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func namespaces(in Input) ([]specs.LinuxNamespace, error) {
	ns := []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.UTSNamespace}}
	if in.Network.Namespace != "" {
		ns = append(ns, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: in.Network.Namespace})
	}
	switch in.Task.PidMode {
	case "":
		ns = append(ns, specs.LinuxNamespace{Type: specs.PIDNamespace})
	case "host":
	default:
		return nil, invalid("pidMode: %q is not supported", in.Task.PidMode)
	}
	switch in.Task.IpcMode {
	case "", "none":
		ns = append(ns, specs.LinuxNamespace{Type: specs.IPCNamespace})
	case "host":
	default:
		return nil, invalid("ipcMode: %q is not supported", in.Task.IpcMode)
	}
	if in.Host.CgroupV2 && !in.Container.HostConfig.Privileged {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return ns, nil
}

// errEmpty is the cause where a required part of a setting is missing.
var errEmpty = errors.New("is empty")

func mounts(in Input, sec security) ([]specs.Mount, error) {
	hc := &in.Container.HostConfig
	sysMode := "ro"
	if hc.Privileged {
		sysMode = "rw"
	}
	shm := int64(defaultShm)
	if hc.ShmSize > 0 {
		shm = hc.ShmSize
	}
	ms := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", sysMode}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", sysMode}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	}
	switch in.Task.IpcMode {
	case "host":
		ms = append(ms, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"rbind", "nosuid", "noexec", "nodev"}})
	case "none":
	default:
		ms = append(ms, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
			Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shm)}})
	}
	for _, f := range [][2]string{
		{in.Network.Hosts, "/etc/hosts"}, {in.Network.Resolv, "/etc/resolv.conf"}, {in.Network.HostnameFile, "/etc/hostname"},
	} {
		if f[0] != "" {
			opts := []string{"rbind", "rprivate"}
			if hc.ReadonlyRootfs || in.Network.ReadOnly {
				opts = append(opts, "ro")
			}
			ms = append(ms, specs.Mount{Destination: f[1], Type: "bind", Source: f[0], Options: opts})
		}
	}
	for _, dst := range slices.Sorted(mapKeys(hc.Tmpfs)) {
		at, err := mountPath("tmpfs", dst)
		if err != nil {
			return nil, err
		}
		opts := []string{"noexec", "nosuid", "nodev"}
		for o := range strings.SplitSeq(hc.Tmpfs[dst], ",") {
			if o = strings.TrimSpace(o); o != "" {
				opts = append(opts, o)
			}
		}
		ms = append(ms, specs.Mount{Destination: at, Type: "tmpfs", Source: "tmpfs", Options: opts})
	}
	vs, err := volumes(in)
	if err != nil {
		return nil, err
	}
	ms = append(ms, vs...)
	for _, m := range in.Endpoint.Mounts {
		may := "ro"
		if m.Writable {
			may = "rw"
		}
		ms = append(ms, specs.Mount{Destination: m.Destination, Type: "bind", Source: m.Source, Options: []string{"rbind", "rprivate", "nosuid", "nodev", "noexec", may}})
	}
	for _, m := range in.Given.Mounts {
		at, err := mountPath("secret files", m.Path)
		if err != nil {
			return nil, err
		}
		ms = append(ms, specs.Mount{Destination: at, Type: "bind", Source: m.Source, Options: []string{"rbind", "rprivate", "nosuid", "nodev", "noexec", "ro"}})
	}
	if in.Container.HostConfig.Init != nil && *in.Container.HostConfig.Init {
		ms = append(ms, specs.Mount{Destination: initPath, Type: "bind", Source: in.Host.Init, Options: []string{"rbind", "ro", "rprivate"}})
	}
	return ms, nil
}

func volumes(in Input) ([]specs.Mount, error) {
	var ms []specs.Mount
	for _, m := range in.Task.MountsOf(in.Container.Name) {
		at, err := mountPath("mountPoints", m.Path)
		if err != nil {
			return nil, err
		}
		v, ok := in.Volumes[m.Volume]
		if !ok {
			return nil, invalid("mountPoints: volume %q of %s is not available on this host", m.Volume, m.Path)
		}
		opts := []string{"rbind", "rprivate", "nosuid", "nodev"}
		if v.NoExec {
			opts = append(opts, "noexec")
		}
		if m.ReadOnly || v.ReadOnly {
			opts = append(opts, "ro", "rro") // what is mounted below it, too
		}
		ms = append(ms, specs.Mount{Destination: at, Type: "bind", Source: v.Path, Options: opts})
	}
	return ms, nil
}

// mountPath checks where in the container something is to be mounted.
func mountPath(field, p string) (string, error) {
	clean := path.Clean(p)
	switch {
	case p == "":
		return "", invalid("%s: the path %w", field, errEmpty)
	case !path.IsAbs(p), strings.ContainsRune(p, 0):
		return "", invalid("%s: %q is not an absolute path", field, p)
	case clean == "/", clean == "/proc", strings.HasPrefix(clean, "/proc/"),
		clean == "/sys", strings.HasPrefix(clean, "/sys/"), clean == "/dev":
		return "", invalid("%s: nothing can be mounted at %s", field, clean)
	}
	return clean, nil
}
