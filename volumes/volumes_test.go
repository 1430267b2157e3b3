package volumes_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"berth.dev/berth/volumes"
	"berth.dev/berth/volumes/volumestest"
)

// dirs are directories of one test, with nothing mounted below them when it ends.
func dirs(t *testing.T) volumes.Dirs {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("mounts need root")
		}
		t.Skip("mounts need root")
	}
	dir := t.TempDir()
	d := volumes.Dirs{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")}
	t.Cleanup(func() {
		if err := d.Teardown(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestHost(t *testing.T) {
	d := dirs(t)
	source := filepath.Join(t.TempDir(), "made", "by", "berth")
	volumestest.Run(t, volumestest.Subject{
		Dirs: d, Shared: true, Kept: true,
		New: func() volumes.Driver { return &volumes.Host{Dirs: d} },
		Volume: func(task, name string) *volumes.Volume {
			return &volumes.Volume{Task: task, Name: name, Source: source}
		},
	})
	if st, err := os.Stat(source); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("the source that was missing: %v, %v", st, err)
	}
}

func local(t *testing.T, scope volumes.Scope, kept bool, options map[string]string) {
	d := dirs(t)
	volumestest.Run(t, volumestest.Subject{
		Dirs: d, Shared: scope == volumes.ScopeShared, Kept: kept,
		New: func() volumes.Driver { return volumes.NewLocal(volumes.LocalConfig{Dirs: d}) },
		Volume: func(task, name string) *volumes.Volume {
			return &volumes.Volume{Task: task, Name: name, Scope: scope, Autoprovision: scope == volumes.ScopeShared, Options: options}
		},
	})
}

func TestLocalTask(t *testing.T)   { local(t, volumes.ScopeTask, false, nil) }
func TestLocalShared(t *testing.T) { local(t, volumes.ScopeShared, true, nil) }
func TestTmpfsTask(t *testing.T) {
	local(t, volumes.ScopeTask, false, map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=1000"})
}
func TestTmpfsShared(t *testing.T) {
	local(t, volumes.ScopeShared, false, map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"})
}

// driver is a program that keeps its volumes in a directory beside itself.
const driver = `#!/bin/sh
set -eu
order=$(cat)
target=$(printf %s "$order" | sed 's/.*"target":"\([^"]*\)".*/\1/')
data=$(dirname "$0")/data/$(printf %s "$order" | sed 's/.*"volume":"\([^"]*\)".*/\1/')-$(printf %s "$order" | sed -n 's/.*"task":"\([^"]*\)".*/\1/p')
case $1 in
mount) mkdir -p "$data"; mount --bind "$data" "$target"; mount -o remount,bind,nosuid,nodev "$target"; mount --make-private "$target" ;;
unmount) ! mountpoint -q "$target" || umount "$target" ;;
remove) rm -rf "$data" ;;
*) echo "verb $1" >&2; exit 2 ;;
esac
`

func external(t *testing.T, text string) (volumes.ExternalConfig, volumes.Dirs) {
	d := dirs(t)
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "my-driver"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return volumes.ExternalConfig{Dirs: d, Folder: folder}, d
}

func TestExternal(t *testing.T) {
	for _, scope := range []volumes.Scope{volumes.ScopeTask, volumes.ScopeShared} {
		t.Run(string(scope), func(t *testing.T) {
			c, d := external(t, driver)
			volumestest.Run(t, volumestest.Subject{
				Dirs: d, Shared: scope == volumes.ScopeShared, Kept: scope == volumes.ScopeShared,
				New: func() volumes.Driver {
					e, err := volumes.NewExternal(c, "my-driver")
					if err != nil {
						t.Fatal(err)
					}
					return e
				},
				Volume: func(task, name string) *volumes.Volume {
					return &volumes.Volume{Task: task, Name: name, Scope: scope, Autoprovision: scope == volumes.ScopeShared}
				},
			})
		})
	}
}

func TestExternalFailures(t *testing.T) {
	for name, tc := range map[string]struct {
		text, want string
		kind       error
	}{
		"says why":    {"#!/bin/sh\necho the pool is full >&2\nexit 1\n", "volume driver my-driver: mount: exit status 1: the pool is full", nil},
		"later":       {"#!/bin/sh\necho busy >&2\nexit 75\n", "busy", volumes.ErrUnavailable},
		"lies":        {"#!/bin/sh\nexit 0\n", "said that it mounted volume v and did not", nil},
		"never ends":  {"#!/bin/sh\nsleep 1000\n", "did not end in", volumes.ErrUnavailable},
		"no such one": {"", "is not installed", volumes.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := external(t, tc.text)
			c.Limit = 300 * 1e6
			if tc.text == "" {
				c.Folder = t.TempDir()
			}
			e, err := volumes.NewExternal(c, "my-driver")
			if err == nil {
				v := &volumes.Volume{Task: "t", Name: "v"}
				_, err = e.Mount(t.Context(), v)
				if tc.kind == nil && strings.Contains(tc.text, "exit 0") {
					if err := e.Unmount(t.Context(), v); err != nil {
						t.Error(err)
					}
				}
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || tc.kind != nil && !errors.Is(err, tc.kind) {
				t.Errorf("error %v, want %q of kind %v", err, tc.want, tc.kind)
			}
		})
	}
}

func TestExternalIsOfRoot(t *testing.T) {
	c, _ := external(t, driver)
	if err := os.Chmod(filepath.Join(c.Folder, "my-driver"), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := volumes.NewExternal(c, "my-driver"); !errors.Is(err, volumes.ErrRefused) {
		t.Errorf("a program that everybody can write: %v", err)
	}
	if names, err := volumes.Installed(c.Folder); err != nil || len(names) > 0 {
		t.Errorf("installed: %v, %v", names, err)
	}
}

func TestLocalOptions(t *testing.T) {
	d := dirs(t)
	l := volumes.NewLocal(volumes.LocalConfig{Dirs: d, Allowed: volumes.Allowed{Own: []string{d.State}}})
	source := filepath.Join(t.TempDir(), "src")
	for name, tc := range map[string]struct {
		options map[string]string
		want    string
	}{
		"unknown":     {map[string]string{"colour": "red"}, `driver option "colour"`},
		"type":        {map[string]string{"type": "ext4", "device": "/dev/sda1"}, `"ext4" is not supported`},
		"suid":        {map[string]string{"type": "none", "device": source, "o": "bind,suid"}, "suid is not allowed"},
		"no path":     {map[string]string{"o": "bind"}, "device, which is the path, is missing"},
		"no bind":     {map[string]string{"device": source}, "o=bind, is missing"},
		"own":         {map[string]string{"type": "none", "device": d.State + "/named", "o": "bind"}, "has the agent's own files"},
		"tmpfs":       {map[string]string{"type": "tmpfs", "o": "mpol=bind"}, "no option of tmpfs"},
		"tmpfs size":  {map[string]string{"type": "tmpfs", "o": "size=x"}, "option size=x"},
		"mode":        {map[string]string{"type": "none", "device": source, "o": "bind,mode=4755"}, "out of range"},
		"uid":         {map[string]string{"o": "uid=-1"}, "invalid syntax"},
		"nfs address": {map[string]string{"type": "nfs", "device": ":/x"}, "addr, the NFS server, is missing"},
		"nfs device":  {map[string]string{"type": "nfs", "device": "x"}, "SERVER:/PATH"},
		"size":        {map[string]string{"size": "1g"}, "ephemeralStorage"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := l.Mount(t.Context(), &volumes.Volume{Task: "t", Name: "v", Options: tc.options})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if err := l.Unmount(t.Context(), &volumes.Volume{Task: "t", Name: "v", Options: tc.options}); err != nil {
				t.Error(err)
			}
		})
	}
	v := &volumes.Volume{Task: "t", Name: "v", Options: map[string]string{"type": "none", "device": source + "/a", "o": "bind,uid=7,gid=8,mode=1770,ro"}}
	m, err := l.Mount(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(m.Path)
	if err != nil {
		t.Fatal(err)
	}
	if sys, _ := st.Sys().(*syscall.Stat_t); sys.Uid != 7 || sys.Gid != 8 || sys.Mode&0o7777 != 0o1770 {
		t.Errorf("owner and mode of the directory: %d:%d %o", sys.Uid, sys.Gid, sys.Mode)
	}
	if err := os.WriteFile(filepath.Join(m.Path, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to a read-only mount: %v", err)
	}
	if err := l.Unmount(t.Context(), v); err != nil {
		t.Error(err)
	}
}

func TestSharedThatIsMissing(t *testing.T) {
	d := dirs(t)
	l := volumes.NewLocal(volumes.LocalConfig{Dirs: d, Strict: true})
	v := &volumes.Volume{Task: "t", Name: "v", Scope: volumes.ScopeShared}
	if _, err := l.Mount(t.Context(), v); !errors.Is(err, volumes.ErrMissing) {
		t.Errorf("error %v", err)
	}
	v.Autoprovision, v.Labels = true, map[string]string{"a": "b"}
	if _, err := l.Mount(t.Context(), v); err != nil {
		t.Error(err)
	}
	if _, err := l.Mount(t.Context(), &volumes.Volume{Task: "t", Name: "v", Scope: volumes.ScopeShared, Autoprovision: true}); !errors.Is(err, volumes.ErrInvalid) {
		t.Errorf("with other labels: %v", err)
	}
	if _, err := l.Mount(t.Context(), &volumes.Volume{Task: "t", Name: "w", Autoprovision: true}); !errors.Is(err, volumes.ErrInvalid) {
		t.Errorf("autoprovision of scope task: %v", err)
	}
}

// A driver may leave a program running that holds its output, as FUSE drivers do.
func TestExternalThatLeavesAProgram(t *testing.T) {
	c, _ := external(t, strings.Replace(driver, "case $1 in", "sleep 3 & case $1 in", 1))
	e, err := volumes.NewExternal(c, "my-driver")
	if err != nil {
		t.Fatal(err)
	}
	v := &volumes.Volume{Task: "t", Name: "v"}
	if _, err := e.Mount(t.Context(), v); err != nil {
		t.Error(err)
	}
	if err := e.Unmount(t.Context(), v); err != nil {
		t.Error(err)
	}
}
