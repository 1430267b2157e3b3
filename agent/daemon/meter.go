package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	goruntime "runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/stats"
	wire "berth.dev/berth/wire/tmds"
)

// meter measures containers when their tasks ask for it, in the form of the Docker
// Engine's statistics.
type meter struct {
	view func(arn string) (engine.View, bool)

	mu   sync.Mutex
	last map[string]stats.Sample // the one before, by task ARN and container
}

const (
	// usageBuffer holds the largest control file of a cgroup.
	usageBuffer = 64 << 10
	// maxLast bounds how many earlier samples are kept.
	maxLast = 4096
)

// Stats measures one container.
func (u *meter) Stats(_ context.Context, arn, container string) (*wire.Stats, error) {
	v, ok := u.view(arn)
	if !ok {
		return nil, fmt.Errorf("task %s is not known", arn)
	}
	r := v.Known.Resources[task.ResourceID{Kind: task.KindContainer, Name: container}]
	if r == nil || !r.Running() {
		return nil, fmt.Errorf("container %s does not run", container)
	}
	var h struct {
		Cgroup string `json:"cgroup"`
	}
	if err := json.Unmarshal(r.Handle, &h); err != nil {
		return nil, fmt.Errorf("handle of container %s: %w", container, err)
	}
	if h.Cgroup == "" {
		return nil, fmt.Errorf("container %s has no cgroup that is known", container)
	}
	hierarchies, err := stats.FindHierarchies("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	buf := make([]byte, usageBuffer)
	g, err := hierarchies.Open(h.Cgroup, buf)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return nil, err
	}
	now := stats.Sample{At: time.Now(), Mono: time.Duration(up.Nano())}
	if err := g.Read(&now, buf); err != nil {
		return nil, err
	}
	u.network(&v, container, &now, buf)
	key := arn + " " + container
	u.mu.Lock()
	before := u.last[key]
	if u.last == nil || len(u.last) >= maxLast {
		u.last = make(map[string]stats.Sample)
	}
	u.last[key] = now
	u.mu.Unlock()
	return docker(&now, &before), nil
}

// network adds the traffic of the container's own network; without one there is none to
// tell from the host's.
func (u *meter) network(v *engine.View, container string, s *stats.Sample, buf []byte) {
	r := v.Known.Resources[task.ResourceID{Kind: task.KindNetwork, Name: container}]
	if r == nil {
		r = v.Known.Resources[task.ResourceID{Kind: task.KindNetwork, Name: "task"}]
	}
	var h struct {
		Path string `json:"path"`
	}
	if r == nil || json.Unmarshal(r.Handle, &h) != nil || h.Path == "" {
		return
	}
	ns, err := stats.OpenNamespace(h.Path)
	if err != nil {
		return
	}
	defer ns.Close()
	if ns.Read(s, buf) == nil {
		s.Has |= stats.HasNetwork
	}
}

// docker puts samples into the form of the Docker Engine's statistics.
func docker(now, before *stats.Sample) *wire.Stats {
	out := &wire.Stats{Read: now.At.UTC(), PreRead: before.At.UTC(), CPU: dockerCPU(now)}
	if !before.At.IsZero() {
		out.PreCPU = dockerCPU(before)
	}
	out.Pids.Current, out.Pids.Limit = now.Pids.Current, now.Pids.Limit
	m := &now.Memory
	out.Memory = wire.Memory{Usage: m.Usage, MaxUsage: m.Peak, Limit: m.Limit, Stats: map[string]uint64{
		"cache": m.Cache, "rss": m.RSS, "inactive_file": m.InactiveFile, "mapped_file": m.MappedFile,
		"pgfault": m.Faults, "pgmajfault": m.MajorFaults, "swap": m.Swap,
	}}
	out.Block.ServiceBytes = []wire.BlockEntry{{Op: "Read", Value: now.IO.ReadBytes}, {Op: "Write", Value: now.IO.WriteBytes}}
	out.Block.Serviced = []wire.BlockEntry{{Op: "Read", Value: now.IO.Reads}, {Op: "Write", Value: now.IO.Writes}}
	if now.Has&stats.HasNetwork != 0 {
		n := &now.Network
		out.Networks = map[string]wire.NetworkStats{"eth0": {
			RxBytes: n.RxBytes, RxPackets: n.RxPackets, RxErrors: n.RxErrors, RxDropped: n.RxDropped,
			TxBytes: n.TxBytes, TxPackets: n.TxPackets, TxErrors: n.TxErrors, TxDropped: n.TxDropped,
		}}
		if d := now.At.Sub(before.At).Seconds(); before.Has&stats.HasNetwork != 0 && d > 0 && n.RxBytes >= before.Network.RxBytes && n.TxBytes >= before.Network.TxBytes {
			out.NetworkRates = &wire.NetworkRates{Rx: float64(n.RxBytes-before.Network.RxBytes) / d, Tx: float64(n.TxBytes-before.Network.TxBytes) / d}
		}
	}
	return out
}

func dockerCPU(s *stats.Sample) wire.CPU {
	var c wire.CPU
	c.Usage.Total, c.Usage.User, c.Usage.Kernel = s.CPU.Usage, s.CPU.User, s.CPU.System
	c.Online = uint32(goruntime.NumCPU())
	// The time of all processors since the host was started.
	c.System = uint64(s.Mono) * uint64(c.Online)
	c.Throttling.Periods, c.Throttling.Throttled, c.Throttling.Time = s.CPU.Periods, s.CPU.Throttled, s.CPU.ThrottledTime
	return c
}
