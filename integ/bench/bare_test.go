package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.dev/berth/integ/system"
)

// bare is the client that the figures are compared with: the plain use of containerd's
// own Go client, with no agent, no state, no log and no network of its own. It makes
// containers in two ways: with the specification that containerd's client makes by
// itself, which has no seccomp profile, and with the very one that Berth gives to its
// tasks, which costs the OCI runtime more. The second says what Berth adds, the first
// what a container could cost at least.
type bare struct {
	same  *oci.Spec // what Berth has given to a task
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

// Ways to make a container.
const (
	plain = iota
	same
	ways
)

// learn takes the specification of a container of Berth's as the model of those of the
// way same. What is the task's own and goes with it is left out.
func (x *bare) learn(id string) {
	x.b.Helper()
	c, err := x.cd.LoadContainer(x.ctx, id)
	if err != nil {
		x.b.Fatal(err)
	}
	if x.same, err = c.Spec(x.ctx); err != nil {
		x.b.Fatal(err)
	}
	x.same.Mounts = slices.DeleteFunc(x.same.Mounts, func(m specs.Mount) bool { return strings.HasPrefix(m.Source, x.dir) })
}

func (x *bare) spec(way int, id string) containerd.NewContainerOpts {
	cgroup := oci.WithCgroup(filepath.Join(groupBare, id))
	if way == same {
		copied := *x.same
		linux := *x.same.Linux
		copied.Linux = &linux
		return containerd.WithSpec(&copied, cgroup)
	}
	return containerd.WithNewSpec(oci.WithImageConfig(x.image), oci.WithProcessArgs("sh", "-c", sleeper),
		oci.WithHostNamespace("network"), cgroup)
}

// start creates and starts one container and returns how long that took.
func (x *bare) start(way int) (time.Duration, error) {
	x.mu.Lock()
	x.n++
	id := fmt.Sprintf("%s-%d", filepath.Base(x.dir), x.n) // the OCI runtime knows it by this name on the whole host
	x.mu.Unlock()
	begin := time.Now()
	c, err := x.cd.NewContainer(x.ctx, id, containerd.WithImage(x.image), containerd.WithNewSnapshot(id, x.image), x.spec(way, id))
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
func (x *bare) many(way, n, atOnce int) time.Duration {
	x.b.Helper()
	begin := time.Now()
	work := make(chan struct{})
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for range work {
				if _, err := x.start(way); err != nil {
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
