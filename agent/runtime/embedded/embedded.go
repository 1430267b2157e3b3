// Package embedded runs a containerd of the agent's own in this process, for hosts that
// have none. The process is a separate one from the agent, so that the two can be
// restarted independently; the shims, and with them the containers, outlive both.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/cmd/containerd/server"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// Config says where this containerd lives. All paths are absolute.
type Config struct {
	Root    string // images, snapshots and records; kept over a reboot
	State   string // run-time state; on a tmpfs
	Address string // the socket to serve on; the shims use Address + ".ttrpc"
	// ShimDir holds containerd-shim-runc-v2, and may hold runc or crun; it is searched
	// before PATH.
	ShimDir string
	Level   string       // log level of containerd: error, warn (the default), info, debug
	Ready   func()       // called once the socket answers; may be nil
	Log     *slog.Logger // nil means slog.Default
}

func (c Config) validate() error {
	for _, p := range []struct{ name, path string }{{"Root", c.Root}, {"State", c.State}, {"Address", c.Address}} {
		if !filepath.IsAbs(p.path) {
			return fmt.Errorf("containerd: %s %q is not an absolute path", p.name, p.path)
		}
	}
	// sun_path holds 108 bytes with the final zero (unix(7)).
	if n := len(c.Address + ".ttrpc"); n > 107 {
		return fmt.Errorf("containerd: Address is %d bytes too long for a socket", n-107)
	}
	return nil
}

// Main serves until ctx ends. It changes PATH and the temporary mount directory of the
// process, so it is called once, from a program that does nothing else.
func Main(ctx context.Context, c Config) error {
	if err := c.validate(); err != nil {
		return err
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Level == "" {
		c.Level = "warn"
	}
	if err := log.SetLevel(c.Level); err != nil {
		return fmt.Errorf("containerd: Level: %w", err)
	}
	if c.ShimDir != "" {
		if err := os.Setenv("PATH", c.ShimDir+string(os.PathListSeparator)+os.Getenv("PATH")); err != nil {
			return err
		}
	}
	cfg := configuration(c)
	if err := server.CreateTopLevelDirectories(cfg); err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	// containerd itself waits for ever for the lock of its database.
	unlock, err := lock(filepath.Join(c.Root, "berth.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if err := mount.SetTempMountLocation(filepath.Join(c.Root, "tmpmounts")); err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	if _, err := mount.CleanupTempMounts(0); err != nil {
		c.Log.Warn("containerd: temporary mounts of an earlier run are left", "err", err)
	}
	srv, err := server.New(ctx, cfg)
	if err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	defer srv.Stop()
	if err := srv.Start(ctx); err != nil {
		return fmt.Errorf("containerd: serving on %s: %w", c.Address, err)
	}
	srv.Wait()
	c.Log.Info("containerd is ready", "version", version.Version, "address", c.Address)
	if c.Ready != nil {
		c.Ready()
	}
	<-ctx.Done()
	return nil
}

func configuration(c Config) *srvconfig.Config {
	return &srvconfig.Config{
		Version: version.ConfigVersion,
		Root:    c.Root,
		State:   c.State,
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc":  map[string]any{"address": c.Address},
			"io.containerd.server.v1.ttrpc": map[string]any{"address": c.Address + ".ttrpc"},
		},
	}
}

// lock takes a file lock that ends with the process.
func lock(file string) (func(), error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("containerd: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("containerd: another one runs with Root %s", filepath.Dir(file))
		}
		return nil, fmt.Errorf("containerd: locking %s: %w", file, err)
	}
	return func() { f.Close() }, nil
}
