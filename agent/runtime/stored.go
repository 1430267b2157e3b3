package runtime

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"

	"berth.dev/berth/agent/task"
)

// Labels of images in containerd's store.
const (
	// LabelUsed is when an image was last used by a task, in RFC 3339.
	LabelUsed = "berth/used"
	// LabelPinned with the value "pinned" keeps an image from being cleaned up; it is the
	// one that containerd's own CRI service and its tools know.
	LabelPinned = "io.cri-containerd.pinned"
)

// StoredImage is a name in containerd's image store.
type StoredImage struct {
	Name, Digest string
	Created      time.Time // when the name was first stored
	Changed      time.Time // when it was pulled last
	Used         time.Time // when a task used it last, or when it was pulled
	Size         int64     // bytes of its layers in the store; 0 when that is not known
	Pulled       bool      // by the agent, under this name
	Pinned       bool
}

// StoredImages lists all names in containerd's store.
func (c *Client) StoredImages(ctx context.Context) ([]StoredImage, error) {
	ctx = c.ns(ctx)
	list, err := c.cd.ImageService().List(ctx)
	if err != nil {
		return nil, classify(err, "")
	}
	out := make([]StoredImage, 0, len(list))
	for _, img := range list {
		i := StoredImage{
			Name: img.Name, Digest: img.Target.Digest.String(), Created: img.CreatedAt, Changed: img.CreatedAt,
			Pinned: img.Labels[LabelPinned] == "pinned",
		}
		if at, ok := img.Labels[LabelPulled]; ok {
			i.Pulled = true
			if t, err := time.Parse(time.RFC3339, at); err == nil {
				i.Changed = t
			}
		}
		i.Used = i.Changed
		if t, err := time.Parse(time.RFC3339, img.Labels[LabelUsed]); err == nil && t.After(i.Used) {
			i.Used = t
		}
		if !i.Pulled {
			if n, err := img.Size(ctx, limited{c.cd.ContentStore()}, platforms.Default()); err == nil {
				i.Size = n
			}
		}
		out = append(out, i)
	}
	return out, nil
}

// UsedImages is the names of the images of all containers in the agent's namespace, those
// of stopped tasks included.
func (c *Client) UsedImages(ctx context.Context) (map[string]bool, error) {
	list, err := c.containers.List(c.ns(ctx))
	if err != nil {
		return nil, classify(err, "")
	}
	used := make(map[string]bool, len(list))
	for _, r := range list {
		used[r.Image] = true
	}
	return used, nil
}

// RemoveImage removes a name, if it still stands for the same image; containerd frees
// what nothing refers to any more in its own time. A name that is gone is no error.
func (c *Client) RemoveImage(ctx context.Context, i StoredImage) error {
	ctx = c.ns(ctx)
	now, err := c.cd.ImageService().Get(ctx, i.Name)
	if isNotFound(err) || err == nil && now.Target.Digest.String() != i.Digest {
		return nil
	}
	if err == nil {
		c.mu.Lock()
		delete(c.images, i.Digest)
		c.mu.Unlock()
		err = c.cd.ImageService().Delete(ctx, i.Name)
	}
	if isNotFound(err) {
		return nil
	}
	return classify(err, "")
}

// TouchImage remembers that a task uses an image now.
func (c *Client) TouchImage(ctx context.Context, name string, now time.Time) error {
	img := images.Image{Name: name, Labels: map[string]string{LabelUsed: now.UTC().Format(time.RFC3339)}}
	_, err := c.cd.ImageService().Update(c.ns(ctx), img, "labels."+LabelUsed)
	if isNotFound(err) {
		return nil
	}
	return classify(err, "")
}

// DiskUse is how full the disk is that has the snapshots of images, in percent as df(1)
// counts it.
func (c *Client) DiskUse(context.Context) (int, error) {
	c.mu.Lock()
	root := c.root
	c.mu.Unlock()
	if root == "" {
		return 0, task.Failf(task.Unavailable, "", "containerd does not say where its snapshotter %s keeps its files", c.cfg.Snapshotter)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(root, &st); err != nil {
		return 0, fmt.Errorf("disk of %s: %w", root, err)
	}
	used := st.Blocks - st.Bfree
	if used+st.Bavail == 0 {
		return 0, errors.New("disk of " + root + " has no size")
	}
	return int((used*100 + used + st.Bavail - 1) / (used + st.Bavail)), nil
}
