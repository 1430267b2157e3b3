package eni

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// loopbackIndex is the index of the loopback device, the first one of every namespace.
const loopbackIndex = 1

// Namespace is an open network namespace.
type Namespace struct{ file *os.File }

// CreateNamespace makes a network namespace whose loopback device is up and pins it
// at path, which must not exist. The keys of sysctls are below /proc/sys and are set
// inside the new namespace. Nothing is left at path when it fails.
//
// The pin is a bind mount in the calling process's mount namespace. Whoever is to
// enter the namespace by path must see that mount: see ShareDirectory.
func CreateNamespace(path string, sysctls map[string]string) (err error) {
	pin, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("pin of the network namespace: %w", err)
	}
	defer func() {
		if closeErr := pin.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			err = errors.Join(err, RemoveNamespace(path))
		}
	}()
	return inOwnNamespace(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		for _, key := range slices.Sorted(maps.Keys(sysctls)) {
			if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(sysctls[key]), 0o644); err != nil {
				return fmt.Errorf("sysctl %s of the new network namespace: %w", strings.ReplaceAll(key, "/", "."), err)
			}
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("netlink in the new network namespace: %w", err)
		}
		defer h.Close()
		lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: loopbackIndex, Name: "lo"}}
		if err := h.LinkSetUp(lo); err != nil {
			return fmt.Errorf("loopback of the new network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin network namespace at %s: %w", path, err)
		}
		return nil
	})
}

// RemoveNamespace takes away the pin at path. The namespace itself goes with its last
// process. A path that does not exist or was never mounted is success.
func RemoveNamespace(path string) error {
	// A crash can leave several mounts stacked on one another.
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil {
			continue
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		return fmt.Errorf("unmount network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace file: %w", err)
	}
	return nil
}

// Live reports whether a namespace is pinned at path. A file that is there without a
// mount, as a reboot or a crash leaves it, is not live.
func Live(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return st.Type == unix.NSFS_MAGIC, nil
}

// OpenNamespace opens the network namespace at path: a pin, or /proc/<pid>/ns/net.
func OpenNamespace(path string) (*Namespace, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return nil, errors.Join(fmt.Errorf("%s is not a network namespace", path), f.Close())
	}
	return &Namespace{file: f}, nil
}

// Fd is the namespace's descriptor, valid until Close.
func (n *Namespace) Fd() int { return int(n.file.Fd()) }

// Close closes the descriptor; the namespace lives on while it is pinned or in use.
func (n *Namespace) Close() error { return n.file.Close() }

// Netlink opens a route netlink socket inside the namespace.
func (n *Namespace) Netlink() (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(n.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink in %s: %w", n.file.Name(), err)
	}
	return h, nil
}

// Do runs fn on a thread inside the namespace. What fn starts in other goroutines
// does not run there.
func (n *Namespace) Do(fn func() error) error {
	return inOwnNamespace(func() error {
		if err := unix.Setns(n.Fd(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", n.file.Name(), err)
		}
		return fn()
	})
}

// inOwnNamespace runs fn, which may move its thread to another network namespace, and
// moves the thread back. A thread that cannot be moved back is never used again.
func inOwnNamespace(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err = fn()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, fmt.Errorf("return to the host's network namespace: %w", back))
		} else {
			runtime.UnlockOSThread()
		}
		done <- errors.Join(err, home.Close())
	}()
	return <-done
}

// ShareDirectory makes dir, if need be, and turns it into a mount point with shared
// propagation, so that pins made below it appear in the mount namespaces that were
// copied from this one afterwards (as containerd's is when it is started by a service
// manager with its own mount namespace). It does nothing when dir is one already.
//
// A mount namespace that was made private before, or made before dir was shared, does
// not get the pins: containerd must then be restarted, or share the agent's.
func ShareDirectory(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "")
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("share %s: %w", dir, err)
	}
	// EINVAL: not a mount point yet.
	if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s onto itself: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return errors.Join(fmt.Errorf("share %s: %w", dir, err), unix.Unmount(dir, unix.MNT_DETACH))
	}
	return nil
}

// UnshareDirectory undoes ShareDirectory and removes dir, which must be empty. A
// directory that is not there is success.
func UnshareDirectory(dir string) error {
	if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != nil &&
		!errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
