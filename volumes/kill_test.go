package volumes_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/volumes"
	"berth.dev/berth/volumes/block"
	"berth.dev/berth/volumes/volumestest"
)

var kills = flag.Int("kills", 200, "number of kills in TestKilledAnywhereNothingIsLeft")

// drivers are those of one process, which has each of them once.
type drivers struct {
	host  *volumes.Host
	local *volumes.Local
	block *volumes.Block
	state string
}

func driversOf(d volumes.Dirs) drivers {
	return drivers{
		&volumes.Host{Dirs: d}, volumes.NewLocal(volumes.LocalConfig{Dirs: d}),
		volumes.NewBlock(volumes.BlockConfig{Dirs: d, Pool: &block.Pool{Dir: filepath.Join(d.State, "pool")}}), d.State,
	}
}

// every calls do for a volume of every kind of a task.
func (d drivers) every(task string, do func(driver volumes.Driver, v *volumes.Volume)) {
	tmpfs := map[string]string{"type": "tmpfs", "o": "size=1m"}
	do(d.host, &volumes.Volume{Task: task, Name: "host", Source: filepath.Join(d.state, "..", "source", "made")})
	do(d.local, &volumes.Volume{Task: task, Name: "own"})
	b := blockVolume(task, "block")
	b.Block.Size, b.Block.Pooled, b.Block.Delete = 4<<20, true, true
	do(d.block, b)
	do(d.local, &volumes.Volume{Task: task, Name: "memory", Options: tmpfs})
	do(d.local, &volumes.Volume{Task: task, Name: "shared", Scope: volumes.ScopeShared, Autoprovision: true, Options: tmpfs})
}

// churn mounts and unmounts volumes of all kinds for some tasks until it is killed.
func churn(dir string) {
	d := driversOf(volumes.Dirs{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")})
	var tasks sync.WaitGroup
	for i := range 3 {
		task := fmt.Sprintf("t%d", i)
		tasks.Go(func() {
			for {
				d.every(task, func(driver volumes.Driver, v *volumes.Volume) {
					if _, err := driver.Mount(context.Background(), v); err != nil {
						fmt.Println("mount", v.Name, err)
					}
				})
				d.every(task, func(driver volumes.Driver, v *volumes.Volume) {
					if err := driver.Unmount(context.Background(), v); err != nil {
						fmt.Println("unmount", v.Name, err)
					}
				})
			}
		})
	}
	tasks.Wait()
}

// A process that mounts and unmounts is killed at any moment, over and over on the same
// directories; afterwards everything can be taken away, half of the times by the drivers
// and half by a sweep, and nothing is left.
func TestKilledAnywhereNothingIsLeft(t *testing.T) {
	d := dirs(t)
	dir := filepath.Dir(d.Run)
	for n := range *kills {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "BERTH_TEST_CHURN="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-time.After(10*time.Millisecond + rand.N(90*time.Millisecond))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		said := make([]byte, 4096)
		k, _ := out.Read(said) // nothing, if all went well
		if k > 0 {
			t.Errorf("kill %d: %s", n, said[:k])
		}
		cmd.Wait() //nolint:errcheck // it was killed
		for i := range 3 {
			task := fmt.Sprintf("t%d", i)
			if n%2 == 0 {
				driversOf(d).every(task, func(driver volumes.Driver, v *volumes.Volume) {
					if err := driver.Unmount(t.Context(), v); err != nil {
						t.Errorf("kill %d: unmount %s: %v", n, v.Name, err)
					}
				})
			} else if err := errors.Join(d.Sweep(task), driversOf(d).block.Sweep(task)); err != nil {
				t.Errorf("kill %d: sweep: %v", n, err)
			}
		}
		if err := d.Tidy(); err != nil {
			t.Errorf("kill %d: %v", n, err)
		}
		if ids, err := d.Tasks(); err != nil || len(ids) > 0 {
			t.Errorf("kill %d: left of tasks: %v, %v", n, ids, err)
		}
		if left := volumestest.Mounts(t, dir); len(left) > 0 {
			t.Fatalf("kill %d: left mounted: %q", n, left)
		}
		for _, sub := range []string{"run/tasks", "run/shared", "state/tasks", "state/pool"} {
			if left, err := os.ReadDir(filepath.Join(dir, sub)); err == nil && len(left) > 0 {
				t.Fatalf("kill %d: left in %s: %v", n, sub, left)
			}
		}
	}
}
