// Package cloudwatch answers the part of the Amazon CloudWatch API that reads metrics:
// GetMetricStatistics, GetMetricData and ListMetrics, of the namespaces AWS/ECS and
// ECS/ContainerInsights with their own names and dimensions, so that the aws CLI, SDKs and
// what is built on them see a cluster as they see one at AWS. The numbers are those of
// package series.
//
// Clients speak three protocols, by their age: forms with answers in XML, JSON, and CBOR.
package cloudwatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"berth.dev/berth/cluster/api"
	"berth.dev/berth/cluster/series"
)

const (
	// Version tells the service's forms from those of other services.
	Version = "2010-08-01"
	// Target is what X-Amz-Target begins with, and Path the path of requests in CBOR,
	// each followed by the operation.
	Target = "GraniteServiceVersion20100801."
	Path   = "/service/GraniteServiceVersion20100801/operation/"
	// MaxBody bounds a request in bytes.
	MaxBody = 1 << 20
)

// Config is what a Server is made of.
type Config struct {
	Series *series.Store
	// Authenticate lets a request for a service pass, or refuses it with an *api.Error.
	Authenticate func(r *http.Request, body []byte, service string) error
	// InstanceID is the EC2 id of a container instance, or "".
	InstanceID func(cluster, id string) string
	Now        func() time.Time
	Log        *slog.Logger
}

// A Server answers requests. Make one with New.
type Server struct {
	Config
	operations map[string]func(t tree) (tree, error)
}

// New makes a Server.
func New(c Config) *Server {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.InstanceID == nil {
		c.InstanceID = func(string, string) string { return "" }
	}
	s := &Server{Config: c}
	s.operations = map[string]func(t tree) (tree, error){
		"GetMetricStatistics": s.getMetricStatistics, "GetMetricData": s.getMetricData, "ListMetrics": s.listMetrics,
	}
	return s
}

// ServeForm answers a form whose body has been read. It returns the operation, and the code
// of the error or "".
func (s *Server) ServeForm(w http.ResponseWriter, r *http.Request, body []byte, form url.Values, id string) (operation, code string) {
	return s.serve(w, r, request{query, form.Get("Action"), body, id, func() (tree, error) { return fromForm(form) }})
}

// Serve answers a request in JSON or CBOR whose body has been read, like ServeForm.
func (s *Server) Serve(w http.ResponseWriter, r *http.Request, body []byte, id string) (operation, code string) {
	if name, ok := strings.CutPrefix(r.URL.Path, Path); ok {
		w.Header().Set("Smithy-Protocol", "rpc-v2-cbor")
		return s.serve(w, r, request{rpcCBOR, name, body, id, func() (tree, error) { return fromCBOR(body) }})
	}
	name := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), Target)
	return s.serve(w, r, request{jsonRPC, name, body, id, func() (tree, error) { return fromJSON(body) }})
}

// request is a request in any protocol.
type request struct {
	protocol  protocol
	operation string
	body      []byte
	id        string
	read      func() (tree, error)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, q request) (operation, code string) {
	operation = q.operation
	run, ok := s.operations[operation]
	if !ok {
		operation = "unknown"
	}
	out, err := s.perform(r, q, run)
	if err != nil {
		e := s.failedOf(r.Context(), err)
		w.Header().Set("X-Amzn-Query-Error", e.code+";"+e.fault())
		kind, body, err := encodeError(q.protocol, e, q.id)
		s.write(w, e.status, kind, body, err)
		return operation, e.code
	}
	kind, body, err := encode(q.protocol, operation, q.id, out)
	s.write(w, http.StatusOK, kind, body, err)
	return operation, ""
}

func (s *Server) perform(r *http.Request, q request, run func(tree) (tree, error)) (out tree, err error) {
	if err := s.Authenticate(r, q.body, "monitoring"); err != nil {
		if e, ok := errors.AsType[*api.Error](err); ok {
			return nil, &failed{e.Code, e.Code, e.Message, e.Status}
		}
		return nil, err
	}
	if run == nil {
		return nil, refused("InvalidAction", "InvalidAction", "Could not find operation %s for version %s", clip(q.operation), Version)
	}
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("operation panicked", "operation", q.operation, "err", p, "stack", string(debug.Stack()))
			err = errors.New("panic")
		}
	}()
	t, err := q.read()
	if err != nil {
		return nil, err
	}
	return run(t)
}

func (s *Server) failedOf(ctx context.Context, err error) *failed {
	if e, ok := errors.AsType[*failed](err); ok {
		return e
	}
	if ctx.Err() == nil {
		s.Log.Error("operation failed", "err", err)
	}
	return &failed{"InternalServiceError", "InternalServiceFault", "Internal error.", http.StatusInternalServerError}
}

func (s *Server) write(w http.ResponseWriter, status int, kind string, body []byte, err error) {
	if err != nil {
		s.Log.Error("answer not encoded", "err", err)
		status, body = http.StatusInternalServerError, nil
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		s.Log.Debug("answer not written", "err", err)
	}
}
