package telemetry

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"

	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	collector "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	"google.golang.org/protobuf/proto"

	"berth.dev/berth/integ/lab"
	"berth.dev/berth/integ/system"
)

// receiver takes events at /hook, and metrics as an OpenTelemetry collector does.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	events []event
	pushed map[string]bool // sources, and tasks that there are metrics of
}

// event is what the tests look at of an event.
type event struct {
	ID     string `json:"id"`
	Kind   string `json:"detail-type"`
	Detail struct {
		TaskARN        string `json:"taskArn"`
		LastStatus     string `json:"lastStatus"`
		InstanceARN    string `json:"containerInstanceArn"`
		AgentConnected bool   `json:"agentConnected"`
	} `json:"detail"`
}

// String is the event in one word: a task's status, or an instance's connection.
func (e *event) String() string {
	if e.Detail.TaskARN != "" {
		return e.Detail.LastStatus
	}
	return fmt.Sprintf("connected=%t", e.Detail.AgentConnected)
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{pushed: map[string]bool{}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return // the cluster ends
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if req.URL.Path == "/hook" {
			var e event
			if err := json.Unmarshal(body, &e); err != nil {
				t.Errorf("webhook: %v in %s", err, body)
			}
			r.events = append(r.events, e)
			return
		}
		m := new(collector.ExportMetricsServiceRequest)
		if err := proto.Unmarshal(body, m); err != nil {
			t.Errorf("OTLP at %s: %v", req.URL.Path, err)
		}
		for _, rm := range m.GetResourceMetrics() {
			for _, a := range rm.GetResource().GetAttributes() {
				r.pushed[a.GetValue().GetStringValue()] = true
			}
			for _, s := range rm.GetScopeMetrics() {
				for _, m := range s.GetMetrics() {
					for _, p := range append(m.GetSum().GetDataPoints(), m.GetGauge().GetDataPoints()...) {
						for _, a := range p.GetAttributes() {
							r.pushed[m.GetName()+" "+a.GetValue().GetStringValue()] = true
						}
					}
				}
			}
		}
	}))
	t.Cleanup(r.Close)
	return r
}

// waitFor waits for metrics of a task from the agent, and of its cluster.
func (r *receiver) waitFor(t *testing.T, task string) {
	system.Until(t, time.Minute, "metrics are pushed", func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, want := range []string{"berth-agent", "berth-cluster", "berth_container_cpu_usage_seconds_total " + task, "ecs_cluster_running_tasks default"} {
			if !r.pushed[want] {
				return fmt.Errorf("nothing of %s", want)
			}
		}
		return nil
	})
}

// followed are the ways in which events of a system are told.
type followed struct {
	receiver *receiver
	file     string
	mu       sync.Mutex
	watched  []event
}

// watch has "berth watch" print the events of a lab.
func (f *followed) watch(t *testing.T, s *system.System, l *lab.Lab) {
	t.Helper()
	root := t.TempDir()
	key, err := os.ReadFile(filepath.Join(l.Dir, "operator.json"))
	if err == nil {
		err = os.MkdirAll(filepath.Join(root, "var/lib/berth/cluster"), 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "var/lib/berth/cluster/operator.json"), key, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(s.Bin, "berth"), "--root", root, "watch", "--json")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var e event
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				t.Errorf("berth watch: %v in %s", err, lines.Bytes())
			}
			f.mu.Lock()
			f.watched = append(f.watched, e)
			f.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGINT) //nolint:errcheck // it may have ended
		<-done
		if err := cmd.Wait(); err != nil {
			t.Errorf("berth watch: %v", err)
		}
	})
	// It follows once it has said anything, of which there is something now and then.
	ctx := context.Background()
	list, err := l.ECS.ListContainerInstances(ctx, &ecs.ListContainerInstancesInput{})
	if err != nil {
		t.Fatal(err)
	}
	system.Until(t, 30*time.Second, "berth watch follows", func() error {
		for _, status := range []types.ContainerInstanceStatus{types.ContainerInstanceStatusDraining, types.ContainerInstanceStatusActive} {
			if _, err := l.ECS.UpdateContainerInstancesState(ctx, &ecs.UpdateContainerInstancesStateInput{ContainerInstances: list.ContainerInstanceArns, Status: status}); err != nil {
				return err
			}
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.watched) == 0 {
			return errors.New("nothing yet")
		}
		return nil
	})
}

// events ends the task and the agent, and waits until all of it was told in every way.
func (f *followed) events(t *testing.T, s *system.System, task string) {
	s.Stop(task)
	s.Wait("STOPPED", 30*time.Second, task)
	s.Agent.Kill()
	defer func() {
		s.StartAgent()
		s.WaitConnected(20 * time.Second)
	}()
	ways := map[string]func() ([]event, error){
		"berth watch": func() ([]event, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return slices.Clone(f.watched), nil
		},
		"webhook": func() ([]event, error) {
			f.receiver.mu.Lock()
			defer f.receiver.mu.Unlock()
			return slices.Clone(f.receiver.events), nil
		},
		"file": func() ([]event, error) {
			b, err := os.ReadFile(f.file)
			var out []event
			for line := range strings.Lines(string(b)) {
				var e event
				if err := json.Unmarshal([]byte(line), &e); err != nil {
					return nil, fmt.Errorf("%w in %s", err, line)
				}
				out = append(out, e)
			}
			return out, err
		},
	}
	var first []string // ids of the task's events
	for way, read := range ways {
		system.Until(t, 30*time.Second, way+" has told all", func() error {
			list, err := read()
			if err != nil {
				return err
			}
			var states, ids, hosts []string
			for i := range list {
				if e := &list[i]; e.Detail.TaskARN == task {
					if n := len(states); n == 0 || states[n-1] != e.String() {
						states = append(states, e.String())
					}
					ids = append(ids, e.ID)
				} else if e.Detail.TaskARN == "" {
					hosts = append(hosts, e.String())
				}
			}
			if want := []string{"PENDING", "RUNNING", "STOPPED"}; !isSubsequence(want, states) {
				return fmt.Errorf("the task's states are %v", states)
			}
			if len(hosts) == 0 || hosts[len(hosts)-1] != "connected=false" {
				return fmt.Errorf("the instance's states are %v", hosts)
			}
			if first == nil {
				first = ids
			}
			if !slices.Equal(first, ids) {
				return fmt.Errorf("the ids are %v, elsewhere %v", ids, first)
			}
			return nil
		})
	}
}

func isSubsequence(want, of []string) bool {
	for _, s := range of {
		if len(want) > 0 && want[0] == s {
			want = want[1:]
		}
	}
	return len(want) == 0
}
