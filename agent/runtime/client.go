package runtime

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"berth.dev/berth/agent/logs"
	"berth.dev/berth/agent/spec"
	"berth.dev/berth/agent/task"

	"github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// Defaults of Config.
const (
	DefaultNamespace   = "berth"
	DefaultSnapshotter = "overlayfs"
	DefaultSeccompDir  = "/etc/berth/seccomp"
	DefaultPidsLimit   = 4096 // reliability rules, "Defaults"
	shimRuntime        = "io.containerd.runc.v2"
)

// askTimeout bounds a question to containerd that has no effect. containerd itself
// gives up on a shim that does not answer after 2 s.
const askTimeout = 5 * time.Second

// Config says which containerd to use and how containers are made.
type Config struct {
	Address     string // containerd's socket
	Namespace   string // containerd namespace; "" means DefaultNamespace
	Snapshotter string // "" means DefaultSnapshotter
	Runtime     string // OCI runtime program, "runc" or "crun" or a path; "" means the shim's default, runc
	// Runtimes are those that containers may choose instead; see FindRuntimes.
	Runtimes []OCIRuntime

	// StateDir is for run-time state and is best on a tmpfs (/run/berth). LogDir holds
	// the containers' output, LogDir/<task id>/<container>/log.json.
	StateDir string
	LogDir   string
	// LoggerPath is the berth-logger program; "" discards the containers' output.
	LoggerPath string
	Logs       logs.Settings // what becomes of it; Logs.Logs is LogDir and need not be set

	InitPath  string // static init program for containers that ask for one; "" means one that is installed
	PausePath string // the program berth-pause; "" means that there is none
	// SeccompDir holds the seccomp profiles that containers may name, NAME.json; ""
	// means DefaultSeccompDir.
	SeccompDir string
	// GPUs are those that containers may be given; nil gives none.
	GPUs *GPUs
	// SELinux has containers labelled where the host has SELinux.
	SELinux   bool
	PidsLimit int64  // processes per container that sets none; 0 means DefaultPidsLimit, -1 no limit
	Region    string // AWS region told to containers; "" tells none
	Cluster   string // configured cluster name, for the label com.amazonaws.ecs.cluster

	// Given returns what a container gets that its definition only refers to; nil means
	// nothing.
	Given func(t *task.Task, container string) (task.Given, error)

	HostsDir string // registry hosts directory as containerd's certs.d; "" means none

	Log *slog.Logger // nil means slog.Default
}

func (c *Config) complete() error {
	if c.Namespace == "" {
		c.Namespace = DefaultNamespace
	}
	if c.Snapshotter == "" {
		c.Snapshotter = DefaultSnapshotter
	}
	if c.PidsLimit == 0 {
		c.PidsLimit = DefaultPidsLimit
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.SeccompDir == "" {
		c.SeccompDir = DefaultSeccompDir
	}
	for _, p := range []struct{ name, path string }{
		{"Address", c.Address}, {"StateDir", c.StateDir}, {"LogDir", c.LogDir},
	} {
		if !filepath.IsAbs(p.path) {
			return fmt.Errorf("runtime: %s %q is not an absolute path", p.name, p.path)
		}
	}
	c.Logs.Logs = c.LogDir
	if c.LoggerPath != "" && !filepath.IsAbs(c.LoggerPath) {
		return fmt.Errorf("runtime: LoggerPath %q is not an absolute path", c.LoggerPath)
	}
	return nil
}

// Client is a connection to containerd. It reconnects by itself.
type Client struct {
	cfg  Config
	log  *slog.Logger
	host spec.Host
	cgs  cgroups

	cd         *containerd.Client
	tasks      tasks.TasksClient
	containers containers.Store
	snapshots  snapshots.Snapshotter
	sandboxes  sandbox.Store
	options    typeurl.Any // options of the runc shim
	session    string      // tells this client's leases from those of others

	mu       sync.Mutex
	version  string
	root     string // directory of the snapshotter; "" when it does not say
	sandbox  bool   // containerd has a store for sandbox records
	instance string
	images   map[string]Image    // by digest; only unpacked ones
	users    map[userKey]person  // by image and user
	known    map[string]*tracked // by container id
	groups   map[string]*group   // by task id
}

// Open connects and asks what the daemon can do. While containerd is down it fails with
// class Unavailable, and the caller tries again.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	cgs, err := findCgroups("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	host, err := describeHost(cgs, cfg.Address)
	if err != nil {
		return nil, err
	}
	if host.Init, err = findInit(cfg.InitPath); err != nil {
		return nil, fmt.Errorf("runtime: init program: %w", err)
	}
	if cfg.PausePath != "" {
		if host.Hold = cfg.PausePath; static(cfg.PausePath) != nil {
			return nil, fmt.Errorf("runtime: pause program: %w", static(cfg.PausePath))
		}
	}
	host.HasSELinux = cfg.SELinux && HasSELinux()
	host.PidsLimit = max(cfg.PidsLimit, 0)
	cd, err := containerd.New(cfg.Address,
		containerd.WithDefaultNamespace(cfg.Namespace),
		containerd.WithDefaultRuntime(shimRuntime),
		containerd.WithExtraDialOpts([]grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			// A restarted containerd is back in a tenth of a second.
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		})}))
	if err != nil {
		return nil, unavailable(fmt.Errorf("containerd at %s: %w", cfg.Address, err))
	}
	c := &Client{
		cfg: cfg, log: cfg.Log, host: host, cgs: cgs, cd: cd,
		tasks: cd.TaskService(), containers: cd.ContainerService(),
		snapshots: cd.SnapshotService(cfg.Snapshotter), sandboxes: cd.SandboxStore(),
		images: map[string]Image{}, users: map[userKey]person{},
		known: map[string]*tracked{}, groups: map[string]*group{}, session: rand.Text(),
	}
	if c.options, err = c.runcOptions(cfg.Runtime); err == nil {
		err = c.probe(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, cd.Close())
	}
	return c, nil
}

// probe asks the daemon for its version and services.
func (c *Client) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(c.ns(ctx), askTimeout)
	defer cancel()
	v, err := c.cd.Version(ctx)
	if err != nil {
		return unavailable(fmt.Errorf("containerd at %s does not answer: %w; is it running?", c.cfg.Address, err))
	}
	r, err := c.cd.IntrospectionService().Plugins(ctx)
	if err != nil {
		return unavailable(fmt.Errorf("containerd at %s: listing its plugins: %w", c.cfg.Address, err))
	}
	var store, snapshotter bool
	var root string
	var all []string
	for _, p := range r.Plugins {
		ok := p.InitErr == nil
		store = store || ok && p.Type == "io.containerd.grpc.v1" && p.ID == "sandboxes"
		if ok && p.Type == "io.containerd.snapshotter.v1" {
			all = append(all, p.ID)
			if p.ID == c.cfg.Snapshotter {
				snapshotter, root = true, p.Exports["root"]
			}
		}
	}
	if !snapshotter {
		return fmt.Errorf("containerd at %s has no working snapshotter %q (BERTH_SNAPSHOTTER); it has %s: choose one of them, or add a proxy plugin of that name to its configuration and start it again",
			c.cfg.Address, c.cfg.Snapshotter, strings.Join(all, ", "))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version, c.sandbox, c.root = v.Version, store, root
	return nil
}

// Ping asks the daemon for a sign of life.
func (c *Client) Ping(ctx context.Context) error {
	if _, err := c.cd.Version(c.ns(ctx)); err != nil {
		return unavailable(fmt.Errorf("containerd at %s does not answer: %w", c.cfg.Address, err))
	}
	return nil
}

// Version is the version that the daemon told when it was last connected to.
func (c *Client) Version() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.version
}

// SetInstance names the container instance in the labels of what is made from now on.
func (c *Client) SetInstance(arn string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.instance = arn
}

// Close closes the connection. Containers are not touched.
func (c *Client) Close() error { return c.cd.Close() }

// Collect has containerd free what nothing refers to any more, and waits for it.
func (c *Client) Collect(ctx context.Context) error {
	ctx = c.ns(ctx)
	l, err := c.cd.LeasesService().Create(ctx, leaseOptions()...)
	if err != nil {
		return classify(err, "")
	}
	return classify(c.cd.LeasesService().Delete(ctx, l, syncDelete()), "")
}

func (c *Client) ns(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, c.cfg.Namespace)
}

// LogPath is the current log file of a container.
func (c *Client) LogPath(taskID, name string) string {
	return filepath.Join(c.logDir(taskID, name), "log.json")
}

func (c *Client) logDir(taskID, name string) string {
	return filepath.Join(c.cfg.LogDir, safeName(taskID), safeName(name))
}
