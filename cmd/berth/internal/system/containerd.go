package system

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"berth.dev/berth/agent/runtime"
	"berth.dev/berth/cmd/berth/internal/layout"
)

// open connects to the containerd at an address, which must answer at once.
func open(ctx context.Context, l layout.Layout, address string) (*runtime.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return runtime.Open(ctx, runtime.Config{
		Address: address, Namespace: l.Namespace(address), StateDir: l.Run(), LogDir: TaskLogs(l),
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), // errors are returned
	})
}

// TaskLogs is the directory of the containers' output.
func TaskLogs(l layout.Layout) string { return l.Log("tasks") }

// ContainerdVersion asks the containerd at an address for its version.
func (s *System) ContainerdVersion(ctx context.Context, address string) (_ string, err error) {
	if _, err := os.Stat(address); err != nil { // the client would wait for it to appear
		return "", err
	}
	c, err := open(ctx, s.Layout, address)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return c.Version(), nil
}

// LoadImage loads the images of an archive into Berth's namespace of a containerd and
// returns their names.
func (s *System) LoadImage(ctx context.Context, address, archive string) (_ []string, err error) {
	if _, err := os.Stat(archive); err != nil {
		return nil, fmt.Errorf("image archive: %w", err)
	}
	c, err := open(ctx, s.Layout, address)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return c.Import(ctx, archive)
}
