package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/imageverifier/bindir"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/agent/task"
)

// DefaultVerifyTimeout is how long one verifier may take (containerd's own default).
const DefaultVerifyTimeout = 10 * time.Second

// maxVerdicts bounds the images that are remembered as allowed.
const maxVerdicts = 1024

// Verifier asks programs whether an image may be used, by the calling convention of
// containerd's image verifiers: every program of a directory is called, in the order of
// their names, with -name NAME -digest DIGEST -stdin-media-type
// application/vnd.oci.descriptor.v1+json and the image's descriptor on its standard
// input; 0 allows, anything else and a program that takes too long forbids, and what it
// prints is the reason. It works with every containerd, because the agent calls them.
type Verifier struct {
	dir string
	v   *bindir.ImageVerifier

	mu      sync.Mutex
	allowed map[string]bool // by name and digest
}

// NewVerifier makes a Verifier of the programs in a directory, which has to be there.
// each bounds the run of one program; 0 means 10 s.
func NewVerifier(dir string, each time.Duration) (*Verifier, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("BERTH_IMAGE_VERIFIER_DIR: %q is not an absolute path", dir)
	}
	if each <= 0 {
		each = DefaultVerifyTimeout
	}
	v := &Verifier{dir: dir, allowed: map[string]bool{}}
	if err := v.check(); err != nil {
		return nil, fmt.Errorf("BERTH_IMAGE_VERIFIER_DIR: %w", err)
	}
	c := &bindir.Config{BinDir: dir, MaxVerifiers: -1}
	// The member's type can be named by containerd only; as text it can be set by anyone.
	if err := c.PerVerifierTimeout.UnmarshalText([]byte(each.String())); err != nil {
		return nil, err
	}
	v.v = bindir.NewImageVerifier(c)
	return v, nil
}

// check refuses a directory that is not there: containerd takes that for a yes.
func (v *Verifier) check() error {
	st, err := os.Stat(v.dir)
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%s is no directory", v.dir)
	}
	return err
}

// Verify asks about an image that is to be used. An image that was allowed is not asked
// about again until the agent is started again. A refusal has the class Permission.
func (v *Verifier) Verify(ctx context.Context, name string, d ocispec.Descriptor) error {
	key := name + "@" + d.Digest.String()
	v.mu.Lock()
	known := v.allowed[key]
	v.mu.Unlock()
	if known {
		return nil
	}
	err := v.check()
	if err == nil {
		err = v.ask(ctx, name, d)
	}
	if err != nil {
		return task.Failf(task.Permission, task.CannotPullContainer, "image %s with digest %s is not allowed on this instance (BERTH_IMAGE_VERIFIER_DIR): %w", name, d.Digest, err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.allowed) >= maxVerdicts {
		clear(v.allowed)
	}
	v.allowed[key] = true
	return nil
}

func (v *Verifier) ask(ctx context.Context, name string, d ocispec.Descriptor) error {
	j, err := v.v.VerifyImage(ctx, name, d)
	if err != nil {
		return err
	}
	if !j.OK {
		return errors.New(j.Reason)
	}
	return nil
}

// verify asks about what a name resolved to, where a verifier is set up.
func (s *Images) verify(ctx context.Context, name, dgst, mediaType string, size int64) error {
	if s.cfg.Verifier == nil {
		return nil
	}
	return s.cfg.Verifier.Verify(ctx, name, ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(dgst), Size: size})
}
