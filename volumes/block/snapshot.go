package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// copyStep is how much is copied before anybody may end it.
const copyStep = 64 << 20

// Snapshot keeps the content of a volume as it is now, under a name of its own, or finds
// that it was kept already. Where the pool's file system can share blocks (FICLONE,
// ioctl_ficlone(2)) that is done at once and also for a volume in use, whose file system
// then is as after a crash at that moment, as snapshots of EBS are. Elsewhere the parts of
// the file that hold anything are copied, which needs the volume at rest: one in use is
// ErrBusy. A volume that is not here is ErrUnknown.
func (p Pool) Snapshot(ctx context.Context, id, volume string, inUse bool) error {
	if !ValidSnapshotID(id) || !ValidID(volume) {
		return fmt.Errorf("snapshot %.64q of volume %.64q", id, volume)
	}
	return p.complete(id, func(fresh string) error {
		from, err := os.Open(p.file(volume, ".img"))
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("volume %s: %w", volume, ErrUnknown)
		}
		if err != nil {
			return err
		}
		defer from.Close()
		to, err := os.OpenFile(fresh, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		return errors.Join(p.keep(ctx, to, from, inUse), to.Close())
	})
}

func (p Pool) keep(ctx context.Context, to, from *os.File, inUse bool) error {
	shared, err := clone(to, from)
	if err != nil || shared {
		return err
	}
	if inUse {
		return ErrBusy
	}
	st, err := from.Stat()
	if err != nil {
		return err
	}
	if err := to.Truncate(st.Size()); err != nil {
		return err
	}
	return p.copyData(ctx, to, from, st.Size())
}

// clone has a file share the blocks of another. It is false where that cannot be.
func clone(to, from *os.File) (bool, error) {
	err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd()))
	for _, no := range []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.EINVAL, unix.EXDEV, unix.ENOSYS} {
		if errors.Is(err, no) {
			return false, nil
		}
	}
	return err == nil, err
}

// restore gives a volume that has its room the content of a snapshot.
func (p Pool) restore(ctx context.Context, fresh string, c Content) error {
	from, err := os.Open(p.file(c.Snapshot, ".img"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("snapshot %s: %w", c.Snapshot, ErrUnknown)
	}
	if err != nil {
		return err
	}
	defer from.Close()
	st, err := from.Stat()
	if err != nil {
		return err
	}
	if st.Size() > c.Size {
		return fmt.Errorf("snapshot %s has %d bytes, and the volume only %d", c.Snapshot, st.Size(), c.Size)
	}
	to, err := os.OpenFile(fresh, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	shared, err := clone(to, from)
	switch {
	case err == nil && shared:
		if err = to.Truncate(c.Size); err == nil {
			err = take(to, c.Size)
		}
	case err == nil:
		err = p.copyData(ctx, to, from, st.Size())
	}
	return errors.Join(err, to.Close())
}

// copyData copies the parts of a file that hold anything (lseek(2), SEEK_DATA) into one
// that holds nothing. Others must keep their room: the pool's file system is not filled.
func (p Pool) copyData(ctx context.Context, to, from *os.File, size int64) error {
	for at := int64(0); at < size; {
		start, err := from.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only holes are left
		}
		if err != nil {
			return err
		}
		end, err := from.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		end = min(end, size, start+copyStep)
		if err := p.room(end - start); err != nil {
			return err
		}
		if err := copyRange(to, from, start, end-start); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		at = end
	}
	return nil
}

func copyRange(to, from *os.File, at, n int64) error {
	for _, f := range []*os.File{to, from} {
		if _, err := f.Seek(at, io.SeekStart); err != nil {
			return err
		}
	}
	_, err := io.CopyN(to, from, n)
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// DeleteSnapshot removes a snapshot, also one that was never completed.
func (p Pool) DeleteSnapshot(id string) error {
	if !ValidSnapshotID(id) {
		return fmt.Errorf("snapshot %.64q", id)
	}
	return p.remove(id, ".new", ".img")
}
