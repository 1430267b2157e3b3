package router

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
)

// Settings are what a Router needs.
type Settings struct {
	Dir     string // of the routers' files, best on a tmpfs
	Cluster string // name that log records carry
	// Fetch reads an object of S3 in the name of the task's execution role.
	Fetch func(ctx context.Context, t *task.Task, arn string) ([]byte, error)
	Log   *slog.Logger
}

// Router serves task.KindLogRouter.
type Router struct{ s Settings }

var (
	_ engine.Resource = (*Router)(nil)
	_ engine.Sweeper  = (*Router)(nil)
)

// New makes a Router.
func New(s Settings) *Router { return &Router{s} }

// Handle is what the router's container gets.
type Handle struct {
	Mounts []Mount `json:"mounts"`
}

// Mount is a file or directory of the host in the router's container.
type Mount struct {
	Source   string `json:"source"`
	Path     string `json:"path"`
	Writable bool   `json:"writable,omitempty"`
}

// Kind is task.KindLogRouter.
func (r *Router) Kind() string { return task.KindLogRouter }

// Ensure writes the configuration and makes the directory of the socket.
func (r *Router) Ensure(ctx context.Context, t *task.Task, _ string, _ engine.Deps) (task.Result, error) {
	c := t.LogRouter()
	if c == nil {
		return task.Result{}, task.Failf(task.Invalid, task.ResourceInitialization, "task %s has no log router", t.ID())
	}
	text, err := Config(t, r.s.Cluster)
	if err != nil {
		return task.Result{}, task.Failf(task.Invalid, task.ResourceInitialization, "unable to generate firelens config: %w", err)
	}
	external, err := r.external(ctx, t, c)
	if err != nil {
		return task.Result{}, task.Fail(task.Unclassified, task.ResourceInitialization, err)
	}
	h, err := r.files(t, c, text, external)
	if err != nil {
		return task.Result{}, task.Failf(task.Unclassified, task.ResourceInitialization, "files of the log router: %w", err)
	}
	b, err := json.Marshal(h)
	return task.Result{Handle: b}, err
}

// external is the user's own part of the configuration, where that is in S3.
func (r *Router) external(ctx context.Context, t *task.Task, c *task.Container) ([]byte, error) {
	if c.Router.Options[fileType] != "s3" {
		return nil, nil
	}
	b, err := r.s.Fetch(ctx, t, c.Router.Options[fileValue])
	if err != nil {
		return nil, fmt.Errorf("unable to download firelens s3 config file: %w", err)
	}
	return b, nil
}

func (r *Router) files(t *task.Task, c *task.Container, text string, external []byte) (*Handle, error) {
	dir := filepath.Join(r.s.Dir, t.ID())
	config, socket := filepath.Join(dir, "config"), filepath.Join(dir, "socket")
	for _, d := range []string{config, socket} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	if uid, gid, ok := owner(c.Config.User); ok {
		if err := os.Chown(socket, uid, gid); err != nil {
			return nil, err
		}
	}
	h := &Handle{Mounts: []Mount{
		{Source: filepath.Join(config, "fluent.conf"), Path: ConfigPath(c.Router.Type)},
		{Source: socket, Path: filepath.Dir(socketInside), Writable: true},
	}}
	if err := os.WriteFile(h.Mounts[0].Source, []byte(text), 0o644); err != nil {
		return nil, err
	}
	if external != nil {
		m := Mount{Source: filepath.Join(config, "external.conf"), Path: ExternalPath(c.Router.Type)}
		if err := os.WriteFile(m.Source, external, 0o644); err != nil {
			return nil, err
		}
		h.Mounts = append(h.Mounts, m)
	}
	return h, nil
}

// owner reads a user of the form uid or uid:gid. A router of another user has to be
// able to write to a directory of root's.
func owner(user string) (uid, gid int, ok bool) {
	u, g, both := strings.Cut(user, ":")
	uid, err := strconv.Atoi(u)
	if err != nil || uid < 0 {
		return 0, 0, false
	}
	if gid = uid; both {
		if gid, err = strconv.Atoi(g); err != nil || gid < 0 {
			return 0, 0, false
		}
	}
	return uid, gid, true
}

// Remove takes the files away.
func (r *Router) Remove(_ context.Context, t *task.Task, _ string, _ task.Handle) error {
	return r.remove(t.ID())
}

func (r *Router) remove(taskID string) error {
	if err := os.RemoveAll(filepath.Join(r.s.Dir, taskID)); err != nil {
		return task.Failf(task.Unclassified, "", "files of the log router: %w", err)
	}
	// The last one takes the directory along; others in it are no failure.
	_ = os.Remove(r.s.Dir)
	return nil
}

// Probe looks whether the configuration is there.
func (r *Router) Probe(_ context.Context, t *task.Task, _ string, _ task.Handle) (task.Observed, error) {
	_, err := os.Stat(filepath.Join(r.s.Dir, t.ID(), "config", "fluent.conf"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return task.Observed{}, err
	}
	return task.Observed{Exists: err == nil}, nil
}

// Owned lists the tasks that have files here.
func (r *Router) Owned(context.Context) ([]task.Owned, error) {
	list, err := os.ReadDir(r.s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []task.Owned
	for _, e := range list {
		out = append(out, task.Owned{TaskID: e.Name(), Resource: task.ResourceID{Kind: task.KindLogRouter, Name: "task"}})
	}
	return out, nil
}

// Sweep removes what Owned listed.
func (r *Router) Sweep(_ context.Context, o task.Owned) error { return r.remove(o.TaskID) }
