// Package system starts and stops everything of Berth on one host: containerd where
// the host has none, the central cluster, the agent, and the sample task.
package system

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/cmd/berth/internal/background"
	"berth.dev/berth/cmd/berth/internal/layout"
	"berth.dev/berth/cmd/berth/internal/screen"
)

// System is one Berth system of this host, running or not.
type System struct {
	Layout layout.Layout
	Screen *screen.Screen
	Bin    string // the folder that Berth's programs lie in
}

// Names of the background programs, in the order in which they start.
const (
	Containerd = "containerd"
	Cluster    = "cluster"
	Agent      = "agent"
)

// Program returns one of the background programs.
func (s *System) Program(name string) background.Program {
	return background.Program{
		Name:    name,
		PIDFile: s.Layout.Run(name + ".pid"),
		LogFile: s.Layout.Log(name + ".log"),
	}
}

// lock keeps two commands from starting or stopping the same system at once. It is
// held until unlock is called, or this process ends.
func (s *System) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(s.Layout.Lib(), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(s.Layout.Lib("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	waiting := false
	err = until(ctx, time.Minute, func(context.Context) (bool, error) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			if !waiting {
				waiting = true
				s.Screen.Note("Waiting for another berth up or down to finish")
			}
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	return func() { f.Close() }, nil // closing is what unlocks
}

// errTimeout is what until returns when the condition did not come true in time.
var errTimeout = errors.New("not in time")

// until asks ok again and again, at most every 20 ms, until it is true or fails, the
// limit has passed or ctx ends.
func until(ctx context.Context, limit time.Duration, ok func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		done, err := ok(ctx)
		if done || err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// started is the shared part of waiting for a background program: it must not have
// ended, and what its log says last is the explanation when it has.
func (s *System) started(ctx context.Context, name string, limit time.Duration, ready func(context.Context) (bool, error)) error {
	p := s.Program(name)
	var last error
	err := until(ctx, limit, func(ctx context.Context) (bool, error) {
		proc, err := p.Running()
		if err != nil {
			return false, err
		}
		if proc == nil {
			return false, fmt.Errorf("%s ended right after its start; its log (%s) ends with:\n%s", name, p.LogFile, indent(p.Tail(8)))
		}
		ok, err := ready(ctx)
		last = err
		return ok, nil
	})
	if errors.Is(err, errTimeout) {
		err = fmt.Errorf("%s is not ready after %v", name, limit)
		if last != nil {
			err = fmt.Errorf("%w: %w", err, last)
		}
		return fmt.Errorf("%w; its log (%s) ends with:\n%s", err, p.LogFile, indent(p.Tail(8)))
	}
	return err
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(text, "\n", "\n  ")
}

// program returns the path of one of Berth's programs.
func (s *System) program(name string) (string, error) {
	path := filepath.Join(s.Bin, name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is not beside berth in %s; build it with: make build", name, s.Bin)
	}
	return path, nil
}

// environment is what background programs are given of the environment: nothing that
// would choose other credentials, another endpoint or another profile for them.
func environment(add ...string) []string {
	var env []string
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); !strings.HasPrefix(name, "AWS_") {
			env = append(env, e)
		}
	}
	return append(env, add...)
}
