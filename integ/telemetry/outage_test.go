package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/plan"
	"berth.dev/berth/agent/task"
	agenttcs "berth.dev/berth/agent/tcs"
	agenttelemetry "berth.dev/berth/agent/telemetry"
	"berth.dev/berth/cluster/api"
	"berth.dev/berth/cluster/series"
	"berth.dev/berth/cluster/store"
	clustertcs "berth.dev/berth/cluster/tcs"
	"berth.dev/berth/cluster/telemetry"
	"berth.dev/berth/stats"
	wire "berth.dev/berth/wire/tcs"
)

// line is a network between an agent and a cluster that can be cut. It is of memory, so
// that a clock that runs by itself waits for what is on its way.
type line struct {
	accept chan net.Conn
	closed chan struct{}
	close  func() // closes it, once

	mu     sync.Mutex
	cut    bool
	silent bool // a cut line swallows what is sent, rather than to break
	ends   []net.Conn
}

func newLine() *line {
	closed := make(chan struct{})
	return &line{accept: make(chan net.Conn), closed: closed, close: sync.OnceFunc(func() { close(closed) })}
}

func (l *line) state() (cut, silent bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cut, l.silent
}

func (l *line) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	switch cut, silent := l.state(); {
	case cut && silent:
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Minute): // about where a kernel gives up
		}
		return nil, errors.New("connection timed out")
	case cut:
		return nil, errors.New("no route to host")
	}
	near, far := net.Pipe()
	select {
	case l.accept <- &end{far, l}:
	case <-l.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ends = append(l.ends, near, far)
	return &end{near, l}, nil
}

// set cuts the line, or mends it. What was open does not outlive either.
func (l *line) set(cut, silent bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut, l.silent = cut, silent
	if cut && silent {
		return
	}
	for _, c := range l.ends {
		c.Close() //nolint:errcheck // it is cut off
	}
	l.ends = nil
}

// Accept, Close and Addr make a listener of the line's end at the cluster.
func (l *line) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *line) Close() error   { l.close(); return nil }
func (l *line) Addr() net.Addr { return &net.TCPAddr{} }

// end is one end of a connection over the line.
type end struct {
	net.Conn
	l *line
}

func (e *end) Write(b []byte) (int, error) {
	if cut, silent := e.l.state(); cut && silent {
		return len(b), nil
	}
	n, err := e.Conn.Write(b)
	if errors.Is(err, io.ErrClosedPipe) {
		err = io.EOF
	}
	return n, err
}

// TestOutage has an agent lose its cluster for ten minutes, and for thirty. Nothing of what
// its container used is missing afterwards or there twice, and each minute has its own use.
func TestOutage(t *testing.T) {
	for _, c := range []struct {
		name   string
		silent bool
		lasts  time.Duration
	}{
		{"broken for ten minutes", false, 10 * time.Minute},
		{"silent for ten minutes", true, 10 * time.Minute},
		{"silent for half an hour", true, 30 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			records, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			defer records.Close() //nolint:errcheck // the test is over
			err = records.Update(t.Context(), func(tx *store.Tx) error {
				store.Put(tx, store.Clusters, "lab", &store.Cluster{Cluster: types.Cluster{ClusterName: aws.String("lab")}})
				store.Put(tx, store.Instances, store.Key("lab", "i"), &store.Instance{ClusterName: "lab", ID: "i", Instance: types.ContainerInstance{
					ContainerInstanceArn: aws.String(instanceARN), Status: aws.String("ACTIVE"), RegisteredResources: []types.Resource{
						{Name: aws.String("CPU"), IntegerValue: int32(1024 * runtime.NumCPU())}, {Name: aws.String("MEMORY"), IntegerValue: 4096},
					},
				}})
				store.Put(tx, store.Tasks, store.Key("lab", "a"), &store.Task{ClusterName: "lab", ID: "a", InstanceID: "i", Task: types.Task{
					TaskArn: aws.String(taskARN), LastStatus: aws.String("RUNNING"), Group: aws.String("service:web"),
				}})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) { outage(t, records, dir, c.silent, c.lasts) })
		})
	}
}

const (
	taskARN     = "arn:aws:ecs:us-east-1:000000000000:task/lab/a"
	instanceARN = "arn:aws:ecs:us-east-1:000000000000:container-instance/lab/i"
)

// used is for how many milliseconds of each second the container runs in a minute: as many
// as tell the minute from those around it.
func used(minute int) int { return 100 + 10*(minute%50) }

// run writes the control files of a group that runs as used says, each half second after a
// sample is taken.
func run(ctx context.Context, t *testing.T, dir string, begin time.Time) {
	usage := 0
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		for name, text := range map[string]string{"cpu.stat": fmt.Sprintf("usage_usec %d\n", usage), "memory.current": "67108864\n", "memory.stat": "inactive_file 0\n"} {
			// In place and no shorter than before, as whoever reads has the file open.
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Error(err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		usage += 1000 * used(int(time.Since(begin)/time.Minute))
	}
}

func outage(t *testing.T, records *store.Store, dir string, silent bool, lasts time.Duration) {
	group := filepath.Join(dir, "cgroup", "a")
	if err := os.MkdirAll(group, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := series.Open(series.Config{Path: filepath.Join(dir, "series.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // the test is over
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	l := newLine()
	keeper := telemetry.New(nil)
	recorder, err := telemetry.NewRecorder(keeper, records, s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	heard := map[time.Time]int{}
	receive := keeper.Receiver(nil)
	server := clustertcs.New(clustertcs.Config{
		Authenticate: func(*http.Request, []byte, string) (api.Caller, error) {
			return api.Caller{Kind: api.Instance, InstanceARN: instanceARN}, nil
		},
		Received: func(ctx context.Context, arn string, m wire.Message) error {
			p, ok := m.(*wire.PublishMetricsRequest)
			if !ok {
				return nil
			}
			mu.Lock()
			if len(p.TaskMetrics) > 0 {
				heard[p.Timestamp.Time]++
			}
			mu.Unlock()
			return receive(ctx, arn, m)
		},
	})
	web := &http.Server{Handler: server, ReadHeaderTimeout: time.Minute}
	wg.Go(func() {
		if err := web.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	defer web.Close() //nolint:errcheck // the test is over
	defer server.Close()
	wg.Go(func() { _ = recorder.Run(ctx) }) // it ends with ctx, and says so

	// The use of a minute is written half a second before its seconds' end, sampled a
	// quarter later, and published at the full 20 s.
	begin := time.Now()
	<-time.After(500 * time.Millisecond)
	wg.Go(func() { run(ctx, t, group, begin) })
	synctest.Wait()
	<-time.After(250 * time.Millisecond)
	watcher := watch(filepath.Join(dir, "cgroup"))
	wg.Go(func() { watcher.Run(ctx) })
	synctest.Wait()
	<-time.After(20*time.Second - 750*time.Millisecond)
	publisher, err := agenttcs.New(agenttcs.Config{
		Endpoint: func(context.Context) (string, error) { return "http://cluster", nil }, DialContext: l.dial,
		Credentials: credentials.NewStaticCredentialsProvider("AKID", "secret", ""), Region: "us-east-1",
		Cluster: "lab", InstanceARN: instanceARN, Source: watcher, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { _ = publisher.Run(ctx) }) // it ends with ctx, and says so

	const around = 5 * time.Minute
	<-time.After(around)
	l.set(true, silent)
	<-time.After(lasts)
	mu.Lock()
	before := len(heard)
	mu.Unlock()
	l.set(false, false)
	<-time.After(around)
	mu.Lock()
	t.Logf("%d requests were heard before the line was mended, %d in all", before, len(heard))
	mu.Unlock()

	minutes := int((lasts+2*around)/time.Minute) - 1
	mu.Lock()
	for i := range 3 * minutes {
		if at := begin.Add(time.Duration(i+1) * 20 * time.Second); heard[at.UTC()] == 0 {
			t.Errorf("nothing was heard of the 20 s before %v", at.Sub(begin))
		}
	}
	mu.Unlock()
	for _, row := range []struct {
		kind    series.Kind
		name    string
		samples int
	}{{series.Container, "lab/a/web", 3}, {series.Task, "lab/a", 1}, {series.Instance, "lab/i", 1}, {series.Service, "lab/web", 1}, {series.Cluster, "lab", 1}} {
		points, err := s.Read(row.kind, []series.Selector{{Name: row.name, Metric: series.CPUUtilized}}, begin, begin.Add(time.Duration(minutes)*time.Minute), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if len(points[0]) != minutes {
			t.Errorf("%s: %d minutes, want %d", row.kind, len(points[0]), minutes)
			continue
		}
		for i, p := range points[0] {
			want := 1.024 * float64(used(i))
			if got := p.Set.Sum / float64(p.Set.Count); !p.At.Equal(begin.Add(time.Duration(i)*time.Minute)) || int(p.Set.Count) != row.samples || math.Abs(got-want) > 0.01*want {
				t.Errorf("%s, minute %d: %v of %d samples at %v, want %v of %d", row.kind, i, got, p.Set.Count, p.At.Sub(begin), want, row.samples)
			}
		}
	}
}

// watch watches one container whose control files are in the directory a.
func watch(root string) *agenttelemetry.Watcher {
	container := task.Container{Name: "web"}
	of := &task.Task{ARN: taskARN, ClusterARN: "arn:aws:ecs:us-east-1:000000000000:cluster/lab", Family: "f", Version: "1", NetworkMode: task.NetworkHost, Containers: []task.Container{container}}
	known := task.Known{Resources: map[task.ResourceID]*task.Record{
		plan.Container(container.Name): {Phase: task.Present, Started: time.Now(), RuntimeID: "a-1", Handle: task.Handle(`{"cgroup":"/a"}`)},
	}}
	return agenttelemetry.New(agenttelemetry.Config{
		Views:       func() []engine.View { return []engine.View{{Task: of, Known: known}} },
		Hierarchies: stats.Hierarchies{Unified: root}, Interval: time.Second,
		CheckRuntime: func(context.Context) error { return nil }, Log: slog.New(slog.DiscardHandler),
	})
}
