package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

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

// volumes finds where the container's volumes are.
func (p *planned) volumes(d engine.Deps) error {
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
