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
	"berth.dev/berth/agent/tcs"
	"berth.dev/berth/agent/telemetry"
	"berth.dev/berth/otlp"
	"berth.dev/berth/stats"
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
	a.telemetry = telemetry.New(telemetry.Config{
		Views: a.views, Hierarchies: hierarchies, Interval: interval, CheckRuntime: a.host.client.Ping, Log: a.log,
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
