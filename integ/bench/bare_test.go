package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"

	"berth.dev/berth/integ/system"
)

// bare is the client that the figures are compared with: the plain use of containerd's
// own Go client, with no agent, no state, no log and no network of its own.
type bare struct {
	b     *testing.B
	cd    *containerd.Client
	ctx   context.Context
	image containerd.Image
	n     int
	mu    sync.Mutex
	left  []containerd.Container
	dir   string
}

func newBare(b *testing.B, s *system.System) *bare {
	b.Helper()
	cd, err := containerd.New(s.Containerd.Address)
	if err != nil {
		b.Fatal(err)
	}
	x := &bare{b: b, cd: cd, ctx: namespaces.WithNamespace(context.Background(), "berth"), dir: s.Dir}
	if x.image, err = cd.GetImage(x.ctx, "docker.io/library/busybox:latest"); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(x.close)
	return x
}

// start creates and starts one container and returns how long that took.
func (x *bare) start() (time.Duration, error) {
	x.mu.Lock()
	x.n++
	id := fmt.Sprintf("bare-%d", x.n)
	x.mu.Unlock()
	begin := time.Now()
	c, err := x.cd.NewContainer(x.ctx, id, containerd.WithImage(x.image), containerd.WithNewSnapshot(id, x.image),
		containerd.WithNewSpec(oci.WithImageConfig(x.image), oci.WithProcessArgs("sh", "-c", sleeper),
			oci.WithHostNamespace("network"), oci.WithCgroup(filepath.Join("/berth-bench", id))))
	if err != nil {
		return 0, err
	}
	x.mu.Lock()
	x.left = append(x.left, c)
	x.mu.Unlock()
	p, err := c.NewTask(x.ctx, cio.NullIO)
	if err != nil {
		return 0, err
	}
	if err := p.Start(x.ctx); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}

// many starts n containers, some of them at the same time.
func (x *bare) many(n, atOnce int) time.Duration {
	x.b.Helper()
	begin := time.Now()
	work := make(chan struct{})
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for range work {
				if _, err := x.start(); err != nil {
					x.b.Error(err)
				}
			}
		})
	}
	for range n {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	return time.Since(begin)
}

// clear ends what was started.
func (x *bare) clear() {
	x.b.Helper()
	for _, c := range x.left {
		if p, err := c.Task(x.ctx, nil); err == nil {
			if _, err := p.Delete(x.ctx, containerd.WithProcessKill); err != nil {
				x.b.Error(err)
			}
		}
		if err := c.Delete(x.ctx, containerd.WithSnapshotCleanup); err != nil {
			x.b.Error(err)
		}
	}
	x.left = nil
}

func (x *bare) close() {
	x.clear()
	x.cd.Close() //nolint:errcheck // the run is over
}
