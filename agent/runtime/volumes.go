package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/spec"
	"berth.dev/berth/agent/task"

	"github.com/containerd/containerd/v2/core/mount"
	continuityfs "github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"
)

// volumeHandle is the handle of a volume.
type volumeHandle struct {
	Path     string `json:"path"`
	Populate string `json:"populate"`
	Group    uint32 `json:"group"`
	ReadOnly bool   `json:"readOnly"`
	NoExec   bool   `json:"noExec"`
}

// limit moves what the container will write from the snapshotter's directory into the
// task's limited storage. The snapshot stays what holds the image's layers.
func (p *planned) limit(mounts []mount.Mount) ([]mount.Mount, error) {
	if p.storage == "" {
		return mounts, nil
	}
	if len(mounts) != 1 || mounts[0].Type != "overlay" {
		return nil, task.Failf(task.Invalid, task.CannotCreateContainer, "ephemeralStorage: the snapshotter makes no overlay, whose size could be limited")
	}
	dir := filepath.Join(p.storage, "layers", p.h.ID)
	m := mounts[0]
	m.Options = slices.Clone(m.Options)
	for i, o := range m.Options {
		name, old, _ := strings.Cut(o, "=")
		if name != "upperdir" && name != "workdir" {
			continue
		}
		own := filepath.Join(dir, name)
		if err := like(old, own); err != nil {
			return nil, err
		}
		m.Options[i] = name + "=" + own
	}
	return []mount.Mount{m}, nil
}

// like makes a directory with the owner and mode of another.
func like(other, dir string) error {
	st, err := os.Stat(other)
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: no owner", other)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return errors.Join(os.Chown(dir, int(sys.Uid), int(sys.Gid)), os.Chmod(dir, st.Mode()))
}

// volumes finds where the container's volumes are.
func (p *planned) volumes(d engine.Deps) error {
	var storage volumeHandle
	if err := dependency(d, task.ResourceID{Kind: task.KindStorage, Name: "task"}, &storage); err != nil {
		return err
	}
	if p.storage = storage.Path; p.storage == "" && p.t.Storage > 0 {
		return task.Failf(task.Invalid, task.CannotCreateContainer, "the storage of the task was not made")
	}
	p.in.Volumes = make(map[string]spec.Volume)
	p.mounts = make(map[string]volumeHandle)
	for _, m := range p.t.MountsOf(p.name) {
		var h volumeHandle
		if err := dependency(d, task.ResourceID{Kind: task.KindVolume, Name: m.Volume}, &h); err != nil {
			return err
		}
		if h.Path == "" {
			return task.Failf(task.Invalid, task.CannotCreateContainer, "volume %s of container %s was not made", m.Volume, p.name)
		}
		p.in.Volumes[m.Volume] = spec.Volume{Path: h.Path, ReadOnly: h.ReadOnly, NoExec: h.NoExec}
		p.mounts[m.Volume] = h
	}
	return nil
}

// groups puts the container's user into the groups that its volumes ask for.
func (p *planned) groups() {
	for _, h := range p.mounts {
		if h.Group != 0 && !slices.Contains(p.in.User.AdditionalGIDs, h.Group) {
			p.in.User.AdditionalGIDs = append(slices.Clone(p.in.User.AdditionalGIDs), h.Group)
		}
	}
	slices.Sort(p.in.User.AdditionalGIDs)
}

// populate fills the volumes that are empty with what the image has at their places,
// owner and mode included, as Docker does.
func (c *Client) populate(ctx context.Context, p *planned, mounts []mount.Mount) error {
	from := map[volumeHandle]string{} // place in the image
	for _, m := range p.t.MountsOf(p.name) {
		h := p.mounts[m.Volume]
		if h.Populate == "" || from[h] != "" {
			continue
		}
		if wanted, err := unfilled(h); err != nil {
			return err
		} else if wanted {
			from[h] = m.Path
		}
	}
	if len(from) == 0 {
		return nil
	}
	return c.withRootfs(ctx, p.h.ID, mounts, func(root string) error {
		for h, place := range from {
			if err := fill(root, place, h); err != nil {
				return fmt.Errorf("filling the volume at %s from the image: %w", place, err)
			}
		}
		return nil
	})
}

// unfilled reports whether a volume is empty, or has what an earlier try left.
func unfilled(h volumeHandle) (bool, error) {
	if _, err := os.Lstat(h.Populate); !errors.Is(err, os.ErrNotExist) {
		return true, err
	}
	f, err := os.Open(h.Path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, err = f.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}

// fill copies a directory of an image, of which nothing runs, into a volume. The
// directory stays the same one: another container may have it mounted already.
func fill(root, place string, h volumeHandle) error {
	source, err := continuityfs.RootPath(root, place)
	if err != nil {
		return err
	}
	st, err := os.Lstat(source)
	if errors.Is(err, os.ErrNotExist) || err == nil && !st.IsDir() {
		return nil // the runtime makes it
	}
	if err != nil {
		return err
	}
	lock, err := lockDir(filepath.Dir(h.Populate))
	if err != nil {
		return err
	}
	defer lock.Close()
	if wanted, err := unfilled(h); err != nil || !wanted {
		return err // another container was faster
	}
	mark, err := os.Create(h.Populate)
	if err == nil {
		err = errors.Join(mark.Close(), empty(h.Path))
	}
	if err == nil {
		err = continuityfs.CopyDir(h.Path, source) // its owner and mode, too
	}
	if err != nil {
		return err
	}
	return os.Remove(h.Populate)
}

// lockDir waits for the lock of a directory that no container has.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// empty removes everything in a directory.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}
