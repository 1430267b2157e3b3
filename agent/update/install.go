package update

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"berth.dev/berth/wire/update"
)

// Host is what an installation does to this host.
type Host interface {
	// Install has the host's package manager put a package in the place of another
	// version of it.
	Install(ctx context.Context, kind, path string) error
	// Restart starts the agent anew, whatever became of it.
	Restart(ctx context.Context) error
	// Ready waits until the agent of a version has taken up its tasks, and returns an
	// error when that is not to be expected any more.
	Ready(ctx context.Context, version string) error
}

// ErrWentBack tells that the agent is the former one again.
var ErrWentBack = errors.New("the former version is back")

// Install carries out the plan in a folder: it installs the package, waits until the new
// agent is ready, and otherwise goes back. It runs outside of the agent, which ends
// meanwhile.
func Install(ctx context.Context, dir string, h Host, log *slog.Logger) error {
	p, err := readPlan(dir)
	if err != nil {
		return err
	}
	if p.Kind == "" {
		return errors.New("the agent was not installed from a package")
	}
	if err := p.whole(dir); err != nil {
		return err
	}
	log.Info("installing", "version", p.Version, "before", p.Running)
	path := filepath.Join(dir, p.File)
	if err = h.Install(ctx, p.Kind, path); err == nil {
		err = h.Ready(ctx, p.Version)
	}
	if err == nil {
		log.Info("installed; the agent is ready", "version", p.Version)
		return p.keep(dir)
	}
	log.Error("the new version does not work; going back", "version", p.Version, "to", p.Running, "err", err)
	if back := goBack(ctx, dir, p, h); back != nil {
		return errors.Join(err, fmt.Errorf("version %s could not be brought back: %w; install it by hand", p.Running, back))
	}
	log.Info("the former version is back and ready", "version", p.Running)
	return fmt.Errorf("%w: version %s: %w", ErrWentBack, p.Version, err)
}

func goBack(ctx context.Context, dir string, p Plan, h Host) error {
	if err := h.Install(ctx, p.Kind, filepath.Join(dir, p.Former)); err != nil {
		return err
	}
	if err := h.Restart(ctx); err != nil {
		return err
	}
	return h.Ready(ctx, p.Running)
}

// keep keeps what was installed, to go back to after the next update, and the one
// before it; older ones are removed.
func (p Plan) keep(dir string) error {
	name := keptName(p.Version, p.Kind)
	if err := os.Rename(filepath.Join(dir, p.File), filepath.Join(dir, keptDir, name)); err != nil {
		return err
	}
	kept, err := filepath.Glob(filepath.Join(dir, keptDir, update.Package+"-*"))
	if err != nil {
		return err
	}
	errs := []error{os.Remove(filepath.Join(dir, planFile)), os.Remove(filepath.Join(dir, desired))}
	for _, path := range kept {
		if base := filepath.Base(path); base != name && base != filepath.Base(p.Former) {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}
