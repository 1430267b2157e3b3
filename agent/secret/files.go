package secret

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth.dev/berth/agent/task"
)

// fileSystemSize bounds the secret files of one task; a secret has at most 64 KiB
// (Secrets Manager quotas).
const fileSystemSize = 16 << 20

// files writes the secrets of a container that become files, each directory of the
// container a directory of the task's file system. The directories above it are closed
// to all but root, so that any user of the container, and nobody else, can read them.
func (s *Secrets) files(t *task.Task, c *task.Container, f *fetch) ([]task.GivenMount, error) {
	var dirs []string
	for _, ref := range c.Secrets {
		if ref.Use == task.UseFile && !slices.Contains(dirs, path.Clean(ref.Dir)) {
			dirs = append(dirs, path.Clean(ref.Dir))
		}
	}
	if len(dirs) == 0 {
		return nil, nil
	}
	slices.Sort(dirs)
	root, err := s.mount(t.ID())
	if err != nil {
		return nil, err
	}
	var mounts []task.GivenMount
	for i, dir := range dirs {
		at := filepath.Join(root, c.Name, strconv.Itoa(i))
		if err := os.MkdirAll(at, 0o755); err != nil {
			return nil, err
		}
		for _, ref := range c.Secrets {
			if ref.Use != task.UseFile || path.Clean(ref.Dir) != dir {
				continue
			}
			v, err := f.value(ref)
			if err != nil {
				return nil, err
			}
			if err := write(at, ref.Name, v); err != nil {
				return nil, err
			}
		}
		mounts = append(mounts, task.GivenMount{Source: at, Path: dir})
	}
	return mounts, nil
}

// write makes one file; whoever reads it sees the old or the new content, never a part.
func write(dir, name string, v task.Secret) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%q cannot be the name of a file", name)
	}
	whole, part := filepath.Join(dir, name), filepath.Join(dir, "."+name+".part")
	if err := os.WriteFile(part, []byte(v.Reveal()), 0o444); err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return os.Rename(part, whole)
}

func (s *Secrets) dir(taskID string) string { return filepath.Join(s.c.Dir, taskID) }

// mount makes the file system of a task, or finds it.
func (s *Secrets) mount(taskID string) (string, error) {
	dir := s.dir(taskID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if mounted, err := isMount(dir); mounted || err != nil {
		return dir, err
	}
	options := fmt.Sprintf("size=%d,mode=0700", fileSystemSize)
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	// Linux 6.4 can keep a tmpfs out of swap; older kernels do not know the word.
	err := unix.Mount("tmpfs", dir, "tmpfs", flags, options+",noswap")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("tmpfs", dir, "tmpfs", flags, options)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("mount tmpfs at %s: %w", dir, err), os.Remove(dir))
	}
	return dir, nil
}

// isMount reports whether something is mounted at dir itself.
func isMount(dir string) (bool, error) {
	var here, above unix.Stat_t
	if err := unix.Lstat(dir, &here); err != nil {
		return false, err
	}
	if err := unix.Lstat(filepath.Dir(dir), &above); err != nil {
		return false, err
	}
	return here.Dev != above.Dev, nil
}

// unmount takes the file system of a task away, if it has one.
func (s *Secrets) unmount(taskID string) error {
	dir := s.dir(taskID)
	mounted, err := isMount(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if mounted {
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	return os.Remove(dir)
}

// Owned lists the tasks that have a file system here.
func (s *Secrets) Owned(context.Context) ([]task.Owned, error) {
	entries, err := os.ReadDir(s.c.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []task.Owned
	for _, e := range entries {
		out = append(out, task.Owned{TaskID: e.Name(), Resource: task.ResourceID{Kind: task.KindSecrets, Name: "task"}})
	}
	return out, err
}

// Sweep removes one of them.
func (s *Secrets) Sweep(_ context.Context, o task.Owned) error { return s.unmount(o.TaskID) }

// EnsureHost makes the directory in which the file systems of tasks are mounted.
func (s *Secrets) EnsureHost() error { return os.MkdirAll(s.c.Dir, 0o700) }

// TeardownHost removes the directory in which the file systems were mounted.
func (s *Secrets) TeardownHost() error {
	if err := os.Remove(s.c.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
