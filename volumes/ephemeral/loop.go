package ephemeral

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	loopdev "berth.dev/berth/volumes/loop"
)

// loop gives a directory a file system of its own in a file, NAME.img beside it, which
// grows as it is used. It has no journal: its content ends with the task.
type loop struct{}

func (*loop) name() string { return "loop" }

func image(dir string) string { return dir + ".img" }

func (l *loop) create(ctx context.Context, dir string, size uint64) error {
	if there, err := l.there(dir); err != nil || there {
		return err
	}
	img := image(dir)
	if there, err := exists(img); err != nil {
		return err
	} else if !there {
		if err := makeFS(ctx, img, size); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	device, err := loopdev.Attach(img)
	if err != nil {
		return fmt.Errorf("loop device for %s: %w", img, err)
	}
	// The device frees itself when nothing has it open or mounted any more.
	err = unix.Mount(device.Name(), dir, "ext4", unix.MS_NOATIME, "")
	if err = errors.Join(err, device.Close()); err != nil {
		return fmt.Errorf("mounting %s: %w", img, err)
	}
	return errors.Join(unix.Mount("", dir, "", unix.MS_PRIVATE, ""), os.Chmod(dir, 0o700))
}

// makeFS makes the file; it has its name when it is complete.
func makeFS(ctx context.Context, img string, size uint64) error {
	fresh := img + ".new"
	f, err := os.OpenFile(fresh, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(int64(size)), f.Close()); err != nil {
		return err
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", fresh)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mke2fs (package e2fsprogs): %w: %s", err, strings.TrimSpace(out.String()))
	}
	return os.Rename(fresh, img)
}

// there reports whether a file system is mounted at dir.
func (l *loop) there(dir string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, err
}

func (l *loop) remove(dir string) error {
	for {
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmounting %s: %w", dir, err)
		}
	}
	return errors.Join(os.RemoveAll(dir), os.RemoveAll(image(dir)), os.RemoveAll(image(dir)+".new"))
}

func (l *loop) usage(dir string) (Usage, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Usage{}, err
	}
	size := uint64(st.Bsize)
	return Usage{Used: (st.Blocks - st.Bfree) * size, Limit: st.Blocks * size}, nil
}
