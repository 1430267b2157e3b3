package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"berth.dev/berth/agent/spec"
	"berth.dev/berth/agent/task"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image that is on this host, unpacked and ready for containers. It is also
// the handle of an image resource.
type Image struct {
	Name      string `json:"name"`   // normalized, as in containerd's image store
	Digest    string `json:"digest"` // of what the name resolved to: a manifest or an index
	MediaType string `json:"mediaType"`
	Size      int64  `json:"size"`
	// Imported is set for images that were loaded from an archive on this host.
	Imported bool `json:"imported,omitempty"`
	// Pulled is set for images that the agent has pulled under this name.
	Pulled bool `json:"pulled,omitempty"`
	// Used is when a task used it last, as far as that was remembered.
	Used time.Time `json:"-"`

	chain  string     // key of the topmost layer's snapshot
	config spec.Image // what containers take from its configuration
}

func (i Image) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: i.MediaType, Digest: digest.Digest(i.Digest), Size: i.Size}
}

// Handle is the image as it is stored with its resource record.
func (i Image) Handle() (task.Handle, error) { return json.Marshal(i) }

// maxConfig bounds an image's configuration and manifests in bytes.
const maxConfig = 8 << 20

// NormalizeRef completes an image reference as Docker does: "my-image" is
// docker.io/library/my-image:latest.
func NormalizeRef(ref string) (string, error) {
	r, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", fmt.Errorf("image %q: %w", ref, err)
	}
	return r.String(), nil
}

// LocalImage finds an image by name on this host and makes sure that it is unpacked.
// An image that is not there is an error of class NotFound.
func (c *Client) LocalImage(ctx context.Context, ref string) (Image, error) {
	name, err := NormalizeRef(ref)
	if err != nil {
		return Image{}, fail(task.Invalid, "", err)
	}
	ctx = c.ns(ctx)
	// Archives may have put the short form into the store.
	for _, n := range []string{name, ref} {
		img, err := c.cd.ImageService().Get(ctx, n)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return Image{}, classify(err, "")
		}
		out, err := c.ready(ctx, n, img.Target)
		if isNotFound(err) {
			continue // its content is not all there
		}
		_, out.Imported = img.Labels[LabelImported]
		_, out.Pulled = img.Labels[LabelPulled]
		out.Used, _ = time.Parse(time.RFC3339, img.Labels[LabelUsed]) //nolint:errcheck // no time is never
		return out, classify(err, "")
	}
	return Image{}, fail(task.NotFound, "", fmt.Errorf("no such image: %s", name))
}

// ImageOf is the image of a resource's handle.
func (c *Client) ImageOf(ctx context.Context, h task.Handle) (Image, error) {
	var i Image
	if err := json.Unmarshal(h, &i); err != nil {
		return Image{}, fail(task.Invalid, "", fmt.Errorf("image handle: %w", err))
	}
	out, err := c.ready(c.ns(ctx), i.Name, i.descriptor())
	return out, classify(err, "")
}

// ready describes an image and unpacks it if need be.
func (c *Client) ready(ctx context.Context, name string, d ocispec.Descriptor) (Image, error) {
	c.mu.Lock()
	known, ok := c.images[d.Digest.String()]
	c.mu.Unlock()
	if ok {
		known.Name = name
		return known, nil
	}
	i, err := c.describe(ctx, name, d)
	if err != nil {
		return Image{}, err
	}
	if i.chain != "" {
		if _, err := c.snapshots.Stat(ctx, i.chain); isNotFound(err) {
			if err := c.unpack(ctx, name, d); err != nil {
				return Image{}, err
			}
		} else if err != nil {
			return Image{}, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.images) > 1024 {
		clear(c.images)
	}
	c.images[i.Digest] = i
	return i, nil
}

// forget drops what is remembered of an image, because its layers were gone.
func (c *Client) forget(i Image) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.images, i.Digest)
}

func (c *Client) unpack(ctx context.Context, name string, d ocispec.Descriptor) error {
	ctx, release, err := c.leased(ctx)
	if err != nil {
		return err
	}
	defer release()
	img := containerd.NewImage(c.cd, images.Image{Name: name, Target: d})
	if err := img.Unpack(ctx, c.cfg.Snapshotter); err != nil {
		return fmt.Errorf("unpacking image %s: %w", name, err)
	}
	return nil
}

// describe reads the manifest and configuration for this machine's platform.
func (c *Client) describe(ctx context.Context, name string, d ocispec.Descriptor) (Image, error) {
	provider := limited{c.cd.ContentStore()}
	m, err := images.Manifest(ctx, provider, d, platforms.Default())
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", name, err)
	}
	b, err := content.ReadBlob(ctx, provider, m.Config)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: configuration: %w", name, err)
	}
	var config ocispec.Image
	if err := json.Unmarshal(b, &config); err != nil {
		return Image{}, fmt.Errorf("image %s: configuration: %w", name, err)
	}
	cc := config.Config
	return Image{
		Name: name, Digest: d.Digest.String(), MediaType: d.MediaType, Size: d.Size,
		chain: identity.ChainID(config.RootFS.DiffIDs).String(),
		config: spec.Image{
			Env: cc.Env, Entrypoint: cc.Entrypoint, Cmd: cc.Cmd, WorkingDir: cc.WorkingDir,
			User: cc.User, StopSignal: cc.StopSignal, Labels: cc.Labels,
		},
	}, nil
}

// limited refuses to read blobs into memory that are too large to be what they claim.
type limited struct{ content.Provider }

func (l limited) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	r, err := l.Provider.ReaderAt(ctx, d)
	if err != nil {
		return nil, err
	}
	if r.Size() > maxConfig {
		return nil, errors.Join(fmt.Errorf("%s is larger than %d bytes", d.Digest, maxConfig), r.Close())
	}
	return r, nil
}

// Import loads the images of an archive (docker save or OCI layout) and returns their
// names. They count as local: with the default pull policy no registry is asked.
func (c *Client) Import(ctx context.Context, archive string) ([]string, error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ctx = c.ns(ctx)
	imgs, err := c.cd.Import(ctx, f,
		containerd.WithImportPlatform(platforms.Default()),
		containerd.WithImageLabels(map[string]string{LabelImported: time.Now().UTC().Format(time.RFC3339)}))
	if err != nil {
		return nil, classify(fmt.Errorf("importing %s: %w", archive, err), "")
	}
	var names []string
	for _, img := range imgs {
		if strings.HasPrefix(img.Name, "import-") {
			continue // an index without a name
		}
		if _, err := c.ready(ctx, img.Name, img.Target); err != nil {
			return names, classify(fmt.Errorf("importing %s: %w", archive, err), "")
		}
		names = append(names, img.Name)
	}
	if len(names) == 0 {
		return nil, fail(task.Invalid, "", fmt.Errorf("importing %s: the archive names no image", archive))
	}
	return names, nil
}

func leaseOptions() []leases.Opt {
	return []leases.Opt{leases.WithRandomID(), leases.WithExpiration(time.Minute)}
}

func syncDelete() leases.DeleteOpt { return leases.SynchronousDelete }
