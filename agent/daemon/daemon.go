package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"berth.dev/berth/agent/acs"
	"berth.dev/berth/agent/attach"
	"berth.dev/berth/agent/config"
	"berth.dev/berth/agent/creds"
	"berth.dev/berth/agent/ec2"
	"berth.dev/berth/agent/ecs"
	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/fdstore"
	"berth.dev/berth/agent/health"
	"berth.dev/berth/agent/intake"
	"berth.dev/berth/agent/plan"
	"berth.dev/berth/agent/report"
	"berth.dev/berth/agent/roles"
	"berth.dev/berth/agent/session"
	"berth.dev/berth/agent/state"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/agent/telemetry"
	"berth.dev/berth/agent/volume"
)

// Options is what Run is given besides the settings.
type Options struct {
	Settings *config.Config
	Version  string
	Hash     string // of the commit it was built from
	// CheckProgram is this program; it is started with "state check PATH" to look at
	// the state database before it is opened.
	CheckProgram string
	// EC2 is the metadata service of the instance that this host is; nil if it is none.
	EC2 *ec2.Instance
	Log *slog.Logger
}

// agent is one run of the agent.
type agent struct {
	o       Options
	c       *config.Config
	log     *slog.Logger
	started time.Time

	db       *state.DB
	health   *health.Registry
	creds    *creds.Store
	ecs      *ecs.Client
	identity aws.CredentialsProvider
	facts    ecs.HostFacts
	boot     string // of the host, now
	rebooted bool   // it was another when the state was written

	kept        *fdstore.Store
	metadata    *metadata
	host        *hostSide
	storage     atomic.Pointer[volume.Storage] // of host; tasks may ask before it is there
	engine      *engine.Engine
	attachments *attach.Keeper
	orders      *volume.Orders // for the pool of block volumes; nil: there is none
	reporter    *report.Reporter
	lost        *intake.Lost // nil while the state is what it was

	metrics   *prometheus.Registry
	telemetry *telemetry.Watcher

	mu           sync.Mutex
	registration ecs.Registration
	connected    atomic.Bool
	ready        atomic.Bool
	swept        atomic.Bool
	session      chan struct{} // a session was opened
	news         chan struct{} // what the status says may be another
	changed      chan struct{} // something of a task has changed
	update       chan struct{} // the agent has to end for an update
}

// Run runs the agent until ctx ends. The error is nil after a clean end; config.ExitCode
// gives the exit code for it.
func Run(ctx context.Context, o Options) error {
	conditions, err := health.New(health.Agent()...)
	if err != nil {
		return err
	}
	kept, err := fdstore.Open()
	if err != nil {
		o.Log.Warn("not all that the service manager kept can be used; it is made again", "err", err)
	}
	a := &agent{o: o, c: o.Settings, log: o.Log, kept: kept, started: time.Now(), health: conditions, session: make(chan struct{}, 1), news: make(chan struct{}, 1), changed: make(chan struct{}, 1), update: make(chan struct{}, 1)}
	if a.metrics, err = a.registry(); err != nil {
		return err
	}
	for _, w := range a.c.Warnings {
		a.log.Warn("setting", "warning", w)
	}
	if err := a.open(ctx); err != nil {
		return err
	}
	lived, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		a.drainAtShutdown(lived)
		cancel()
	})()
	err = a.run(lived)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, a.close())
}

// open opens what needs neither the network nor containerd.
func (a *agent) open(ctx context.Context) (err error) {
	if a.facts, err = gather(a.c); err != nil {
		return err
	}
	if err := a.identify(ctx); err != nil {
		return err
	}
	a.creds = &creds.Store{}
	c := state.Config{Dir: a.c.Berth.StateDir, Log: a.log, Trouble: func(err error) { a.health.Report(health.StateFailing, err) }}
	if a.o.CheckProgram != "" {
		c.Check = state.ByChild(a.o.CheckProgram, "state", "check")
	}
	if a.db, err = state.Open(ctx, c); errors.Is(err, state.ErrNewer) {
		return config.Terminal(fmt.Errorf("state directory %s: %w", c.Dir, err))
	} else if err != nil {
		return fmt.Errorf("state directory %s: %w", c.Dir, err)
	}
	if o := a.db.Opening(); o.Lost != nil {
		a.health.Report(health.StateLost, fmt.Errorf("%w; the damaged file is kept as %s", o.Lost, o.Quarantined))
	}
	if o := a.db.Opening(); o.MigratedFrom != 0 {
		a.log.Info("the state was brought to this version's schema; a copy from before is beside it", "from", o.MigratedFrom)
	}
	if a.boot, err = bootID(); err != nil {
		return err
	}
	before := a.db.Meta().BootID
	a.rebooted = before != "" && before != a.boot
	a.identity = ecs.Credentials(a.c)
	if a.ecs, err = ecs.New(a.c, a.facts, a.identity, a.version(), a.log); err != nil {
		return err
	}
	return a.openMetadata(ctx)
}

func (a *agent) version() string {
	return fmt.Sprintf("Amazon ECS Agent - v%s (%s)", a.o.Version, a.o.Hash)
}

// run brings everything up and waits for the end.
func (a *agent) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.debug().serve(ctx, a.socket()) })
	g.Go(func() error { return a.serveGrants(ctx) })
	g.Go(func() error { return ignoreCancel(ctx, a.introspect(ctx)) })
	g.Go(func() error { a.supervise(ctx); return nil })
	g.Go(func() error { a.rest(ctx); return nil })
	g.Go(func() error { return a.keepKey(ctx) })
	g.Go(func() error { a.watchNotices(ctx); return nil })

	var up errgroup.Group
	up.Go(func() error { return a.register(ctx) })
	up.Go(func() error { return a.startHost(ctx) })
	err := up.Wait()
	if err == nil {
		err = a.startEngine(ctx, g)
	}
	if err == nil {
		err = a.startTelemetry(ctx, g)
	}
	if err == nil {
		err = a.startSession(ctx, g)
	}
	if err != nil {
		g.Go(func() error { return err })
	}
	return g.Wait()
}

// register makes this host a container instance of the cluster, or says again that it
// is one, and stores who it is.
func (a *agent) register(ctx context.Context) error {
	meta := a.db.Meta()
	if meta.Cluster != "" && meta.Cluster != a.ecs.Cluster() {
		return config.Terminal(fmt.Errorf("ECS_CLUSTER is %q, but the state in %s belongs to cluster %q: change the setting back, or remove that directory to register as a new container instance",
			a.ecs.Cluster(), a.c.Berth.StateDir, meta.Cluster))
	}
	if err := a.leaveWarmPool(ctx); err != nil {
		return err
	}
	r, err := a.ecs.Register(ctx, meta.InstanceARN)
	if err != nil {
		return err
	}
	meta.InstanceARN, meta.Cluster, meta.AZ = r.InstanceARN, r.Cluster, r.AvailabilityZone
	if old := a.db.Meta(); old.InstanceARN != meta.InstanceARN || old.Cluster != meta.Cluster || old.BootID != a.boot {
		meta.BootID = a.boot
		if err := a.db.SetMeta(ctx, meta); err != nil {
			return fmt.Errorf("store the registration: %w", err)
		}
	}
	a.mu.Lock()
	a.registration = r
	a.mu.Unlock()
	a.log.Info("registered", "containerInstance", r.InstanceARN, "cluster", r.Cluster, "dur", time.Since(a.started))
	return nil
}

// roles makes the configurations for calls of AWS services.
func (a *agent) roles() *roles.Roles {
	return roles.New(roles.Config{Store: a.creds, Instance: a.identity, Region: a.c.Cluster.Region, Proxy: ecs.Proxy(a.c)})
}

// startHost connects to containerd, waiting for it if need be, and makes what all
// tasks share.
func (a *agent) startHost(ctx context.Context) error {
	err := again(ctx, func() (err error) {
		a.host, err = openHost(ctx, a.c, a.roles(), a.log)
		return err
	}, func(err error) {
		a.health.Report(health.RuntimeUnavailable, err)
		a.log.Warn("containerd cannot be used yet", "err", err)
	})
	a.health.Report(health.RuntimeUnavailable, err)
	if err != nil {
		return err
	}
	a.storage.Store(a.host.storage)
	if err := a.host.prepare(ctx); err != nil {
		return fmt.Errorf("prepare the host: %w", err)
	}
	return nil
}

// startEngine takes every stored task up and is ready then.
func (a *agent) startEngine(ctx context.Context, g *errgroup.Group) error {
	a.host.client.SetInstance(a.instance().InstanceARN)
	e, err := engine.New(engine.Config{
		Store: a.db, Resources: append(a.host.resources(), a.metadata.server), Published: a.published, Admission: a.admission(), Settings: a.settings(),
		Parallel:    map[string]int{task.KindContainer: startConcurrency(a.c)},
		Undelivered: func(taskID string) bool { return a.undelivered(ctx, taskID) }, StoreFailed: func(err error) { a.health.Report(health.StateFailing, err) },
		Rebooted: a.rebooted, Log: a.log,
	})
	if err != nil {
		return err
	}
	if err := e.Start(ctx); err != nil {
		return err
	}
	a.engine = e
	a.metadata.tasks.goes(e)
	a.reporter = report.New(report.Config{Outbox: a.db, Submitter: a.ecs, Log: a.log})
	g.Go(func() error { return ignoreCancel(ctx, a.reporter.Run(ctx)) })
	if err := a.startAttachments(ctx, g); err != nil {
		return err
	}
	if !a.db.Meta().Unconfirmed {
		a.sweep(ctx)
	} else if err := a.find(ctx); err != nil {
		return err
	}
	g.Go(func() error { a.host.images.Clean(ctx, a.host.client, a.host.clean(e.Views)); return nil })
	a.ready.Store(true)
	a.tellNews()
	a.log.Info("ready", "tasks", len(e.Views()), "containerd", a.host.client.Version(), "dur", time.Since(a.started))
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		a.log.Warn("systemd could not be told that the agent is ready", "err", err)
	}
	return nil
}

// sweep removes what this agent left on the host for tasks that nobody knows. With a
// state that was lost, or is new where another may have been, it waits until the
// cluster has said what it knows.
func (a *agent) sweep(ctx context.Context) {
	if a.swept.Swap(true) {
		return
	}
	n, err := a.engine.Sweep(ctx)
	a.health.Report(health.RemovalFailing, err)
	if n > 0 || err != nil {
		a.log.Info("swept the host", "removed", n, "err", err)
	}
}

// find looks for tasks that the runtime tells of and the state does not, because it is
// new: what there was before it is lost.
func (a *agent) find(ctx context.Context) error {
	var found []task.Found
	err := again(ctx, func() (err error) {
		found, err = a.host.client.Containers().Found(ctx, a.instance().InstanceARN)
		return err
	}, func(err error) { a.log.Warn("containers cannot be listed yet", "err", err) })
	if err != nil {
		return fmt.Errorf("look for tasks of before the loss of the state: %w", err)
	}
	var lost intake.Lost
	for _, f := range found {
		log := a.log.With("task", f.Task.ID())
		if _, known := a.engine.Known(f.Task.ARN); known {
			continue
		}
		if err := plan.Validate(f.Task); err != nil {
			log.Warn("a task that was found cannot be taken up; it is removed when the cluster has been heard", "err", err)
			continue
		}
		log.Info("found a task that the state does not know; it is left alone until the cluster has been heard", "containers", len(f.Containers))
		lost.Found = append(lost.Found, task.Stored{Task: f.Task, Known: plan.Rebuild(f, time.Now())})
	}
	if len(lost.Found) > 0 || a.db.Opening().Lost != nil {
		a.lost = &lost
	}
	return nil
}

// confirmed is told each time that the cluster has said what it knows of this host.
func (a *agent) confirmed(ctx context.Context) {
	if meta := a.db.Meta(); meta.Unconfirmed {
		meta.Unconfirmed = false
		if err := a.db.SetMeta(ctx, meta); err != nil {
			a.log.Warn("that the cluster was heard cannot be stored; the next start waits for it again", "err", err)
		}
	}
	a.sweep(ctx)
}

// startSession keeps a session with the cluster open.
func (a *agent) startSession(ctx context.Context, g *errgroup.Group) error {
	tlsConfig, err := ecs.TLS(a.c)
	if err != nil {
		return config.Terminal(err)
	}
	updates := a.updates(tlsConfig)
	in := intake.New(intake.Config{
		Engine: a.engine, Store: a.db, Attachments: a.attachments, Policies: a.host.network, Pool: a.pool(),
		Credentials: credentialKeeper{a.creds, a.log}, NoPrivileged: a.c.Roles.NoPrivileged,
		Confirmed: func() { a.confirmed(ctx) }, Lost: a.lost, Heartbeat: a.telemetry.Check, Log: a.log,
	})
	instance := a.instance()
	cl, err := acs.New(acs.Config{
		Endpoint:    func(ctx context.Context) (string, error) { return a.ecs.Endpoint(ctx, instance.InstanceARN) },
		Credentials: a.identity, Region: a.c.Cluster.Region, Cluster: instance.Cluster, InstanceARN: instance.InstanceARN,
		AgentVersion: a.o.Version, AgentHash: a.o.Hash, RuntimeVersion: "containerd",
		UserAgent: ecs.UserAgent(a.version(), a.facts.OSFamily),
		Handler:   in, Updates: updates, Observe: a.observeSession, TLS: tlsConfig, Proxy: ecs.Proxy(a.c), Log: a.log,
	})
	if err != nil {
		return err
	}
	g.Go(func() error { return a.endForUpdate(ctx) })
	g.Go(func() error {
		defer in.Close()
		defer updates.Close()
		return ignoreCancel(ctx, cl.Run(ctx))
	})
	g.Go(func() error { a.resync(ctx); return nil })
	return nil
}

func (a *agent) observeSession(s session.State, err error) {
	was := a.connected.Swap(s == session.Connected)
	a.tellNews()
	switch {
	case s == session.Connected:
		a.health.Clear(health.ClusterUnreachable)
		a.health.Clear(health.InstanceInactive)
		a.log.Info("connected to the cluster", "dur", time.Since(a.started))
		select {
		case a.session <- struct{}{}:
		default:
		}
	default:
		if err == nil {
			err = errors.New("the session ended")
		}
		if s == session.Deregistered {
			a.health.Report(health.InstanceInactive, err)
		}
		a.health.Report(health.ClusterUnreachable, err)
		if was {
			a.log.Warn("disconnected from the cluster; tasks go on", "err", err)
		}
	}
}

// resync has what was told of every task told again on each new session but the
// first, because the cluster may have lost what it was told last.
func (a *agent) resync(ctx context.Context) {
	for {
		select {
		case <-a.session:
		case <-ctx.Done():
			return
		}
		var changes []task.Change
		for _, v := range a.engine.Views() {
			if ch, told := plan.Current(v.Task, &v.Known); told {
				changes = append(changes, ch)
			}
		}
		if err := a.reporter.Resync(ctx, changes); err != nil && ctx.Err() == nil {
			a.log.Warn("resync", "err", err)
		}
	}
}

// close ends what run began, in the reverse order. Containers go on.
func (a *agent) close() error {
	if _, err := daemon.SdNotify(false, daemon.SdNotifyStopping); err != nil {
		a.log.Debug("systemd notify", "err", err)
	}
	var err error
	if a.engine != nil {
		a.engine.Close()
	}
	if a.host != nil {
		err = a.host.close()
	}
	err = errors.Join(err, a.metadata.close(), a.db.Close())
	a.log.Info("ended; tasks go on", "err", err)
	return err
}

func (a *agent) instance() ecs.Registration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.registration
}

func (a *agent) socket() string {
	if a.c.Berth.DebugSocket != "" {
		return a.c.Berth.DebugSocket
	}
	return filepath.Join(a.c.Berth.RunDir, "agent.sock")
}

func (a *agent) settings() plan.Settings {
	return plan.Settings{
		StopTimeout: a.c.Engine.StopTimeout, CreateTimeout: a.c.Engine.CreateTimeout, StartTimeout: a.c.Engine.StartTimeout,
		// The image adapter has the limits of the protocol; this one only ends what hangs.
		PullTimeout: a.c.Images.PullTimeout + a.c.Images.ManifestTimeout,
		Retention:   a.c.Engine.CleanupWait, Jitter: a.c.Engine.CleanupWaitJitter, Relist: relistPeriod,
		NoHealthChecks: a.c.Metadata.HealthDisabled,
		PullOrStop:     a.c.Images.PullBehavior == "always" || a.c.Images.PullBehavior == "once",
		PullUpfront:    a.c.Images.PullUpfront,
	}
}

// relistPeriod is how often every running process is asked about although no event
// came (agent protocol: 5 min; cheap enough here to do it more often).
const relistPeriod = time.Minute

// admission shares out what was registered.
func (a *agent) admission() *engine.Admission {
	var reserved []engine.Port
	for _, p := range a.c.Host.ReservedPorts {
		reserved = append(reserved, engine.Port{Number: p, Protocol: "tcp"})
	}
	for _, p := range a.c.Host.ReservedPortsUDP {
		reserved = append(reserved, engine.Port{Number: p, Protocol: "udp"})
	}
	return engine.NewAdmission(engine.Share{
		CPU: int64(a.facts.CPUs) * 1024, Memory: a.facts.MemoryMiB - a.c.Host.ReservedMemory, GPUs: a.facts.GPUs,
	}, reserved)
}

// undelivered reports whether the outbox still holds rows of a task.
func (a *agent) undelivered(ctx context.Context, taskID string) bool {
	for after := uint64(0); a.db.Pending() > 0; {
		rows, err := a.db.Outbox(ctx, after)
		if err != nil {
			return true // could not ask; the task is kept a little longer
		}
		if len(rows) == 0 {
			return false
		}
		for _, r := range rows {
			if r.TaskID == taskID {
				return true
			}
			after = r.Seq
		}
	}
	return false
}

func (a *agent) debug() *debugServer {
	return &debugServer{state: a.state, views: a.views, events: a.db.Events, health: func() any { return a.health.Snapshot() }, metrics: a.metrics, log: a.log}
}

// registry has the agent's own metrics, those of the Go runtime and of this process.
func (a *agent) registry() (*prometheus.Registry, error) {
	registry := prometheus.NewRegistry()
	var errs []error
	for _, c := range []prometheus.Collector{
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "berth_agent_tasks", Help: "Tasks that the agent has, stopped ones included until they are forgotten."},
			func() float64 { return float64(len(a.views())) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "berth_agent_outbox_rows", Help: "State changes that the cluster has not taken yet."},
			func() float64 { return float64(a.db.Pending()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "berth_agent_session_up", Help: "Whether the session with the cluster is open."},
			func() float64 {
				if a.connected.Load() {
					return 1
				}
				return 0
			}),
	} {
		errs = append(errs, registry.Register(c))
	}
	return registry, errors.Join(errs...)
}

func (a *agent) views() []engine.View {
	if !a.ready.Load() {
		return []engine.View{}
	}
	return a.engine.Views()
}

func (a *agent) state() State {
	s := State{
		Version: a.o.Version, PID: os.Getpid(), Started: a.started, Cluster: a.instance().Cluster,
		InstanceARN: a.instance().InstanceARN, Connected: a.connected.Load(), Ready: a.ready.Load(),
		Tasks: len(a.views()), Outbox: a.db.Pending(),
	}
	if s.Ready {
		s.Containerd = a.host.client.Version()
		s.Waiting = a.engine.Waiting()
	}
	return s
}

func ignoreCancel(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
