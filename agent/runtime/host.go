package runtime

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"berth.dev/berth/agent/spec"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// describeHost finds out what specifications have to know of this host.
func describeHost(cgs cgroups) (spec.Host, error) {
	h := spec.Host{Arch: runtime.GOARCH, CgroupV2: cgs.unified}
	caps, err := currentCapabilities("/proc/self/status")
	if err != nil {
		return h, err
	}
	h.Capabilities = caps
	h.SwapLimit = cgs.swapLimit()
	h.NoX32 = runtime.GOARCH == "amd64" && !hasX32()
	return h, nil
}

// hasX32 asks the kernel for getpid(2) by its x32 number.
func hasX32() bool {
	const x32Bit, getpid = 0x40000000, 39
	_, _, errno := unix.RawSyscall(x32Bit|getpid, 0, 0, 0)
	return errno != unix.ENOSYS
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

// currentCapabilities are those that this process has and so can give away; a host may
// withhold some even from root.
func currentCapabilities(status string) ([]string, error) {
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
		kind := "b"
		if st.Mode&unix.S_IFMT == unix.S_IFCHR {
			kind = "c"
		}
		mode, uid, gid := fs.FileMode(st.Mode&^unix.S_IFMT), st.Uid, st.Gid
		out = append(out, specs.LinuxDevice{
			Path: path, Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
			FileMode: &mode, UID: &uid, GID: &gid,
		})
		return nil
	})
	return out, err
}
