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
)

// Config says where volumes are and who makes them.
type Config struct {
	Dirs    volumes.Dirs
	Allowed volumes.Allowed
	Strict  bool            // ECS_SHARED_VOLUME_MATCH_FULL_CONFIG
	Drivers string          // folder of the drivers of others
	Storage *Storage        // of tasks with a limit; nil: there is none
	Remote  *volumes.Remote // nil: this host mounts no network file systems
	Log     *slog.Logger    // nil discards
}

// Volumes makes volumes. It implements engine.Resource and engine.Sweeper.
type Volumes struct {
	c     Config
	host  *volumes.Host
	local *volumes.Local
	log   *slog.Logger

	mu       sync.Mutex
	external map[string]*volumes.External // one for all tasks: it has the locks
}

var (
	_ engine.Resource = (*Volumes)(nil)
	_ engine.Sweeper  = (*Volumes)(nil)
)

// New makes the adapter. It changes nothing on the host.
func New(c Config) *Volumes {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Volumes{
		c: c, log: c.Log, host: &volumes.Host{Dirs: c.Dirs, Allowed: c.Allowed},
		local:    volumes.NewLocal(volumes.LocalConfig{Dirs: c.Dirs, Allowed: c.Allowed, Strict: c.Strict, Remote: c.Remote}),
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

// Ensure makes the volume.
func (s *Volumes) Ensure(ctx context.Context, t *task.Task, name string, _ engine.Deps) (task.Result, error) {
	d, v, err := s.driver(t, name)
	if err != nil {
		return task.Result{}, err
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

// Owned lists the tasks that have something of a volume here.
func (s *Volumes) Owned(context.Context) ([]task.Owned, error) {
	ids, err := s.c.Dirs.Tasks()
	out := make([]task.Owned, 0, len(ids))
	for _, id := range ids {
		out = append(out, task.Owned{Resource: task.ResourceID{Kind: task.KindVolume, Name: "all"}, TaskID: id})
	}
	return out, err
}

// Sweep removes all that a task has of volumes.
func (s *Volumes) Sweep(_ context.Context, o task.Owned) error { return s.c.Dirs.Sweep(o.TaskID) }

// Teardown unmounts everything. The data of named volumes stays.
func (s *Volumes) Teardown() error { return s.c.Dirs.Teardown() }

// classify gives an error of a driver its class and reason.
func classify(name string, err error) error {
	if err == nil {
		return nil
	}
	class := task.Unclassified
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
