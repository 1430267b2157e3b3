// Package telemetry runs containers under load and compares what the cluster is told of
// them with an independent reading of the kernel's own files.
package telemetry

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"berth.dev/berth/cluster/telemetry"
	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
	"berth.dev/berth/integ/testimage"
)

func TestMain(m *testing.M) { host.Main(m) }

// load is a container that uses the host in its own way.
type load struct {
	name, command string
	cpu           int32 // CPU units of the task as a whole; 0 means no limit
}

var loads = []load{
	{"busy", "while :; do :; done", 0},
	{"idle", "exec sleep 1000", 0},
	{"bursty", "while :; do sleep 0.05; for i in 1 2 3 4 5 6 7 8 9; do for j in $(seq 500); do :; done; done; done", 0},
	{"throttled", "while :; do :; done", 128},
}

// reader reads the CPU time of a container for itself, again and again.
type reader struct {
	path string
	mu   sync.Mutex
	at   []time.Time
	used []float64 // seconds
}

func (r *reader) read() error {
	b, err := os.ReadFile(r.path)
	if err != nil {
		return err
	}
	ns, err := strconv.ParseFloat(strings.TrimSpace(string(b)), 64)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at, r.used = append(r.at, time.Now()), append(r.used, ns/1e9)
	return nil
}

// usedAt is the CPU time at a moment, between the readings around it.
func (r *reader) usedAt(t time.Time) (float64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := 1; i < len(r.at); i++ {
		if r.at[i].Before(t) {
			continue
		}
		if r.at[i-1].After(t) {
			return 0, false
		}
		part := float64(t.Sub(r.at[i-1])) / float64(r.at[i].Sub(r.at[i-1]))
		return r.used[i-1] + part*(r.used[i]-r.used[i-1]), true
	}
	return 0, false
}

func TestTelemetry(t *testing.T) {
	bin := system.Programs(t, system.Containerd2)
	t.Run("numbers agree", func(t *testing.T) { numbersAgree(t, bin) })
	t.Run("open to others", func(t *testing.T) { openToOthers(t, bin) })
}

// numbersAgree compares what the cluster is told with an independent reading.
func numbersAgree(t *testing.T, bin string) {
	s := system.Start(t, system.Options{Programs: bin})
	busybox, err := testimage.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	s.Load("docker.io/library/busybox:latest", busybox)
	readers := map[string]*reader{}
	names := map[string]string{} // of loads by task ARN
	for _, l := range loads {
		in := &ecs.RegisterTaskDefinitionInput{Family: &l.name, ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("main"), Image: aws.String("busybox"), Command: []string{"/bin/sh", "-c", l.command}, Memory: aws.Int32(64),
			StopTimeout: aws.Int32(2),
		}}}
		if l.cpu > 0 {
			in.Cpu = aws.String(fmt.Sprint(l.cpu))
		}
		arn := s.Run(s.Register(in), 1)[0]
		tk := s.Wait("RUNNING", time.Minute, arn)[0]
		names[arn] = l.name
		readers[arn] = &reader{path: filepath.Join("/sys/fs/cgroup/cpuacct", s.Cgroup(), filepath.Base(arn), aws.ToString(tk.Containers[0].RuntimeId), "cpuacct.usage")}
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	end := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer end()
	wg.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			for _, r := range readers {
				if err := r.read(); err != nil {
					t.Errorf("independent reading: %v", err)
					return
				}
			}
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	})
	// Of two points, the second is about the whole interval of 20 s between them, which
	// must have been watched. What is published is the mean of the samples, which is that of
	// the time only where they were as far apart as they should: of a container whose use
	// changes while the machine is held up another interval is looked at.
	watched := time.Now()
	agreed := map[string]string{}
	system.Until(t, 5*time.Minute, "an interval of every container in which the numbers agree", func() error {
		var errs []error
		for arn, name := range names {
			if agreed[name] != "" {
				continue
			}
			said, err := readers[arn].compare(pointsOf(s, watched)[arn])
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
				continue
			}
			agreed[name] = said
			t.Logf("%s: %s", name, said)
		}
		return errors.Join(errs...)
	})
	end()
	t.Run("network", func(t *testing.T) { networkBytes(t, s) })
	s.StopTasks()
}

func pointsOf(s *system.System, since time.Time) map[string][]telemetry.Point {
	out := map[string][]telemetry.Point{}
	for _, c := range s.Cluster.Usage.Containers("default", since) {
		out[c.TaskARN] = c.Points
	}
	return out
}

// compare holds the mean CPU of intervals against the readings at their ends, which are
// known to a sample's length, and tells of the first that agrees. They may differ by 2 %, or
// for a container that does next to nothing by a twentieth of a percent of the machine.
func (r *reader) compare(points []telemetry.Point) (string, error) {
	err := errors.New("there are no two points yet")
	for i := 1; i < len(points); i++ {
		begin, end := points[i-1].At, points[i].At
		from, ok1 := r.usedAt(begin)
		to, ok2 := r.usedAt(end)
		if !ok1 || !ok2 {
			err = fmt.Errorf("the interval from %v to %v was not watched", begin, end)
			continue
		}
		want := 100 * (to - from) / end.Sub(begin).Seconds() / float64(runtime.NumCPU())
		got := float64(points[i].CPU)
		said := fmt.Sprintf("CPU %.3f %%, the kernel's files say %.3f %%; memory %v MiB", got, want, points[i].Memory)
		if diff := math.Abs(got - want); diff <= 0.02*want || diff <= 0.05 {
			return said, nil
		}
		err = errors.New(said)
	}
	return "", err
}

// networkBytes has a container send itself nothing and the world a known amount, and
// compares the agent's counters with those of the interface in the container.
func networkBytes(t *testing.T, s *system.System) {
	arn := s.On(t).Run(s.On(t).Register(&ecs.RegisterTaskDefinitionInput{Family: aws.String("net"), ContainerDefinitions: []types.ContainerDefinition{{
		Name: aws.String("main"), Image: aws.String("busybox"), Memory: aws.Int32(64), StopTimeout: aws.Int32(2),
		// Pings the gateway of the bridge and ends its traffic with that.
		Command: []string{"/bin/sh", "-c", `ping -c 3 -i 0.1 -s 1000 $(ip route | head -n 1 | while read a b gw rest; do echo $gw; done) >/dev/null 2>&1; sleep 3; cat /proc/net/dev; exec sleep 1000`},
	}}}), 1)[0]
	tk := s.On(t).Wait("RUNNING", time.Minute, arn)[0]
	device := func() (rx, tx float64, err error) {
		pids, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/pids", s.Cgroup(), filepath.Base(arn), aws.ToString(tk.Containers[0].RuntimeId), "cgroup.procs"))
		if err != nil {
			return 0, 0, err
		}
		pid, _, _ := strings.Cut(string(pids), "\n")
		b, err := os.ReadFile("/proc/" + pid + "/net/dev")
		if err != nil {
			return 0, 0, err
		}
		for line := range strings.Lines(string(b)) {
			if name, rest, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) != "lo" {
				f := strings.Fields(rest)
				r, err1 := strconv.ParseFloat(f[0], 64)
				w, err2 := strconv.ParseFloat(f[8], 64)
				if err1 != nil || err2 != nil {
					return 0, 0, fmt.Errorf("%q", line)
				}
				rx, tx = rx+r, tx+w
			}
		}
		return rx, tx, nil
	}
	system.Until(t, time.Minute, "counters that agree", func() error {
		rx, tx, err := device()
		if err != nil {
			return err
		}
		gotRx, gotTx, err := scraped(s, filepath.Base(arn))
		if err != nil {
			return err
		}
		if gotRx != rx || gotTx != tx || tx < 3000 {
			return fmt.Errorf("the agent says %v received and %v sent, the kernel %v and %v", gotRx, gotTx, rx, tx)
		}
		return nil
	})
}

// scraped reads the network counters of a task from the agent's metrics.
func scraped(s *system.System, id string) (rx, tx float64, err error) {
	resp, err := s.Debug().Get("http://agent/metrics")
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, 0, fmt.Errorf("metrics: %s", resp.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return 0, 0, err
	}
	value := func(name string) float64 {
		for _, m := range families[name].GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "task_id" && l.GetValue() == id {
					return m.GetCounter().GetValue()
				}
			}
		}
		return -1
	}
	return value("berth_container_network_receive_bytes_total"), value("berth_container_network_transmit_bytes_total"), nil
}
