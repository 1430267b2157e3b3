// Package otlp pushes the metrics of a Prometheus registry to an OpenTelemetry receiver,
// in the protocol OTLP over HTTP. It is the official exporter and the official bridge from
// Prometheus; what they read of the environment (OTEL_EXPORTER_OTLP_HEADERS,
// OTEL_EXPORTER_OTLP_CERTIFICATE, OTEL_RESOURCE_ATTRIBUTES and others; OpenTelemetry
// specification, "OTLP exporter configuration") holds.
package otlp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	bridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// DefaultInterval is the time between two pushes.
	DefaultInterval = 15 * time.Second
	// pushLimit bounds one push with its retries.
	pushLimit = 10 * time.Second
	// endLimit bounds the last push.
	endLimit = 2 * time.Second
	// quiet is how often a failure is logged that lasts.
	quiet = 5 * time.Minute
)

// Config says what is pushed, and where to.
type Config struct {
	// Endpoint is the URL of the receiver. Without a path it is that of metrics,
	// /v1/metrics.
	Endpoint string
	Metrics  prometheus.Gatherer
	// Service and Instance name the source: service.name and service.instance.id.
	Service, Version, Instance string
	Interval                   time.Duration // 0 means DefaultInterval
	Log                        *slog.Logger
}

// Check says what is wrong with an endpoint.
func Check(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%.100q is not the URL of an OpenTelemetry receiver, such as http://127.0.0.1:4318", endpoint)
	}
	return nil
}

// Run pushes until ctx ends, and once more then.
func Run(ctx context.Context, c Config) error {
	if err := Check(c.Endpoint); err != nil {
		return err
	}
	if c.Interval <= 0 {
		c.Interval = DefaultInterval
	}
	u, err := url.Parse(c.Endpoint)
	if err != nil {
		return err
	}
	if strings.Trim(u.Path, "/") == "" {
		u.Path = "/v1/metrics"
	}
	exporter, err := otlpmetrichttp.New(ctx, otlpmetrichttp.WithEndpointURL(u.String()), otlpmetrichttp.WithTimeout(pushLimit))
	if err != nil {
		return fmt.Errorf("push metrics to %s: %w", u.Host, err)
	}
	// What the environment says goes over what we say (resource.WithFromEnv comes last).
	of, err := resource.New(ctx, resource.WithAttributes(
		attribute.String("service.name", c.Service), attribute.String("service.version", c.Version), attribute.String("service.instance.id", c.Instance),
	), resource.WithFromEnv())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return fmt.Errorf("push metrics: %w", err)
	}
	p := &pusher{Exporter: exporter, log: c.Log, to: u.Host}
	reader := metric.NewPeriodicReader(p, metric.WithInterval(c.Interval), metric.WithTimeout(pushLimit),
		metric.WithProducer(bridge.NewMetricProducer(bridge.WithGatherer(c.Metrics))))
	provider := metric.NewMeterProvider(metric.WithReader(reader), metric.WithResource(of))
	<-ctx.Done()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer cancel()
	if err := provider.Shutdown(last); err != nil {
		c.Log.Warn("the last metrics were not pushed", "to", u.Host, "err", err)
	}
	return nil
}

// pusher tells the log of failures, which the SDK would tell a logger of the whole process.
// It is used by one goroutine at a time.
type pusher struct {
	metric.Exporter
	log    *slog.Logger
	to     string
	failed time.Time // when a failure was logged that lasts; zero while all is well
}

// Export pushes. A failure is no error to the SDK: the next push has all that this one had.
func (p *pusher) Export(ctx context.Context, m *metricdata.ResourceMetrics) error {
	err := p.Exporter.Export(ctx, m)
	switch {
	case err == nil && !p.failed.IsZero():
		p.failed = time.Time{}
		p.log.Info("metrics are pushed again", "to", p.to)
	case errors.Is(ctx.Err(), context.Canceled): // the SDK breaks one off for the last one
	case err != nil && time.Since(p.failed) > quiet:
		p.failed = time.Now()
		p.log.Warn("metrics are not pushed", "to", p.to, "err", err)
	}
	return nil
}
