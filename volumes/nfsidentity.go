package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// nfsIdentifier is what the kernel's NFS client of a network namespace calls itself
// towards servers, besides the host's name. Clients that call themselves the same push
// each other out (Linux, filesystems/nfs/client-identifier).
const nfsIdentifier = "/sys/fs/nfs/net/nfs_client/identifier"

// identify gives the client of the calling thread's network namespace a name of its own,
// if it has none. The file for it is that of a sysfs which is mounted in the namespace,
// so a process with mounts of its own does it.
func identify() error {
	cmd := exec.Command("/proc/self/exe", "identify")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("a name for the NFS client of a network namespace: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Identify is what the program berth-volume does with "identify".
func Identify() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("sysfs: %w", err)
	}
	have, err := os.ReadFile(nfsIdentifier)
	if errors.Is(err, fs.ErrNotExist) {
		// The client is a module that is not there yet, perhaps. Without it nothing can be
		// mounted either, and the mount says so.
		if exec.Command("modprobe", "nfsv4").Run() != nil {
			return nil
		}
		have, err = os.ReadFile(nfsIdentifier)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if name := strings.TrimSpace(string(have)); name != "" && name != "(null)" {
		return nil
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return err
	}
	return os.WriteFile(nfsIdentifier, []byte(strings.TrimSpace(string(id))), 0o644)
}

// callItself has mounts of the calling thread be those of a client of their own. The
// kernel's client takes two ways to a server that knows it by the same name for one, and
// uses the first (RFC 8881, 2.10.5, trunking): a mount would go through the proxy of
// another, with that one's identity, and end with it. The name is made of the host's,
// which the thread gets one of its own of.
func callItself(name string) error {
	runtime.LockOSThread() // for good: the process ends after the mount
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("a name for the NFS client: %w", err)
	}
	const most = 64 // bytes of a host's name
	host = host[:min(len(host), most-1-len(name))]
	return unix.Sethostname([]byte(host + "." + name))
}
