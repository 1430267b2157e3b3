package system

import (
	"context"
	"errors"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/integ/world"
)

// World is a snapshot of everything of this system that tasks may leave behind. The
// state of the agent and of containerd is left out: it lives on with them.
func (s *System) World() (world.Snapshot, error) {
	shot, err := world.Take(context.Background(), world.Options{
		Containerds: []world.Containerd{world.Namespace{Address: s.Containerd.Address, Name: "berth"}},
		Programs:    []string{"berth-logger", "berth-shipper", "containerd-shim-runc-v2", "runc"},
		CgroupRoots: []string{s.Cgroup()}, MountPrefixes: []string{s.Dir},
		NetnsDirs: []string{filepath.Join(s.Dir, "run", "network", "namespaces")},
		Dirs:      []string{filepath.Join(s.Dir, "run"), filepath.Join(s.Dir, "log"), filepath.Join(s.Dir, "volumes", "tasks"), filepath.Join(s.Dir, "volumes", "storage")},
	})
	if err != nil {
		return nil, err
	}
	// The machine has programs of other tests, too; ours name our directory.
	shot[world.Programs] = slices.DeleteFunc(shot[world.Programs], func(line string) bool { return !strings.Contains(line, s.Dir) })
	// The shipper's own log is no task's; a teardown takes it away.
	for k, lines := range shot {
		shot[k] = slices.DeleteFunc(lines, func(line string) bool { return strings.HasSuffix(line, filepath.Join(s.Dir, "log", "shipper.log")) })
	}
	// Sockets of tasks are inside their namespaces; what listens here are the tests' own servers.
	delete(shot, world.Sockets)
	return shot, nil
}

// mustWorld fails the test when the world cannot be asked.
func (s *System) mustWorld(t testing.TB) world.Snapshot {
	t.Helper()
	shot, err := s.World()
	if err != nil {
		t.Fatal(err)
	}
	return shot
}

// Settle takes what is there now as what is there without any task. For tests that give
// the host something of their own after Start.
func (s *System) Settle() { s.idle = s.mustWorld(s.t) }

// WaitClean waits until nothing is left of any task, with the agent still running: it
// is the agent that has to clean up. For tests that set a short
// ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION.
func (s *System) WaitClean(limit time.Duration) {
	s.t.Helper()
	Until(s.t, limit, "nothing is left of the tasks", s.Clean)
}

// Clean says what is left of tasks.
func (s *System) Clean() error { return s.differs(s.idle) }

// differs says what is not as it was.
func (s *System) differs(before world.Snapshot) error {
	now, err := s.World()
	if err != nil {
		return err
	}
	directories := world.Residue{
		Set:    world.Files,
		Match:  regexp.MustCompile(`^d\S+ ` + regexp.QuoteMeta(s.Dir) + `/(run|run/network(/files)?|run/rootfs|run/volumes|run/volumes/tasks|run/volumes/shared|volumes/(tasks|storage|pool)|run/runc|run/runc/berth|log|log/tasks)$`),
		Reason: "directories that all tasks share, made with the first one and empty now",
	}
	audit := world.Residue{
		Set:    world.Files,
		Match:  regexp.MustCompile(`^-\S+ ` + regexp.QuoteMeta(s.Dir) + `/log/audit\.log$`),
		Reason: "the record of who asked for credentials, which outlives the tasks",
	}
	linkLocal := world.Residue{
		Set: world.Routes, Match: regexp.MustCompile(`^fe80::/64 via <nil> dev berth0 `),
		Reason: "the kernel's own route of a bridge with IPv6, which comes with its first port",
	}
	parents := world.Residue{
		Set: world.Cgroups, Match: regexp.MustCompile(`/` + s.Cgroup() + `$`),
		Reason: "parent of all tasks, which the runtime makes in the hierarchies that the agent has no use for",
	}
	if lines := world.Diff(before, now, directories, parents, audit, linkLocal); len(lines) > 0 {
		return errors.New(strings.Join(lines, "\n"))
	}
	return nil
}
