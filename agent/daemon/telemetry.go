package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"berth.dev/berth/agent/ecs"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/agent/tcs"
	"berth.dev/berth/agent/telemetry"
	"berth.dev/berth/otlp"
	"berth.dev/berth/stats"
	wire "berth.dev/berth/wire/tcs"
)

// sampleInterval is the time between two samples unless polling is configured (agent
// protocol, TCS cadence and sampling).
const sampleInterval = time.Second

// startTelemetry has containers watched, and what is seen sent to the cluster and shown
// to Prometheus. It needs the engine, and a session to the cluster only to send.
func (a *agent) startTelemetry(ctx context.Context, g *errgroup.Group) error {
	hierarchies, err := stats.FindHierarchies("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	interval := sampleInterval
	if a.c.Metadata.PollMetrics {
		interval = a.c.Metadata.PollInterval
	}
	var gpus *stats.GPUs
	if program := a.c.Berth.NvidiaSMI; len(a.facts.GPUs) > 0 && program != "off" {
		gpus = stats.NewGPUs(program, interval, a.log)
	}
	a.telemetry = telemetry.New(telemetry.Config{
		GPUs:  gpus,
		Views: a.views, Hierarchies: hierarchies, Interval: interval, CheckRuntime: a.host.client.Ping, Log: a.log,
		Storage: func(t *task.Task) (*wire.EphemeralStorage, []wire.VolumeMetric) { return a.storageUse(ctx, t) },
	})
	if err := a.metrics.Register(a.telemetry.Collector()); err != nil {
		return fmt.Errorf("metrics of containers: %w", err)
	}
	g.Go(func() error { a.telemetry.Run(ctx); return nil })
	if a.c.Metadata.Prometheus {
		g.Go(func() error { return a.servePrometheus(ctx) })
	}
	if endpoint := a.c.Metadata.OTLPEndpoint; endpoint != "" {
		g.Go(func() error {
			return otlp.Run(ctx, otlp.Config{
				Endpoint: endpoint, Metrics: a.metrics, Service: "berth-agent", Version: a.version(), Instance: a.instance().InstanceARN, Log: a.log,
			})
		})
	}
	tlsConfig, err := ecs.TLS(a.c)
	if err != nil {
		return err
	}
	instance := a.instance()
	cl, err := tcs.New(tcs.Config{
		Endpoint:    func(ctx context.Context) (string, error) { return a.ecs.Telemetry(ctx, instance.InstanceARN) },
		Credentials: a.identity, Region: a.c.Cluster.Region, Cluster: instance.Cluster, InstanceARN: instance.InstanceARN,
		AgentVersion: a.o.Version, AgentHash: a.o.Hash, UserAgent: ecs.UserAgent(a.version(), a.facts.OSFamily),
		Source: a.telemetry, NoMetrics: a.c.Metadata.MetricsDisabled, NoHealth: a.c.Metadata.HealthDisabled,
		TLS: tlsConfig, Proxy: ecs.Proxy(a.c), Log: a.log,
	})
	if err != nil {
		return err
	}
	g.Go(func() error { return ignoreCancel(ctx, cl.Run(ctx)) })
	return nil
}

// storageUse is what a task has used of storage that is its own, for the telemetry
// session. What cannot be had is left out.
func (a *agent) storageUse(ctx context.Context, t *task.Task) (own *wire.EphemeralStorage, blocks []wire.VolumeMetric) {
	if used, _, ok := a.storageOf(ctx, t); ok {
		own = &wire.EphemeralStorage{BytesUtilized: wire.NewLongSet(used, used, used, 1)}
	}
	use, err := a.host.volumes.BlockUsage(ctx, t)
	if err != nil {
		a.log.Debug("the use of a block volume cannot be had", "task", t.ID(), "err", err)
	}
	for _, u := range use {
		blocks = append(blocks, wire.VolumeMetric{VolumeID: u.VolumeID, VolumeName: u.Name, Utilized: one(u.Used), Size: one(u.Size)})
	}
	return own, blocks
}

func one(v uint64) *wire.Set {
	f := float64(v)
	return &wire.Set{Min: f, Max: f, Sum: f, SampleCount: 1}
}

// storageOf is how much of its limited storage a task has used, and the limit, in bytes.
func (a *agent) storageOf(ctx context.Context, t *task.Task) (used, limit uint64, ok bool) {
	s := a.storage.Load()
	if s == nil {
		return 0, 0, false // containerd was not there yet
	}
	u, ok, err := s.Usage(ctx, t)
	if err != nil {
		a.log.Debug("the use of limited storage cannot be had", "task", t.ID(), "err", err)
	}
	return u.Used, uint64(t.Storage), ok
}

// prometheusPort is the port that the setting reserves (agent protocol, "Configuration").
const prometheusPort = 51680

// servePrometheus serves the metrics until ctx ends. A port that is taken is reported
// and does not keep tasks from running.
func (a *agent) servePrometheus(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.metrics, promhttp.HandlerOpts{}))
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", prometheusPort))
	if err != nil {
		a.log.Error("metrics are not served", "setting", "ECS_ENABLE_PROMETHEUS_METRICS", "err", err)
		return nil
	}
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { s.Close() }) //nolint:errcheck // there is nobody left to tell
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}
