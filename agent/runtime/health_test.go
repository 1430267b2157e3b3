package runtime_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"berth.dev/berth/agent/runtime/containerdtest"
	"berth.dev/berth/agent/task"
)

// TestCheckAfterOneThatWasLeftBehind ends the agent in the middle of a health check: the
// next agent's check takes the place of the one that still runs, and nothing of either is
// left.
func TestCheckAfterOneThatWasLeftBehind(t *testing.T) {
	kinds(t, func(t *testing.T, kind containerdtest.Kind) {
		n := start(t, kind, nil)
		tk := &task.Task{
			ARN: "arn:aws:ecs:us-east-1:000000000000:task/default/health", NetworkMode: task.NetworkHost,
			Containers: []task.Container{{Name: "main", Image: busyboxImage, Command: []string{"sh", "-c", "sleep 100"}, Config: task.Config{
				Healthcheck: &task.Healthcheck{Test: []string{"CMD-SHELL", "touch /began; sleep 50 & sleep 50"}, Timeout: time.Minute},
			}}},
		}
		t.Cleanup(func() {
			if err := n.set.Remove(context.Background(), tk, "main", nil); err != nil {
				t.Error(err)
			}
			for _, f := range globs(n.cfg.StateDir + "/health-*") {
				t.Errorf("left on the host: %s", filepath.Base(f))
			}
			for _, dir := range globs("/sys/fs/cgroup/*/berthtest/health") {
				if err := os.Remove(dir); err != nil { // it is not empty
					t.Error(err)
				}
			}
		})
		r, err := n.set.Ensure(t.Context(), tk, "main", n.deps(t, tk))
		if err != nil {
			t.Fatal(err)
		}
		if err := n.set.Start(t.Context(), tk, "main", r.Handle); err != nil {
			t.Fatal(err)
		}
		old := n.set
		ended := make(chan error, 1)
		go func() {
			_, err := old.Check(context.Background(), tk, "main", r.Handle)
			ended <- err
		}()
		probe := *tk
		probe.Containers = append([]task.Container(nil), tk.Containers...)
		deadline := time.Now().Add(2 * time.Minute)
		for len(globs(n.cfg.StateDir+"/health-*")) == 0 {
			if time.Now().After(deadline) {
				t.Fatal("the check was not begun")
			}
			<-time.After(10 * time.Millisecond)
		}
		<-time.After(500 * time.Millisecond) // it is given time to be in the container
		n.reopen(t)                          // the connection of the check is cut, as by a crash
		if err := <-ended; err == nil {
			t.Error("the check that was cut off has an outcome")
		}
		probe.Containers[0].Config.Healthcheck = &task.Healthcheck{Test: []string{"CMD-SHELL", "test -e /began"}, Timeout: 10 * time.Second}
		c, err := n.set.Check(t.Context(), &probe, "main", r.Handle)
		if err != nil || c.ExitCode != 0 {
			t.Errorf("the next check: %+v %v", c, err)
		}
		// What runc leaves that is killed while it starts a check takes the check's name.
		bundles := globs(filepath.Join(n.daemon.Dir, "state", "io.containerd.runtime.v2.task", "*", r.RuntimeID))
		if len(bundles) != 1 {
			t.Fatalf("the container's directory is one of %q", bundles)
		}
		if err := os.WriteFile(filepath.Join(bundles[0], ".health.pid"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if c, err := n.set.Check(t.Context(), &probe, "main", r.Handle); err != nil || c.ExitCode != 0 {
				t.Errorf("a check whose name is taken: %+v %v", c, err)
			}
		}
	})
}
