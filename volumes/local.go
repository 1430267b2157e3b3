package volumes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Local is Docker's driver "local": a directory of Berth's own, or, by its options type,
// device and o, a directory of the host, memory, or an NFS server's directory. Besides
// Docker's options it takes uid, gid and mode in o for directories that it makes.
type Local struct {
	c      LocalConfig
	host   *Host
	shares *shares
}

// LocalConfig is what a Local is made of.
type LocalConfig struct {
	Dirs    Dirs
	Allowed Allowed
	// Strict has labels and options compared when a shared volume exists already
	// (ECS_SHARED_VOLUME_MATCH_FULL_CONFIG).
	Strict bool
	// Remote mounts network file systems; nil means that there are none.
	Remote *Remote
}

var _ Driver = (*Local)(nil)

// NewLocal makes the driver. It changes nothing on the host.
func NewLocal(c LocalConfig) *Local {
	return &Local{c: c, host: &Host{Dirs: c.Dirs, Allowed: c.Allowed}, shares: newShares(c.Dirs.Run)}
}

// Name is "local".
func (l *Local) Name() string { return "local" }

// localKind is what the options make of a volume.
type localKind int

const (
	localPlain localKind = iota
	localBind
	localTmpfs
	localNFS
)

// localOptions are the options of one volume, understood.
type localOptions struct {
	kind   localKind
	device string
	rest   []string // for the file system
	access access
	dir    directory
}

// Mount makes the volume.
func (l *Local) Mount(ctx context.Context, v *Volume) (Mounted, error) {
	if err := v.check(); err != nil {
		return Mounted{}, err
	}
	if v.Scope == ScopeShared {
		if err := l.named(v); err != nil {
			return Mounted{}, err
		}
	} else if v.Autoprovision {
		return Mounted{}, failf(ErrInvalid, "volume [%s] : task scoped volume could not be autoprovisioned", v.Name)
	}
	o, err := parseLocal(v.Options)
	if err != nil {
		return Mounted{}, err
	}
	m, err := l.mount(ctx, v, o)
	m.ReadOnly, m.NoExec = o.access.readOnly, o.access.noExec
	return m, err
}

func (l *Local) mount(ctx context.Context, v *Volume, o *localOptions) (Mounted, error) {
	switch o.kind {
	case localBind:
		return l.host.mount(v, o.device, &o.dir, o.access)
	case localTmpfs:
		return l.shared(ctx, v, o, func(point string) error { return mountFS("tmpfs", "", point, o.rest, o.access) })
	case localNFS:
		if l.c.Remote == nil {
			return Mounted{}, failf(ErrInvalid, "volume %s: this host mounts no network file systems", v.Name)
		}
		return l.shared(ctx, v, o, func(point string) error {
			return l.c.Remote.mount(ctx, remoteMount{Source: o.device, Target: point, Options: o.rest, ReadOnly: o.access.readOnly})
		})
	default:
		dir := l.directory(v)
		return Mounted{Path: dir, Populate: beside(dir, ".filling-")}, makeData(dir, &o.dir)
	}
}

// makeData makes the directory of a volume with its owner and mode, or finds it.
func makeData(dir string, d *directory) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	// It has its name only when it is complete: a crash leaves none that is half made.
	fresh := beside(dir, ".new-")
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return err
	}
	if err := os.Chown(fresh, max(d.uid, 0), max(d.gid, 0)); err != nil {
		return err
	}
	if err := os.Chmod(fresh, d.mode); err != nil {
		return err
	}
	return os.Rename(fresh, dir)
}

// beside is a name for something of a directory that lies beside it. No volume has it.
func beside(dir, prefix string) string {
	return filepath.Join(filepath.Dir(dir), prefix+key(filepath.Base(dir)))
}

// directory is the data directory of a plain volume.
func (l *Local) directory(v *Volume) string {
	if v.Scope == ScopeShared {
		return filepath.Join(l.c.Dirs.named(v.Name), "data")
	}
	return l.c.Dirs.data(v)
}

func (d Dirs) named(name string) string { return filepath.Join(d.State, "named", name) }

// shared mounts a file system and binds it for the task. One of scope task has a single
// user.
func (l *Local) shared(ctx context.Context, v *Volume, o *localOptions, mount func(point string) error) (Mounted, error) {
	return bindShared(ctx, l.shares, l.c.Dirs, l.key(v), v, mount, l.remoteBind(o))
}

// remoteBind is how a bind of the mount is made: by a process of its own where a server
// might not answer.
func (l *Local) remoteBind(o *localOptions) func(source, target string) error {
	if o.kind == localNFS {
		return l.c.Remote.bind
	}
	return bindPath
}

// bindPath binds one of Berth's own directories.
func bindPath(source, target string) error {
	f, err := os.OpenFile(source, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(bind(f, target, access{}), f.Close())
}

// bindShared makes a shared mount, if it is not there, and binds it for one task.
func bindShared(ctx context.Context, s *shares, d Dirs, key string, v *Volume, mount func(point string) error, bind func(source, target string) error) (Mounted, error) {
	point, err := s.acquire(ctx, key, v, mount)
	if err != nil {
		return Mounted{}, err
	}
	m := Mounted{Path: d.point(v)}
	there, err := mounted(m.Path)
	if err != nil || there {
		return m, err
	}
	return m, bind(point, m.Path)
}

// key is the same for the tasks that share a mount.
func (l *Local) key(v *Volume) string {
	if v.Scope == ScopeShared {
		return key("local", v.Name)
	}
	return key("local", v.Task, v.Name)
}

// record is what is kept of a named volume.
type record struct {
	Driver  string            `json:"driver"`
	Options map[string]string `json:"options,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// named finds a volume of scope shared, or makes its record.
func (l *Local) named(v *Volume) error {
	return named(l.c.Dirs, "local", v, l.c.Strict)
}

func named(d Dirs, driver string, v *Volume, strict bool) error {
	file := filepath.Join(d.named(v.Name), "volume.json")
	want := record{Driver: driver, Options: v.Options, Labels: v.Labels}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if !v.Autoprovision {
			// The words are the protocol's ("Volumes and EBS").
			return failf(ErrMissing, "initialize volume: volume detection failed, volume '%s' does not exist and autoprovision is set to false", v.Name)
		}
		return writeRecord(file, want)
	}
	if err != nil {
		return err
	}
	var have record
	if err := json.Unmarshal(data, &have); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if have.Driver != driver {
		return failf(ErrInvalid, "volume %s exists and has the driver %s, not %s", v.Name, have.Driver, driver)
	}
	if strict && (!maps.Equal(have.Options, want.Options) || !maps.Equal(have.Labels, want.Labels)) {
		return failf(ErrInvalid, "intialize volume: non-autoprovisioned volume does not match existing volume: volume '%s' exists with other options or labels", v.Name)
	}
	// What it was made with counts, as with Docker.
	v.Options, v.Labels = have.Options, have.Labels
	return nil
}

// writeRecord makes the record of a named volume; one that two tasks make at the same
// time is that of the last.
func writeRecord(file string, r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".volume-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), file)
}

// Unmount takes away what the task has of the volume, and of a volume of scope task the
// data as well.
func (l *Local) Unmount(ctx context.Context, v *Volume) error {
	if err := v.check(); err != nil {
		return err
	}
	o, err := parseLocal(v.Options)
	if err != nil {
		o = &localOptions{} // it was never mounted
	}
	if v.Scope == ScopeShared {
		// Those that count are those it was made with.
		if err := named(l.c.Dirs, "local", v, false); err == nil {
			if made, err := parseLocal(v.Options); err == nil {
				o = made
			}
		}
	}
	switch o.kind {
	case localBind:
		return l.host.Unmount(ctx, v)
	case localTmpfs, localNFS:
		return leaveShared(ctx, l.shares, l.c.Dirs, l.key(v), v, l.remoteUnmount(ctx, o))
	}
	if v.Scope == ScopeShared {
		return nil
	}
	return l.c.Dirs.forget(v)
}

// forget removes the data of a volume of a task.
func (d Dirs) forget(v *Volume) error {
	dir := d.data(v)
	if err := errors.Join(os.RemoveAll(beside(dir, ".new-")), os.RemoveAll(beside(dir, ".filling-")), os.RemoveAll(dir)); err != nil {
		return err
	}
	return removeEmpty(filepath.Dir(dir))
}

func (l *Local) remoteUnmount(ctx context.Context, o *localOptions) func(point string) error {
	if o.kind == localNFS && l.c.Remote != nil {
		return func(point string) error { return l.c.Remote.unmount(ctx, point) }
	}
	return unmount
}

// leaveShared takes away a task's bind of a shared mount, and the mount with its last
// user.
func leaveShared(ctx context.Context, s *shares, d Dirs, key string, v *Volume, unmount func(point string) error) error {
	if err := unmount(d.point(v)); err != nil {
		return err
	}
	if err := removeEmpty(filepath.Dir(d.point(v))); err != nil {
		return err
	}
	return s.release(ctx, key, v, unmount)
}

// Check looks for the mount or the directory.
func (l *Local) Check(_ context.Context, v *Volume) (bool, error) {
	if there, err := mounted(l.c.Dirs.point(v)); err != nil || there {
		return there, err
	}
	o, err := parseLocal(v.Options)
	if err != nil || o.kind != localPlain {
		return false, nil //nolint:nilerr // what cannot be mounted is not there
	}
	_, err = os.Stat(l.directory(v))
	return err == nil, ignoreMissing(err)
}

// parseLocal understands the options of the driver (Docker documentation, "local" volume
// driver: type, o and device are those of mount(8)).
func parseLocal(options map[string]string) (*localOptions, error) {
	o := &localOptions{dir: *plain()}
	kind := ""
	for _, name := range slices.Sorted(maps.Keys(options)) {
		value := options[name]
		switch name {
		case "type":
			kind = value
		case "device":
			o.device = value
		case "o":
			if err := o.parse(value); err != nil {
				return nil, err
			}
		case "size":
			return nil, failf(ErrInvalid, "driver option size: limit the task with ephemeralStorage, or use type=tmpfs with o=size=…")
		default:
			return nil, failf(ErrInvalid, "driver option %.64q: the driver local knows type, device and o", name)
		}
	}
	bound := slices.Contains(o.rest, "bind") || slices.Contains(o.rest, "rbind")
	switch {
	case kind == "tmpfs":
		o.kind = localTmpfs
		return o, o.memory()
	case kind == "nfs", kind == "nfs4":
		o.kind = localNFS
		return o, o.nfs()
	case kind != "" && kind != "none":
		return nil, failf(ErrInvalid, "driver option type: %.32q is not supported; none with o=bind, tmpfs, nfs and nfs4 are", kind)
	case bound && o.device == "":
		return nil, failf(ErrInvalid, "driver option o=bind: the option device, which is the path, is missing")
	case bound:
		o.kind = localBind
		o.rest = slices.DeleteFunc(o.rest, func(s string) bool { return s == "bind" || s == "rbind" })
	case o.device != "":
		return nil, failf(ErrInvalid, "driver option device: type, or o=bind, is missing")
	}
	if len(o.rest) > 0 {
		return nil, failf(ErrInvalid, "driver option o: %.64q has no meaning here", o.rest[0])
	}
	return o, nil
}

// parse sorts the words of the option o.
func (o *localOptions) parse(words string) error {
	for word := range strings.SplitSeq(words, ",") {
		word = strings.TrimSpace(word)
		name, value, _ := strings.Cut(word, "=")
		var err error
		switch name {
		case "", "rw", "nosuid", "nodev", "exec", "defaults":
		case "ro":
			o.access.readOnly = true
		case "noexec":
			o.access.noExec = true
		case "suid", "dev":
			return failf(ErrInvalid, "driver option o: %s is not allowed; volumes are nosuid and nodev", name)
		case "uid":
			o.dir.uid, err = number(value, 10)
		case "gid":
			o.dir.gid, err = number(value, 10)
		case "mode":
			var m int
			m, err = number(value, 8)
			if m > 0o1777 {
				err = strconv.ErrRange // no set-user-ID bits
			}
			o.dir.mode = os.FileMode(m & 0o777)
			if m&0o1000 != 0 {
				o.dir.mode |= os.ModeSticky
			}
		default:
			o.rest = append(o.rest, word)
		}
		if err != nil {
			return failf(ErrInvalid, "driver option o: %.64q: %w", word, err)
		}
	}
	return nil
}

func number(s string, base int) (int, error) {
	n, err := strconv.ParseUint(s, base, 31)
	return int(n), err
}

// memory makes the options of a tmpfs (tmpfs(5)), the owner and mode among them.
func (o *localOptions) memory() error {
	for _, word := range o.rest {
		switch name, _, _ := strings.Cut(word, "="); name {
		case "size", "nr_blocks", "nr_inodes", "huge", "noatime", "relatime", "nodiratime":
		default:
			return failf(ErrInvalid, "driver option o: %.64q is no option of tmpfs", word)
		}
	}
	o.rest = slices.DeleteFunc(o.rest, func(s string) bool { return s == "noatime" || s == "relatime" || s == "nodiratime" })
	mode := uint32(o.dir.mode.Perm())
	if o.dir.mode&os.ModeSticky != 0 {
		mode |= 0o1000
	}
	if o.dir.mode == plain().mode {
		mode = 0o1777 // as a tmpfs has where nothing else is asked for
	}
	o.rest = append(o.rest, fmt.Sprintf("mode=%o", mode))
	if o.dir.uid >= 0 {
		o.rest = append(o.rest, fmt.Sprintf("uid=%d", o.dir.uid))
	}
	if o.dir.gid >= 0 {
		o.rest = append(o.rest, fmt.Sprintf("gid=%d", o.dir.gid))
	}
	return nil
}

// nfs checks the options of an NFS mount and completes its source: Docker's users write
// the server into o=addr=… and only :/path into device.
func (o *localOptions) nfs() error {
	server := ""
	o.rest = slices.DeleteFunc(o.rest, func(s string) bool {
		name, value, _ := strings.Cut(s, "=")
		if name == "addr" {
			server = value
		}
		return name == "addr"
	})
	host, dir, ok := cutServer(o.device)
	if !ok {
		return failf(ErrInvalid, "driver option device: %.64q: for NFS it is SERVER:/PATH, or :/PATH with o=addr=SERVER", o.device)
	}
	if host == "" {
		host = server
	}
	if host == "" {
		return failf(ErrInvalid, "driver option o: addr, the NFS server, is missing")
	}
	o.device = host + ":" + dir
	return nil
}

// cutServer splits SERVER:/PATH; an IPv6 address is in brackets.
func cutServer(device string) (server, dir string, ok bool) {
	i := strings.Index(device, ":/")
	if i < 0 || strings.ContainsAny(device, "\x00\n,") {
		return "", "", false
	}
	return device[:i], device[i+1:], true
}
