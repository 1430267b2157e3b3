package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"time"

	"berth.dev/berth/agent/config"
	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/image"
	"berth.dev/berth/agent/logs/link"
	"berth.dev/berth/agent/logs/router"
	"berth.dev/berth/agent/netns"
	"berth.dev/berth/agent/resource"
	"berth.dev/berth/agent/roles"
	"berth.dev/berth/agent/runtime"
	"berth.dev/berth/agent/secret"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/agent/tmds"
	"berth.dev/berth/agent/volume"
	"berth.dev/berth/cni-plugins/ecs-bridge/bridge"
	"berth.dev/berth/eni"
	"berth.dev/berth/volumes"
	"berth.dev/berth/volumes/block"
)

// socket names of containerd that are tried when none is configured: the host's own.
var containerdSockets = []string{"/run/containerd/containerd.sock"}

// hostSide is everything of the agent that touches this host.
type hostSide struct {
	client  *runtime.Client
	images  *image.Images
	network *netns.Network
	cgroups *resource.Cgroup
	volumes *volume.Volumes
	secrets *secret.Secrets
	router  *router.Router
	storage *volume.Storage
	log     *slog.Logger
	c       *config.Config
}

// shipperStops is how long the shipper may take to end.
const shipperStops = 10 * time.Second

// containerdAddress is the socket that is configured, or the first that is there.
func containerdAddress(c *config.Config) (string, error) {
	if c.Berth.Containerd != "" {
		return c.Berth.Containerd, nil
	}
	private := filepath.Join(c.Berth.RunDir, "containerd", "containerd.sock")
	for _, path := range append(containerdSockets, private) {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no containerd socket at %s or %s: install containerd, start \"berth containerd\", or name its socket in BERTH_CONTAINERD_ADDRESS",
		strings.Join(containerdSockets, ", "), private)
}

// openHost makes the adapters. While containerd is down it fails with a class that
// says so, and the caller tries again.
func openHost(ctx context.Context, c *config.Config, r *roles.Roles, log *slog.Logger) (*hostSide, error) {
	address, err := containerdAddress(c)
	if err != nil {
		return nil, task.Fail(task.Unavailable, "", err)
	}
	logger, err := loggerPath(c)
	if err != nil {
		return nil, config.Terminal(err)
	}
	pause, err := programPath("berth-pause", c.Berth.PausePath, "BERTH_PAUSE_PATH")
	if err != nil {
		log.Warn("interactive containers and tasks that share namespaces are refused", "err", err)
	}
	gpus, err := gpusOf(c)
	if err != nil {
		return nil, config.Terminal(err)
	}
	runtimes, err := runtime.FindRuntimes(c.Berth.Runtimes)
	if err != nil {
		return nil, config.Terminal(fmt.Errorf("BERTH_RUNTIMES: %w", err))
	}
	h := &hostSide{log: log, c: c, secrets: secret.New(secret.Config{Roles: r, Dir: filepath.Join(c.Berth.RunDir, "secrets"), Log: log})}
	h.router = router.New(router.Settings{Dir: logSettings(c).Routers, Cluster: c.Cluster.Name, Fetch: fetchObject(r), Log: log})
	h.client, err = runtime.Open(ctx, runtime.Config{
		Address: address, Namespace: c.Berth.Namespace,
		StateDir: c.Berth.RunDir, LogDir: filepath.Join(c.Berth.LogDir, "tasks"), LoggerPath: logger,
		Logs:        logSettings(c),
		Snapshotter: c.Berth.Snapshotter, Runtime: c.Berth.OCIRuntime, HostsDir: c.Berth.RegistryHosts,
		Runtimes: runtimes, InitPath: c.Berth.InitPath, PausePath: pause, SeccompDir: c.Berth.SeccompDir, GPUs: gpus, SELinux: c.Roles.SELinux,
		Region: c.Cluster.Region, Cluster: c.Cluster.Name, Given: h.secrets.Given, Log: log,
	})
	if err != nil {
		return nil, err
	}
	pool, err := interfacePool(c)
	if err != nil {
		return nil, config.Terminal(errors.Join(err, h.client.Close()))
	}
	h.network, err = netns.New(netns.Config{
		Dir: filepath.Join(c.Berth.RunDir, "network"), Bridge: c.Berth.Bridge, Subnet: c.Berth.BridgeSubnet, Subnet6: c.Berth.BridgeSubnet6,
		CNIConfigDir: c.Berth.CNIConfigDir, PluginDirs: pluginDirs(c),
		FirstPort: c.Network.DynamicPorts.First, LastPort: c.Network.DynamicPorts.Last,
		Pool: pool, BlockMetadata: c.Network.BlockIMDS, Log: log,
	})
	if err != nil {
		return nil, errors.Join(err, h.client.Close())
	}
	h.cgroups, err = resource.NewCgroup(resource.CgroupConfig{
		Root: c.Host.CgroupPath, Name: c.Berth.Cgroup, CPUPeriod: c.Host.CgroupCPUPeriod, PidsLimit: c.Host.TaskPidsLimit,
		NoLimits: !c.Host.TaskLimits, Log: log,
	})
	if err != nil {
		return nil, errors.Join(err, h.close())
	}
	h.storage = volume.NewStorage(limitedStorage(c, log))
	h.volumes, err = openVolumes(c, address, h.storage, r, log)
	if err != nil {
		return nil, config.Terminal(errors.Join(err, h.close()))
	}
	auth, err := image.StaticAuth(c.Images.AuthType, c.Images.AuthData)
	if err != nil {
		return nil, config.Terminal(errors.Join(err, h.close()))
	}
	var verifier *image.Verifier
	if c.Berth.VerifierDir != "" {
		if verifier, err = image.NewVerifier(c.Berth.VerifierDir, c.Berth.VerifierTimeout); err != nil {
			return nil, config.Terminal(errors.Join(err, h.close()))
		}
	}
	h.images, err = image.New(image.Config{
		Runtime: h.client, Policy: image.Policy(c.Images.PullBehavior),
		Auth:            image.NewLogins(r, auth).Auth,
		ManifestTimeout: c.Images.ManifestTimeout, PullTimeout: c.Images.PullTimeout,
		Inactivity: c.Images.InactivityTimeout, Verifier: verifier, Log: log,
	})
	if err != nil {
		return nil, config.Terminal(errors.Join(err, h.close()))
	}
	return h, nil
}

// pluginDirs is where CNI plugins are looked for, in this order.
func pluginDirs(c *config.Config) []string {
	return append(filepath.SplitList(c.Network.CNIPluginsPath), netns.DefaultPluginDirs()...)
}

// interfacePool makes the interfaces of awsvpc tasks; nil makes none.
func interfacePool(c *config.Config) (*eni.Pool, error) {
	if c.Berth.ENIPool == "none" {
		return nil, nil
	}
	p, err := eni.ParsePool(c.Berth.ENIPool)
	if err != nil {
		return nil, fmt.Errorf("BERTH_ENI_POOL: %w", err)
	}
	p.Owner = cmp.Or(c.Berth.Bridge, bridge.DefaultBridge)
	return p, nil
}

// prepare makes what all tasks share on this host.
func (h *hostSide) prepare(ctx context.Context) error {
	if err := h.cgroups.EnsureHost(ctx); err != nil {
		return fmt.Errorf("parent cgroup: %w", err)
	}
	if err := h.secrets.EnsureHost(); err != nil {
		return fmt.Errorf("directory of secret files: %w", err)
	}
	if err := h.network.EnsureHost(ctx); err != nil {
		return err
	}
	h.keepFromMetadata()
	return nil
}

// keepFromMetadata keeps tasks in the host's network from the host's metadata, if they are
// to be and the host can.
func (h *hostSide) keepFromMetadata() {
	var tasks *netns.Group
	if !h.c.Berth.HostIMDS {
		dir := h.cgroups.Second()
		if dir == "" {
			h.log.Warn("tasks in the host's network can reach the instance metadata service: the host has no cgroup version 2, by which they are known; BERTH_HOST_IMDS=true says that they may")
			return
		}
		tasks = &netns.Group{Dir: dir, Level: 1}
	}
	if err := h.network.KeepFromMetadata(tasks); err != nil {
		h.log.Warn("tasks in the host's network can reach the instance metadata service", "err", err)
	}
}

// clean is how images are cleaned up.
func (h *hostSide) clean(views func() []engine.View) image.CleanConfig {
	c := image.CleanConfig{
		Interval: h.c.Images.CleanupInterval, MinimumAge: h.c.Images.MinimumAge, PerCycle: int(h.c.Images.DeletePerCycle),
		Foreign: h.c.Images.CleanForeign, ForeignMinimumAge: h.c.Images.ForeignMinimumAge, Keep: h.c.Images.Keep,
		DiskPercent: int(h.c.Berth.ImageDiskPercent),
		InUse: func() []string {
			var names []string
			for _, v := range views() {
				for i := range v.Task.Containers {
					names = append(names, v.Task.Containers[i].Image)
				}
			}
			return names
		},
	}
	if h.c.Images.CleanupDisabled {
		c.Interval = 0
	}
	return c
}

func (h *hostSide) resources() []engine.Resource {
	return []engine.Resource{
		h.client.Containers(), h.client.Namespaces(), h.volumes, h.storage, h.network, h.cgroups, h.images, h.secrets, h.router,
	}
}

func (h *hostSide) close() error {
	err := h.client.Close()
	if h.network != nil {
		err = errors.Join(err, h.network.Close())
	}
	return err
}

// teardown removes everything of the agent's from the host. Tasks that still run are
// ended.
func (h *hostSide) teardown(ctx context.Context) error {
	endpoints := tmds.New(tmds.Config{Dir: endpointsDir(h.c), Files: &tmds.Files{Dir: filesDir(h.c)}})
	_, err := engine.Sweep(ctx, append(h.resources(), endpoints), func(string) bool { return false }, h.log)
	return errors.Join(err, h.stopShipper(), h.volumes.Teardown(), h.storage.Teardown(), h.network.TeardownHost(ctx), h.cgroups.TeardownHost(ctx), h.secrets.TeardownHost())
}

// stopShipper ends the shipper and removes its own log.
func (h *hostSide) stopShipper() error {
	err := link.StopShipper(h.c.Berth.RunDir, shipperStops)
	for _, name := range []string{"shipper.log", "shipper.log.1"} {
		if rerr := os.Remove(filepath.Join(h.c.Berth.LogDir, name)); !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// openVolumes makes the adapter for volumes. Tasks are kept from the agent's own
// directories and from containerd's.
func openVolumes(c *config.Config, containerd string, storage *volume.Storage, r *roles.Roles, log *slog.Logger) (*volume.Volumes, error) {
	program, err := programPath("berth-volume", c.Berth.VolumePath, "BERTH_VOLUME_PATH")
	if err != nil {
		return nil, err
	}
	pool, err := volumePool(c)
	if err != nil {
		return nil, err
	}
	return volume.New(volume.Config{
		Pool: pool,
		Dirs: volumes.Dirs{Run: filepath.Join(c.Berth.RunDir, "volumes"), State: c.Berth.VolumeDir},
		Allowed: volumes.Allowed{
			Own: []string{
				c.Berth.StateDir, c.Berth.RunDir, c.Berth.VolumeDir, c.Berth.KeyFile, c.Berth.VolumeDrivers,
				containerd, "/var/lib/berth", "/run/containerd", "/var/lib/containerd", "/etc/containerd", "/run/runc",
			},
			Always: c.Berth.HostPathsAllowed,
		},
		Region: c.Cluster.Region, EFSTargets: c.Berth.EFSTargets, EFSCA: c.Berth.EFSCAFile, EFSKeys: func(arn string) (volumes.Keys, error) { return efsKeys(r, arn) },
		Storage: storage, Strict: c.Features.SharedStrict, Drivers: c.Berth.VolumeDrivers, Remote: &volumes.Remote{Program: program}, Log: log,
	}), nil
}

// efsKeys are those that authorize what a task mounts.
func efsKeys(r *roles.Roles, taskARN string) (volumes.Keys, error) {
	c, err := r.Mounts(taskARN)
	if err != nil {
		return volumes.Keys{}, err
	}
	return volumes.Keys{
		AccessKeyID: c.AccessKeyID.Reveal(), SecretAccessKey: c.SecretAccessKey.Reveal(), SessionToken: c.SessionToken.Reveal(),
	}, nil
}

// volumePool keeps the block volumes that the cluster hands out; nil keeps none.
func volumePool(c *config.Config) (*block.Pool, error) {
	kind, dir, given := strings.Cut(c.Berth.VolumePool, ":")
	switch {
	case c.Berth.VolumePool == "none":
		return nil, nil
	case kind == "loop" && !given:
		return &block.Pool{Dir: filepath.Join(c.Berth.VolumeDir, "pool")}, nil
	case kind == "loop" && filepath.IsAbs(dir):
		return &block.Pool{Dir: filepath.Clean(dir)}, nil
	}
	return nil, fmt.Errorf("BERTH_VOLUME_POOL is %q: it must be loop, loop:DIRECTORY with an absolute path, or none", c.Berth.VolumePool)
}

// loggerPath finds the program that writes the containers' output.
func loggerPath(c *config.Config) (string, error) {
	return programPath("berth-logger", c.Berth.LoggerPath, "BERTH_LOGGER_PATH")
}

// programPath finds a program of Berth's: where a setting says, beside this one, or on
// the search path.
func programPath(name, configured, setting string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("the program %s is neither beside %s nor on PATH; install it or name it in %s", name, self, setting)
	}
	return filepath.Abs(path)
}

// startConcurrency is how many containers are made at the same time. More than four a
// processor only makes all of them late (measured: eight is best on two).
func startConcurrency(c *config.Config) int {
	if c.Berth.StartConcurrency > 0 {
		return int(c.Berth.StartConcurrency)
	}
	return 4 * goruntime.NumCPU()
}

// bootID identifies this boot of the host (random(4), /proc/sys/kernel/random/boot_id).
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// again calls fn until it succeeds, with growing delays, while its failures are of a
// kind that passes.
func again(ctx context.Context, fn func() error, failed func(error)) error {
	delay := 50 * time.Millisecond
	for {
		err := fn()
		if err == nil || !task.ClassOf(err).Retriable() {
			return err
		}
		failed(err)
		select {
		case <-time.After(delay):
			delay = min(2*delay, 2*time.Second)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
