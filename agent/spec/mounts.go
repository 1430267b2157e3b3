package spec

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// errEmpty is the cause where a required part of a setting is missing.
var errEmpty = errors.New("is empty")

func mounts(in Input) ([]specs.Mount, error) {
	hc := &in.Container.HostConfig
	sysMode := "ro"
	if hc.Privileged {
		sysMode = "rw"
	}
	ms := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", sysMode}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", sysMode}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	}
	shm, err := sharedMemory(in)
	if err != nil {
		return nil, err
	}
	ms = append(ms, shm...)
	for _, f := range [][2]string{
		{in.Network.Hosts, "/etc/hosts"}, {in.Network.Resolv, "/etc/resolv.conf"}, {in.Network.HostnameFile, "/etc/hostname"},
	} {
		if f[0] != "" {
			opts := []string{"rbind", "rprivate"}
			if hc.ReadonlyRootfs || in.Network.ReadOnly {
				opts = append(opts, "ro")
			}
			ms = append(ms, specs.Mount{Destination: f[1], Type: "bind", Source: f[0], Options: opts})
		}
	}
	for _, dst := range slices.Sorted(mapKeys(hc.Tmpfs)) {
		at, err := mountPath("tmpfs", dst)
		if err != nil {
			return nil, err
		}
		opts, err := tmpfsOptions(dst, hc.Tmpfs[dst])
		if err != nil {
			return nil, err
		}
		ms = append(ms, specs.Mount{Destination: at, Type: "tmpfs", Source: "tmpfs", Options: opts})
	}
	vs, err := volumes(in)
	if err != nil {
		return nil, err
	}
	ms = append(ms, vs...)
	for _, m := range in.Endpoint.Mounts {
		may := "ro"
		if m.Writable {
			may = "rw"
		}
		ms = append(ms, specs.Mount{Destination: m.Destination, Type: "bind", Source: m.Source, Options: []string{"rbind", "rprivate", "nosuid", "nodev", "noexec", may}})
	}
	for _, m := range in.Given.Mounts {
		at, err := mountPath("secret files", m.Path)
		if err != nil {
			return nil, err
		}
		ms = append(ms, specs.Mount{Destination: at, Type: "bind", Source: m.Source, Options: []string{"rbind", "rprivate", "nosuid", "nodev", "noexec", "ro"}})
	}
	for _, p := range []struct {
		wanted   bool
		at, from string
	}{{wantsInit(in), initPath, in.Host.Init}, {holdsInput(in), holdPath, in.Host.Hold}} {
		if p.wanted {
			ms = append(ms, specs.Mount{Destination: p.at, Type: "bind", Source: p.from, Options: []string{"rbind", "ro", "rprivate"}})
		}
	}
	return ms, nil
}

// maxShm bounds sizes of memory file systems in bytes, so that no kernel misreads one.
const maxShm = 1 << 50

// sharedMemory is what is mounted at /dev/shm.
func sharedMemory(in Input) ([]specs.Mount, error) {
	size := in.Container.HostConfig.ShmSize
	if size < 0 || size > maxShm {
		return nil, invalid("sharedMemorySize: %d bytes", size)
	}
	if size == 0 {
		size = defaultShm
	}
	bind := func(from string) []specs.Mount {
		return []specs.Mount{{Destination: "/dev/shm", Type: "bind", Source: from, Options: []string{"rbind", "nosuid", "noexec", "nodev"}}}
	}
	switch mode := ipcMode(in); {
	case mode == modeHost:
		return bind("/dev/shm"), nil
	case mode == modeNone:
		return nil, nil
	case mode == modeTask && in.Shared.Shm != "":
		return bind(in.Shared.Shm), nil
	}
	return []specs.Mount{{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
		Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", size)}}}, nil
}

// Options of a tmpfs (ECS API model, Tmpfs): those without a value, of which some would
// make another mount of it than was asked for and are refused, and those with one.
var (
	tmpfsFlags = []string{
		"defaults", "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "dirsync",
		"mand", "nomand", "atime", "noatime", "diratime", "nodiratime", "unbindable", "runbindable",
		"private", "rprivate", "shared", "rshared", "slave", "rslave", "relatime", "norelatime", "strictatime", "nostrictatime",
	}
	tmpfsRefused = []string{"remount", "bind", "rbind"}
	tmpfsValues  = []string{"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"}
)

// tmpfsOptions are the options of a tmpfs, after the defaults that they may take back.
func tmpfsOptions(dst, text string) ([]string, error) {
	opts := []string{"noexec", "nosuid", "nodev"}
	for o := range strings.SplitSeq(text, ",") {
		if o = strings.TrimSpace(o); o == "" || o == "defaults" {
			continue
		}
		key, value, valued := strings.Cut(o, "=")
		switch {
		case slices.Contains(tmpfsRefused, o):
			return nil, invalid("tmpfs: option %q of %s is not supported: remove it", o, dst)
		case !valued && slices.Contains(tmpfsFlags, o), valued && value != "" && slices.Contains(tmpfsValues, key):
			opts = append(opts, o)
		default:
			return nil, invalid("tmpfs: %q is not an option of %s", o, dst)
		}
	}
	return opts, nil
}

func volumes(in Input) ([]specs.Mount, error) {
	var ms []specs.Mount
	for _, m := range in.Task.MountsOf(in.Container.Name) {
		at, err := mountPath("mountPoints", m.Path)
		if err != nil {
			return nil, err
		}
		v, ok := in.Volumes[m.Volume]
		if !ok {
			return nil, invalid("mountPoints: volume %q of %s is not available on this host", m.Volume, m.Path)
		}
		opts := []string{"rbind", "rprivate", "nosuid", "nodev"}
		if v.NoExec {
			opts = append(opts, "noexec")
		}
		if m.ReadOnly || v.ReadOnly {
			opts = append(opts, "ro", "rro") // what is mounted below it, too
		}
		ms = append(ms, specs.Mount{Destination: at, Type: "bind", Source: v.Path, Options: opts})
	}
	return ms, nil
}

// mountPath checks where in the container something is to be mounted.
func mountPath(field, p string) (string, error) {
	clean := path.Clean(p)
	switch {
	case p == "":
		return "", invalid("%s: the path %w", field, errEmpty)
	case !path.IsAbs(p), strings.ContainsRune(p, 0):
		return "", invalid("%s: %q is not an absolute path", field, p)
	case clean == "/", clean == "/proc", strings.HasPrefix(clean, "/proc/"),
		clean == "/sys", strings.HasPrefix(clean, "/sys/"), clean == "/dev":
		return "", invalid("%s: nothing can be mounted at %s", field, clean)
	}
	return clean, nil
}
