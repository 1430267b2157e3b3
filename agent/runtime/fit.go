package runtime

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"berth.dev/berth/agent/spec"
	"berth.dev/berth/agent/task"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
)

// fit adds to a container's input what has to be looked up on this host: devices, and
// what security options name.
func (c *Client) fit(p *planned) error {
	hc := &p.in.Container.HostConfig
	var err error
	if hc.Privileged {
		if p.in.Host.Devices, err = hostDevices(); err != nil {
			return task.Failf(task.Unclassified, task.CannotCreateContainer, "listing the host's devices: %w", err)
		}
	}
	for i := range hc.Devices {
		d, err := resolveDevice(&hc.Devices[i])
		if err != nil {
			return err
		}
		p.in.Devices = append(p.in.Devices, d)
	}
	o, err := spec.ParseSecurity(hc.SecurityOpt)
	if err != nil {
		return err
	}
	if o.Seccomp != "" && o.Seccomp != spec.Unconfined {
		caps, err := spec.Capabilities(p.in)
		if err != nil {
			return err
		}
		if p.in.Seccomp, err = c.seccompProfile(o.Seccomp, caps); err != nil {
			return err
		}
	}
	if err := c.appArmorLoaded(o.AppArmor); err != nil {
		return err
	}
	p.in.SELinux, err = c.seLinuxLabels(p.t, hc.Privileged, o.Labels)
	return err
}

func refuse(format string, args ...any) error {
	return task.Failf(task.Invalid, task.CannotCreateContainer, format, args...)
}

// resolveDevice finds what one entry of devices names: a device node, also by a link to
// it, or all nodes below a directory.
func resolveDevice(d *task.Device) (spec.Device, error) {
	out := spec.Device{Access: cmp.Or(d.CgroupPermissions, "rwm")}
	if !filepath.IsAbs(d.PathOnHost) {
		return out, refuse("devices: hostPath %q is not an absolute path", d.PathOnHost)
	}
	at := cmp.Or(d.PathInContainer, d.PathOnHost)
	if !path.IsAbs(at) {
		return out, refuse("devices: containerPath %q is not an absolute path", at)
	}
	real, err := filepath.EvalSymlinks(d.PathOnHost)
	if errors.Is(err, fs.ErrNotExist) {
		return out, refuse("devices: this host has no %s: correct hostPath, or place the task on an instance that has the device", d.PathOnHost)
	}
	if err != nil {
		return out, refuse("devices: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(real, &st); err != nil {
		return out, refuse("devices: %s: %w", d.PathOnHost, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		n, ok := deviceNode(at, &st)
		if !ok {
			return out, refuse("devices: %s is not a device: mount it as a volume instead", d.PathOnHost)
		}
		out.Nodes = []specs.LinuxDevice{n}
		return out, nil
	}
	err = filepath.WalkDir(real, func(file string, e fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err != nil || e.Type()&fs.ModeDevice == 0 || unix.Lstat(file, &st) != nil {
			return nil //nolint:nilerr // gone meanwhile, or no device
		}
		if n, ok := deviceNode(path.Join(at, strings.TrimPrefix(file, real)), &st); ok {
			out.Nodes = append(out.Nodes, n)
		}
		return nil
	})
	if err == nil && len(out.Nodes) == 0 {
		err = refuse("devices: there is no device below %s", d.PathOnHost)
	}
	return out, err
}

// deviceNode describes a node of the host for a container; false is anything else.
func deviceNode(at string, st *unix.Stat_t) (specs.LinuxDevice, bool) {
	kind := map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b"}[st.Mode&unix.S_IFMT]
	mode, uid, gid := fs.FileMode(st.Mode&0o7777), st.Uid, st.Gid
	return specs.LinuxDevice{
		Path: at, Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &uid, GID: &gid,
	}, kind != ""
}

// maxProfile bounds a seccomp profile in bytes.
const maxProfile = 1 << 20

// seccompProfile reads a profile in the form that Docker uses: the text itself, or the
// name of a file in the directory of profiles. No other file of the host is ever read.
func (c *Client) seccompProfile(name string, caps []string) (*specs.LinuxSeccomp, error) {
	body := name
	if !strings.HasPrefix(strings.TrimSpace(name), "{") {
		if name != filepath.Base(name) || strings.HasPrefix(name, ".") {
			return nil, refuse("dockerSecurityOptions: seccomp profile %.100q: give the name of a profile, not a path; profiles are installed in the directory of BERTH_SECCOMP_DIR", name)
		}
		var err error
		if body, err = c.readProfile(strings.TrimSuffix(name, ".json")); err != nil {
			return nil, err
		}
	}
	p, err := seccomp.LoadProfile(body, &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
	if err == nil && p == nil {
		err = errors.New("it has neither a default action nor system calls")
	}
	if err != nil {
		return nil, refuse("dockerSecurityOptions: seccomp profile %.100q: %w", name, err)
	}
	return p, nil
}

func (c *Client) readProfile(name string) (string, error) {
	f, err := os.Open(filepath.Join(c.cfg.SeccompDir, name+".json"))
	if err != nil {
		return "", refuse("dockerSecurityOptions: this host has no seccomp profile %q: install it as %s.json in the directory of BERTH_SECCOMP_DIR, or remove the option", name, name)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxProfile+1))
	if err == nil && len(b) > maxProfile {
		err = fmt.Errorf("it is larger than %d bytes", maxProfile)
	}
	if err != nil {
		return "", refuse("dockerSecurityOptions: seccomp profile %s: %w", name, err)
	}
	return string(b), nil
}

// appArmorProfiles lists the profiles that the kernel has loaded (apparmor(7)).
const appArmorProfiles = "/sys/kernel/security/apparmor/profiles"

// appArmorLoaded refuses a profile that is not loaded, which a runtime would say in other
// words. Where the list cannot be read, the runtime will tell.
func (c *Client) appArmorLoaded(profile string) error {
	if profile == "" || profile == spec.Unconfined || !c.host.HasAppArmor {
		return nil
	}
	b, err := os.ReadFile(appArmorProfiles)
	if err != nil || strings.Contains("\n"+string(b), "\n"+profile+" (") {
		return nil
	}
	return refuse("dockerSecurityOptions: the AppArmor profile %q is not loaded on this host: load it with apparmor_parser, or remove the option", profile)
}

// seLinuxLabels are the labels of a container where the agent is to set any. The
// category is the task's, so that its containers can share files and no other task can
// read them, and so that a repeated creation has the same.
func (c *Client) seLinuxLabels(t *task.Task, privileged bool, options []string) (spec.SELinux, error) {
	if !c.host.HasSELinux || privileged && len(options) == 0 {
		return spec.SELinux{}, nil
	}
	if !slices.ContainsFunc(options, func(o string) bool { return o == "disable" || strings.HasPrefix(o, "level:") }) {
		options = append([]string{"level:" + taskCategory(t.ID())}, options...)
	}
	process, mount, err := label.InitLabels(options)
	if err != nil {
		return spec.SELinux{}, refuse("dockerSecurityOptions: SELinux labels %q: %w", options, err)
	}
	return spec.SELinux{Process: process, Mount: mount}, nil
}

// taskCategory is a pair of the 1024 categories of multi-category security.
func taskCategory(id string) string {
	h := sha256.Sum256([]byte(id))
	a, b := binary.BigEndian.Uint16(h[:])%1024, binary.BigEndian.Uint16(h[2:])%1023
	if b >= a {
		b++ // two different ones
	}
	return fmt.Sprintf("s0:c%d,c%d", min(a, b), max(a, b))
}

// makeStdin makes the standard input of a container with a terminal that stays open: a
// FIFO that nobody ever writes to, for which the shim waits as long as the container
// lives.
func (c *Client) makeStdin(p *planned) error {
	if k := p.in.Container.Config; !k.Tty || !k.OpenStdin {
		return nil
	}
	file := c.stdinPath(p.h.ID)
	if err := unix.Mkfifo(file, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("mkfifo %s: %w", file, err)
	}
	return nil
}

func (c *Client) stdinPath(id string) string { return filepath.Join(c.cfg.StateDir, "stdin-"+id) }

func isFIFO(file string) bool {
	st, err := os.Lstat(file)
	return err == nil && st.Mode().Type() == fs.ModeNamedPipe
}
