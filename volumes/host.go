package volumes

import (
	"context"
	"errors"
	"path/filepath"
)

// Dirs are Berth's own directories for volumes.
type Dirs struct {
	Run   string // for mount points; ends with the system
	State string // for data; outlives it
}

// point is where a volume of a task is mounted.
func (d Dirs) point(v *Volume) string { return filepath.Join(d.Run, "tasks", v.Task, v.Name) }

// data is the directory of a volume that lives as long as its task.
func (d Dirs) data(v *Volume) string {
	if v.Data != "" {
		return filepath.Join(v.Data, v.Name)
	}
	return filepath.Join(d.State, "tasks", v.Task, v.Name)
}

// Host gives tasks files and directories of the host.
type Host struct {
	Dirs    Dirs
	Allowed Allowed
}

var _ Driver = (*Host)(nil)

// Name is "host".
func (h *Host) Name() string { return "host" }

// Mount binds the source. A source that is missing is made as a directory, as Docker
// does.
func (h *Host) Mount(_ context.Context, v *Volume) (Mounted, error) {
	return h.mount(v, v.Source, plain(), access{})
}

func (h *Host) mount(v *Volume, source string, create *directory, a access) (Mounted, error) {
	if err := v.check(); err != nil {
		return Mounted{}, err
	}
	point := h.Dirs.point(v)
	there, err := mounted(point)
	if err != nil || there {
		return Mounted{Path: point}, err
	}
	create.permit = h.Allowed.path
	f, name, err := open(source, create)
	if err != nil {
		return Mounted{}, err
	}
	err = h.Allowed.check(name, f)
	if err == nil {
		err = bind(f, point, a)
	}
	return Mounted{Path: point}, errors.Join(err, f.Close())
}

// Unmount takes the mount away. The source stays as it is.
func (h *Host) Unmount(_ context.Context, v *Volume) error {
	if err := v.check(); err != nil {
		return err
	}
	return h.Dirs.leave(v)
}

// leave unmounts a volume of a task, and removes the directory of the task's mounts with
// the last one.
func (d Dirs) leave(v *Volume) error {
	point := d.point(v)
	if err := unmount(point); err != nil {
		return err
	}
	return removeEmpty(filepath.Dir(point))
}

// Check looks for the mount.
func (h *Host) Check(_ context.Context, v *Volume) (bool, error) { return mounted(h.Dirs.point(v)) }
