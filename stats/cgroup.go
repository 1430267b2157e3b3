package stats

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Hierarchies are the cgroup mounts of a host.
type Hierarchies struct {
	Unified string            // mount of version 2 where it holds the controllers, else ""
	Mounts  map[string]string // version 1 mounts by controller
}

// FindHierarchies reads the cgroup mounts from a mountinfo file (proc(5)). A host in
// hybrid mode, with the controllers in version 1, counts as version 1.
func FindHierarchies(mountinfo string) (Hierarchies, error) {
	h := Hierarchies{Mounts: map[string]string{}}
	f, err := os.Open(mountinfo)
	if err != nil {
		return h, fmt.Errorf("find cgroup mounts: %w", err)
	}
	defer f.Close()
	var unified string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		head, tail, ok := strings.Cut(sc.Text(), " - ")
		place, kind := strings.Fields(head), strings.Fields(tail)
		if !ok || len(place) < 5 || len(kind) < 3 {
			continue
		}
		switch kind[0] {
		case "cgroup2":
			if unified == "" {
				unified = place[4]
			}
		case "cgroup":
			for o := range strings.SplitSeq(kind[2], ",") {
				if _, seen := h.Mounts[o]; !seen {
					h.Mounts[o] = place[4]
				}
			}
		}
	}
	if _, v1 := h.Mounts["cpuacct"]; !v1 {
		h.Unified = unified
	}
	if h.Unified == "" && h.Mounts["cpuacct"] == "" {
		return h, errors.New("no cgroup hierarchy with the cpu controller is mounted")
	}
	return h, nil
}

// file is one control file: where it is and what it says.
type file struct {
	controller, name string
	parse            func(*Sample, []byte)
	how              how
}

// how says when a control file is read.
type how int

const (
	always how = iota
	once       // it does not change while the container runs
	// onUse: it is costly, for the kernel sums it up for us, and is left out while the
	// memory usage stands still, though not for ever.
	onUse
)

// onUseAtLeast is every how many readings a file is read that is read onUse, and
// restAtLeast every how many all files of a group are read whose processes did not run.
const (
	onUseAtLeast = 10
	restAtLeast  = 5
)

var version1 = []file{
	{"cpuacct", "cpuacct.usage", parseCPUUsage, always},
	{"cpuacct", "cpuacct.usage_user", parseCPUUser, always},
	{"cpuacct", "cpuacct.usage_sys", parseCPUSys, always},
	{"cpu", "cpu.stat", parseCPUStat1, always},
	{"memory", "memory.usage_in_bytes", parseMemoryUsage, always},
	{"memory", "memory.stat", parseMemoryStat1, onUse},
	{"memory", "memory.max_usage_in_bytes", parseMemoryPeak, always},
	{"memory", "memory.limit_in_bytes", parseMemoryLimit, once},
	{"pids", "pids.current", parsePids, always},
	{"pids", "pids.max", parsePidsLimit, once},
	{"blkio", "blkio.throttle.io_service_bytes_recursive", parseIOBytes1, always},
	{"blkio", "blkio.throttle.io_serviced_recursive", parseIOServiced1, always},
}

var version2 = []file{
	{"", "cpu.stat", parseCPUStat2, always},
	{"", "memory.current", parseMemoryUsage, always},
	{"", "memory.stat", parseMemoryStat2, onUse},
	{"", "memory.swap.current", parseSwap, always},
	{"", "memory.peak", parseMemoryPeak, always},
	{"", "memory.max", parseMemoryLimit, once},
	{"", "pids.current", parsePids, always},
	{"", "pids.max", parsePidsLimit, once},
	{"", "io.stat", parseIO2, always},
	{"", "cpu.pressure", parseCPUPressure, always},
	{"", "memory.pressure", parseMemoryPressure, always},
	{"", "io.pressure", parseIOPressure, always},
}

// Group is one container's cgroup with its control files open.
type Group struct {
	files   []open
	kept    Sample // what the files say that are not read each time
	whole   bool   // the first file has all that is known of the CPU (version 2)
	skipped int
	rested  int // readings since the group's processes ran; -1 before the first
}

type open struct {
	fd    int
	parse func(*Sample, []byte)
	onUse bool
}

// ErrGone is returned for a cgroup that does not exist (any more).
var ErrGone = errors.New("the cgroup is gone")

// Open opens the control files of the cgroup with this path below the mounts. A file
// that the kernel does not have is left out; a group without one of the files that CPU
// and memory are read from is ErrGone.
func (h Hierarchies) Open(cgroup string, buf []byte) (*Group, error) {
	list := version1
	if h.Unified != "" {
		list = version2
	}
	g := &Group{skipped: -1, rested: -1, whole: h.Unified != ""}
	for _, f := range list {
		mount := h.Unified
		if f.controller != "" {
			mount = h.Mounts[f.controller]
		}
		if mount == "" {
			continue
		}
		fd, err := unix.Open(filepath.Join(mount, filepath.Join("/", cgroup), f.name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			g.Close()
			return nil, fmt.Errorf("open %s of cgroup %s: %w", f.name, cgroup, err)
		}
		if f.how != once {
			g.files = append(g.files, open{fd, f.parse, f.how == onUse})
			continue
		}
		n, err := unix.Pread(fd, buf, 0)
		unix.Close(fd) //nolint:errcheck // it was only read from
		if err == nil {
			f.parse(&g.kept, buf[:n])
		}
	}
	var s Sample
	if err := g.Read(&s, buf); err != nil || s.Has&(HasCPU|HasMemory) == 0 {
		g.Close()
		return nil, errors.Join(ErrGone, err)
	}
	return g, nil
}

// Read fills the members of s that come from the cgroup. It is ErrGone when the group
// was removed; s is then as it was, but for what had been read.
//
// The first file tells how long the group's processes ran. When they did not since the
// last reading, nothing else has changed either, but for what the kernel does late or by
// itself: writing to disk and taking memory back. So the rest is read more seldom then,
// and a host of idle containers costs next to nothing.
func (g *Group) Read(s *Sample, buf []byte) error {
	before := g.kept.Memory.Usage
	s.Memory, s.Pids.Limit = g.kept.Memory, g.kept.Pids.Limit
	for i, f := range g.files {
		if i == 1 && s.Has&HasCPU != 0 && s.CPU.Usage == g.kept.CPU.Usage && g.rested >= 0 && g.rested < restAtLeast-1 {
			g.rested++
			at, mono, cpu := s.At, s.Mono, s.CPU
			*s = g.kept
			s.At, s.Mono = at, mono
			if g.whole {
				s.CPU = cpu // it may have been throttled all the time
			}
			return nil
		}
		if f.onUse {
			if s.Memory.Usage == before && g.skipped < onUseAtLeast && g.skipped >= 0 {
				g.skipped++
				continue
			}
			g.skipped = 0
		}
		n, err := unix.Pread(f.fd, buf, 0)
		switch err {
		case nil:
			f.parse(s, buf[:n])
		case unix.ENODEV, unix.ENOENT:
			return ErrGone
		case unix.EOPNOTSUPP: // pressure that is switched off
		default:
			return fmt.Errorf("read cgroup: %w", err)
		}
	}
	g.kept, g.rested = *s, 0
	return nil
}

// Close closes the files.
func (g *Group) Close() {
	for _, f := range g.files {
		unix.Close(f.fd) //nolint:errcheck // it was only read from
	}
	g.files = nil
}
