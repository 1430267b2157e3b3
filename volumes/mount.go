package volumes

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

// access is how a mount may be used besides nosuid, nodev and private, which all are.
type access struct {
	readOnly, noExec bool
}

func (a access) attr() uint64 {
	set := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	if a.readOnly {
		set |= unix.MOUNT_ATTR_RDONLY
	}
	if a.noExec {
		set |= unix.MOUNT_ATTR_NOEXEC
	}
	return set
}

// bind mounts what src is open on at target, with everything that is mounted below it.
// target is made, a directory or a file as src is.
func bind(src *os.File, target string, a access) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return err
	}
	if err := mountPoint(target, st.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return err
	}
	fd, err := unix.OpenTree(int(src.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	return attach(os.NewFile(uintptr(fd), target), target, a)
}

// attach puts a mount that nobody sees yet at target and closes it.
func attach(tree *os.File, target string, a access) error {
	defer tree.Close()
	fd := int(tree.Fd())
	private := unix.MountAttr{Attr_set: a.attr(), Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &private); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount to %s: %w", target, err)
	}
	// Below a shared mount it has become shared by this.
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}

// mountFS mounts a new file system of a kind at target, with options as mount(8) has
// them: NAME=VALUE, or NAME alone.
func mountFS(kind, source, target string, options []string, a access) error {
	tree, err := newFS(kind, source, options, a)
	if err != nil {
		return err
	}
	if err := mountPoint(target, true); err != nil {
		return errors.Join(err, tree.Close())
	}
	return attach(tree, target, a)
}

// newFS makes a mount of a file system that nobody sees yet.
func newFS(kind, source string, options []string, a access) (_ *os.File, err error) {
	fsfd, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("file system %s: %w", kind, err)
	}
	ctx := os.NewFile(uintptr(fsfd), kind)
	defer func() { err = errors.Join(err, ctx.Close()) }()
	if source != "" {
		options = append([]string{"source=" + source}, options...)
	}
	for _, o := range options {
		name, value, given := strings.Cut(o, "=")
		if given {
			err = unix.FsconfigSetString(fsfd, name, value)
		} else {
			err = unix.FsconfigSetFlag(fsfd, name)
		}
		if err != nil {
			return nil, failf(ErrInvalid, "option %s of file system %s: %w", o, kind, err)
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, fmt.Errorf("making a %s: %w", kind, err)
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, int(a.attr()))
	if err != nil {
		return nil, fmt.Errorf("mounting a %s: %w", kind, err)
	}
	return os.NewFile(uintptr(fd), kind), nil
}

// mountPoint makes the directory or file that something is mounted on.
func mountPoint(target string, dir bool) error {
	if dir {
		return os.MkdirAll(target, 0o700)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// unmount takes away what is mounted at target, and target itself. It does not wait for
// anybody who uses it: containers have mounts of their own.
func unmount(target string) error {
	for {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			continue // another may lie below it
		case errors.Is(err, unix.EINVAL): // nothing is mounted there
			return ignoreMissing(os.Remove(target))
		case errors.Is(err, fs.ErrNotExist):
			return nil
		}
		return &fs.PathError{Op: "unmount", Path: target, Err: err}
	}
}

// mounted reports whether something is mounted at target. The kernel's table is read,
// because looking at the path itself would wait for a server that does not answer.
func mounted(target string) (bool, error) {
	found := false
	err := eachMount(func(at string) { found = found || at == target })
	return found, err
}

// eachMount calls do with every mount point of this process's mount namespace.
func eachMount(do func(at string)) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// id parent major:minor root mount-point … (proc_pid_mountinfo(5))
		fields := strings.SplitN(lines.Text(), " ", 6)
		if len(fields) == 6 {
			do(unescape.Replace(fields[4]))
		}
	}
	return lines.Err()
}

// unescape reads the escapes of mountinfo.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
