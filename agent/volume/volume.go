// Package volume is the engine's view of the volumes of tasks: it serves
// task.KindVolume with the drivers of package volumes.
package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/fail"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/volumes"
	"berth.dev/berth/volumes/block"
)

// Config says where volumes are and who makes them.
type Config struct {
	Dirs    volumes.Dirs
	Allowed volumes.Allowed
	Strict  bool            // ECS_SHARED_VOLUME_MATCH_FULL_CONFIG
	Drivers string          // folder of the drivers of others
	Storage *Storage        // of tasks with a limit; nil: there is none
	Remote  *volumes.Remote // nil: this host mounts no network file systems
	Region  string
	Pool    *block.Pool // of block volumes; nil: this host has none
	Finder  block.Finder
	// EFSTargets and EFSCA are as in volumes.EFSConfig.
	EFSTargets map[string]string
	EFSCA      string
	EFSKeys    func(taskARN string) (volumes.Keys, error)
	Log        *slog.Logger // nil discards
}

// Volumes makes volumes. It implements engine.Resource and engine.Sweeper.
type Volumes struct {
	c     Config
	host  *volumes.Host
	local *volumes.Local
	efs   *volumes.EFS
	block *volumes.Block
	log   *slog.Logger

	mu       sync.Mutex
	external map[string]*volumes.External // one for all tasks: it has the locks
}

var (
	_ engine.Resource = (*Volumes)(nil)
	_ engine.Sweeper  = (*Volumes)(nil)
	_ engine.Observer = (*Volumes)(nil)
)

// New makes the adapter. It changes nothing on the host.
func New(c Config) *Volumes {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Volumes{
		c: c, log: c.Log, host: &volumes.Host{Dirs: c.Dirs, Allowed: c.Allowed},
		local:    volumes.NewLocal(volumes.LocalConfig{Dirs: c.Dirs, Allowed: c.Allowed, Strict: c.Strict, Remote: c.Remote}),
		efs:      volumes.NewEFS(volumes.EFSConfig{Dirs: c.Dirs, Remote: c.Remote, Region: c.Region, Targets: c.EFSTargets, CAFile: c.EFSCA, Keys: c.EFSKeys}),
		block:    volumes.NewBlock(volumes.BlockConfig{Dirs: c.Dirs, Finder: c.Finder, Pool: c.Pool}),
		external: make(map[string]*volumes.External),
	}
}

// Kind is task.KindVolume.
func (s *Volumes) Kind() string { return task.KindVolume }

// driver finds the driver of a volume, and what it is told of it.
func (s *Volumes) driver(t *task.Task, name string) (volumes.Driver, *volumes.Volume, error) {
	i := slices.IndexFunc(t.Volumes, func(v task.Volume) bool { return v.Name == name })
	if i < 0 {
		return nil, nil, task.Failf(task.Invalid, task.ResourceInitialization, "task %s has no volume %q", t.ID(), name)
	}
	tv := &t.Volumes[i]
	v := &volumes.Volume{Task: t.ID(), Name: name, Scope: volumes.ScopeTask}
	if t.Storage > 0 && s.c.Storage != nil {
		v.Data = s.c.Storage.volumes(t.ID())
	}
	switch tv.Type {
	case task.VolumeHost:
		if tv.HostPath == "" {
			return s.local, v, nil
		}
		v.Source = tv.HostPath
		return s.host, v, nil
	case task.VolumeDocker:
		d := tv.Docker
		if d == nil {
			break
		}
		v.Autoprovision, v.Options, v.Labels = d.Autoprovision, d.Options, d.Labels
		if d.Shared {
			v.Scope = volumes.ScopeShared
		}
		if d.Driver == s.local.Name() {
			return s.local, v, nil
		}
		driver, err := s.other(d.Driver)
		return driver, v, err
	case task.VolumeEFS:
		f := tv.EFS
		if f == nil {
			break
		}
		v.FileSystem = &volumes.FileSystem{ID: f.FileSystemID, Root: f.Root, Encrypted: f.Encrypted, Port: f.Port, AccessPoint: f.AccessPoint, IAM: f.IAM, TaskARN: t.ARN}
		return s.efs, v, nil
	case task.VolumeBlock:
		if tv.Block == nil {
			break
		}
		return s.block, blockVolume(t.ID(), tv), nil
	}
	return nil, nil, task.Failf(task.Invalid, task.ResourceInitialization, "volume %s: no driver for volumes of type %s", name, tv.Type)
}

// other is a driver of somebody else's.
func (s *Volumes) other(name string) (volumes.Driver, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.external[name]; e != nil {
		return e, nil
	}
	e, err := volumes.NewExternal(volumes.ExternalConfig{Dirs: s.c.Dirs, Folder: s.c.Drivers, Allowed: s.c.Allowed, Strict: s.c.Strict}, name)
	if err != nil {
		return nil, classify(name, err)
	}
	s.external[name] = e
	return e, nil
}

// namespace is the network namespace that a task's network file systems are mounted in:
// its own, where it has one network.
func namespace(t *task.Task, d engine.Deps) (string, error) {
	if t.NetworkMode != task.NetworkAWSVPC {
		return "", nil
	}
	r, ok := d.Get(task.ResourceID{Kind: task.KindNetwork, Name: "task"})
	if !ok || len(r.Handle) == 0 {
		return "", task.Failf(task.Invalid, task.ResourceInitialization, "the network of task %s was not made", t.ID())
	}
	var h struct {
		Path string `json:"path"`
	}
	return h.Path, json.Unmarshal(r.Handle, &h)
}

// Ensure makes the volume.
func (s *Volumes) Ensure(ctx context.Context, t *task.Task, name string, deps engine.Deps) (task.Result, error) {
	d, v, err := s.driver(t, name)
	if err != nil {
		return task.Result{}, err
	}
	if v.FileSystem != nil {
		if v.FileSystem.Netns, err = namespace(t, deps); err != nil {
			return task.Result{}, err
		}
	}
	if err := fail.Point(fail.VolumeBeforeMount); err != nil {
		return task.Result{}, err
	}
	m, err := d.Mount(ctx, v)
	if err == nil {
		err = fail.Point(fail.VolumeAfterMount)
	}
	if err != nil {
		return task.Result{}, classify(name, err)
	}
	h, err := json.Marshal(m)
	return task.Result{Handle: h}, err
}

// Remove takes the volume away.
func (s *Volumes) Remove(ctx context.Context, t *task.Task, name string, _ task.Handle) error {
	d, v, err := s.driver(t, name)
	if err != nil && task.ClassOf(err) == task.Invalid {
		s.log.Warn("a volume without a driver is removed by its place", "task", t.ID(), "volume", name, "err", err)
		return classify(name, s.c.Dirs.Sweep(t.ID()))
	}
	if err != nil {
		return err
	}
	if err := d.Unmount(ctx, v); err != nil {
		return classify(name, err)
	}
	return fail.Point(fail.VolumeAfterUmount)
}

// Probe looks for the volume.
func (s *Volumes) Probe(ctx context.Context, t *task.Task, name string, _ task.Handle) (task.Observed, error) {
	d, v, err := s.driver(t, name)
	if err != nil {
		return task.Observed{}, err
	}
	there, err := d.Check(ctx, v)
	if err != nil {
		return task.Observed{}, classify(name, err)
	}
	return task.Observed{Exists: there}, nil
}

// Observe keeps the proxies of mounts running.
func (s *Volumes) Observe(ctx context.Context, _ func(taskID, name string, o task.Observed), _ func()) error {
	if s.c.Remote == nil {
		return nil
	}
	var renew sync.WaitGroup
	renew.Go(func() {
		s.efs.Renew(ctx, func(err error) {
			s.log.Warn("a certificate for EFS cannot be made anew yet", "kind", task.KindVolume, "err", err)
		})
	})
	s.c.Dirs.Supervise(ctx, s.c.Remote.Program, func(err error) {
		s.log.Warn("a TLS proxy cannot be started again", "kind", task.KindVolume, "err", err)
	})
	renew.Wait()
	return ctx.Err()
}

// Owned lists the tasks that have something of a volume here. What a crash left that is
// of no task is removed.
func (s *Volumes) Owned(context.Context) ([]task.Owned, error) {
	if err := s.c.Dirs.Tidy(); err != nil {
		return nil, err
	}
	ids, err := s.c.Dirs.Tasks()
	pooled, poolErr := s.block.Tasks()
	if err = errors.Join(err, poolErr); err != nil {
		return nil, err
	}
	ids = append(ids, pooled...)
	slices.Sort(ids)
	ids = slices.Compact(ids)
	out := make([]task.Owned, 0, len(ids))
	for _, id := range ids {
		out = append(out, task.Owned{Resource: task.ResourceID{Kind: task.KindVolume, Name: "all"}, TaskID: id})
	}
	return out, nil
}

// Sweep removes all that a task has of volumes.
func (s *Volumes) Sweep(_ context.Context, o task.Owned) error {
	if err := s.c.Dirs.Sweep(o.TaskID); err != nil {
		return err
	}
	return s.block.Sweep(o.TaskID)
}

// Teardown unmounts everything. The data of named volumes stays.
func (s *Volumes) Teardown() error { return s.c.Dirs.Teardown() }

// classify gives an error of a driver its class and reason.
func classify(name string, err error) error {
	if err == nil {
		return nil
	}
	class := task.ClassOf(err)
	switch {
	case errors.Is(err, volumes.ErrUnavailable):
		class = task.Unavailable
	case errors.Is(err, volumes.ErrRefused):
		class = task.Permission
	case errors.Is(err, volumes.ErrInvalid):
		class = task.Invalid
	case errors.Is(err, volumes.ErrMissing):
		class = task.NotFound
	case errors.Is(err, context.Canceled):
		class = task.Canceled
	}
	return task.Fail(class, task.ResourceInitialization, fmt.Errorf("volume %s: %w", name, err))
}
