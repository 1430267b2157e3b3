package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/fail"
	"berth.dev/berth/agent/runtime"
	"berth.dev/berth/agent/task"

	"github.com/distribution/reference"
)

// Runtime is what this package needs of agent/runtime.
type Runtime interface {
	LocalImage(ctx context.Context, ref string) (runtime.Image, error)
	Resolve(ctx context.Context, ref string, auth runtime.Auth, connect time.Duration) (runtime.Remote, error)
	Pull(ctx context.Context, r runtime.Remote, progress func(runtime.Progress)) (runtime.Image, error)
	TouchImage(ctx context.Context, name string, now time.Time) error
}

// Policy says when an image is pulled (agent protocol, "Pull behaviour").
type Policy string

// Policies.
const (
	Default      Policy = "default"       // every time; what is here is used when that fails
	Always       Policy = "always"        // every time
	Once         Policy = "once"          // unless this agent has pulled it before
	PreferCached Policy = "prefer-cached" // only what is not here; falls back as default
)

// Time limits and their defaults (agent protocol, "Configuration").
const (
	DefaultManifestTimeout = time.Minute
	DefaultPullTimeout     = 2 * time.Hour
	DefaultInactivity      = time.Minute
	// DefaultLocalConnect is how long an image that is on the host waits for a
	// connection to its registry.
	DefaultLocalConnect = time.Second
	// unreachableFor is how long a registry that could not be reached is not asked
	// again for images that are on the host.
	unreachableFor = 30 * time.Second
	// firstProgress is how long a pull may take to show progress at all (agent
	// protocol, "Transition details").
	firstProgress = 5 * time.Minute
)

// Config says how images are pulled.
type Config struct {
	Runtime Runtime
	Policy  Policy // "" means Default
	// Auth gives the registry credentials for a container; nil means none.
	Auth func(ctx context.Context, t *task.Task, c *task.Container) (runtime.Auth, error)

	Verifier *Verifier // asked before an image is used; nil means that every image may be

	ManifestTimeout time.Duration // all attempts at a manifest; 0 means 1 min
	PullTimeout     time.Duration // one pull; 0 means 2 h
	Inactivity      time.Duration // a pull without progress; 0 means 1 min
	LocalConnect    time.Duration // 0 means 1 s
	Log             *slog.Logger  // nil means slog.Default
}

// Images serves task.KindImage.
type Images struct {
	cfg Config
	log *slog.Logger

	mu          sync.Mutex
	flights     map[string]*flight
	unreachable map[string]time.Time // by registry host

	using sync.Mutex     // held while an image is removed
	busy  map[string]int // names that are being looked for or pulled
}

var _ engine.Resource = (*Images)(nil)

// New checks the configuration.
func New(cfg Config) (*Images, error) {
	switch cfg.Policy {
	case "":
		cfg.Policy = Default
	case Default, Always, Once, PreferCached:
	default:
		return nil, fmt.Errorf("ECS_IMAGE_PULL_BEHAVIOR: %q is none of default, always, once, prefer-cached", cfg.Policy)
	}
	for _, d := range []struct {
		at    *time.Duration
		value time.Duration
	}{
		{&cfg.ManifestTimeout, DefaultManifestTimeout}, {&cfg.PullTimeout, DefaultPullTimeout},
		{&cfg.Inactivity, DefaultInactivity}, {&cfg.LocalConnect, DefaultLocalConnect},
	} {
		if *d.at <= 0 {
			*d.at = d.value
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Images{cfg: cfg, log: cfg.Log, flights: map[string]*flight{}, unreachable: map[string]time.Time{}, busy: map[string]int{}}, nil
}

// Kind is task.KindImage.
func (s *Images) Kind() string { return task.KindImage }

// Ensure brings the image of container name to this host.
func (s *Images) Ensure(ctx context.Context, t *task.Task, name string, _ engine.Deps) (task.Result, error) {
	c := t.Container(name)
	if c == nil {
		return task.Result{}, task.Failf(task.Invalid, task.CannotPullContainer, "task %s has no container %q", t.ID(), name)
	}
	ref, err := runtime.NormalizeRef(c.Image)
	if err != nil {
		return task.Result{}, task.Fail(task.Invalid, task.CannotPullContainer, err)
	}
	defer s.use(ref)()
	local, err := s.cfg.Runtime.LocalImage(ctx, c.Image)
	if err != nil && task.ClassOf(err) != task.NotFound {
		return task.Result{}, task.Fail(task.ClassOf(err), task.CannotPullContainer, err)
	}
	have := err == nil
	if have && !s.mustPull(local, ref) {
		now := time.Now()
		return s.result(ctx, local, now, now)
	}
	start := time.Now()
	img, code, err := s.fetch(ctx, t, c, ref, local, have)
	if err == nil {
		return s.result(ctx, img, start, time.Now())
	}
	if ctx.Err() != nil {
		return task.Result{}, task.Fail(task.Canceled, task.CannotPullContainer, err)
	}
	if have && (s.cfg.Policy == Default || s.cfg.Policy == PreferCached) {
		s.log.Info("the image on this host is used because it could not be pulled", "task", t.ID(), "container", name, "err", err)
		return s.result(ctx, local, start, time.Now())
	}
	return task.Result{}, final(err, code)
}

// Remove leaves the image: other tasks may use it, and cleaning up images has rules of
// its own.
func (s *Images) Remove(context.Context, *task.Task, string, task.Handle) error { return nil }

// Probe looks for the image by its name.
func (s *Images) Probe(ctx context.Context, t *task.Task, name string, _ task.Handle) (task.Observed, error) {
	c := t.Container(name)
	if c == nil {
		return task.Observed{}, nil
	}
	_, err := s.cfg.Runtime.LocalImage(ctx, c.Image)
	if err != nil && task.ClassOf(err) == task.NotFound {
		return task.Observed{}, nil
	}
	return task.Observed{Exists: err == nil}, err
}

// result says when the image was fetched. For one that did not have to be, both times are
// the same: the task still shows when its images were there. An image that was loaded by
// the operator is not asked about.
func (s *Images) result(ctx context.Context, i runtime.Image, start, stop time.Time) (task.Result, error) {
	if !i.Imported {
		if err := s.verify(ctx, i.Name, i.Digest, i.MediaType, i.Size); err != nil {
			return task.Result{}, err
		}
	}
	if now := time.Now(); now.Sub(i.Used) >= touchEach {
		if err := s.cfg.Runtime.TouchImage(ctx, i.Name, now); err != nil && ctx.Err() == nil {
			s.log.Warn("the use of an image could not be remembered", "image", i.Name, "err", err)
		}
	}
	h, err := i.Handle()
	return task.Result{Handle: h, Digest: i.Digest, PullStarted: start, PullStopped: stop}, err
}

// mustPull decides for an image that is on the host.
func (s *Images) mustPull(local runtime.Image, ref string) bool {
	switch s.cfg.Policy {
	case Always:
		return true
	case Once:
		return !local.Pulled
	case PreferCached:
		return false
	default:
		// A digest cannot have changed, and an imported image is nobody else's.
		return !local.Imported && !strings.Contains(ref, "@") && !s.isUnreachable(ref)
	}
}

// fetch logs in, resolves and pulls. With an error comes the name of the step that failed.
func (s *Images) fetch(ctx context.Context, t *task.Task, c *task.Container, ref string, local runtime.Image, have bool) (runtime.Image, task.Code, error) {
	mayFallBack := have && (s.cfg.Policy == Default || s.cfg.Policy == PreferCached)
	var auth runtime.Auth
	var err error
	if s.cfg.Auth != nil {
		if auth, err = s.cfg.Auth(ctx, t, c); err != nil {
			return runtime.Image{}, task.CannotPullContainerAuth, err
		}
	}
	r, err := s.resolve(ctx, ref, auth, mayFallBack)
	if err == nil {
		err = fail.Point(fail.ImageAfterResolve)
	}
	if err != nil {
		return runtime.Image{}, task.CannotPullImageManifest, err
	}
	// Before anything of it is downloaded or unpacked.
	if err := s.verify(ctx, r.Name, r.Digest, r.MediaType, r.Size); err != nil {
		return runtime.Image{}, task.CannotPullContainer, err
	}
	if have && local.Digest == r.Digest && (s.cfg.Policy != Once || local.Pulled) {
		return local, "", nil
	}
	var img runtime.Image
	err = attempts(ctx, pullBackoff, func(ctx context.Context) error {
		var err error
		img, err = s.share(ctx, r)
		if err == nil {
			err = fail.Point(fail.ImageAfterPull)
		}
		return err
	})
	return img, task.CannotPullContainer, err
}

// resolve finds the digest of a reference. Where the host has the image already, one
// attempt must do.
func (s *Images) resolve(ctx context.Context, ref string, auth runtime.Auth, mayFallBack bool) (runtime.Remote, error) {
	limit, connect, b := s.cfg.ManifestTimeout, time.Duration(0), manifestBackoff
	if mayFallBack {
		connect, b.retries = s.cfg.LocalConnect, 0
		limit = min(limit, 5*s.cfg.LocalConnect)
	}
	rctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	start := time.Now()
	var r runtime.Remote
	err := attempts(rctx, b, func(ctx context.Context) error {
		var err error
		r, err = s.cfg.Runtime.Resolve(ctx, ref, auth, connect)
		return err
	})
	if err == nil {
		return r, nil
	}
	if rctx.Err() != nil && ctx.Err() == nil {
		err = timedOut("MANIFEST_PULLED", limit, start, err)
	}
	if task.ClassOf(err) == task.Unavailable || errors.Is(err, context.DeadlineExceeded) {
		s.setUnreachable(ref)
	}
	return runtime.Remote{}, err
}

func (s *Images) setUnreachable(ref string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.unreachable) > 256 {
		clear(s.unreachable)
	}
	s.unreachable[host(ref)] = time.Now().Add(unreachableFor)
}

func (s *Images) isUnreachable(ref string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	until, ok := s.unreachable[host(ref)]
	if ok && time.Now().After(until) {
		delete(s.unreachable, host(ref))
		return false
	}
	return ok
}

// host is the registry of a normalized reference.
func host(ref string) string {
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.Domain(n)
}
