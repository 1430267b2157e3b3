package stats

import "time"

// Has says which groups of a Sample were read.
type Has uint16

// Groups of a Sample.
const (
	HasCPU Has = 1 << iota
	HasThrottling
	HasMemory
	HasPids
	HasIO
	HasPressure
	HasNetwork
)

// Sample is what one container has used so far and uses now. Counters count from the
// container's first start. Numbers are as the kernel gives them (kernel documents
// cgroup-v1/cpuacct, memory, blkio-controller, pids and cgroup-v2), in the unit named.
type Sample struct {
	At   time.Time     // by the wall clock
	Mono time.Duration // by a clock that is never set, for differences
	Has  Has

	CPU      CPU
	Memory   Memory
	Pids     Pids
	IO       IO
	Pressure Pressure
	Network  Network
}

// CPU times are nanoseconds of all processors together.
type CPU struct {
	Usage, User, System uint64
	Periods             uint64 // enforcement periods that have passed
	Throttled           uint64 // of them, those in which the group was throttled
	ThrottledTime       uint64
}

// Memory is bytes. Limit is 0 where there is none.
type Memory struct {
	Usage        uint64 // everything charged to the group, page cache included
	Cache        uint64 // page cache
	InactiveFile uint64 // page cache that the kernel gives up first
	RSS          uint64 // anonymous memory
	Swap         uint64
	MappedFile   uint64
	Faults       uint64
	MajorFaults  uint64
	Peak         uint64
	Limit        uint64
	Unified      bool // read from cgroup version 2, where Used subtracts another part
}

// Used is the memory that ECS counts as used, in bytes: without the page cache on cgroup
// version 1, and without its inactive part on version 2 (agent protocol, TCS units).
func (m *Memory) Used() uint64 {
	less := m.Cache
	if m.Unified {
		less = m.InactiveFile
	}
	if less < m.Usage {
		return m.Usage - less
	}
	return m.Usage
}

// WorkingSet is the memory that the kernel cannot give up without the container noticing,
// in bytes: all but the inactive page cache.
func (m *Memory) WorkingSet() uint64 {
	if m.InactiveFile < m.Usage {
		return m.Usage - m.InactiveFile
	}
	return m.Usage
}

// Pids counts processes and threads. Limit is 0 where there is none.
type Pids struct{ Current, Limit uint64 }

// IO is what went to and from block devices.
type IO struct{ ReadBytes, WriteBytes, Reads, Writes uint64 }

// Pressure is for how many microseconds some or all processes of the group waited for a
// resource (kernel document accounting/psi; cgroup version 2 only).
type Pressure struct {
	CPUSome, MemorySome, MemoryFull, IOSome, IOFull uint64
}

// Network is the traffic of all interfaces of a namespace but the loopback.
type Network struct {
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Counters of a sample: those of the cgroup first, then those of the namespace.
const (
	cgroupCounters  = 17
	networkCounters = 8
	allCounters     = cgroupCounters + networkCounters
)

// counters lists the counters of a sample, which never go back.
func (s *Sample) counters() [allCounters]*uint64 {
	c, m, io, p, n := &s.CPU, &s.Memory, &s.IO, &s.Pressure, &s.Network
	return [...]*uint64{
		&c.Usage, &c.User, &c.System, &c.Periods, &c.Throttled, &c.ThrottledTime,
		&m.Faults, &m.MajorFaults,
		&io.ReadBytes, &io.WriteBytes, &io.Reads, &io.Writes,
		&p.CPUSome, &p.MemorySome, &p.MemoryFull, &p.IOSome, &p.IOFull,
		&n.RxBytes, &n.RxPackets, &n.RxErrors, &n.RxDropped,
		&n.TxBytes, &n.TxPackets, &n.TxErrors, &n.TxDropped,
	}
}
