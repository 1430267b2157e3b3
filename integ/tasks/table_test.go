package tasks

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	cacs "berth.dev/berth/cluster/acs"
	"berth.dev/berth/integ/system"
	"berth.dev/berth/integ/testimage"
	wire "berth.dev/berth/wire/acs"
)

// topic is a list of rows that belong together.
type topic struct {
	name string
	rows []scenario
	// fake topics are about the life of tasks, and are played on the fake runtime as well.
	// Their scripts are made of what that understands (runtimetest), and their functions
	// ask nothing but the API and lab.viewOf.
	fake bool
}

// topics is the whole table.
func topics() []topic {
	return []topic{
		{name: "processes", rows: processes()},
		{name: "ends", rows: ends()},
		{name: "dependencies", rows: dependencies(), fake: true},
		{name: "lifetimes", rows: lifetimes(), fake: true},
		{name: "restarts", rows: restarts(), fake: true},
		{name: "health", rows: healthChecks(), fake: true},
		{name: "failures", rows: failures()},
		{name: "limits", rows: limits()},
		{name: "networks", rows: networks()},
		{name: "images", rows: images()},
		{name: "registries", rows: registries()},
		{name: "secrets", rows: secrets()},
		{name: "logs", rows: logs()},
		{name: "volumes", rows: volumeRows()},
		{name: "containers", rows: containers()},
		{name: "kernels", rows: kernels()},
		{name: "refusals", rows: refusals()},
	}
}

// parallel is how many rows run at the same time, whatever number of processors there
// are: most rows wait most of the time.
const parallel = 8

// agentSettings are the settings that all rows run with. files is a directory for the
// files that some of them name.
func agentSettings(t *testing.T, files string) []string {
	t.Helper()
	profile := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`
	if err := os.WriteFile(filepath.Join(files, "nodirs.json"), []byte(profile), 0o600); err != nil {
		t.Fatal(err)
	}
	gpus := `{"cdiVersion":"0.5.0","kind":"example.com/gpu","devices":[` +
		`{"name":"GPU-a","containerEdits":{"deviceNodes":[{"path":"/dev/gpu","hostPath":"/dev/zero"}],"env":["DRIVER=example"]}}]}`
	if err := os.WriteFile(filepath.Join(files, "example.json"), []byte(gpus), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{
		"BERTH_SECCOMP_DIR=" + files,
		"ECS_ENABLE_GPU_SUPPORT=true", "BERTH_GPU_KIND=example.com/gpu", "BERTH_CDI_DIRS=" + files,
		// Rows look into the logs of tasks that have ended, on a busy machine some seconds later.
		"ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION=20s", "ECS_CONTAINER_STOP_TIMEOUT=5s",
		"BERTH_LOG_FILE_SIZE=4096", "BERTH_LOG_FILES=3",
		"ECS_DYNAMIC_HOST_PORT_RANGE=40000-40099",
	}
}

// hurry makes times shorter on their way to the agent than the API lets them be: a
// minute's restartAttemptPeriod is a second, and a health check's interval and start
// period are a tenth.
func hurry(m *wire.PayloadMessage) {
	for i := range m.Tasks {
		for j := range m.Tasks[i].Containers {
			c := &m.Tasks[i].Containers[j]
			if c.RestartPolicy != nil {
				c.RestartPolicy.RestartAttemptPeriod /= 60
			}
			if c.DockerConfig == nil {
				continue
			}
			var config map[string]any
			if err := json.Unmarshal([]byte(c.DockerConfig.Config), &config); err != nil {
				continue // the agent says what is wrong with it
			}
			check, ok := config["Healthcheck"].(map[string]any)
			if !ok {
				continue
			}
			for _, name := range []string{"Interval", "StartPeriod"} {
				if d, ok := check[name].(float64); ok {
					check[name] = int64(d) / 10
				}
			}
			check["StartInterval"] = int64(300 * time.Millisecond)
			if b, err := json.Marshal(config); err == nil {
				c.DockerConfig.Config = string(b)
			}
		}
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
				Containerd: kind, Programs: bin, AgentEnv: append(agentSettings(t, t.TempDir()), l.settings(t)...),
				ACS: func(c *cacs.Config) { c.Credentials, c.Faults = executionRole, &cacs.Faults{Alter: hurry} },
			})
			before := l.footprint(t)
			t.Run("all", func(t *testing.T) { l.playAll(t, topics()) })
			if !t.Failed() {
				l.WaitClean(40 * time.Second)
				l.restsAt(t, before)
			}
		})
	}
}

// playAll runs every row, a bounded number at a time, and returns when all have ended.
// T.Parallel would run as many as there are processors.
func (l *lab) playAll(t *testing.T, all []topic) {
	var work sync.WaitGroup
	defer work.Wait()
	slots := make(chan struct{}, parallel)
	for _, tp := range all {
		for _, sc := range tp.rows {
			slots <- struct{}{}
			work.Go(func() {
				defer func() { <-slots }()
				t.Run(tp.name+"/"+strings.ReplaceAll(sc.name, " ", "-"), func(t *testing.T) { l.play(t, sc) })
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

// footprint is what the agent uses of memory and goroutines.
type footprint struct{ heap, goroutines int }

var (
	heapAlloc      = regexp.MustCompile(`# HeapAlloc = (\d+)`)
	goroutineTotal = regexp.MustCompile(`goroutine profile: total (\d+)`)
)

func (l *lab) footprint(t *testing.T) footprint {
	t.Helper()
	number := func(path string, re *regexp.Regexp) int {
		resp, err := l.Debug().Get("http://agent/debug/pprof/" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		m := re.FindSubmatch(b)
		if err != nil || m == nil {
			t.Fatalf("%s: %v, %d bytes", path, err, len(b))
		}
		n, err := strconv.Atoi(string(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return footprint{heap: number("heap?gc=1&debug=1", heapAlloc), goroutines: number("goroutine?debug=1", goroutineTotal)}
}

// restsAt checks that all the tasks of the table have left nothing in the agent. What is
// made once, such as connections and caches of images, is a few MiB. Connections that are
// not used any more, of two goroutines each, are closed after a minute and a half; what
// every row leaves would be far more.
func (l *lab) restsAt(t *testing.T, before footprint) {
	t.Helper()
	const once, connections = 8 << 20, 40
	system.Until(t, 2*time.Minute, "the agent comes to rest", func() error {
		now := l.footprint(t)
		if now.heap > before.heap+once || now.goroutines > before.goroutines+connections {
			return fmt.Errorf("heap %d KiB, before %d; goroutines %d, before %d", now.heap>>10, before.heap>>10, now.goroutines, before.goroutines)
		}
		t.Logf("heap %d KiB, before %d; goroutines %d, before %d", now.heap>>10, before.heap>>10, now.goroutines, before.goroutines)
		return nil
	})
}
