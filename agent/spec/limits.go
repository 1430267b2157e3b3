package spec

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func resources(in Input) (*specs.LinuxResources, error) {
	hc := &in.Container.HostConfig
	cpu, err := processors(in)
	if err != nil {
		return nil, err
	}
	r := &specs.LinuxResources{
		CPU: cpu,
		// What a container may use of the devices it has by default is added by the runtime.
		Devices: []specs.LinuxDeviceCgroup{{Allow: hc.Privileged, Access: "rwm"}},
	}
	if r.Memory, err = memory(in); err != nil {
		return nil, err
	}
	pids := hc.PidsLimit
	if pids == 0 {
		pids = in.Host.PidsLimit
	}
	if pids > 0 {
		r.Pids = &specs.LinuxPids{Limit: &pids}
	}
	if w := hc.BlkioWeight; w != 0 {
		if w < 10 || w > 1000 {
			return nil, invalid("blkioWeight: %d is not between 10 and 1000", w)
		}
		r.BlockIO = &specs.LinuxBlockIO{Weight: &w}
	}
	return r, nil
}

// Bounds of the CPU bandwidth of a cgroup in microseconds (kernel documentation,
// scheduler/sched-bwc; the quota of cgroup-v1 and -v2 alike).
const (
	minPeriod, maxPeriod = 1000, 1_000_000
	minQuota             = 1000
	usualPeriod          = 100_000
)

// processors are the shares, the quota and the CPUs of a container.
func processors(in Input) (*specs.LinuxCPU, error) {
	hc := &in.Container.HostConfig
	shares := in.Container.CPU
	if hc.CPUShares != 0 {
		shares = hc.CPUShares
	}
	clamped := uint64(min(max(shares, minShares), maxShares))
	cpu := &specs.LinuxCPU{Shares: &clamped, Cpus: hc.CpusetCpus, Mems: hc.CpusetMems}
	period, quota := hc.CPUPeriod, hc.CPUQuota
	if n := hc.NanoCPUs; n != 0 {
		if period != 0 || quota != 0 {
			return nil, invalid("NanoCpus: cannot be given together with CpuPeriod or CpuQuota")
		}
		if n < 0 || n > math.MaxInt64/usualPeriod {
			return nil, invalid("NanoCpus: %d", n)
		}
		period, quota = usualPeriod, n*usualPeriod/1e9
	}
	if period != 0 {
		if period < minPeriod || period > maxPeriod {
			return nil, invalid("CpuPeriod: %d is not between %d and %d microseconds", period, minPeriod, maxPeriod)
		}
		p := uint64(period)
		cpu.Period = &p
	}
	if quota > 0 {
		if quota < minQuota {
			return nil, invalid("CpuQuota: %d is less than %d microseconds", quota, minQuota)
		}
		cpu.Quota = &quota
	}
	if err := within("CpusetCpus", hc.CpusetCpus, in.Host.CPUs); err != nil {
		return nil, err
	}
	return cpu, within("CpusetMems", hc.CpusetMems, in.Host.Mems)
}

// within checks that a list such as "0-3,8" names only what there is.
func within(field, want, have string) error {
	if want == "" {
		return nil
	}
	w, err := numbers(want)
	if err != nil {
		return invalid("%s: %q is not a list of numbers and ranges", field, want)
	}
	h, err := numbers(have)
	if err != nil || have == "" {
		return nil // what there is, is not known; the kernel will tell
	}
	for n := range w {
		if !h[n] {
			return invalid("%s: this host has no %d, it has %s", field, n, have)
		}
	}
	return nil
}

// maxNumber bounds the processors of a list (Linux has at most 8192).
const maxNumber = 8192

// numbers reads a list of the kernel's form (cpuset(7), "List format").
func numbers(list string) (map[int]bool, error) {
	out := map[int]bool{}
	for part := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		first, last, ranged := strings.Cut(part, "-")
		a, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			return nil, err
		}
		b := a
		if ranged {
			if b, err = strconv.ParseUint(last, 10, 16); err != nil {
				return nil, err
			}
		}
		if a > b || b > maxNumber {
			return nil, strconv.ErrRange
		}
		for n := a; n <= b; n++ {
			out[int(n)] = true
		}
	}
	return out, nil
}

// maxScore is the largest adjustment of the OOM score (proc(5), oom_score_adj).
const maxScore = 1000

// oomScore is nil when nothing is asked for.
func oomScore(in Input) (*int, error) {
	score := in.Container.HostConfig.OomScoreAdj
	switch {
	case score == 0:
		return nil, nil
	case score < -maxScore || score > maxScore:
		return nil, invalid("OomScoreAdj: %d is not between -%d and %d", score, maxScore, maxScore)
	case score < 0 && !slices.Contains(in.Host.Capabilities, "CAP_SYS_RESOURCE"):
		return nil, invalid("OomScoreAdj: this host does not let the agent give less than 0: remove it")
	}
	return &score, nil
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
	m := &specs.LinuxMemory{}
	if err := swapping(in, m); err != nil {
		return nil, err
	}
	if limit == 0 && hc.MemoryReservation == 0 {
		if *m == (specs.LinuxMemory{}) {
			return nil, nil
		}
		return m, nil
	}
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

// swapping enters what version 1 of cgroups knows of swap besides the limits. Version 2
// has no swappiness, and like everywhere else there it is left away (ECS developer guide,
// "Container swap memory").
func swapping(in Input, m *specs.LinuxMemory) error {
	hc := &in.Container.HostConfig
	if n := hc.MemorySwappiness; n != nil && *n != -1 {
		if *n < 0 || *n > 100 {
			return invalid("swappiness: %d is not between 0 and 100", *n)
		}
		if v := uint64(*n); !in.Host.CgroupV2 && in.Host.SwapLimit {
			m.Swappiness = &v
		}
	}
	if hc.OomKillDisable {
		if in.Host.CgroupV2 {
			return invalid("OomKillDisable: this host has cgroup version 2, which cannot do it: remove it")
		}
		m.DisableOOMKiller = &hc.OomKillDisable
	}
	return nil
}

// rlimitNames are the limits that setrlimit(2) knows.
var rlimitNames = []string{
	"AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE",
	"NPROC", "RSS", "RTPRIO", "RTTIME", "SIGPENDING", "STACK",
}

func rlimits(in Input) ([]specs.POSIXRlimit, error) {
	var out []specs.POSIXRlimit
	for _, u := range in.Container.HostConfig.Ulimits {
		name := strings.TrimPrefix(strings.ToUpper(u.Name), "RLIMIT_")
		if !slices.Contains(rlimitNames, name) {
			return nil, invalid("ulimits: unknown name %q: see setrlimit(2) for the names", u.Name)
		}
		soft, hard := rlimit(u.Soft), rlimit(u.Hard)
		if soft > hard {
			return nil, invalid("ulimits: the soft limit of %s, %d, is more than the hard limit %d", u.Name, u.Soft, u.Hard)
		}
		if most, ok := in.Host.Rlimits["RLIMIT_"+name]; ok && hard > most {
			return nil, invalid("ulimits: the hard limit of %s can be at most %d on this host, not %d", u.Name, most, u.Hard)
		}
		if slices.ContainsFunc(out, func(o specs.POSIXRlimit) bool { return o.Type == "RLIMIT_"+name }) {
			return nil, invalid("ulimits: %s is given twice", u.Name)
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
		case strings.Contains(name, "..") || strings.ContainsAny(name, "\x00\n ") || strings.ContainsAny(v, "\x00\n"):
			return nil, invalid("systemControls: %q is not a valid setting", k)
		case strings.HasPrefix(name, "net."):
			if !ownNet {
				return nil, invalid("systemControls: %s is not allowed in network mode host: remove it, or use another network mode", k)
			}
		case IPCControl(name):
			if !ownIPC(in) {
				return nil, invalid("systemControls: %s is not allowed in ipcMode host: remove it, or use another ipcMode", k)
			}
		case name == "kernel.domainname" && in.Container.HostConfig.UTSMode == "":
		default:
			return nil, invalid("systemControls: %s does not belong to a namespace of the container: only those of network and IPC namespaces do", k)
		}
		out[name] = v
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// IPCControl tells whether a sysctl belongs to the IPC namespace (ECS API model,
// SystemControl).
func IPCControl(name string) bool {
	return strings.HasPrefix(name, "fs.mqueue.") || slices.Contains([]string{
		"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
		"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
	}, name)
}
