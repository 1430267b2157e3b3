package ephemeral

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// project limits a directory by a project quota: everything made in it belongs to its
// project (Linux, filesystems/quota; ioctl_xfs_fsgetxattr(2)).
type project struct{}

// fsxattr is struct fsxattr of linux/fs.h.
type fsxattr struct {
	flags, extsize, extents, project, cow uint32
	_                                     [8]byte
}

// dqblk is struct if_dqblk of linux/quota.h; spaces are in units of 1024 bytes where
// they are limits and in bytes where they are used.
type dqblk struct {
	hard, soft, space         uint64
	inodeHard, inodeSoft, ino uint64
	blockTime, inodeTime      uint64
	valid                     uint32
	_                         uint32
}

// Numbers of linux/fs.h and linux/quota.h.
const (
	fsGetXattr      = 0x801c581f
	fsSetXattr      = 0x401c5820
	inheritProject  = 0x200    // FS_XFLAG_PROJINHERIT
	getQuota        = 0x800007 // Q_GETQUOTA
	setQuota        = 0x800008 // Q_SETQUOTA
	projectQuota    = 2        // PRJQUOTA
	validLimits     = 1        // QIF_BLIMITS
	quotaUnit       = 1024
	firstProject    = 1 << 30 // ours are from here on, so that an operator's own can be below
	collisionsTried = 64
)

func (*project) name() string { return "project" }

func (p *project) create(_ context.Context, dir string, bytes uint64) error {
	if there, err := p.there(dir); err != nil || there {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	id, err := freeProject(f, dir)
	if err != nil {
		return err
	}
	// The limit comes before the directory belongs to the project: one that does is limited.
	q := dqblk{hard: bytes / quotaUnit, valid: validLimits}
	if err := quotactl(f, setQuota, id, &q); err != nil {
		return fmt.Errorf("setting a project quota: %w", err)
	}
	return setProject(f, id)
}

// freeProject is the project of a directory, by its name, and the next one where another
// directory has it already.
func freeProject(f *os.File, dir string) (uint32, error) {
	sum := sha256.Sum256([]byte(filepath.Base(dir)))
	id := firstProject | binary.BigEndian.Uint32(sum[:])&(firstProject-1)
	for range collisionsTried {
		var q dqblk
		err := quotactl(f, getQuota, id, &q)
		if errors.Is(err, unix.ENOENT) {
			return id, nil
		}
		if err != nil {
			return 0, fmt.Errorf("reading a project quota: %w", err)
		}
		if q.space == 0 {
			return id, nil // nothing belongs to it
		}
		id = firstProject | (id+1)&(firstProject-1)
	}
	return 0, errors.New("no project is free")
}

func (p *project) there(dir string) (bool, error) {
	id, err := projectOf(dir)
	return id >= firstProject, err
}

// projectOf is the project that a directory passes on; 0 is none.
func projectOf(dir string) (uint32, error) {
	f, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var x fsxattr
	if err := ioctl(f, fsGetXattr, unsafe.Pointer(&x)); err != nil {
		if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
			return 0, nil
		}
		return 0, err
	}
	if x.flags&inheritProject == 0 {
		return 0, nil
	}
	return x.project, nil
}

func setProject(f *os.File, id uint32) error {
	var x fsxattr
	if err := ioctl(f, fsGetXattr, unsafe.Pointer(&x)); err != nil {
		return fmt.Errorf("reading the project of %s: %w", f.Name(), err)
	}
	x.project, x.flags = id, x.flags|inheritProject
	if err := ioctl(f, fsSetXattr, unsafe.Pointer(&x)); err != nil {
		return fmt.Errorf("setting the project of %s: %w", f.Name(), err)
	}
	return nil
}

func (p *project) remove(dir string) error {
	id, err := projectOf(dir)
	if err != nil {
		return err
	}
	if id >= firstProject {
		err = clearQuota(dir, id)
	}
	return errors.Join(err, os.RemoveAll(dir))
}

func clearQuota(dir string, id uint32) error {
	f, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return err
	}
	defer f.Close()
	return quotactl(f, setQuota, id, &dqblk{valid: validLimits})
}

func (p *project) usage(dir string) (Usage, error) {
	id, err := projectOf(dir)
	if err != nil {
		return Usage{}, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return Usage{}, err
	}
	defer f.Close()
	var q dqblk
	err = quotactl(f, getQuota, id, &q)
	return Usage{Used: q.space, Limit: q.hard * quotaUnit}, err
}

// quotactl is quotactl_fd(2).
func quotactl(f *os.File, cmd int, id uint32, q *dqblk) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, f.Fd(), uintptr(cmd<<8|projectQuota), uintptr(id), uintptr(unsafe.Pointer(q)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg))
	if errno != 0 {
		return errno
	}
	return nil
}

// dropResource takes CAP_SYS_RESOURCE from the calling goroutine's thread until done.
func dropResource() (done func() error, err error) {
	runtime.LockOSThread()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before [2]unix.CapUserData
	if err := unix.Capget(&head, &before[0]); err != nil {
		return func() error { runtime.UnlockOSThread(); return nil }, err
	}
	less := before
	less[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	return func() error {
		err := unix.Capset(&head, &before[0])
		if err == nil {
			runtime.UnlockOSThread() // otherwise the thread ends with the goroutine
		}
		return err
	}, unix.Capset(&head, &less[0])
}
