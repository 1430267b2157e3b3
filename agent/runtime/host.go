package runtime

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"berth.dev/berth/agent/spec"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"
)

// describeHost finds out what specifications have to know of this host. address is
// containerd's socket.
func describeHost(cgs cgroups, address string) (spec.Host, error) {
	h := spec.Host{Arch: runtime.GOARCH, CgroupV2: cgs.unified}
	pid, err := daemonProcess(address)
	if err != nil {
		return h, err
	}
	caps, err := capabilities(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return h, err
	}
	h.Capabilities = caps
	if !slices.Contains(caps, "CAP_SYS_RESOURCE") {
		if h.Rlimits, err = hardLimits(pid); err != nil {
			return h, err
		}
	}
	h.CPUs, h.Mems = firstLine("/sys/devices/system/cpu/online"), firstLine("/sys/devices/system/node/online")
	h.HasAppArmor = HasAppArmor()
	h.SwapLimit = cgs.swapLimit()
	h.NoX32 = runtime.GOARCH == "amd64" && lacksX32("/")
	return h, nil
}

// HasAppArmor reports whether the kernel enforces AppArmor profiles.
func HasAppArmor() bool { return firstLine("/sys/module/apparmor/parameters/enabled") == "Y" }

// HasSELinux reports whether the kernel has SELinux enabled.
func HasSELinux() bool { return selinux.GetEnabled() }

// hybrid reports whether this host has cgroups of version 1 and a hierarchy of version 2
// beside them, which crun refuses.
func hybrid() bool {
	var top, unified unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &top) == nil && top.Type != unix.CGROUP2_SUPER_MAGIC &&
		unix.Statfs("/sys/fs/cgroup/unified", &unified) == nil && unified.Type == unix.CGROUP2_SUPER_MAGIC
}

// firstLine is what the kernel says in a file of one line; "" where it says nothing.
func firstLine(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line)
}

// rlimitNumbers are the resources of setrlimit(2) by the name that specifications have
// (asm-generic/resource.h).
var rlimitNumbers = map[string]int{
	"RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4, "RLIMIT_RSS": 5,
	"RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9, "RLIMIT_LOCKS": 10,
	"RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13, "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}

// hardLimits are those of a process, which its children cannot raise on a host that
// withholds CAP_SYS_RESOURCE.
func hardLimits(pid int) (map[string]uint64, error) {
	out := make(map[string]uint64, len(rlimitNumbers))
	for name, n := range rlimitNumbers {
		var l unix.Rlimit
		if err := unix.Prlimit(pid, n, nil, &l); err != nil {
			return nil, fmt.Errorf("limit %s of process %d: %w", name, pid, err)
		}
		out[name] = l.Max
	}
	return out, nil
}

// initPrograms are static init programs as distributions install them: tini, and
// Docker's copy of it.
var initPrograms = []string{"/usr/bin/tini-static", "/usr/libexec/docker/docker-init", "/usr/bin/docker-init"}

// findInit is the init program that is configured or, where none is, the first that is
// installed. A program that needs libraries would not find them in a container.
func findInit(configured string) (string, error) {
	if configured != "" {
		return configured, static(configured)
	}
	for _, p := range initPrograms {
		if static(p) == nil {
			return p, nil
		}
	}
	return "", nil
}

// static checks that a program of the host runs where there is nothing else of the host.
func static(program string) error {
	if !filepath.IsAbs(program) {
		return fmt.Errorf("%s is not an absolute path", program)
	}
	f, err := elf.Open(program)
	if err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is not statically linked, so it cannot run in a container", program)
		}
	}
	return nil
}

// capabilityNames by number (linux/capability.h).
var capabilityNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

// daemonProcess is the process that listens on containerd's socket (unix(7),
// SO_PEERCRED), whose children the runtimes are: containers can get what it has. The agent
// itself may have less, such as what its unit leaves it. Where the process is in another
// namespace and cannot be seen, it is this one.
func daemonProcess(address string) (int, error) {
	c, err := net.DialTimeout("unix", address, askTimeout)
	if err != nil {
		return 0, unavailable(fmt.Errorf("containerd at %s: %w; is it running?", address, err))
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { peer, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, credErr); err != nil {
		return 0, fmt.Errorf("the process of containerd at %s: %w", address, err)
	}
	if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(int(peer.Pid)))); peer.Pid <= 0 || err != nil {
		return os.Getpid(), nil
	}
	return int(peer.Pid), nil
}

// capabilities are those of a process that it can give its children; a host may withhold
// some even from root.
func capabilities(status string) ([]string, error) {
	f, err := os.Open(status)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mask := ^uint64(0)
	found := 0
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		k, v, _ := strings.Cut(sc.Text(), ":")
		if k != "CapEff" && k != "CapBnd" {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", status, k, err)
		}
		mask &= n
		found++
	}
	if err := sc.Err(); err != nil {
		return nil, err
	}
	if found != 2 {
		return nil, fmt.Errorf("%s: no capabilities", status)
	}
	var out []string
	for i, name := range capabilityNames {
		if mask&(1<<i) != 0 {
			out = append(out, "CAP_"+name)
		}
	}
	return out, nil
}

// hostDevices are the device nodes of /dev, for privileged containers.
func hostDevices() ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	err := filepath.WalkDir("/dev", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil // gone meanwhile
		case d.IsDir():
			switch path {
			case "/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.lxd-mounts":
				return filepath.SkipDir
			}
			return nil
		case path == "/dev/console" || d.Type()&fs.ModeDevice == 0:
			return nil
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil {
			return nil
		}
		if n, ok := deviceNode(path, &st); ok {
			out = append(out, n)
		}
		return nil
	})
	return out, err
}
