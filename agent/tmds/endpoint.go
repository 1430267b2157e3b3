package tmds

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/fail"
	"berth.dev/berth/agent/task"
)

// Handle is what is stored of an endpoint: what its containers are given. No token is in
// it.
type Handle struct {
	Namespace string `json:"namespace,omitempty"` // path; empty is the host's
	// Address is where a task in the host's network finds its endpoint.
	Address string `json:"address,omitempty"`
	// IDs are the random ids in the paths of version 3, 4 and api, by container.
	IDs map[string]string `json:"ids"`
	// Environment and Mounts are what each container gets.
	Environment map[string]map[string]string `json:"environment"`
	Mounts      map[string][]Mount           `json:"mounts,omitempty"`
}

// Mount is a read-only bind mount of a directory or file of the host.
type Mount struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
}

// endpoint is one listener with what it serves.
type endpoint struct {
	taskID    string
	namespace string
	http      *http.Server // nil for tasks in the host's network
	ids       map[string]string
}

func (e *endpoint) close() {
	if e.http != nil {
		e.http.Close() //nolint:errcheck // the listener goes with its namespace if not now
	}
}

// guest is a task with endpoints.
type guest struct {
	arn       string
	limit     *rate.Limiter
	faults    *faults
	endpoints int
}

func keyOf(taskID, name string) string { return taskID + "/" + name }

// hostKey is the key under which the listener at an address of the host is kept.
func hostKey(addr string) string { return "host/" + addr }

// Kind is task.KindEndpoint.
func (s *Server) Kind() string { return task.KindEndpoint }

// networkHandle is what the handle of a network tells (see package netns).
type networkHandle struct {
	Path string `json:"path"`
}

// Ensure opens the endpoint of one network and says what its containers get.
func (s *Server) Ensure(_ context.Context, t *task.Task, name string, d engine.Deps) (task.Result, error) {
	var h Handle
	if len(d.Handle) > 0 {
		if err := json.Unmarshal(d.Handle, &h); err != nil {
			return task.Result{}, task.Failf(task.Invalid, task.ResourceInitialization, "handle of the metadata endpoint: %w", err)
		}
	}
	var network networkHandle
	if r, ok := d.Get(task.ResourceID{Kind: task.KindNetwork, Name: name}); ok && len(r.Handle) > 0 {
		if err := json.Unmarshal(r.Handle, &network); err != nil {
			return task.Result{}, task.Failf(task.Invalid, task.ResourceInitialization, "handle of the network: %w", err)
		}
	}
	h.Namespace = network.Path
	if h.Namespace == "" && t.NetworkMode != task.NetworkHost {
		return task.Result{}, task.Failf(task.Invalid, task.ResourceInitialization, "the network of the metadata endpoint was not made")
	}
	var err error
	if h.Namespace == "" {
		err = s.openHost(&h)
	}
	if err == nil {
		err = s.fill(t, name, &h)
	}
	if err == nil {
		err = s.open(t, name, &h)
	}
	if err != nil {
		return task.Result{}, task.Fail(task.Unavailable, task.ResourceInitialization, err)
	}
	b, err := json.Marshal(h)
	return task.Result{Handle: b}, err
}

// users lists the containers that an endpoint serves.
func users(t *task.Task, name string) []string {
	if t.NetworkMode == task.NetworkBridge || t.NetworkMode == task.NetworkNone {
		return []string{name}
	}
	var names []string
	for i := range t.Containers {
		names = append(names, t.Containers[i].Name)
	}
	return names
}

// fill makes ids for the containers and says what each gets (agent protocol, "Server").
// Ids that were given once are kept.
func (s *Server) fill(t *task.Task, name string, h *Handle) error {
	ids := make(map[string]string)
	h.Environment, h.Mounts = make(map[string]map[string]string), nil
	base := "http://" + wellKnown
	if h.Namespace == "" {
		base = "http://" + h.Address
	}
	for _, c := range users(t, name) {
		id := h.IDs[c]
		if id == "" {
			id = newID()
		}
		ids[c] = id
		env := map[string]string{
			"ECS_CONTAINER_METADATA_URI":    base + "/v3/" + id,
			"ECS_CONTAINER_METADATA_URI_V4": base + "/v4/" + id,
			"ECS_AGENT_URI":                 base + "/api/" + id,
		}
		h.Environment[c] = env
		switch {
		case t.CredentialsID == "":
		case h.Namespace != "":
			env["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] = "/v2/credentials/" + t.CredentialsID
		case s.c.HostRoles:
			file, err := s.token(t.ID())
			if err != nil {
				return err
			}
			env["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = base + "/v2/credentials/" + t.CredentialsID
			env["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] = tokenPath
			h.mount(c, Mount{Source: file, Destination: tokenPath})
		}
		if s.c.Files != nil {
			dir, at, err := s.c.Files.prepare(t, c, id)
			if err != nil {
				return err
			}
			env["ECS_CONTAINER_METADATA_FILE"] = at + "/" + metadataFile
			h.mount(c, Mount{Source: dir, Destination: at})
		}
	}
	h.IDs = ids
	return nil
}

func (h *Handle) mount(container string, m Mount) {
	if h.Mounts == nil {
		h.Mounts = make(map[string][]Mount)
	}
	h.Mounts[container] = append(h.Mounts[container], m)
}

// open opens the listener, unless it is open.
func (s *Server) open(t *task.Task, name string, h *Handle) error {
	key := keyOf(t.ID(), name)
	s.mu.Lock()
	_, there := s.endpoints[key]
	s.mu.Unlock()
	if there {
		return nil
	}
	e := &endpoint{taskID: t.ID(), namespace: h.Namespace, ids: h.IDs}
	var l net.Listener
	var kept bool
	var err error
	if h.Namespace == "" {
		err = s.openHost(h)
	} else if l, kept, err = s.listen(key, h.Namespace); err == nil {
		e.http = server(s.taskHandler(t.ID()))
	}
	if err == nil {
		err = fail.Point(fail.TMDSAfterListen)
	}
	if err != nil {
		if l != nil {
			err = errors.Join(err, l.Close())
			s.unkeep(key)
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		if l != nil {
			l.Close() //nolint:errcheck // nobody uses it
		}
		return errors.New("the agent is shutting down")
	}
	s.endpoints[key] = e
	for c, id := range h.IDs {
		s.ids[id] = subject{t.ID(), c}
	}
	g := s.tasks[t.ID()]
	if g == nil {
		g = &guest{arn: t.ARN, limit: rate.NewLimiter(rate.Limit(s.c.Rate), s.c.Burst), faults: newFaults()}
		s.tasks[t.ID()] = g
	}
	g.endpoints++
	if l != nil && !kept {
		if err := s.c.Kept.Keep(key, l); err != nil {
			s.log.Warn("a metadata endpoint will be closed while the agent is restarted", "task", t.ID(), "err", err)
		}
	}
	if l != nil {
		go e.http.Serve(netutil.LimitListener(l, maxConns)) //nolint:errcheck // ends with Close
	}
	return nil
}

// listen opens the socket of an endpoint, or takes the one that was kept.
func (s *Server) listen(key, namespace string) (l net.Listener, kept bool, err error) {
	old, was := s.c.Kept.Take(key)
	l, kept, err = listen(namespace, old)
	if was && !kept {
		s.unkeep(key) // another one is kept under the key from now on
	}
	return l, kept, err
}

// unkeep drops what is kept of an endpoint, which would keep the task's network.
func (s *Server) unkeep(key string) {
	if err := s.c.Kept.Drop(key); err != nil {
		s.log.Warn("the kept socket of a metadata endpoint could not be dropped", "endpoint", key, "err", err)
	}
}

func (s *Server) openHost(h *Handle) (err error) {
	h.Address, err = s.host.open(h.Address, s.c.HostAddress, func() *http.Server { return server(s.hostHandler()) })
	return err
}

// Remove closes the endpoint.
func (s *Server) Remove(_ context.Context, t *task.Task, name string, _ task.Handle) error {
	key := keyOf(t.ID(), name)
	s.mu.Lock()
	if e, ok := s.endpoints[key]; ok {
		e.close()
		delete(s.endpoints, key)
		maps.DeleteFunc(s.ids, func(_ string, of subject) bool {
			return of.taskID == t.ID() && slices.Contains(users(t, name), of.container)
		})
		if g := s.tasks[t.ID()]; g != nil {
			if g.endpoints--; g.endpoints == 0 {
				delete(s.tasks, t.ID())
			}
		}
	}
	_, more := s.tasks[t.ID()]
	s.mu.Unlock()
	s.unkeep(key)
	if more {
		return nil
	}
	s.c.Credentials.Drop(t.ARN)
	err := s.removeToken(t.ID())
	if t.FaultInjection && t.NetworkMode == task.NetworkHost {
		err = errors.Join(err, removeHostFaults(t.ID()))
	}
	if s.c.Files != nil {
		err = errors.Join(err, s.c.Files.remove(t))
	}
	if err != nil {
		return task.Fail(task.Unavailable, task.ResourceInitialization, err)
	}
	return nil
}

// Probe says whether the endpoint is open.
func (s *Server) Probe(_ context.Context, t *task.Task, name string, _ task.Handle) (task.Observed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.endpoints[keyOf(t.ID(), name)]
	return task.Observed{Exists: ok}, nil
}

// Owned lists what is on the host of tasks: the directories of tokens and metadata files.
func (s *Server) Owned(context.Context) ([]task.Owned, error) {
	var out []task.Owned
	faulty, err := hostFaults()
	if err != nil {
		return nil, task.Fail(task.Unavailable, "", err)
	}
	for _, id := range faulty {
		out = append(out, task.Owned{Resource: task.ResourceID{Kind: task.KindEndpoint, Name: hostName}, TaskID: id})
	}
	for _, dir := range s.directories() {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, task.Fail(task.Unavailable, "", err)
		}
		for _, e := range entries {
			out = append(out, task.Owned{Resource: task.ResourceID{Kind: task.KindEndpoint, Name: hostName}, TaskID: e.Name()})
		}
	}
	return out, nil
}

// Sweep removes the directories of one task that Owned listed.
func (s *Server) Sweep(_ context.Context, o task.Owned) error {
	errs := []error{removeHostFaults(o.TaskID)}
	for _, dir := range s.directories() {
		errs = append(errs, removeBelow(dir, o.TaskID))
	}
	return errors.Join(errs...)
}

func (s *Server) directories() []string {
	if s.c.Files == nil {
		return []string{s.c.Dir}
	}
	return []string{s.c.Dir, s.c.Files.Dir}
}

// removeBelow removes what is of a task, and the directory of all with the last of it.
func removeBelow(dir, taskID string) error {
	if taskID == "" || strings.ContainsAny(taskID, "/\x00") || strings.Trim(taskID, ".") == "" {
		return fmt.Errorf("%q is no task's id", taskID)
	}
	if err := os.RemoveAll(filepath.Join(dir, taskID)); err != nil {
		return err
	}
	err := os.Remove(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// Adopt takes up the endpoints that an agent before this one had, so that tasks find them
// open before the engine goes, and drops what was kept for others. What fails is left to the
// engine, and told.
func (s *Server) Adopt(stored []task.Stored) {
	var wanted []string
	var g errgroup.Group
	g.SetLimit(8)
	for _, st := range stored {
		if st.Known.Status == task.StatusStopped {
			continue
		}
		for id, r := range st.Known.Resources {
			if id.Kind != task.KindEndpoint {
				continue
			}
			wanted = append(wanted, keyOf(st.Task.ID(), id.Name))
			if r.Phase != task.Present {
				continue
			}
			g.Go(func() error {
				var h Handle
				err := json.Unmarshal(r.Handle, &h)
				if err == nil {
					err = s.open(st.Task, id.Name, &h)
				}
				if err != nil {
					s.log.Warn("a metadata endpoint could not be opened again; trying again when the engine goes", "task", st.Task.ID(), "err", err)
				}
				return nil
			})
		}
	}
	g.Wait() //nolint:errcheck // no function returns an error
	n, err := s.c.Kept.Retain(wanted)
	if err != nil {
		s.log.Warn("sockets that are of no use any more are still kept", "err", err)
	}
	if n > 0 {
		s.log.Info("dropped sockets that were kept for tasks that have ended", "dropped", n)
	}
}
