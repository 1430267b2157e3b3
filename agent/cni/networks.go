package cni

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"berth.dev/berth/agent/fail"
	"berth.dev/berth/eni"
)

// Limits of time of all plugins of a list together (agent protocol, "CNI chain").
const (
	addLimit = time.Minute
	delLimit = 30 * time.Second
)

// Limits of what is read.
const (
	maxConfig  = 1 << 20 // bytes of a configuration
	maxConfigs = 256     // files in the directory
)

// Errors that callers tell apart.
var (
	// ErrUnknown says that the operator has configured no such network.
	ErrUnknown = errors.New("no such network")
	// ErrTryAgain says that a plugin asked to be called again later.
	ErrTryAgain = errors.New("the plugin asks to be called again")
)

// name is what the CNI specification allows for names of networks; the limit is ours.
var name = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$`)

// ValidName reports whether a network can have this name.
func ValidName(s string) bool { return name.MatchString(s) }

// Config says where networks and plugins are. All members are required.
type Config struct {
	ConfigDir  string   // the operator's configuration lists
	PluginDirs []string // in the order in which they are looked through
	Dir        string   // records and results; absolute
}

// Networks connects namespaces to the operator's networks. Calls for one key must not overlap.
type Networks struct {
	cfg     Config
	records records
}

// Request asks for one attachment.
type Request struct {
	Key
	Network      string // by name
	Namespace    string // path
	Capabilities map[string]any
}

// Attachment is one interface that plugins made.
type Attachment struct {
	Key
	Network      string
	Namespace    string
	MAC          string
	Addresses    []netip.Prefix
	NameServers  []string
	Search       []string
	Capabilities []string // that plugins of the list declare
}

// Open makes Dir and removes what interrupted writes left there.
func Open(cfg Config) (*Networks, error) {
	n := &Networks{cfg: cfg, records: records{filepath.Join(cfg.Dir, "records")}}
	for _, dir := range []string{n.records.dir, n.results()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	return n, n.records.clean()
}

// results is where the library keeps them, below its directory.
func (n *Networks) results() string { return filepath.Join(n.cfg.Dir, "results") }

// library is libcni with a way to execute plugins that keeps lock open in them.
func (n *Networks) library(lock *os.File) *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(n.cfg.PluginDirs, n.cfg.Dir, &program{lock: lock})
}

// Names lists the networks that are configured in a directory. Files that cannot be used
// are in the error.
func Names(dir string) ([]string, error) {
	lists, err := readLists(dir)
	var out []string
	for _, l := range lists {
		if !slices.Contains(out, l.Name) {
			out = append(out, l.Name)
		}
	}
	slices.Sort(out)
	return out, err
}

// readLists reads a directory in the order of file names, which decides between networks
// of one name.
func readLists(dir string) (out []*libcni.NetworkConfigList, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configurations of networks: %w", err)
	}
	var errs []error
	for _, e := range entries {
		kind := filepath.Ext(e.Name())
		if e.IsDir() || kind != ".conflist" && kind != ".conf" && kind != ".json" {
			continue
		}
		if len(out) == maxConfigs {
			return out, errors.Join(append(errs, fmt.Errorf("%s has more than %d networks", dir, maxConfigs))...)
		}
		path := filepath.Join(dir, e.Name())
		list, err := readList(path, kind)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
			continue
		}
		out = append(out, list)
	}
	return out, errors.Join(errs...)
}

func readList(path, kind string) (*libcni.NetworkConfigList, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxConfig {
		return nil, fmt.Errorf("larger than %d bytes", maxConfig)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	var list *libcni.NetworkConfigList
	if kind == ".conflist" {
		list, err = libcni.NetworkConfFromFile(path)
	} else {
		var one *libcni.PluginConfig
		if one, err = libcni.ConfFromFile(path); err == nil {
			list, err = libcni.ConfListFromConf(one)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := usable(list); err != nil {
		return nil, err
	}
	return inlined(list)
}

// inlined is a list with all of its plugins in its text: those of files beside it, too.
func inlined(l *libcni.NetworkConfigList) (*libcni.NetworkConfigList, error) {
	all := struct {
		Name         string            `json:"name"`
		CNIVersion   string            `json:"cniVersion,omitempty"`
		DisableCheck bool              `json:"disableCheck,omitempty"`
		OnlyInlined  bool              `json:"loadOnlyInlinedPlugins"`
		Plugins      []json.RawMessage `json:"plugins"`
	}{Name: l.Name, CNIVersion: l.CNIVersion, DisableCheck: l.DisableCheck, OnlyInlined: true}
	for _, p := range l.Plugins {
		all.Plugins = append(all.Plugins, p.Bytes)
	}
	data, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(data)
}

// usable refuses lists that could not be run.
func usable(l *libcni.NetworkConfigList) error {
	if !ValidName(l.Name) {
		return fmt.Errorf("name %q: must be 1 to 64 letters, digits, dots, dashes and underscores, the first a letter or digit", clip(l.Name))
	}
	if len(l.Plugins) == 0 {
		return errors.New("it has no plugins")
	}
	for _, p := range l.Plugins {
		if p.Network == nil || p.Network.Type == "" {
			return errors.New("a plugin has no type")
		}
	}
	return nil
}

func (n *Networks) find(name string) (*libcni.NetworkConfigList, error) {
	lists, err := readLists(n.cfg.ConfigDir)
	if i := slices.IndexFunc(lists, func(l *libcni.NetworkConfigList) bool { return l.Name == name }); i >= 0 {
		return lists[i], nil
	}
	return nil, errors.Join(fmt.Errorf("%w: %q is not configured in %s (BERTH_CNI_CONFIG_DIR)", ErrUnknown, name, n.cfg.ConfigDir), err)
}

// runtimeOf is what the library asks about the container.
func (r *record) runtime() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: r.ID, NetNS: r.Namespace, IfName: r.IfName, CapabilityArgs: r.Capabilities}
}

// Add connects a namespace to a network. When it fails, the plugins have been told to
// undo what they did; should that fail as well, both errors are returned and Del has to
// be called. An attachment that is there already is an error.
func (n *Networks) Add(ctx context.Context, r Request) (_ *Attachment, err error) {
	ctx, cancel := context.WithTimeout(ctx, addLimit)
	defer cancel()
	list, err := n.find(r.Network)
	if err != nil {
		return nil, err
	}
	lock, err := n.records.lock(ctx, r.Key)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if have, err := n.records.read(r.Key); err != nil || have != nil {
		return nil, errors.Join(err, fmt.Errorf("network %s: %s of %s is attached already", r.Network, r.IfName, r.ID))
	}
	rec := &record{ID: r.ID, IfName: r.IfName, Network: r.Network, Namespace: r.Namespace, List: list.Bytes, Capabilities: r.Capabilities}
	if err := n.records.write(rec); err != nil {
		return nil, err
	}
	if err := fail.Point(fail.CNIBeforeAdd); err != nil {
		return nil, errors.Join(err, n.undo(ctx, rec, lock))
	}
	result, err := n.library(lock).AddNetworkList(ctx, list, rec.runtime())
	if err == nil {
		err = n.syncResult(rec)
	}
	var a *Attachment
	if err == nil {
		a, err = attachment(rec, list, result)
	}
	if err == nil {
		err = fail.Point(fail.CNIAfterAdd)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network %s: %w", r.Network, again(err)), n.undo(ctx, rec, lock))
	}
	return a, nil
}

// again marks the error by which a plugin asks to be called again.
func again(err error) error {
	if codeOf(err) == types.ErrTryAgainLater {
		return fmt.Errorf("%w: %w", ErrTryAgain, err)
	}
	return err
}

// syncResult brings to the disk what the library wrote.
func (n *Networks) syncResult(rec *record) error {
	f, err := os.Open(filepath.Join(n.results(), rec.Network+"-"+rec.ID+"-"+rec.IfName))
	if err == nil {
		err = errors.Join(f.Sync(), f.Close(), syncDir(n.results()))
	}
	if err != nil {
		return fmt.Errorf("result of the plugins: %w", err)
	}
	return nil
}

// Del takes an attachment away, or what is left of one. Without the namespace, which it
// need not find, the plugins remove what is on the host. It succeeds when there is nothing.
func (n *Networks) Del(ctx context.Context, k Key) (err error) {
	if rec, err := n.records.read(k); err != nil || rec == nil {
		return err
	}
	lockCtx, cancel := context.WithTimeout(ctx, delLimit)
	defer cancel()
	lock, err := n.records.lock(lockCtx, k)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	rec, err := n.records.read(k)
	if err != nil || rec == nil {
		return err
	}
	return n.undo(ctx, rec, lock)
}

// undo has the plugins undo an attachment, then forgets it. It has a time of its own, so
// that it can follow an ADD whose time is over.
func (n *Networks) undo(ctx context.Context, rec *record, lock *os.File) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), delLimit)
	defer cancel()
	list, err := libcni.NetworkConfFromBytes(rec.List)
	if err != nil {
		return fmt.Errorf("network %s: its configuration when it was attached: %w", rec.Network, err)
	}
	rt := rec.runtime()
	if live, err := eni.Live(rec.Namespace); err != nil {
		return err
	} else if !live {
		rt.NetNS = "" // CNI specification, DEL: the namespace may be gone
	}
	if err := n.library(lock).DelNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("network %s: undo: %w", rec.Network, err)
	}
	return n.records.remove(rec.key())
}

// Get returns an attachment whose plugins have all done their part; nil when there is none
// or one that a crash interrupted.
func (n *Networks) Get(k Key) (*Attachment, error) {
	rec, err := n.records.read(k)
	if err != nil || rec == nil {
		return nil, err
	}
	list, err := libcni.NetworkConfFromBytes(rec.List)
	if err != nil {
		return nil, fmt.Errorf("network %s: its configuration when it was attached: %w", rec.Network, err)
	}
	result, err := n.library(nil).GetNetworkListCachedResult(list, rec.runtime())
	if err != nil || result == nil {
		return nil, nil //nolint:nilerr // a result that cannot be read was never used
	}
	return attachment(rec, list, result)
}

// Check has the plugins look whether an attachment is as they made it.
func (n *Networks) Check(ctx context.Context, k Key) (err error) {
	ctx, cancel := context.WithTimeout(ctx, delLimit)
	defer cancel()
	lock, err := n.records.lock(ctx, k)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	rec, err := n.records.read(k)
	if err != nil || rec == nil {
		return errors.Join(err, errors.New("it is not attached"))
	}
	list, err := libcni.NetworkConfFromBytes(rec.List)
	if err != nil {
		return fmt.Errorf("network %s: its configuration when it was attached: %w", rec.Network, err)
	}
	err = n.library(lock).CheckNetworkList(ctx, list, rec.runtime())
	if errors.Is(err, libcni.ErrorCheckNotSupp) {
		return nil
	}
	return err
}

// Keys lists all attachments, also ones that a crash interrupted, that accept wants by
// their container id.
func (n *Networks) Keys(accept func(id string) bool) ([]Key, error) {
	all, err := n.records.list()
	var out []Key
	for _, rec := range all {
		if accept(rec.ID) {
			out = append(out, rec.key())
		}
	}
	slices.SortFunc(out, func(a, b Key) int { return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.IfName, b.IfName)) })
	return out, err
}

// Teardown removes Dir, which must have no attachments.
func (n *Networks) Teardown() error { return os.RemoveAll(n.cfg.Dir) }

// attachment is what a result says of the interface inside the namespace.
func attachment(rec *record, list *libcni.NetworkConfigList, result types.Result) (*Attachment, error) {
	r, err := current.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("result of the plugins: %w", err)
	}
	a := &Attachment{Key: rec.key(), Network: rec.Network, Namespace: rec.Namespace, NameServers: r.DNS.Nameservers, Search: r.DNS.Search}
	inside := map[int]bool{}
	for i, l := range r.Interfaces {
		if l.Sandbox != "" {
			inside[i] = true
			if l.Name == rec.IfName {
				a.MAC = l.Mac
			}
		}
	}
	for _, ip := range r.IPs {
		if ip.Interface != nil && len(r.Interfaces) > 0 && !inside[*ip.Interface] {
			continue
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		bits, _ := ip.Address.Mask.Size()
		if !ok {
			return nil, fmt.Errorf("result of the plugins: %s is no address", ip.Address)
		}
		a.Addresses = append(a.Addresses, netip.PrefixFrom(addr.Unmap(), bits))
	}
	for _, p := range list.Plugins {
		for c, on := range p.Network.Capabilities {
			if on && !slices.Contains(a.Capabilities, c) {
				a.Capabilities = append(a.Capabilities, c)
			}
		}
	}
	slices.Sort(a.Capabilities)
	return a, nil
}
