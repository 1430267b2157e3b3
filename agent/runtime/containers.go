package runtime

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"berth.dev/berth/agent/engine"
	failpoint "berth.dev/berth/agent/fail"
	"berth.dev/berth/agent/logs"
	"berth.dev/berth/agent/spec"
	"berth.dev/berth/agent/task"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Containers makes and runs the containers of tasks. It serves task.KindContainer.
type Containers struct{ c *Client }

var (
	_ engine.Process  = (*Containers)(nil)
	_ engine.Observer = (*Containers)(nil)
	_ engine.Sweeper  = (*Containers)(nil)
)

// Containers is the engine's view of the client.
func (c *Client) Containers() *Containers { return &Containers{c} }

// handle is what is stored with a container's record.
type handle struct {
	ID     string `json:"id"`
	Cgroup string `json:"cgroup"`
	Signal int    `json:"signal"` // that asks the container to end
	// Incarnation is which making of the container it is, and Snapshot the key of its
	// snapshot; "" means ID.
	Incarnation int    `json:"incarnation,omitempty"`
	Snapshot    string `json:"snapshot,omitempty"`

	Lease string `json:"lease,omitempty"` // in Owned only: a lease, and no container
}

// Handles of the resources that a container builds on.
type (
	networkHandle struct {
		Path         string `json:"path"`
		Hosts        string `json:"hosts"`
		Resolv       string `json:"resolv"`
		Hostname     string `json:"hostname"`
		HostnameFile string `json:"hostnameFile"`

		// Containers has, in host mode, the files of containers with settings of their own.
		Containers map[string]networkFiles `json:"containers"`
	}
	networkFiles struct {
		Hosts  string `json:"hosts"`
		Resolv string `json:"resolv"`
	}
	endpointHandle struct {
		Environment map[string]map[string]string `json:"environment"`
		Mounts      map[string][]struct {
			Source      string `json:"source"`
			Destination string `json:"destination"`
		} `json:"mounts"`
	}
	cgroupHandle struct {
		Parent string `json:"parent"`
	}
)

// Kind is task.KindContainer.
func (s *Containers) Kind() string { return task.KindContainer }

// Ensure makes the container's snapshot, record, log directory and process, which is
// created and not started. It adopts what is there already.
func (s *Containers) Ensure(ctx context.Context, t *task.Task, name string, d engine.Deps) (task.Result, error) {
	p, err := s.plan(ctx, t, name, d)
	if err != nil {
		return task.Result{}, err
	}
	if err := failpoint.Point(failpoint.ContainerBeforeCreate); err != nil {
		return task.Result{}, err
	}
	nctx := s.c.ns(ctx)
	if err := s.c.replace(nctx, t, p); err != nil {
		return task.Result{}, classify(err, task.CannotStartContainer)
	}
	mounts, err := s.c.prepare(nctx, p)
	if err == nil {
		mounts, err = p.limit(mounts)
	}
	if err == nil {
		err = failpoint.Point(failpoint.ContainerAfterSnapshot)
	}
	if err != nil {
		return task.Result{}, classify(err, task.CannotCreateContainer)
	}
	p.in.User, err = s.c.identity(ctx, p, mounts)
	if err == nil {
		err = s.c.populate(ctx, p, mounts)
	}
	if err != nil {
		return task.Result{}, classify(err, task.CannotCreateContainer)
	}
	p.groups()
	oci, err := spec.Build(p.in)
	if err == nil {
		err = s.c.cfg.GPUs.inject(oci, p.in.Container.GPUs)
	}
	if err != nil {
		return task.Result{}, err
	}
	if err := s.c.prepareLog(p); err != nil {
		return task.Result{}, classify(fmt.Errorf("log directory of container %s: %w", name, err), task.CannotCreateContainer)
	}
	if err := s.c.makeStdin(p); err != nil {
		return task.Result{}, classify(fmt.Errorf("standard input of container %s: %w", name, err), task.CannotCreateContainer)
	}
	s.c.track(p.h, t.ID(), name)
	err = s.c.join(nctx, p, func(sandbox string, leads bool) error {
		err := s.c.record(nctx, p, oci, sandbox)
		if err == nil {
			err = failpoint.Point(failpoint.ContainerAfterCreate)
		}
		if err != nil {
			return classify(err, task.CannotCreateContainer)
		}
		kept := make(chan error, 1)
		go func() { kept <- s.c.keep(nctx, p, leads) }()
		// A command that does not exist shows here, and is known to users as a failed start.
		err = s.c.despiteRemains(p.h.ID, explain(classify(s.c.create(nctx, p, mounts), task.CannotStartContainer)))
		if err == nil {
			err = failpoint.Point(failpoint.ProcessAfterCreate)
		}
		if kerr := <-kept; err == nil {
			return kerr
		}
		return errors.Join(err, s.c.unkeep(nctx, p.h.ID))
	})
	if err != nil {
		return task.Result{}, err
	}
	hb, err := json.Marshal(p.h)
	if err != nil {
		return task.Result{}, err
	}
	return task.Result{Handle: hb, RuntimeID: p.h.ID}, nil
}

// planned is one container as it is to be made.
type planned struct {
	t     *task.Task
	name  string
	h     handle
	image Image
	user  string
	dir   string
	in    spec.Input
	log   *logs.Plan

	mounts  map[string]volumeHandle // by volume
	storage string                  // of what the container writes; "" means the snapshotter's
	runtime chosen
}

func (s *Containers) plan(ctx context.Context, t *task.Task, name string, d engine.Deps) (*planned, error) {
	c := t.Container(name)
	if c == nil {
		return nil, task.Failf(task.Invalid, task.CannotCreateContainer, "task %s has no container %q", t.ID(), name)
	}
	img, ok := d.Get(task.ResourceID{Kind: task.KindImage, Name: name})
	if !ok || len(img.Handle) == 0 {
		return nil, task.Failf(task.Invalid, task.CannotCreateContainer, "the image of container %s was not resolved", name)
	}
	image, err := s.c.ImageOf(ctx, img.Handle)
	if err != nil {
		return nil, classify(err, task.CannotCreateContainer)
	}
	sig, err := spec.StopSignal(c.Config.StopSignal, image.config.StopSignal)
	if err != nil {
		return nil, err
	}
	self, _ := d.Get(task.ResourceID{Kind: task.KindContainer, Name: name})
	p := &planned{t: t, name: name, image: image, h: handleFor(t, name, self.Incarnation)}
	p.h.Signal = int(sig)
	parent := cgroupHandle{Parent: path.Join("/ecs", t.ID())}
	if err := dependency(d, task.ResourceID{Kind: task.KindCgroup, Name: "task"}, &parent); err != nil {
		return nil, err
	}
	p.h.Cgroup = path.Join("/", parent.Parent, p.h.ID)
	p.in = spec.Input{
		Task: t, Container: c, Image: image.config, Host: s.c.host, CgroupsPath: p.h.Cgroup, Region: s.c.cfg.Region,
	}
	if s.c.cfg.Given != nil {
		if p.in.Given, err = s.c.cfg.Given(t, name); err != nil {
			return nil, classify(err, task.CannotCreateContainer)
		}
	}
	if p.in.Network, err = network(t, name, d); err != nil {
		return nil, err
	}
	if p.in.Endpoint, err = endpoint(name, d); err != nil {
		return nil, err
	}
	if err := s.logRouter(p, c, d); err != nil {
		return nil, err
	}
	if err := p.volumes(d); err != nil {
		return nil, err
	}
	if p.runtime, err = s.c.runtimeOf(c); err != nil {
		return nil, err
	}
	if p.in.Shared, err = s.c.shared(ctx, t); err != nil {
		return nil, err
	}
	if err := s.c.fit(p); err != nil {
		return nil, err
	}
	if p.log, err = s.c.logPlan(p, c); err != nil {
		return nil, err
	}
	if p.user = c.Config.User; p.user == "" {
		p.user = image.config.User
	}
	if p.dir = c.Config.WorkingDir; p.dir == "" {
		p.dir = image.config.WorkingDir
	}
	p.dir = path.Join("/", p.dir)
	return p, nil
}

// dependency decodes the handle of another resource into v; none leaves v as it is.
func dependency(d engine.Deps, id task.ResourceID, v any) error {
	r, ok := d.Get(id)
	if !ok || len(r.Handle) == 0 {
		return nil
	}
	if err := json.Unmarshal(r.Handle, v); err != nil {
		return task.Failf(task.Invalid, task.CannotCreateContainer, "handle of %s: %w", id, err)
	}
	return nil
}

// network is the container's own network or, where it has none, that of the task.
func network(t *task.Task, name string, d engine.Deps) (spec.Network, error) {
	var h networkHandle
	id := task.ResourceID{Kind: task.KindNetwork, Name: name}
	if r, ok := d.Get(id); !ok || len(r.Handle) == 0 {
		id.Name = "task"
	}
	if err := dependency(d, id, &h); err != nil {
		return spec.Network{}, err
	}
	n := spec.Network{Namespace: h.Path, Hostname: h.Hostname, Hosts: h.Hosts, Resolv: h.Resolv, HostnameFile: h.HostnameFile}
	own := h.Containers[name]
	n.Hosts, n.Resolv = cmp.Or(own.Hosts, n.Hosts), cmp.Or(own.Resolv, n.Resolv)
	if t.NetworkMode != task.NetworkHost {
		if n.Namespace == "" {
			return n, task.Failf(task.Invalid, task.ContainerNetworking, "the network namespace of container %s was not made", name)
		}
		return n, nil
	}
	n.Namespace = ""
	if n.Hostname == "" {
		name, err := os.Hostname()
		if err != nil {
			return n, err
		}
		n.Hostname = name
	}
	if n.Hosts == "" && n.Resolv == "" {
		n.ReadOnly = true
		n.Hosts, n.Resolv = existing("/etc/hosts"), existing("/etc/resolv.conf")
	}
	return n, nil
}

// endpoint is what the container gets to find its metadata endpoint.
func endpoint(name string, d engine.Deps) (spec.Endpoint, error) {
	var h endpointHandle
	id := task.ResourceID{Kind: task.KindEndpoint, Name: name}
	if r, ok := d.Get(id); !ok || len(r.Handle) == 0 {
		id.Name = "task"
	}
	if err := dependency(d, id, &h); err != nil {
		return spec.Endpoint{}, err
	}
	e := spec.Endpoint{Environment: h.Environment[name]}
	for _, m := range h.Mounts[name] {
		e.Mounts = append(e.Mounts, spec.EndpointMount{Source: m.Source, Destination: m.Destination})
	}
	return e, nil
}

func existing(file string) string {
	if st, err := os.Stat(file); err != nil || !st.Mode().IsRegular() {
		return ""
	}
	return file
}

// prepare makes the container's snapshot, or finds it. Layers that were collected
// meanwhile are unpacked again.
func (c *Client) prepare(ctx context.Context, p *planned) ([]mount.Mount, error) {
	labels := c.ownLabels(p.t, p.name)
	labels[labelGCRoot] = time.Now().UTC().Format(time.RFC3339)
	for again := false; ; again = true {
		m, err := c.snapshots.Prepare(ctx, p.h.snapshot(), p.image.chain, snapshots.WithLabels(labels))
		switch {
		case err == nil:
			return m, nil
		case isExists(err):
			return c.snapshots.Mounts(ctx, p.h.snapshot())
		case isNotFound(err) && !again:
			c.forget(p.image)
			if p.image, err = c.ready(ctx, p.image.Name, p.image.descriptor()); err != nil {
				return nil, err
			}
		case leftSnapshot(err):
			return nil, unavailable(fmt.Errorf("container %s: what containerd has left of an earlier snapshot is in the way until it is collected: %w", p.h.ID, native(err)))
		default:
			return nil, err
		}
	}
}

// record stores the container, replacing a record of an earlier try that differs and
// has no process.
func (c *Client) record(ctx context.Context, p *planned, oci *specs.Spec, sandbox string) error {
	packed, err := typeurl.MarshalAny(oci)
	if err != nil {
		return err
	}
	labels := c.containerLabels(p)
	labels[labelCgroup] = p.h.Cgroup
	labels[labelIncarnation] = strconv.Itoa(p.h.Incarnation)
	labels[labelStopSignal] = strconv.Itoa(p.h.Signal)
	labels[labelSpec] = digest.FromBytes(packed.GetValue()).Encoded()[:32]
	ext, err := extensions(p.t)
	if err != nil {
		return err
	}
	r := containers.Container{
		ID: p.h.ID, Extensions: ext, Labels: labels, Image: p.image.Name, Spec: packed,
		Runtime:     containers.RuntimeInfo{Name: p.runtime.shim, Options: p.runtime.options},
		Snapshotter: c.cfg.Snapshotter, SnapshotKey: p.h.snapshot(), SandboxID: sandbox,
	}
	_, err = c.containers.Create(ctx, r)
	if !isExists(err) {
		c.recorded(p.h.ID, true)
		return err
	}
	c.recorded(p.h.ID, false)
	old, err := c.containers.Get(ctx, p.h.ID)
	if err != nil {
		return err
	}
	if old.Labels[labelSpec] == labels[labelSpec] && old.SandboxID == sandbox {
		return nil
	}
	if _, err := c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: p.h.ID}); !isNotFound(err) {
		return err // there is a process, which is adopted as it is
	}
	if err := c.containers.Delete(ctx, p.h.ID); err != nil && !isNotFound(err) {
		return err
	}
	_, err = c.containers.Create(ctx, r)
	return err
}

// create makes the process, or finds it.
func (c *Client) create(ctx context.Context, p *planned, mounts []mount.Mount) error {
	req := &tasks.CreateTaskRequest{
		ContainerID: p.h.ID,
		Rootfs:      mountsProto(mounts),
		Terminal:    p.in.Container.Config.Tty,
		Options:     typeurl.MarshalProto(p.runtime.options),
	}
	if p.in.Container.Config.Tty && p.in.Container.Config.OpenStdin {
		if req.Stdin = c.stdinPath(p.h.ID); !isFIFO(req.Stdin) {
			return fmt.Errorf("standard input %s of the container is not there", req.Stdin)
		}
	}
	if c.cfg.LoggerPath != "" && p.log != nil && p.log.Args != nil {
		req.Stdout = c.logURI(p)
		if !req.Terminal {
			req.Stderr = req.Stdout
		}
	}
	if err := c.clearOrphan(ctx, p.h); err != nil {
		return err
	}
	_, err := c.tasks.Create(ctx, req)
	if err == nil {
		c.made(p.h.ID)
		return nil
	}
	if dir, ok := leftBundle(err, c.cfg.Namespace, p.h.ID); ok {
		if err := c.clearBundle(ctx, dir, p.h); err != nil {
			return err
		}
		return unavailable(fmt.Errorf("container %s: an earlier try is still being undone: %w", p.h.ID, native(err)))
	}
	if !isExists(err) {
		return err
	}
	exists := native(err)
	r, err := c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: p.h.ID})
	if isNotFound(err) {
		if err := c.clear(ctx, p.h); err != nil {
			return err
		}
		return unavailable(fmt.Errorf("container %s: remains of an earlier process were in the way: %w", p.h.ID, exists))
	}
	if err == nil && r.Process.Status == tasktypes.Status_STOPPED {
		// Nobody asks for a process that was started once, so this one never was.
		if err := c.deleteProcess(ctx, p.h, false); err != nil {
			return err
		}
		return unavailable(fmt.Errorf("container %s: an earlier process ended before it was started", p.h.ID))
	}
	return err
}

func mountsProto(ms []mount.Mount) []*types.Mount {
	out := make([]*types.Mount, 0, len(ms))
	for _, m := range ms {
		out = append(out, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return out
}

// handleOf is the handle as it was stored, or, after a crash before that, as it must
// have been.
func (s *Containers) handleOf(ctx context.Context, t *task.Task, name string, raw task.Handle) (handle, error) {
	h := handleFor(t, name, 0)
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &h); err != nil {
			return h, task.Failf(task.Invalid, task.CannotInspectContainer, "handle of container %s: %w", name, err)
		}
		return h, nil
	}
	all, err := s.c.incarnations(s.c.ns(ctx), t, name)
	if err != nil {
		return h, classify(err, task.CannotInspectContainer)
	}
	if len(all) > 0 {
		h = all[0]
	}
	return h, nil
}

// Remove takes away everything: process, record, snapshot, cgroup and log.
func (s *Containers) Remove(ctx context.Context, t *task.Task, name string, raw task.Handle) error {
	h, err := s.handleOf(ctx, t, name, raw)
	if err != nil {
		return err
	}
	// The log goes before the container, by which a sweep finds what is left of both,
	// and again after it, because a process that still ran may have written meanwhile.
	before := s.c.removeLogs(t.ID(), name)
	if err := s.c.eraseEarlier(s.c.ns(ctx), t, name, h); err != nil {
		return classify(err, "")
	}
	if err := s.c.erase(s.c.ns(ctx), t.ID(), len(t.Containers), h); err != nil {
		return err
	}
	return classify(errors.Join(before, s.c.removeLogs(t.ID(), name)), task.CannotCreateContainer)
}

// erase takes away everything of a container but its log.
func (c *Client) erase(ctx context.Context, taskID string, containers int, h handle) error {
	if err := c.leave(ctx, taskID, containers, h, true); err != nil {
		return err
	}
	if err := c.containers.Delete(ctx, h.ID); err != nil && !isNotFound(err) {
		return classify(err, "")
	}
	if err := failpoint.Point(failpoint.DeleteAfterContainer); err != nil {
		return err
	}
	// A health check that an agent was killed in has left its pipe.
	if err := os.Remove(c.checkPath(h.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return classify(err, "")
	}
	if err := unmountRootfs(c.rootfsDir(h.ID)); err != nil {
		return classify(err, "")
	}
	if err := os.Remove(c.rootfsDir(h.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return classify(err, "")
	}
	if err := c.snapshots.Remove(ctx, h.snapshot()); err != nil && !isNotFound(err) {
		return classify(err, "")
	}
	if err := failpoint.Point(failpoint.DeleteAfterSnapshot); err != nil {
		return err
	}
	if err := os.Remove(c.stdinPath(h.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return classify(err, "")
	}
	c.untrack(h.ID)
	return nil
}

func (c *Client) removeLogs(taskID, name string) error {
	dir := c.logDir(taskID, name)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	err := os.Remove(filepath.Dir(dir))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTEMPTY) {
		return nil // other containers of the task have logs there
	}
	return err
}

// Retire deletes the ended process, and with it the shim that served it.
func (s *Containers) Retire(ctx context.Context, t *task.Task, name string, raw task.Handle) error {
	h, err := s.handleOf(ctx, t, name, raw)
	if err != nil {
		return err
	}
	if len(raw) == 0 || h.Incarnation > 0 {
		if err := s.c.retireAll(s.c.ns(ctx), t, name); err != nil {
			return err
		}
	}
	return s.c.leave(s.c.ns(ctx), t.ID(), len(t.Containers), h, false)
}

// Owned lists the containers, and the snapshots without a container, that carry the
// agent's labels, and the leases of downloads that an agent before this one began.
func (s *Containers) Owned(ctx context.Context) ([]task.Owned, error) {
	ctx = s.c.ns(ctx)
	seen := map[string]bool{}
	out, err := s.c.abandoned(ctx)
	if err != nil {
		return nil, err
	}
	add := func(id string, labels map[string]string) error {
		if labels[LabelTaskID] == "" || seen[id] {
			return nil
		}
		seen[id] = true
		h, err := json.Marshal(labelled(id, labels))
		out = append(out, task.Owned{
			Resource: task.ResourceID{Kind: task.KindContainer, Name: labels[LabelContainer]},
			TaskARN:  labels[LabelTaskARN], TaskID: labels[LabelTaskID], Handle: h,
		})
		return err
	}
	list, err := s.c.containers.List(ctx)
	if err != nil {
		return nil, classify(err, "")
	}
	for _, r := range list {
		if err := add(r.ID, r.Labels); err != nil {
			return nil, err
		}
	}
	err = s.c.snapshots.Walk(ctx, func(_ context.Context, i snapshots.Info) error { return add(i.Name, i.Labels) })
	return out, classify(err, "")
}

// Sweep removes what Owned listed.
func (s *Containers) Sweep(ctx context.Context, o task.Owned) error {
	var h handle
	if err := json.Unmarshal(o.Handle, &h); err != nil {
		return fail(task.Invalid, "", fmt.Errorf("handle of swept container: %w", err))
	}
	if h.Lease != "" {
		return s.c.abandon(s.c.ns(ctx), h.Lease)
	}
	if err := s.c.erase(s.c.ns(ctx), o.TaskID, unknownSize, h); err != nil {
		return err
	}
	return s.c.removeLogs(o.TaskID, o.Resource.Name)
}
