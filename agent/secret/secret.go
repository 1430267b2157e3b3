package secret

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/fail"
	"berth.dev/berth/agent/task"
)

// Limits of what one task may refer to.
const (
	maxTogether = 8 // calls at a time for one task
	// maxVariable is the longest NAME=value that the kernel takes (execve(2),
	// MAX_ARG_STRLEN: 32 pages).
	maxVariable = 128<<10 - 1
)

// Roles makes the configurations for calls in the name of a task.
type Roles interface {
	AsTask(ctx context.Context, t *task.Task, region string) (aws.Config, error)
	Region() string
}

// Config is what Secrets needs.
type Config struct {
	Roles Roles
	Dir   string       // where file systems for secret files are mounted; best below a tmpfs
	Log   *slog.Logger // nil means slog.Default
}

// Secrets serves task.KindSecrets: all secrets and environment files of a task.
type Secrets struct {
	c   Config
	log *slog.Logger

	mu    sync.Mutex
	given map[string]map[string]task.Given // by task ARN and container
}

var (
	_ engine.Resource = (*Secrets)(nil)
	_ engine.Sweeper  = (*Secrets)(nil)
)

// New makes a Secrets.
func New(c Config) *Secrets {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return &Secrets{c: c, log: c.Log, given: map[string]map[string]task.Given{}}
}

// Kind is task.KindSecrets.
func (s *Secrets) Kind() string { return task.KindSecrets }

// Ensure fetches every value that the task refers to.
func (s *Secrets) Ensure(ctx context.Context, t *task.Task, _ string, _ engine.Deps) (task.Result, error) {
	start := time.Now()
	f := newFetch(ctx, s.c.Roles, t)
	f.run()
	if err := f.failed(); err != nil {
		if ctx.Err() != nil {
			return task.Result{}, task.Fail(task.Canceled, task.ResourceInitialization, ctx.Err())
		}
		return task.Result{}, task.Fail(task.Unclassified, task.ResourceInitialization, err)
	}
	if err := fail.Point(fail.SecretAfterFetch); err != nil {
		return task.Result{}, task.Fail(task.Unavailable, task.ResourceInitialization, err)
	}
	given := make(map[string]task.Given, len(t.Containers))
	for i := range t.Containers {
		c := &t.Containers[i]
		g, err := f.give(c)
		if err != nil {
			return task.Result{}, task.Failf(task.Invalid, task.ResourceInitialization, "container %s: %w", c.Name, err)
		}
		if g.Mounts, err = s.files(t, c, f); err != nil {
			return task.Result{}, task.Failf(task.Unclassified, task.ResourceInitialization, "secret files of container %s: %w", c.Name, err)
		}
		given[c.Name] = g
	}
	s.mu.Lock()
	s.given[t.ARN] = given
	s.mu.Unlock()
	s.log.Info("secrets fetched", "task", t.ID(), "values", len(f.values), "files", len(f.objects), "dur", time.Since(start))
	return task.Result{}, nil
}

// Given is what a container of a task gets, which Ensure has fetched. A container that
// refers to nothing gets nothing.
func (s *Secrets) Given(t *task.Task, container string) (task.Given, error) {
	c := t.Container(container)
	if c == nil || len(c.Secrets) == 0 && len(c.EnvFiles) == 0 {
		return task.Given{}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g, ok := s.given[t.ARN][container]
	if !ok {
		return task.Given{}, task.Failf(task.Unavailable, task.ResourceInitialization, "the secrets of container %s have not been fetched", container)
	}
	return g, nil
}

// Again is Given, for a container that runs already: where the values were forgotten,
// they are fetched once more and not kept.
func (s *Secrets) Again(ctx context.Context, t *task.Task, container string) (task.Given, error) {
	g, err := s.Given(t, container)
	if task.ClassOf(err) != task.Unavailable {
		return g, err
	}
	f := newFetch(ctx, s.c.Roles, t)
	f.run()
	if err := f.failed(); err != nil {
		return task.Given{}, err
	}
	return f.give(t.Container(container))
}

// Remove forgets the values and takes the file system away.
func (s *Secrets) Remove(_ context.Context, t *task.Task, _ string, _ task.Handle) error {
	s.mu.Lock()
	delete(s.given, t.ARN)
	s.mu.Unlock()
	return s.unmount(t.ID())
}

// Probe says whether the values are held.
func (s *Secrets) Probe(_ context.Context, t *task.Task, _ string, _ task.Handle) (task.Observed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return task.Observed{Exists: s.given[t.ARN] != nil}, nil
}

// give sorts the fetched values of one container by what they become.
func (f *fetch) give(c *task.Container) (task.Given, error) {
	g := task.Given{}
	put := func(m *map[string]task.Secret, name string, v task.Secret) {
		if *m == nil {
			*m = map[string]task.Secret{}
		}
		(*m)[name] = v
	}
	for _, ref := range c.Secrets {
		v, err := f.value(ref)
		if err != nil {
			return g, err
		}
		switch ref.Use {
		case task.UseEnvironment:
			if err := variable(ref.Name, v.Reveal()); err != nil {
				return g, fmt.Errorf("secret %s: %w", ref.Name, err)
			}
			put(&g.Environment, ref.Name, v)
		case task.UseLogOption:
			put(&g.LogOptions, ref.Name, v)
		case task.UseLogRouter:
			put(&g.LogRouter, ref.Name, v)
		}
	}
	for _, arn := range c.EnvFiles {
		vars, err := parseEnv(f.objects[arn])
		if err != nil {
			return g, fmt.Errorf("environment file %s: %w", arn, err)
		}
		for _, kv := range vars {
			if _, earlier := g.Defaults[kv.name]; !earlier { // the first file wins
				put(&g.Defaults, kv.name, task.NewSecret(kv.value))
			}
		}
	}
	return g, nil
}

// variable refuses what cannot be an environment variable. Its errors hold no value.
func variable(name, value string) error {
	switch {
	case strings.ContainsRune(name, 0):
		return errors.New("a name has a zero byte in it")
	case strings.ContainsRune(value, 0):
		return errors.New("the value has a zero byte in it, which an environment variable cannot have")
	case len(name)+1+len(value) > maxVariable:
		return fmt.Errorf("the value has %d bytes, and an environment variable can have %d with its name; hand it over as a file (docker label %s)", len(value), maxVariable, task.LabelSecretFiles)
	}
	return nil
}
