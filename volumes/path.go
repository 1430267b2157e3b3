package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Links of these directories alone are followed: the system itself has some there
// (/var/run, /lib), and no task has a reason to be given them to write to. Every other
// link may have been made by a task.
var linksOf = []string{"/", "/usr", "/var"}

// maxLinks is how many links are followed in one path.
const maxLinks = 8

// openTries is how often a component is looked up that changes while it is.
const openTries = 16

// directory is how a directory is made that is missing.
type directory struct {
	mode     os.FileMode
	uid, gid int // -1 leaves them root's
	// permit refuses to make one at a path, links followed; nil permits all.
	permit func(name string) error
}

// plain is how Docker makes the source of a bind mount that is missing.
func plain() *directory { return &directory{mode: 0o755, uid: -1, gid: -1} }

// open opens the file at an absolute path of the host (O_PATH) and tells where that is,
// links followed. With create, directories that are missing are made.
func open(name string, create *directory) (*os.File, string, error) {
	if !path.IsAbs(name) || strings.ContainsRune(name, 0) || len(name) > unix.PathMax {
		return nil, "", failf(ErrInvalid, "%.128q is not an absolute path", name)
	}
	name = path.Clean(name)
	for range maxLinks {
		f, target, err := walk(name, create)
		if err != nil || target == "" {
			return f, name, err
		}
		name = target
	}
	return nil, "", failf(ErrInvalid, "%s: too many symbolic links", name)
}

// walk goes down one component at a time. A link that may be followed ends it, with the
// path that it stands for.
func walk(name string, create *directory) (_ *os.File, target string, err error) {
	dir, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil || target != "" {
			err = errors.Join(err, dir.Close())
			dir = nil
		}
	}()
	at := "/"
	parts := strings.FieldsFunc(name, func(r rune) bool { return r == '/' })
	for i, part := range parts {
		next, st, err := enter(dir, at, part, create)
		if err != nil {
			return dir, "", fmt.Errorf("%s: %w", path.Join(at, part), err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			link, err := followed(next, at, part)
			if err != nil {
				return dir, "", err
			}
			return dir, path.Join(append([]string{link}, parts[i+1:]...)...), nil
		}
		last := i == len(parts)-1
		if !last && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return dir, "", errors.Join(failf(ErrInvalid, "%s is not a directory", path.Join(at, part)), next.Close())
		}
		if err := dir.Close(); err != nil {
			return next, "", err
		}
		dir, at = next, path.Join(at, part)
	}
	return dir, "", nil
}

// followed reads a link, if it is one that may be followed.
func followed(link *os.File, dir, name string) (string, error) {
	defer link.Close()
	if !slices.Contains(linksOf, dir) {
		return "", failf(ErrRefused, "%s is a symbolic link, which a task could have made; name the directory that it leads to", path.Join(dir, name))
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(link.Fd()), "", buf)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path.Join(dir, name), err)
	}
	target := string(buf[:n])
	if !path.IsAbs(target) {
		target = path.Join(dir, target)
	}
	return path.Clean(target), nil
}

// enter opens one component, making it when it is missing and may be made. It never
// follows a link: a link itself is what it returns.
func enter(dir *os.File, at, name string, create *directory) (*os.File, *unix.Stat_t, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	made := false
	for range openTries {
		fd, err := unix.Openat2(int(dir.Fd()), name, how)
		switch {
		case err == nil:
			f := os.NewFile(uintptr(fd), name)
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				return nil, nil, errors.Join(err, f.Close())
			}
			if made {
				err = own(f, &st, create)
			}
			return f, &st, err
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOENT) && create != nil:
			if create.permit != nil {
				if err := create.permit(path.Join(at, name)); err != nil {
					return nil, nil, err
				}
			}
			err := unix.Mkdirat(int(dir.Fd()), name, 0o700)
			if err != nil && !errors.Is(err, unix.EEXIST) {
				return nil, nil, err
			}
			made = err == nil
		default:
			return nil, nil, err
		}
	}
	return nil, nil, failf(ErrUnavailable, "it changes all the time")
}

// own gives a directory that was just made its owner and mode, if nobody has put
// something else in its place.
func own(f *os.File, st *unix.Stat_t, d *directory) error {
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	name := fmt.Sprintf("/proc/self/fd/%d", f.Fd()) // fchmod(2) does not take O_PATH descriptors
	if d.uid >= 0 || d.gid >= 0 {
		if err := os.Chown(name, d.uid, d.gid); err != nil {
			return err
		}
	}
	return os.Chmod(name, d.mode)
}

// Allowed says which paths of the host tasks may be given.
type Allowed struct {
	// Own are directories and sockets that no task may reach: the agent's, containerd's.
	Own []string
	// Always are paths that the operator allows all the same, with all below them.
	Always []string
}

// Magic numbers of file systems that show the kernel and not files (linux/magic.h).
var kernelFS = map[int64]string{
	unix.PROC_SUPER_MAGIC: "proc", unix.SYSFS_MAGIC: "sysfs", unix.CGROUP_SUPER_MAGIC: "cgroup", unix.CGROUP2_SUPER_MAGIC: "cgroup2",
	unix.DEVPTS_SUPER_MAGIC: "devpts", unix.SECURITYFS_MAGIC: "securityfs", unix.DEBUGFS_MAGIC: "debugfs", unix.TRACEFS_MAGIC: "tracefs",
	unix.BPF_FS_MAGIC: "bpf", unix.NSFS_MAGIC: "nsfs", unix.EFIVARFS_MAGIC: "efivarfs",
}

const remedy = "the operator of the host can allow it with BERTH_HOST_PATHS_ALLOWED"

// always reports whether the operator allows a path without a look at it.
func (a *Allowed) always(name string) bool {
	return slices.ContainsFunc(a.Always, func(ok string) bool { return within(name, ok) })
}

// path refuses a path, links followed, that a task must not have.
func (a *Allowed) path(name string) error {
	if a.always(name) {
		return nil
	}
	for _, own := range a.Own {
		if own != "" && (within(name, own) || within(path.Clean(own), name)) {
			return failf(ErrRefused, "%s has the agent's own files in it or is one of them; %s", name, remedy)
		}
	}
	for _, kernel := range []string{"/proc", "/sys", "/dev"} {
		if within(name, kernel) && !within(name, "/dev/shm") {
			return failf(ErrRefused, "%s shows the kernel and its devices; %s", name, remedy)
		}
	}
	return nil
}

// check refuses a path, links followed, that a task must not have. f is open on it.
func (a *Allowed) check(name string, f *os.File) error {
	if err := a.path(name); err != nil || a.always(name) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFREG, unix.S_IFSOCK, unix.S_IFIFO:
	default:
		return failf(ErrRefused, "%s is a device; %s", name, remedy)
	}
	var sf unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &sf); err != nil {
		return err
	}
	if kind := kernelFS[sf.Type]; kind != "" {
		return failf(ErrRefused, "%s is in a file system of type %s; %s", name, kind, remedy)
	}
	return nil
}

// within reports whether name is dir or below it.
func within(name, dir string) bool {
	dir = path.Clean(dir)
	return name == dir || dir == "/" || strings.HasPrefix(name, dir+"/")
}

// ignoreMissing is err unless it says that something is not there.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
