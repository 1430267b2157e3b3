// Package netns gives tasks their networks: the namespaces of their containers, the
// connection of these to the host by the code of the ecs-bridge CNI plugin, called in
// process, and the files that go over /etc/hosts, /etc/resolv.conf and /etc/hostname.
//
// In the modes bridge and none each container has a namespace of its own, with its own
// ports and in mode bridge its own address, as people know it from Docker. Containers of
// one task reach each other directly, by address and by the names of their links; other
// tasks reach them through published ports. In mode awsvpc the containers of a task share
// one namespace, which has the task's network interfaces. In host mode the task has one network, named
// "task", which is the host's and has files only.
//
//	<Dir>/namespaces/<key>   the pinned namespace (modes bridge and none)
//	<Dir>/bridge/            reservations of ecs-bridge, one file per address
//	<Dir>/interfaces/        records of ecs-eni, one file per interface of an awsvpc task
//	<Dir>/cni/               records and results of the operator's networks (package cni)
//	<Dir>/policies/<mac>     what the security groups of an interface let pass
//	<Dir>/files/<key>/       hosts, resolv.conf, hostname
//
// The key of a container's network is the task's id, a dot and a hash of the container's
// name, that of a task's network the id alone; so everything derives from the task. The reservation is written and fsynced before
// anything of the connection is made and holds all of it, so it stands for the CNI
// result that a runtime has to keep. Nothing here needs the agent to be alive
// afterwards. Dir belongs on a file system that a reboot empties, as the network itself
// does not survive one; where it does not, the sweep at start removes what is left.
//
// # Name servers
//
// A task in bridge mode gets the host's name servers, except those on loopback
// addresses, which it could not reach. Where none is left, as with systemd-resolved, they
// are read from that service's own /run/systemd/resolve/resolv.conf. Host mode gets the
// host's file as it is.
package netns

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"berth.dev/berth/agent/cni"
	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/fail"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/cni-plugins/ecs-bridge/bridge"
	"berth.dev/berth/cni-plugins/ecs-eni/elastic"
	"berth.dev/berth/eni"
)

// Config says where and how networks are made. Dir is required; every other zero value
// stands for a default.
type Config struct {
	Dir    string       // absolute
	Bridge string       // default bridge.DefaultBridge
	Table  string       // nftables tables; default bridge.TableOf(Bridge)
	Subnet netip.Prefix // IPv4; default bridge.DefaultSubnet

	// Subnet6 gives containers in mode bridge IPv6 addresses as well; zero gives none.
	Subnet6 netip.Prefix

	MTU int // bytes; default that of the host's default route

	// FirstPort and LastPort bound dynamic host ports (ECS_DYNAMIC_HOST_PORT_RANGE);
	// default the kernel's net.ipv4.ip_local_port_range.
	FirstPort, LastPort uint16

	Resolv         string // default /etc/resolv.conf
	ResolvUpstream string // default /run/systemd/resolve/resolv.conf
	Hosts          string // for host mode; default /etc/hosts

	// CNIConfigDir has the networks of the operator's that containers may join besides that
	// of their task's mode, and PluginDirs their plugins; default DefaultPluginDirs.
	CNIConfigDir string
	PluginDirs   []string

	// Pool makes the interfaces of awsvpc tasks that nobody plugs in; nil makes none.
	Pool *eni.Pool
	// BlockMetadata keeps awsvpc tasks from the instance metadata service.
	BlockMetadata bool
	// DeviceWait is how long an awsvpc task waits for a device that should be there; default
	// deviceWait.
	DeviceWait time.Duration

	Log *slog.Logger
}

// ifName is the interface inside a namespace.
const ifName = "eth0"

// sharedName is the name of the network of a task whose containers share one.
const sharedName = "task"

// separator stands between the task's id and the hash in a key; it is in no id.
const separator = "."

// vethWait bounds the wait for the kernel to take the host's interface away with its
// namespace, and vethPoll is how often it is looked for.
const (
	vethWait = 200 * time.Millisecond
	vethPoll = 2 * time.Millisecond
)

// sysctls of a new namespace, as container tools set them: a program without
// capabilities may listen on any port, and may send ICMP echo requests.
var sysctls = map[string]string{
	"net/ipv4/ip_unprivileged_port_start": "0",
	"net/ipv4/ping_group_range":           "0 2147483647",
}

// Network makes and removes the networks of tasks. It implements engine.Resource and
// engine.Sweeper.
type Network struct {
	cfg  Config
	log  *slog.Logger
	host *bridge.Host

	elastic *elastic.Host
	cni     *cni.Networks

	policyMu sync.Mutex // held while policies are read, written and brought into force

	mu       sync.Mutex
	expected map[string]bool // MAC addresses of devices that wait for their task
}

// Handle is what a container, or in host mode every container of a task, needs of its
// network; it is stored as the record's handle.
type Handle struct {
	Path         string `json:"path,omitempty"` // of the namespace; empty is the host's
	Hosts        string `json:"hosts"`          // file to mount over /etc/hosts
	Resolv       string `json:"resolv"`         // file to mount over /etc/resolv.conf
	Hostname     string `json:"hostname"`       // the name itself
	HostnameFile string `json:"hostnameFile"`   // file to mount over /etc/hostname
	IP           string `json:"ip,omitempty"`   // mode bridge only
	Gateway      string `json:"gateway,omitempty"`
	MAC          string `json:"mac,omitempty"`

	IPv6        string `json:"ipv6,omitempty"`
	GatewayIPv6 string `json:"gatewayIPv6,omitempty"`

	Networks []Joined `json:"networks,omitempty"` // of the operator's

	// What plugins of the operator's networks told of name servers.
	NameServers []string `json:"nameServers,omitempty"`
	Search      []string `json:"search,omitempty"`

	// Containers has, in host mode, the files of those containers that have their own settings.
	Containers map[string]Files `json:"containers,omitempty"`
}

// Files are one container's own files in host mode; an empty path means the task's.
type Files struct {
	Hosts  string `json:"hosts,omitempty"`
	Resolv string `json:"resolv,omitempty"`
}

// New opens what is there. It changes nothing on the host but making Dir.
func New(cfg Config) (*Network, error) {
	if !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("network directory %q: must be an absolute path", cfg.Dir)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.DeviceWait = cmp.Or(cfg.DeviceWait, deviceWait)
	for _, d := range []struct {
		at *string
		to string
	}{
		{&cfg.Resolv, "/etc/resolv.conf"},
		{&cfg.ResolvUpstream, "/run/systemd/resolve/resolv.conf"},
		{&cfg.Hosts, "/etc/hosts"},
	} {
		if *d.at == "" {
			*d.at = d.to
		}
	}
	host, err := bridge.Open(bridge.Config{
		Bridge: cfg.Bridge, Table: cfg.Table, Subnet: cfg.Subnet, Subnet6: cfg.Subnet6, MTU: cfg.MTU,
		FirstPort: cfg.FirstPort, LastPort: cfg.LastPort,
		Dir: filepath.Join(cfg.Dir, "bridge"), Hold: true, Log: cfg.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	enis, err := elastic.Open(filepath.Join(cfg.Dir, "interfaces"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network: %w", err), host.Close())
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "policies"), 0o700); err != nil {
		return nil, errors.Join(fmt.Errorf("network: %w", err), host.Close())
	}
	if len(cfg.PluginDirs) == 0 {
		cfg.PluginDirs = DefaultPluginDirs()
	}
	others, err := cni.Open(cni.Config{ConfigDir: cfg.CNIConfigDir, PluginDirs: cfg.PluginDirs, Dir: filepath.Join(cfg.Dir, "cni")})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network: %w", err), host.Close())
	}
	return &Network{cfg: cfg, log: cfg.Log, host: host, elastic: enis, cni: others, expected: map[string]bool{}}, nil
}

// Close gives up sockets and descriptors; networks stay as they are.
func (n *Network) Close() error { return n.host.Close() }

// Kind is task.KindNetwork.
func (n *Network) Kind() string { return task.KindNetwork }

// EnsureHost makes or repairs what all tasks share: the directory of namespaces, the
// bridge, the nftables tables. It is to be called at start, before Ensure.
func (n *Network) EnsureHost(ctx context.Context) error {
	if err := eni.ShareDirectory(n.namespaces()); err != nil {
		return fmt.Errorf("directory of network namespaces: %w", err)
	}
	if err := n.host.Setup(ctx); err != nil {
		return fmt.Errorf("host network: %w", err)
	}
	// Records that an agent was killed over are nobody's.
	if err := n.elastic.Collect(ctx, func(elastic.Key) bool { return true }); err != nil {
		return fmt.Errorf("records of interfaces: %w", err)
	}
	drops, err := bridge.ForwardDrops(n.host.Config().Table)
	if err != nil {
		return err
	}
	if len(drops) > 0 {
		n.log.Warn("a firewall drops forwarded packets by policy; accept traffic from and to the bridge there, or tasks in bridge mode have no network",
			"bridge", n.host.Config().Bridge, "chains", strings.Join(drops, ", "))
	}
	return nil
}

// TeardownHost removes all networks of tasks and what they share, and restores the
// sysctls that EnsureHost changed. The tasks must be gone.
func (n *Network) TeardownHost(ctx context.Context) error {
	owned, err := n.Owned(ctx)
	if err != nil {
		return err
	}
	for _, o := range owned {
		if err := n.Sweep(ctx, o); err != nil {
			return err
		}
	}
	return errors.Join(
		n.KeepFromMetadata(nil),
		n.host.Teardown(ctx),
		eni.UnshareDirectory(n.namespaces()),
		os.RemoveAll(filepath.Join(n.cfg.Dir, "files")),
		os.RemoveAll(filepath.Join(n.cfg.Dir, "interfaces")),
		os.RemoveAll(n.policies()),
		n.cni.Teardown(),
	)
}

func (n *Network) namespaces() string          { return filepath.Join(n.cfg.Dir, "namespaces") }
func (n *Network) namespace(key string) string { return filepath.Join(n.namespaces(), key) }
func (n *Network) filesOf(key string) string   { return filepath.Join(n.cfg.Dir, "files", key) }
func attachment(key string) bridge.Key         { return bridge.Key{ID: key, IfName: ifName} }
func safeID(id string) bool                    { return id != "" && !strings.ContainsAny(id, separator+"/\x00") }
func fault(c task.Class, err error) error      { return task.Fail(c, task.ContainerNetworking, err) }

// keyOf is the name on the host of one network of a task. Container names are long and
// file names are not, hence the hash.
func keyOf(t *task.Task, name string) string {
	if shared(t) {
		return t.ID()
	}
	sum := sha256.Sum256([]byte(name))
	return t.ID() + separator + hex.EncodeToString(sum[:4])
}

// shared reports whether the containers of a task share one network.
func shared(t *task.Task) bool {
	return t.NetworkMode != task.NetworkBridge && t.NetworkMode != task.NetworkNone
}

// TaskID is the id of the task that a key on the host belongs to.
func TaskID(key string) string {
	id, _, _ := strings.Cut(key, separator)
	return id
}

func faultf(c task.Class, f string, a ...any) error {
	return task.Failf(c, task.ContainerNetworking, f, a...)
}

// classify gives errors of the outside world their class.
func classify(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*task.Error](err); ok {
		return err
	}
	class := task.Unavailable
	switch elastic.KindOf(err) {
	case elastic.Invalid:
		return fault(task.Invalid, err)
	case elastic.Exists:
		return fault(task.Exists, err)
	}
	switch bridge.KindOf(err) {
	case bridge.Invalid, bridge.PortTaken:
		class = task.Invalid
	case bridge.Exists:
		class = task.Exists
	case bridge.Exhausted:
		class = task.Exhausted
	case bridge.Damaged:
		class = task.NotFound
	default:
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			class = task.Canceled
		} else if errors.Is(err, fs.ErrPermission) {
			class = task.Permission
		}
	}
	return fault(class, err)
}

// Ensure makes the network of the container name, or of the task where all share one, or
// finds it. The networks of the containers that it links to must be there.
func (n *Network) Ensure(ctx context.Context, t *task.Task, name string, _ engine.Deps) (task.Result, error) {
	id := t.ID()
	if !safeID(id) {
		return task.Result{}, faultf(task.Invalid, "task ARN %q has no usable id", t.ARN)
	}
	c := t.Container(name)
	if c == nil && !shared(t) {
		return task.Result{}, faultf(task.Invalid, "network %q: the task has no container of this name", name)
	}
	var res task.Result
	h := Handle{Hostname: id[:min(len(id), 12)]}
	if !shared(t) && c.Config.Hostname != "" {
		h.Hostname = c.Config.Hostname
	}
	var err error
	switch t.NetworkMode {
	case task.NetworkHost:
		if h.Hostname, err = os.Hostname(); err != nil {
			return res, classify(err)
		}
		res.Bindings, err = informative(t)
	case task.NetworkNone:
		h.Path = n.namespace(keyOf(t, name))
		err = n.ensureNamespace(h.Path)
	case task.NetworkBridge:
		if c.Config.NetworkDisabled {
			h.Path = n.namespace(keyOf(t, name))
			err = n.ensureNamespace(h.Path)
			break
		}
		var a *bridge.Attachment
		if a, err = n.ensureBridged(ctx, t, c); err == nil {
			h.setBridged(a)
			res.Bindings = bindings(a)
		}
	case task.NetworkAWSVPC:
		if err = n.ensureElastic(ctx, t); err == nil {
			h.setElastic(n.namespace(id), &t.Interfaces[0])
		}
	default:
		return res, faultf(task.Invalid, "network mode %q is not supported; use bridge, host, awsvpc or none", t.NetworkMode)
	}
	if err != nil {
		return task.Result{}, classify(err)
	}
	if err := n.joinNetworks(ctx, t, name, &h, &res); err != nil {
		return task.Result{}, errors.Join(err, n.remove(context.WithoutCancel(ctx), keyOf(t, name), toBeMadeAnew))
	}
	write := n.writeContainerFiles
	switch t.NetworkMode {
	case task.NetworkHost:
		write = n.writeTaskFiles
	case task.NetworkAWSVPC:
		write = n.writeElasticFiles
	}
	if err := write(t, name, &h); err != nil {
		return task.Result{}, classify(err)
	}
	if res.Handle, err = json.Marshal(h); err != nil {
		return task.Result{}, classify(err)
	}
	return res, nil
}

// setBridged enters the namespace and addresses of a container on the bridge.
func (h *Handle) setBridged(a *bridge.Attachment) {
	h.Path, h.IP, h.Gateway, h.MAC = a.Namespace, a.Address.String(), a.Gateway.String(), a.MAC
	if a.Address6.IsValid() {
		h.IPv6, h.GatewayIPv6 = a.Address6.String(), a.Gateway6.String()
	}
}

func (n *Network) ensureNamespace(path string) error {
	live, err := eni.Live(path)
	if live || err != nil {
		return err
	}
	if err := eni.RemoveNamespace(path); err != nil { // the file of a crash or a reboot
		return err
	}
	return errors.Join(eni.CreateNamespace(path, sysctls), fail.Point(fail.NetnsAfterCreate))
}

// Probe says whether the network is there. One whose namespace and interface live, but
// which lost rules or the bridge, is repaired and counts as there.
func (n *Network) Probe(ctx context.Context, t *task.Task, name string, _ task.Handle) (task.Observed, error) {
	if !safeID(t.ID()) {
		return task.Observed{}, nil
	}
	o, err := n.probeOwn(ctx, t, name)
	if err != nil || !o.Exists {
		return o, err
	}
	o.Exists, err = n.hasJoined(t, name)
	return o, classify(err)
}

// probeOwn is Probe without networks of the operator's.
func (n *Network) probeOwn(ctx context.Context, t *task.Task, name string) (task.Observed, error) {
	key := keyOf(t, name)
	switch t.NetworkMode {
	case task.NetworkHost:
		_, err := os.Stat(n.filesOf(key))
		if errors.Is(err, fs.ErrNotExist) {
			return task.Observed{}, nil
		}
		return task.Observed{Exists: err == nil}, classify(err)
	case task.NetworkBridge:
	case task.NetworkAWSVPC:
		return n.probeElastic(ctx, t)
	default:
		live, err := eni.Live(n.namespace(key))
		return task.Observed{Exists: live}, classify(err)
	}
	_, err := n.host.Check(ctx, attachment(key), n.namespace(key))
	if bridge.KindOf(err) == bridge.Damaged {
		live, liveErr := eni.Live(n.namespace(key))
		a := n.host.Lookup(attachment(key))
		if liveErr != nil || !live || a == nil || !n.host.HasLink(a.HostVeth) {
			return task.Observed{}, classify(liveErr)
		}
		n.log.Warn("repairing the network of a container, which somebody has damaged", "task", t.ID(), "container", name, "err", err)
		if repairErr := n.host.Repair(ctx, attachment(key)); repairErr != nil {
			return task.Observed{}, fault(task.Unavailable, errors.Join(err, repairErr))
		}
		if _, err = n.host.Check(ctx, attachment(key), n.namespace(key)); bridge.KindOf(err) == bridge.Damaged {
			return task.Observed{}, nil
		}
	}
	return task.Observed{Exists: err == nil}, classify(err)
}
