package spec

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"berth.dev/berth/agent/task"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func resources(in Input) (*specs.LinuxResources, error) {
	c, hc := in.Container, &in.Container.HostConfig
	shares := c.CPU
	if hc.CPUShares != 0 {
		shares = hc.CPUShares
	}
	clamped := uint64(min(max(shares, minShares), maxShares))
	r := &specs.LinuxResources{
		CPU: &specs.LinuxCPU{Shares: &clamped},
		// What a container may use of the devices it has by default is added by the runtime.
		Devices: []specs.LinuxDeviceCgroup{{Allow: hc.Privileged, Access: "rwm"}},
	}
	mem, err := memory(in)
	if err != nil {
		return nil, err
	}
	r.Memory = mem
	pids := hc.PidsLimit
	if pids == 0 {
		pids = in.Host.PidsLimit
	}
	if pids > 0 {
		r.Pids = &specs.LinuxPids{Limit: &pids}
	}
	return r, nil
}

// memory is nil when nothing is limited. Swap follows Docker: twice the memory where
// the definition says nothing.
func memory(in Input) (*specs.LinuxMemory, error) {
	hc := &in.Container.HostConfig
	limit := hc.Memory
	if limit == 0 {
		if in.Container.Memory > math.MaxInt64>>20 {
			return nil, invalid("memory: %d MiB is too much", in.Container.Memory)
		}
		limit = in.Container.Memory << 20
	}
	if limit < 0 || hc.MemoryReservation < 0 {
		return nil, invalid("memory: negative limit")
	}
	if limit == 0 && hc.MemoryReservation == 0 {
		return nil, nil
	}
	m := &specs.LinuxMemory{}
	if hc.MemoryReservation > 0 {
		reservation := hc.MemoryReservation
		m.Reservation = &reservation
	}
	if limit == 0 {
		return m, nil
	}
	limit = max(limit, minMemory)
	m.Limit = &limit
	if m.Reservation != nil && *m.Reservation > limit {
		return nil, invalid("memoryReservation: %d bytes is more than the memory limit of %d bytes", *m.Reservation, limit)
	}
	if !in.Host.SwapLimit {
		return m, nil
	}
	swap := hc.MemorySwap
	switch {
	case swap == 0 && limit <= math.MaxInt64/2:
		swap = 2 * limit
	case swap == 0 || swap < 0:
		swap = -1
	case swap < limit:
		return nil, invalid("maxSwap: memory with swap, %d bytes, is less than the memory limit of %d bytes", swap, limit)
	}
	m.Swap = &swap
	return m, nil
}

// rlimitNames are the limits that setrlimit(2) knows.
var rlimitNames = []string{
	"AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE",
	"NPROC", "RSS", "RTPRIO", "RTTIME", "SIGPENDING", "STACK",
}

func rlimits(us []task.Ulimit) ([]specs.POSIXRlimit, error) {
	var out []specs.POSIXRlimit
	for _, u := range us {
		name := strings.TrimPrefix(strings.ToUpper(u.Name), "RLIMIT_")
		if !slices.Contains(rlimitNames, name) {
			return nil, invalid("ulimits: unknown name %q", u.Name)
		}
		soft, hard := rlimit(u.Soft), rlimit(u.Hard)
		if soft > hard {
			return nil, invalid("ulimits: the soft limit of %s, %d, is more than the hard limit %d", u.Name, u.Soft, u.Hard)
		}
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + name, Soft: soft, Hard: hard})
	}
	return out, nil
}

// rlimit maps -1, and every other negative number, to "unlimited".
func rlimit(v int64) uint64 {
	if v < 0 {
		return math.MaxUint64
	}
	return uint64(v)
}

// sysctls keeps to those that a namespace of the container has of its own, as Docker
// and the kernel do.
func sysctls(in Input) (map[string]string, error) {
	out := map[string]string{}
	ownNet := in.Network.Namespace != ""
	if ownNet {
		// Docker's: ping and ports below 1024 need no capability in a namespace of one's own.
		out["net.ipv4.ping_group_range"] = "0 2147483647"
		out["net.ipv4.ip_unprivileged_port_start"] = "0"
	}
	if d := in.Container.Config.Domainname; d != "" {
		out["kernel.domainname"] = d
	}
	for k, v := range in.Container.HostConfig.Sysctls {
		name := strings.ReplaceAll(k, "/", ".")
		switch {
		case strings.HasPrefix(name, "net."):
			if !ownNet {
				return nil, invalid("systemControls: %s is not allowed in network mode host", k)
			}
		case strings.HasPrefix(name, "fs.mqueue."), strings.HasPrefix(name, "kernel.shm"),
			strings.HasPrefix(name, "kernel.msg"), name == "kernel.sem":
			if in.Task.IpcMode == "host" {
				return nil, invalid("systemControls: %s is not allowed in ipcMode host", k)
			}
		default:
			return nil, invalid("systemControls: %s does not belong to a namespace of the container", k)
		}
		if strings.Contains(name, "..") || strings.ContainsAny(v, "\x00\n") {
			return nil, invalid("systemControls: %q is not a valid setting", k)
		}
		out[name] = v
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// capabilities applies capAdd and capDrop as Docker does: "ALL" first, then single
// names; dropping wins over adding.
func capabilities(in Input) ([]string, error) {
	hc := &in.Container.HostConfig
	if hc.Privileged {
		return slices.Clone(in.Host.Capabilities), nil
	}
	add, err := capabilityNames("capabilities.add", hc.CapAdd)
	if err != nil {
		return nil, err
	}
	drop, err := capabilityNames("capabilities.drop", hc.CapDrop)
	if err != nil {
		return nil, err
	}
	caps := slices.Clone(capabilitiesDefault)
	if slices.Contains(add, "ALL") {
		caps = slices.Clone(in.Host.Capabilities)
	}
	if slices.Contains(drop, "ALL") {
		caps = []string{}
	}
	for _, c := range add {
		if c != "ALL" && !slices.Contains(caps, c) {
			caps = append(caps, c)
		}
	}
	return slices.DeleteFunc(caps, func(c string) bool { return slices.Contains(drop, c) }), nil
}

func capabilityNames(field string, in []string) ([]string, error) {
	var out []string
	for _, c := range in {
		name := strings.ToUpper(c)
		if name != "ALL" && !strings.HasPrefix(name, "CAP_") {
			name = "CAP_" + name
		}
		if name != "ALL" && !slices.Contains(capabilitiesAll, name) {
			return nil, invalid("%s: unknown capability %q", field, c)
		}
		out = append(out, name)
	}
	return out, nil
}

// security is what dockerSecurityOptions and privileged decide.
type security struct {
	noNewPrivileges  bool
	appArmor         string
	seccomp          *specs.LinuxSeccomp
	masked, readonly []string
}

func parseSecurity(in Input, caps []string) (security, error) {
	hc := &in.Container.HostConfig
	s := security{appArmor: in.Host.AppArmor, masked: maskedPaths, readonly: readonlyPaths}
	confined := true
	for _, opt := range hc.SecurityOpt {
		key, value, _ := strings.Cut(strings.Replace(opt, "=", ":", 1), ":")
		switch {
		case key == "no-new-privileges" && (value == "" || value == "true"):
			s.noNewPrivileges = true
		case key == "no-new-privileges" && value == "false":
		case key == "seccomp" && value == "unconfined":
			confined = false
		case key == "apparmor" && value == "unconfined":
			s.appArmor = ""
		case key == "apparmor" && value != "":
			if in.Host.AppArmor == "" {
				return s, invalid("dockerSecurityOptions: this host has no AppArmor for %q", opt)
			}
			s.appArmor = value
		case key == "label":
			// SELinux labels have no effect on a host without SELinux.
		default:
			return s, invalid("dockerSecurityOptions: %q is not supported", opt)
		}
	}
	if hc.Privileged {
		s.appArmor, s.masked, s.readonly = "", nil, nil
		return s, nil
	}
	if confined {
		p, err := Seccomp(in.Host, caps)
		if err != nil {
			return s, fmt.Errorf("seccomp: %w", err)
		}
		s.seccomp = p
	}
	return s, nil
}
