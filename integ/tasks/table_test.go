package tasks

import (
	"strings"
	"testing"
	"time"

	"berth.dev/berth/cluster/acs"
	"berth.dev/berth/integ/system"
	"berth.dev/berth/integ/testimage"
)

// topic is a list of rows that belong together.
type topic struct {
	name string
	rows []scenario
}

// topics is the whole table.
func topics() []topic {
	return []topic{
		{"processes", processes()},
		{"ends", ends()},
		{"failures", failures()},
		{"limits", limits()},
		{"networks", networks()},
		{"images", images()},
		{"registries", registries()},
		{"secrets", secrets()},
		{"logs", logs()},
		{"volumes", volumeRows()},
	}
}

// parallel is how many rows run at the same time. Most of them wait most of the time.
const parallel = 12

// agentSettings are the settings that all rows run with.
func agentSettings() []string {
	return []string{
		"ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION=10s", "ECS_CONTAINER_STOP_TIMEOUT=5s",
		"BERTH_LOG_FILE_SIZE=4096", "BERTH_LOG_FILES=3",
		"ECS_DYNAMIC_HOST_PORT_RANGE=40000-40099",
	}
}

func TestTasks(t *testing.T) {
	bin := system.Programs(t, system.Containerd2) // they serve the other kind as well
	for _, kind := range []string{system.Containerd1, system.Containerd2} {
		t.Run(kind, func(t *testing.T) {
			r := testimage.NewRegistry()
			t.Cleanup(r.Close)
			l := &lab{registry: r, services: startServices(t)}
			l.System = system.Start(t, system.Options{
				Containerd: kind, Programs: bin, AgentEnv: append(agentSettings(), l.settings(t)...),
				ACS: func(c *acs.Config) { c.Credentials = executionRole },
			})
			t.Run("all", func(t *testing.T) { l.playAll(t, topics()) })
			if !t.Failed() {
				l.WaitClean(40 * time.Second)
			}
		})
	}
}

// playAll runs every row, a bounded number at a time, and returns when all have ended.
func (l *lab) playAll(t *testing.T, all []topic) {
	slots := make(chan struct{}, parallel)
	for _, tp := range all {
		for _, sc := range tp.rows {
			t.Run(tp.name+"/"+strings.ReplaceAll(sc.name, " ", "-"), func(t *testing.T) {
				t.Parallel()
				slots <- struct{}{}
				defer func() { <-slots }()
				l.play(t, sc)
			})
		}
	}
}

func TestNamesOfRows(t *testing.T) {
	seen := map[string]bool{}
	rows := 0
	for _, tp := range topics() {
		for _, sc := range tp.rows {
			rows++
			if sc.name == "" || sc.define == nil || seen[sc.name] {
				t.Errorf("topic %s: row %q has no name or definition, or its name is used twice", tp.name, sc.name)
			}
			seen[sc.name] = true
		}
	}
	t.Logf("%d rows", rows)
}
