package volumes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// External is a driver that is a program of somebody else's, in a directory of the
// operator's. The contract is in docs/volume-drivers.md: the program is called with one
// verb, reads one JSON document from its standard input, and mounts the volume at the
// path it is told.
type External struct {
	c      ExternalConfig
	name   string
	shares *shares
}

// ExternalConfig is what an External is made of.
type ExternalConfig struct {
	Dirs    Dirs
	Folder  string // of the programs
	Allowed Allowed
	Strict  bool          // as in LocalConfig
	Limit   time.Duration // of one call; 0 means 45 s
}

var _ Driver = (*External)(nil)

// NewExternal makes the driver whose program has the given name.
func NewExternal(c ExternalConfig, name string) (*External, error) {
	if !SafeName(name) {
		return nil, failf(ErrInvalid, "volume driver %.64q: the name must be of letters, digits, dots, hyphens and underscores", name)
	}
	e := &External{c: c, name: name, shares: newShares(c.Dirs.Run)}
	return e, e.trusted()
}

// Installed lists the drivers in a folder.
func Installed(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	var names []string
	for _, entry := range entries {
		e := &External{c: ExternalConfig{Folder: folder}, name: entry.Name()}
		if SafeName(entry.Name()) && e.trusted() == nil {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// trusted refuses a program that somebody else than root could have changed.
func (e *External) trusted() error {
	st, err := os.Stat(e.program())
	if errors.Is(err, fs.ErrNotExist) {
		return failf(ErrInvalid, "volume driver %q is not installed: there is no program %s", e.name, e.program())
	}
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 || st.Mode()&0o022 != 0 || sys.Uid != 0 {
		return failf(ErrRefused, "volume driver %q: %s must be a program that belongs to root and that nobody else can write", e.name, e.program())
	}
	return nil
}

func (e *External) program() string { return filepath.Join(e.c.Folder, e.name) }

// Name is the program's.
func (e *External) Name() string { return e.name }

// order is the document that the program reads.
type order struct {
	Version int               `json:"version"` // 1
	Volume  string            `json:"volume"`
	Scope   Scope             `json:"scope"`
	Task    string            `json:"task,omitempty"`
	Target  string            `json:"target"`
	Options map[string]string `json:"options"`
	Labels  map[string]string `json:"labels"`
}

func (e *External) key(v *Volume) string {
	if v.Scope == ScopeShared {
		return key("external", e.name, v.Name)
	}
	return key("external", e.name, v.Task, v.Name)
}

func (e *External) order(v *Volume) order {
	o := order{Version: 1, Volume: v.Name, Scope: v.Scope, Target: e.shares.point(e.key(v)), Options: v.Options, Labels: v.Labels}
	if v.Scope != ScopeShared {
		o.Task, o.Scope = v.Task, ScopeTask
	}
	return o
}

// Mount has the program mount the volume, once for all tasks that share it.
func (e *External) Mount(ctx context.Context, v *Volume) (Mounted, error) {
	if err := v.check(); err != nil {
		return Mounted{}, err
	}
	if v.Scope == ScopeShared {
		if err := named(e.c.Dirs, e.name, v, e.c.Strict); err != nil {
			return Mounted{}, err
		}
	} else if v.Autoprovision {
		return Mounted{}, failf(ErrInvalid, "volume [%s] : task scoped volume could not be autoprovisioned", v.Name)
	}
	return bindShared(ctx, e.shares, e.c.Dirs, e.key(v), v, func(point string) error {
		if err := os.MkdirAll(point, 0o700); err != nil {
			return err
		}
		if err := e.call(ctx, "mount", e.order(v)); err != nil {
			return err
		}
		there, err := mounted(point)
		if err == nil && !there {
			err = fmt.Errorf("volume driver %s said that it mounted volume %s and did not", e.name, v.Name)
		}
		return err
	}, bindPath)
}

// Unmount has the program unmount the volume with its last user, and forget a volume of
// scope task.
func (e *External) Unmount(ctx context.Context, v *Volume) error {
	if err := v.check(); err != nil {
		return err
	}
	if err := e.c.Dirs.leave(v); err != nil {
		return err
	}
	return e.shares.release(ctx, e.key(v), v, func(point string) error {
		if _, err := os.Stat(filepath.Dir(point)); errors.Is(err, fs.ErrNotExist) {
			return nil // it was never asked for
		}
		if v.Scope == ScopeShared {
			if err := named(e.c.Dirs, e.name, v, false); err != nil && !errors.Is(err, ErrMissing) {
				return err
			}
		}
		if err := e.call(ctx, "unmount", e.order(v)); err != nil {
			return err
		}
		if v.Scope != ScopeShared {
			if err := e.call(ctx, "remove", e.order(v)); err != nil {
				return err
			}
		}
		return unmount(point)
	})
}

// Check looks for the task's mount.
func (e *External) Check(_ context.Context, v *Volume) (bool, error) {
	return mounted(e.c.Dirs.point(v))
}

// call runs the program for one verb. Its exit status 0 is success; otherwise the last
// line of its standard error is the reason, and 75 (EX_TEMPFAIL, sysexits(3)) says that
// it may work later.
func (e *External) call(ctx context.Context, verb string, o order) error {
	if err := e.trusted(); err != nil {
		return err
	}
	in, err := json.Marshal(o)
	if err != nil {
		return err
	}
	limit := e.c.Limit
	if limit <= 0 {
		limit = remoteLimit
	}
	late := failf(ErrUnavailable, "volume driver %s: %s of volume %s did not end in %v", e.name, verb, o.Volume, limit)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, late)
	defer cancel()
	stderr := &limited{left: 8 << 10}
	cmd := exec.CommandContext(ctx, e.program(), verb)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"}
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // its children, too
	cmd.WaitDelay = reapLimit
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // it ended well, and what it started holds its output
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case !errors.As(err, &exit):
		return fmt.Errorf("volume driver %s: %w", e.name, err)
	}
	lines := strings.Split(stderr.text(), "\n")
	const tempFail = 75
	if exit.ExitCode() == tempFail {
		return failf(ErrUnavailable, "volume driver %s: %s: %s", e.name, verb, lines[len(lines)-1])
	}
	return fmt.Errorf("volume driver %s: %s: %w: %s", e.name, verb, exit, lines[len(lines)-1])
}
