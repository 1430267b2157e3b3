package volumes

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth.dev/berth/volumes/block"
)

// Block mounts block volumes: Amazon's Elastic Block Store, whose devices are plugged
// into the host, and volumes of a pool that the host has itself. Each belongs to one
// task.
type Block struct{ c BlockConfig }

// BlockConfig is what a Block is made of.
type BlockConfig struct {
	Dirs   Dirs
	Finder block.Finder
	Pool   *block.Pool // nil: this host has none
}

// BlockDevice is the part of a Volume for Block.
type BlockDevice struct {
	ID     string // vol-…
	Size   int64  // bytes; of a volume of the pool
	Kind   string // of file system; "" means xfs
	Path   string // the task's name for the mount, which its group is made of
	Pooled bool   // it is of the host's pool
	Delete bool   // with its task; of a volume of the pool
	// Snapshot is whose content a volume of the pool begins with; "" is none.
	Snapshot string
}

var _ Driver = (*Block)(nil)

// NewBlock makes the driver. It changes nothing on the host.
func NewBlock(c BlockConfig) *Block { return &Block{c} }

// Name is "block".
func (b *Block) Name() string { return "block" }

// defaultKind is the file system that is made where none is named (ECS API model,
// TaskManagedEBSVolumeConfiguration: filesystemType).
const defaultKind = "xfs"

func (d *BlockDevice) kind() string {
	if d.Kind == "" {
		return defaultKind
	}
	return d.Kind
}

// Group is the group that processes must be in to write to the volume: 900000 and the
// last four bytes of the path's SHA-256 modulo 100000 (agent protocol, "Volumes and EBS").
func (d *BlockDevice) Group() uint32 {
	const first, count = 900000, 100000
	sum := sha256.Sum256([]byte(d.Path))
	return first + binary.BigEndian.Uint32(sum[len(sum)-4:])%count
}

func (b *Block) check(v *Volume) error {
	d := v.Block
	switch {
	case d == nil || !block.ValidID(d.ID):
		return failf(ErrInvalid, "volume %.64q: its volumeId must be that of a block volume, vol-…", v.Name)
	case !slices.Contains(block.Kinds, d.kind()):
		return failf(ErrInvalid, "volume %s: file system %.16q is not supported; %s are", v.Name, d.Kind, strings.Join(block.Kinds, ", "))
	case d.Pooled && b.c.Pool == nil:
		return failf(ErrInvalid, "volume %s: this host has no pool of block volumes; set BERTH_VOLUME_POOL", v.Name)
	}
	return v.check()
}

// Mount waits for the device until ctx ends, puts a file system on it if it is empty, and
// mounts it with its owner.
func (b *Block) Mount(ctx context.Context, v *Volume) (Mounted, error) {
	if err := b.check(v); err != nil {
		return Mounted{}, err
	}
	m := Mounted{Path: b.c.Dirs.point(v), Group: v.Block.Group()}
	there, err := mounted(m.Path)
	if err != nil || there {
		return m, err
	}
	device, err := b.device(ctx, v)
	if err != nil {
		return m, err
	}
	defer device.Close()
	var options []string
	if v.Block.kind() == "xfs" {
		options = []string{"nouuid"} // a copy has the same
	}
	tree, err := newFS(v.Block.kind(), device.Name(), options, access{})
	if err != nil {
		return m, err
	}
	if err := give(ctx, tree, m.Group); err != nil {
		return m, errors.Join(fmt.Errorf("volume %s: its owner: %w", v.Name, err), tree.Close())
	}
	if err := mountPoint(m.Path, true); err != nil {
		return m, errors.Join(err, tree.Close())
	}
	return m, attach(tree, m.Path, access{})
}

// device makes or finds the device and sees that it has a file system.
func (b *Block) device(ctx context.Context, v *Volume) (*os.File, error) {
	d := v.Block
	if d.Pooled {
		content := block.Content{Size: d.Size, Kind: d.kind(), Snapshot: d.Snapshot}
		if err := b.c.Pool.Create(ctx, d.ID, content, block.Owned{Task: v.Task, Delete: d.Delete}); err != nil {
			if errors.Is(err, block.ErrUnknown) {
				return nil, failf(ErrInvalid, "volume %s: %w", v.Name, err)
			}
			return nil, fmt.Errorf("volume %s: %w", v.Name, err)
		}
		device, err := b.c.Pool.Attach(d.ID)
		if err != nil {
			return nil, fmt.Errorf("volume %s: a device of %s: %w", v.Name, d.ID, err)
		}
		return device, nil
	}
	name, err := b.c.Finder.Await(ctx, block.Serial(d.ID))
	if err != nil {
		return nil, failf(ErrUnavailable, "volume %s: %w", v.Name, err)
	}
	if err := b.format(ctx, name, d); err != nil {
		return nil, fmt.Errorf("volume %s: %s: %w", v.Name, d.ID, err)
	}
	return os.Open(name)
}

// format puts a file system on an empty device. That it was empty is written down first:
// a host that fails in between leaves something on the device that looks like data.
func (b *Block) format(ctx context.Context, device string, d *BlockDevice) error {
	mark := filepath.Join(b.c.Dirs.State, "formatting", d.ID)
	_, err := os.Stat(mark)
	begun := err == nil
	if err := ignoreMissing(err); err != nil {
		return err
	}
	have, err := block.Probe(ctx, device)
	if err != nil {
		return err
	}
	if have == "" && !begun {
		if err := block.Empty(device); err != nil {
			return failf(ErrInvalid, "%w", err)
		}
		if err := writeMark(mark); err != nil {
			return err
		}
		begun = true
	}
	if err := block.Format(ctx, device, d.kind(), begun); err != nil {
		if errors.Is(err, block.ErrOther) || errors.Is(err, block.ErrData) {
			return failf(ErrInvalid, "%w", err)
		}
		return err
	}
	return ignoreMissing(os.Remove(mark))
}

// writeMark makes an empty file that outlives a failure of the host.
func writeMark(name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(f.Sync(), f.Close(), dir.Sync(), dir.Close())
}

// give has everything on a file system that nobody sees yet belong to a group, which may
// write to it. Where the root belongs to it already that was done before: by this or by
// what the volume was used for.
func give(ctx context.Context, tree *os.File, group uint32) error {
	root := fmt.Sprintf("/proc/self/fd/%d/.", tree.Fd())
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return err
	}
	if st.Gid == group && st.Mode&unix.S_ISGID != 0 {
		return nil
	}
	// The root last: it says that the rest is done.
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		return giveOne(path, e.Type(), group)
	})
	if err != nil {
		return err
	}
	return giveOne(root, fs.ModeDir, group)
}

func giveOne(path string, kind fs.FileMode, group uint32) error {
	if err := os.Lchown(path, -1, int(group)); err != nil {
		return err
	}
	if !kind.IsDir() && !kind.IsRegular() {
		return nil
	}
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	mode := st.Mode().Perm()
	if mode&0o400 != 0 {
		mode |= 0o060
	}
	if kind.IsDir() {
		mode |= 0o070 | fs.ModeSetgid
	}
	return os.Chmod(path, mode|st.Mode()&fs.ModeSticky)
}

// Unmount writes everything to the device and takes the mount away, and a volume of the
// pool that goes with its task.
func (b *Block) Unmount(ctx context.Context, v *Volume) error {
	if err := v.check(); err != nil {
		return err
	}
	point := b.c.Dirs.point(v)
	there, err := mounted(point)
	if err != nil {
		return err
	}
	if there {
		if err := flush(ctx, point); err != nil {
			return err
		}
	}
	if err := b.c.Dirs.leave(v); err != nil {
		return err
	}
	if d := v.Block; d != nil && d.Pooled && d.Delete && b.c.Pool != nil {
		return b.c.Pool.Delete(d.ID)
	}
	return nil
}

// Snapshot keeps the content of a volume of the pool, which may be mounted.
func (b *Block) Snapshot(ctx context.Context, v *Volume, id string) error {
	if err := b.check(v); err != nil {
		return err
	}
	point := b.c.Dirs.point(v)
	inUse, err := mounted(point)
	if err != nil {
		return err
	}
	if inUse {
		if err := flush(ctx, point); err != nil {
			return err
		}
	}
	return b.c.Pool.Snapshot(ctx, id, v.Block.ID, inUse)
}

// Pool is where the volumes of this host are; nil where it has none.
func (b *Block) Pool() *block.Pool { return b.c.Pool }

// flush writes what is only in memory. A device that does not answer is not waited for
// longer than ctx: the write is left to itself.
func flush(ctx context.Context, point string) error {
	done := make(chan error, 1)
	go func() { // ends with the device's answer, or its end
		f, err := os.Open(point)
		if err == nil {
			err = errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
		}
		done <- err
	}()
	select {
	case err := <-done:
		if errors.Is(err, unix.EIO) || errors.Is(err, unix.ENXIO) {
			return nil // the device is gone, and nothing can be written any more
		}
		return err
	case <-ctx.Done():
		return failf(ErrUnavailable, "writing to the device: %w", context.Cause(ctx))
	}
}

// Check looks for the mount.
func (b *Block) Check(_ context.Context, v *Volume) (bool, error) {
	return mounted(b.c.Dirs.point(v))
}

// Usage is how much of a mounted volume is used, and its size, in bytes. It does not
// wait for the device longer than ctx.
func (b *Block) Usage(ctx context.Context, v *Volume) (used, size uint64, err error) {
	point := b.c.Dirs.point(v)
	there, err := mounted(point)
	if err != nil || !there {
		return 0, 0, errors.Join(err, failf(ErrMissing, "volume %s is not mounted", v.Name))
	}
	type answer struct {
		st  unix.Statfs_t
		err error
	}
	got := make(chan answer, 1)
	go func() { // as in flush
		var a answer
		a.err = unix.Statfs(point, &a.st)
		got <- a
	}()
	select {
	case a := <-got:
		unit := uint64(a.st.Bsize)
		return (a.st.Blocks - a.st.Bfree) * unit, a.st.Blocks * unit, a.err
	case <-ctx.Done():
		return 0, 0, context.Cause(ctx)
	}
}

// Tasks lists the tasks that have volumes of the pool which go with them.
func (b *Block) Tasks() ([]string, error) {
	if b.c.Pool == nil {
		return nil, nil
	}
	all, err := b.c.Pool.Volumes()
	var ids []string
	for _, o := range all {
		if o.Delete && SafeName(o.Task) {
			ids = append(ids, o.Task)
		}
	}
	return ids, err
}

// Sweep removes the volumes of the pool that go with a task that nobody knows. Its mounts
// have to be gone.
func (b *Block) Sweep(taskID string) error {
	if b.c.Pool == nil {
		return nil
	}
	all, err := b.c.Pool.Volumes()
	for id, o := range all {
		if o.Delete && o.Task == taskID {
			err = errors.Join(err, b.c.Pool.Delete(id))
		}
	}
	return err
}
