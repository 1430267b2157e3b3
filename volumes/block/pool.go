package block

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"berth.dev/berth/volumes/loop"
)

// Pool keeps volumes in files of one directory:
//
//	DIR/<volume>.of     whose it is, made first and removed last: a link to "delete/TASK"
//	                    or "keep/TASK", because a link is there as a whole or not at all
//	DIR/<volume>.img    its content, which has this name when it is complete
//	DIR/<volume>.new    the same before
//	DIR/<snapshot>.img  the content of a volume as it once was, and .new likewise
//
// The room of volumes is taken when they are made, so that none finds the host full
// later. Only where a snapshot shares blocks with a volume (see Snapshot) is that of a
// shared block taken when either is changed.
type Pool struct{ Dir string }

// Owned is what is kept of a volume beside its content.
type Owned struct {
	Task   string // that it was made for
	Delete bool   // when that task has ended
}

// ErrFull is that the file system of the pool has not the room.
var ErrFull = errors.New("the pool of block volumes has not enough room")

// ErrBusy is that the volume to copy is in use.
var ErrBusy = errors.New("the volume is in use, and the pool's file system cannot share blocks, as xfs and btrfs can: stop its task first")

// ErrUnknown is that the pool has no such volume or snapshot.
var ErrUnknown = errors.New("it is not in the pool of this host")

// spare is the part of the pool's file system that volumes leave free for others: 1/20.
const spare = 20

var (
	volumeID   = regexp.MustCompile(`^vol-[0-9a-f]{8,40}$`)
	snapshotID = regexp.MustCompile(`^snap-[0-9a-f]{8,40}$`)
)

// ValidID reports whether a name is that of a volume, and safe as a file's.
func ValidID(id string) bool { return volumeID.MatchString(id) }

// ValidSnapshotID reports whether a name is that of a snapshot, and safe as a file's.
func ValidSnapshotID(id string) bool { return snapshotID.MatchString(id) }

func (p Pool) file(id, suffix string) string { return filepath.Join(p.Dir, id+suffix) }

// Content is what a volume is made with.
type Content struct {
	Size     int64  // bytes
	Kind     string // of the file system
	Snapshot string // whose content it begins with; "" makes an empty file system
}

// Create makes a volume, or finds it.
func (p Pool) Create(ctx context.Context, id string, c Content, o Owned) error {
	if !ValidID(id) || c.Size <= 0 {
		return fmt.Errorf("volume %.64q of %d bytes", id, c.Size)
	}
	if c.Snapshot != "" && !ValidSnapshotID(c.Snapshot) {
		return fmt.Errorf("snapshot %.64q", c.Snapshot)
	}
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return err
	}
	if err := p.record(id, o); err != nil {
		return err
	}
	return p.complete(id, func(fresh string) error {
		if err := p.allocate(fresh, c.Size); err != nil {
			return err
		}
		if c.Snapshot == "" {
			return makeFS(ctx, fresh, c.Kind)
		}
		return p.restore(ctx, fresh, c)
	})
}

// complete makes the content of a volume or snapshot, unless it is there. It has its name
// when it is on the disk as a whole.
func (p Pool) complete(id string, fill func(fresh string) error) error {
	if _, err := os.Stat(p.file(id, ".img")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fresh := p.file(id, ".new")
	err := fill(fresh)
	if err == nil {
		err = syncFile(fresh)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(fresh))
	}
	if err := os.Rename(fresh, p.file(id, ".img")); err != nil {
		return err
	}
	return syncFile(p.Dir)
}

// syncFile has a file, or what is in a directory, written to the disk.
func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Words of links.
const (
	wordDelete = "delete/"
	wordKeep   = "keep/"
)

func (o Owned) text() string {
	if o.Delete {
		return wordDelete + o.Task
	}
	return wordKeep + o.Task
}

func (p Pool) record(id string, o Owned) error {
	name := p.file(id, ".of")
	err := os.Symlink(o.text(), name)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if have, err := os.Readlink(name); err != nil || have != o.text() {
		return errors.Join(err, fmt.Errorf("volume %s is that of another task: %s", id, have))
	}
	return nil
}

// room checks that there is room for so many bytes, with what is left free for others.
func (p Pool) room(size int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(p.Dir, &st); err != nil {
		return err
	}
	free, all := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	if size > free-all/spare {
		return fmt.Errorf("%w: %d MiB are free of %d MiB, %d MiB are asked for", ErrFull, free>>20, all>>20, size>>20)
	}
	return nil
}

// allocate makes a file whose room is taken.
func (p Pool) allocate(name string, size int64) error {
	if err := p.room(size); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(take(f, size), f.Close())
}

// take has a file take the room of its whole size.
func take(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = f.Truncate(size)
	}
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// Attach makes a device of a volume, which lasts as long as it is open or mounted.
func (p Pool) Attach(id string) (*os.File, error) { return loop.Attach(p.file(id, ".img")) }

// Delete removes a volume, also one that was never completed.
func (p Pool) Delete(id string) error {
	if !ValidID(id) {
		return fmt.Errorf("volume %.64q", id)
	}
	return p.remove(id, ".new", ".img", ".of")
}

func (p Pool) remove(id string, suffixes ...string) error {
	for _, suffix := range suffixes {
		if err := os.Remove(p.file(id, suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Volumes lists the volumes of the pool.
func (p Pool) Volumes() (map[string]Owned, error) {
	entries, err := os.ReadDir(p.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := make(map[string]Owned)
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".of")
		if !ok || !ValidID(id) {
			continue
		}
		text, err := os.Readlink(filepath.Join(p.Dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		word, task, _ := strings.Cut(text, "/")
		out[id] = Owned{Task: task, Delete: word+"/" == wordDelete}
	}
	return out, nil
}
