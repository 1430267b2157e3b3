package spec

import (
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

// Where programs of the host are mounted in a container that asks for what they do: an
// init process, and a standard input that stays open.
const (
	initPath = "/dev/init"
	holdPath = "/dev/berth-pause"
)

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
	caps, err := Capabilities(in)
	if err != nil {
		return nil, err
	}
	limits, err := rlimits(in)
	if err != nil {
		return nil, err
	}
	sec, err := parseSecurity(in, caps)
	if err != nil {
		return nil, err
	}
	mounts, err := mounts(in)
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
	score, err := oomScore(in)
	if err != nil {
		return nil, err
	}
	devices, rules, err := devices(in)
	if err != nil {
		return nil, err
	}
	resources.Devices = append(resources.Devices, rules...)
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
			SelinuxLabel:    in.SELinux.Process,
			OOMScoreAdj:     score,
		},
		Linux: &specs.Linux{
			CgroupsPath:   in.CgroupsPath,
			Resources:     resources,
			Namespaces:    namespaces,
			Sysctl:        sysctls,
			Seccomp:       sec.seccomp,
			MaskedPaths:   sec.masked,
			ReadonlyPaths: sec.readonly,
			MountLabel:    in.SELinux.Mount,
			Devices:       devices,
		},
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
	if holdsInput(in) {
		if in.Host.Hold == "" {
			return nil, invalid("interactive: the program berth-pause, which keeps the standard input open, is not installed on this host: install it beside berth-agent, or set BERTH_PAUSE_PATH")
		}
		args = append([]string{holdPath, "stdin"}, args...)
	}
	if wantsInit(in) {
		if in.Host.Init == "" {
			return nil, invalid("initProcessEnabled: this host has no static init program: install the package tini, or set BERTH_INIT_PATH")
		}
		own := []string{initPath, "--"}
		if pidMode(in) != "" {
			// It is not process 1 there, and has to ask for the orphans.
			own = []string{initPath, "-s", "--"}
		}
		args = append(own, args...)
	}
	return args, nil
}

func wantsInit(in Input) bool { i := in.Container.HostConfig.Init; return i != nil && *i }

// holdsInput reports whether the standard input has to be held open by a program. A
// terminal does it by itself.
func holdsInput(in Input) bool { return in.Container.Config.OpenStdin && !in.Container.Config.Tty }

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
	if in.Container.HostConfig.UTSMode == modeHost {
		return "" // a runtime must not set the host's
	}
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
