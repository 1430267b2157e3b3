package ephemeral

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// btrfs limits a subvolume by its quota group (linux/btrfs.h, btrfs-quota(8)).
type btrfs struct{}

// Requests and structures of linux/btrfs.h.
const (
	btrfsSubvolCreate = 0x5000940e
	btrfsSnapDestroy  = 0x5000940f
	btrfsTreeSearch   = 0xd0009411
	btrfsInoLookup    = 0xd0009412
	btrfsQuotaCtl     = 0xc0109428
	btrfsQgroupCreate = 0x4010942a
	btrfsQgroupLimit  = 0x8030942b

	btrfsFirstInode  = 256 // of every subvolume
	btrfsQuotaEnable = 1
	btrfsLimitRefer  = 1 // BTRFS_QGROUP_LIMIT_MAX_RFER
	btrfsQuotaTree   = 8
	btrfsKeyInfo     = 242
	btrfsKeyLimit    = 244
)

type btrfsVolArgs struct {
	fd   int64
	name [4088]byte
}

type btrfsLimitArgs struct {
	group                                      uint64
	flags, maxRefer, maxExcl, rsvRefer, rsvExc uint64
}

func (*btrfs) name() string { return "btrfs" }

func onBtrfs(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type != unix.BTRFS_SUPER_MAGIC {
		return nil, errors.Join(err, f.Close(), errors.New("not a btrfs"))
	}
	return f, nil
}

func named(dir string) *btrfsVolArgs {
	a := &btrfsVolArgs{}
	copy(a.name[:len(a.name)-1], filepath.Base(dir))
	return a
}

func (b *btrfs) create(_ context.Context, dir string, bytes uint64) error {
	parent, err := onBtrfs(filepath.Dir(dir))
	if err != nil {
		return err
	}
	defer parent.Close()
	ctl := [2]uint64{btrfsQuotaEnable}
	if err := ioctl(parent, btrfsQuotaCtl, unsafe.Pointer(&ctl)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("enabling quota: %w", err)
	}
	if err := ioctl(parent, btrfsSubvolCreate, unsafe.Pointer(named(dir))); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("making a subvolume: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chmod(0o700); err != nil {
		return err
	}
	limit := btrfsLimitArgs{flags: btrfsLimitRefer, maxRefer: bytes} // group 0 is the subvolume's own
	if err := ioctl(f, btrfsQgroupLimit, unsafe.Pointer(&limit)); err != nil {
		return fmt.Errorf("limiting a subvolume: %w", err)
	}
	return nil
}

func (b *btrfs) there(dir string) (bool, error) {
	if there, err := exists(dir); err != nil || !there {
		return false, err
	}
	u, err := b.usage(dir)
	return err == nil && u.Limit > 0, err
}

func (b *btrfs) remove(dir string) error {
	if there, err := exists(dir); err != nil || !there {
		return err
	}
	parent, err := onBtrfs(filepath.Dir(dir))
	if err != nil {
		return err
	}
	defer parent.Close()
	id, err := subvolume(dir)
	if err != nil {
		return err
	}
	if err := ioctl(parent, btrfsSnapDestroy, unsafe.Pointer(named(dir))); err != nil {
		return fmt.Errorf("deleting the subvolume %s: %w", dir, err)
	}
	drop := [2]uint64{0, id} // create: 0
	if err := ioctl(parent, btrfsQgroupCreate, unsafe.Pointer(&drop)); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("deleting the quota group of %s: %w", dir, err)
	}
	return nil // one that is busy goes with the subvolume's last block, or stays empty
}

// subvolume is the id of the subvolume that a directory is.
func subvolume(dir string) (uint64, error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	args := struct {
		tree, object uint64
		name         [4080]byte
	}{object: btrfsFirstInode}
	err = ioctl(f, btrfsInoLookup, unsafe.Pointer(&args))
	return args.tree, err
}

// btrfsSearch is struct btrfs_ioctl_search_args.
type btrfsSearch struct {
	tree                       uint64
	minObject, maxObject       uint64
	minOffset, maxOffset       uint64
	minTransid, maxTransid     uint64
	minType, maxType, nr, skip uint32
	_                          [4]uint64
	buf                        [3992]byte
}

func (b *btrfs) usage(dir string) (Usage, error) {
	id, err := subvolume(dir)
	if err != nil {
		return Usage{}, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return Usage{}, err
	}
	defer f.Close()
	read := func(key uint32) (uint64, error) {
		s := btrfsSearch{tree: btrfsQuotaTree, minOffset: id, maxOffset: id, maxTransid: ^uint64(0), minType: key, maxType: key, nr: 1}
		if err := ioctl(f, btrfsTreeSearch, unsafe.Pointer(&s)); err != nil {
			return 0, err
		}
		if s.nr == 0 {
			return 0, nil
		}
		// A header of 32 bytes, then the item: in both kinds the second number is wanted.
		return binary.LittleEndian.Uint64(s.buf[32+8:]), nil
	}
	used, err := read(btrfsKeyInfo)
	if err != nil {
		return Usage{}, fmt.Errorf("reading the quota group of %s: %w", dir, err)
	}
	limit, err := read(btrfsKeyLimit)
	return Usage{Used: used, Limit: limit}, err
}
