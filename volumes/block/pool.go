package block

import (
	"context"
	"encoding/json"
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
//	DIR/<volume>.json   whose it is, made first and removed last
//	DIR/<volume>.img    its content, which has this name when it is complete
//	DIR/<volume>.new    the same before
//
// Their room is taken when they are made, so that no volume finds the host full later.
type Pool struct{ Dir string }

// Owned is what is kept of a volume beside its content.
type Owned struct {
	Task   string `json:"task"`   // that it was made for
	Delete bool   `json:"delete"` // when that task has ended
}

// ErrFull is that the file system of the pool has not the room.
var ErrFull = errors.New("the pool of block volumes has not enough room")

// ErrBusy is that the volume to copy is in use.
var ErrBusy = errors.New("the volume to copy is still in use")

// spare is the part of the pool's file system that volumes leave free for others: 1/20.
const spare = 20

var volumeID = regexp.MustCompile(`^vol-[0-9a-f]{8,40}$`)

// ValidID reports whether a name is that of a volume, and safe as a file's.
func ValidID(id string) bool { return volumeID.MatchString(id) }

func (p Pool) file(id, suffix string) string { return filepath.Join(p.Dir, id+suffix) }

// Create makes a volume with an empty file system of a kind, or finds it. size is in
// bytes.
func (p Pool) Create(ctx context.Context, id string, size int64, kind string, o Owned) error {
	if !ValidID(id) || size <= 0 {
		return fmt.Errorf("volume %.64q of %d bytes", id, size)
	}
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return err
	}
	if err := p.record(id, o); err != nil {
		return err
	}
	if _, err := os.Stat(p.file(id, ".img")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fresh := p.file(id, ".new")
	err := p.allocate(fresh, size)
	if err == nil {
		err = makeFS(ctx, fresh, kind)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(fresh))
	}
	return os.Rename(fresh, p.file(id, ".img"))
}

func (p Pool) record(id string, o Owned) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	fresh := p.file(id, ".json.new")
	if err := os.WriteFile(fresh, b, 0o600); err != nil {
		return err
	}
	return os.Rename(fresh, p.file(id, ".json"))
}

// allocate makes a file whose room is taken.
func (p Pool) allocate(name string, size int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(p.Dir, &st); err != nil {
		return err
	}
	free, all := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	if size > free-all/spare {
		return fmt.Errorf("%w: %d MiB are free of %d MiB, %d MiB are asked for", ErrFull, free>>20, all>>20, size>>20)
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = f.Truncate(size)
	}
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: %w", ErrFull, err)
	}
	return errors.Join(err, f.Close())
}

// Attach makes a device of a volume, which lasts as long as it is open or mounted.
func (p Pool) Attach(id string) (*os.File, error) { return loop.Attach(p.file(id, ".img")) }

// Delete removes a volume, also one that was never completed.
func (p Pool) Delete(id string) error {
	if !ValidID(id) {
		return fmt.Errorf("volume %.64q", id)
	}
	for _, suffix := range []string{".new", ".img", ".json.new", ".json"} {
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
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !ValidID(id) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(p.Dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var o Owned
		if err == nil {
			err = json.Unmarshal(b, &o)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name(), err)
		}
		out[id] = o
	}
	return out, nil
}
