package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/fail/control"
	"berth.dev/berth/agent/socket"
	"berth.dev/berth/agent/task"
)

// State is what the debug socket answers to GET /v1/state.
type State struct {
	Version     string    `json:"version"`
	PID         int       `json:"pid"`
	Started     time.Time `json:"started"`
	Cluster     string    `json:"cluster"`
	InstanceARN string    `json:"containerInstanceArn"`
	Connected   bool      `json:"connected"` // the ACS session is up
	Ready       bool      `json:"ready"`
	Tasks       int       `json:"tasks"`
	Outbox      int       `json:"outbox"` // state changes that the cluster has not taken
	Containerd  string    `json:"containerd"`
	// Waiting are the tasks that wait for resources of the host.
	Waiting []engine.Waiting `json:"waiting,omitempty"`
}

// debugServer answers on the agent's debug socket, which only root can open. It tells
// people and tests what the agent knows; it changes nothing but failpoints, and those
// only in programs that were built with them.
type debugServer struct {
	state   func() State
	views   func() []engine.View
	events  func(taskID string) ([]task.Event, error)
	health  func() any
	metrics *prometheus.Registry
	log     *slog.Logger
}

func (d *debugServer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/state", func(w http.ResponseWriter, _ *http.Request) { d.answer(w, d.state()) })
	mux.HandleFunc("GET /v1/tasks", func(w http.ResponseWriter, _ *http.Request) { d.answer(w, d.views()) })
	mux.HandleFunc("GET /v1/health", func(w http.ResponseWriter, _ *http.Request) { d.answer(w, d.health()) })
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) {
		events, err := d.events(r.URL.Query().Get("task"))
		switch {
		case task.ClassOf(err) == task.NotFound:
			http.Error(w, err.Error(), http.StatusNotFound)
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		default:
			d.answer(w, events)
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.metrics, promhttp.HandlerOpts{}))
	mux.Handle("/v1/failpoints/", http.StripPrefix("/v1/failpoints", control.Handler()))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	return mux
}

func (d *debugServer) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		d.log.Debug("debug socket: answer", "err", err)
	}
}

// serve answers on path until ctx ends.
func (d *debugServer) serve(ctx context.Context, path string) error {
	l, err := listenUnix(path)
	if err != nil {
		return err
	}
	s := &http.Server{Handler: d.handler(), ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { s.Close() }) //nolint:errcheck // there is nobody left to tell
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("debug socket: %w", err)
	}
	return nil
}

// listenUnix makes the socket and the directory that it is in.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("debug socket: %w", err)
	}
	l, err := socket.Listen(path)
	if err != nil {
		return nil, fmt.Errorf("debug socket: %w", err)
	}
	return l, nil
}

// dialSocket reaches the debug socket whatever address is asked for.
func dialSocket(path string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
}
