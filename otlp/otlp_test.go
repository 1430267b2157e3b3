package otlp

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	collector "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"
)

// receiver takes what is pushed with the messages of the protocol itself.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	broken bool
	path   string
	got    chan *collector.ExportMetricsServiceRequest
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{got: make(chan *collector.ExportMetricsServiceRequest, 100)}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.path = req.URL.Path
		if r.broken {
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		body, err := io.ReadAll(req.Body)
		m := new(collector.ExportMetricsServiceRequest)
		if err == nil {
			err = proto.Unmarshal(body, m)
		}
		if err != nil {
			t.Errorf("request: %v", err)
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
		select {
		case r.got <- m:
		default: // the test has seen enough
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) setBroken(broken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = broken
}

// next is the next request that comes.
func (r *receiver) next(t *testing.T) *collector.ExportMetricsServiceRequest {
	t.Helper()
	select {
	case m := <-r.got:
		return m
	case <-time.After(2 * time.Minute):
		t.Fatal("nothing was pushed")
		return nil
	}
}

func start(t *testing.T, c Config) (end func()) {
	t.Helper()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, c) }()
	end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(end)
	return end
}

func attributes(list []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, kv := range list {
		out[kv.GetKey()] = kv.GetValue().GetStringValue()
	}
	return out
}

func TestPush(t *testing.T) {
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=lab")
	r := newReceiver(t)
	registry := prometheus.NewRegistry()
	used := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "berth_container_cpu_usage_seconds_total", Help: "Processor time."}, []string{"task_id"})
	registry.MustRegister(used, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tasks", Help: "Tasks."}, func() float64 { return 3 }))
	used.WithLabelValues("4f2c").Add(1.5)
	end := start(t, Config{Endpoint: r.URL, Metrics: registry, Service: "berth-agent", Version: "1.2.3", Instance: "arn:i", Interval: 10 * time.Millisecond})
	m := r.next(t)
	end()
	if r.path != "/v1/metrics" || len(m.GetResourceMetrics()) != 1 {
		t.Fatalf("at %s: %v", r.path, m)
	}
	rm := m.GetResourceMetrics()[0]
	of := attributes(rm.GetResource().GetAttributes())
	for name, want := range map[string]string{"service.name": "berth-agent", "service.version": "1.2.3", "service.instance.id": "arn:i", "deployment.environment": "lab"} {
		if of[name] != want {
			t.Errorf("%s is %q, want %q", name, of[name], want)
		}
	}
	got := map[string]float64{}
	for _, s := range rm.GetScopeMetrics() {
		for _, m := range s.GetMetrics() {
			for _, p := range m.GetSum().GetDataPoints() {
				if !m.GetSum().GetIsMonotonic() {
					t.Errorf("%s can go back", m.GetName())
				}
				got[m.GetName()+" "+attributes(p.GetAttributes())["task_id"]] = p.GetAsDouble()
			}
			for _, p := range m.GetGauge().GetDataPoints() {
				got[m.GetName()] = p.GetAsDouble()
			}
		}
	}
	if got["berth_container_cpu_usage_seconds_total 4f2c"] != 1.5 || got["tasks"] != 3 {
		t.Errorf("%v", got)
	}
}

// A receiver that refuses is logged once, and pushed to again.
func TestFailuresAreLoggedOnce(t *testing.T) {
	r := newReceiver(t)
	r.setBroken(true)
	var log logged
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "g", Help: "G."}))
	end := start(t, Config{Endpoint: r.URL + "/", Metrics: registry, Interval: time.Millisecond, Log: slog.New(slog.NewTextHandler(&log, nil))})
	log.wait(t, "are not pushed")
	r.setBroken(false)
	r.next(t)
	log.wait(t, "pushed again")
	end()
	if n := strings.Count(log.String(), "are not pushed"); n != 1 {
		t.Errorf("%d lines:\n%s", n, log.String())
	}
}

type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logged) wait(t *testing.T, what string) {
	t.Helper()
	limit := time.After(2 * time.Minute)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(l.String(), what) {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("never logged: %s; but\n%s", what, l.String())
		}
	}
}

func TestEndpoints(t *testing.T) {
	for endpoint, ok := range map[string]bool{"http://127.0.0.1:4318": true, "https://c.example/custom/path": true, "127.0.0.1:4318": false, "grpc://c": false, "http://": false} {
		if err := Check(endpoint); (err == nil) != ok {
			t.Errorf("%s: %v", endpoint, err)
		}
	}
}
