package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"berth.dev/berth/cluster/api"
	"berth.dev/berth/cluster/cloudwatch"
	"berth.dev/berth/wire/update"
)

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/{$}", s.faulty(s.byTarget(s.api)))
	mux.HandleFunc("POST "+cloudwatch.Path+"{operation}", s.serveCloudWatch)
	mux.Handle("GET /ws", s.acs)
	mux.Handle("GET /tcs/ws", s.tcs)
	s.joinRoutes(mux)
	mux.HandleFunc("GET /berth/v1/usage", s.serveUsage)
	mux.HandleFunc("GET /berth/v1/events", s.serveEvents)
	mux.HandleFunc("GET "+update.Path+"{file}", s.servePackage)
	all := http.NewServeMux()
	all.Handle("/", s.inStep(mux))
	all.HandleFunc("GET /health", s.serveHealth)
	all.Handle("GET /metrics", s.metrics.handler())
	return all
}

// inStepLimit is how long a request may wait for the records.
const inStepLimit = 5 * time.Second

// inStep has every request see what any process of the cluster has answered before it. An
// agent that registers by one process opens its session with another, and what it says of
// a task that another has placed a moment ago must not be refused: agents take a refusal
// for the last word.
func (s *Server) inStep(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), inStepLimit)
		err := s.store.Sync(ctx)
		cancel()
		if r.Context().Err() != nil {
			return // nobody waits for the answer any more
		}
		if err != nil {
			s.log.Warn("a request is refused because the records cannot be reached", "err", err)
			e := api.Error{Code: "ServerException", Message: "The records of the cluster cannot be reached. Please try again later.", Status: http.StatusServiceUnavailable}
			e.Write(w)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// byTarget finds the service that a request in JSON is for.
func (s *Server) byTarget(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && strings.HasPrefix(r.Header.Get("X-Amz-Target"), cloudwatch.Target) {
			s.serveCloudWatch(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// faulty applies Faults.SubmitStatus.
func (s *Server) faulty(next http.Handler) http.Handler {
	status := s.config.Faults.SubmitStatus
	if status == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
		if strings.HasPrefix(operation, "Submit") {
			if code := status(operation); code != 0 {
				e := api.Error{Code: "ServerException", Message: "injected fault", Status: code}
				if code < http.StatusInternalServerError {
					e.Code = "ClientException"
				}
				e.Write(w)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// serveHealth tells whether records can be read and written.
func (s *Server) serveHealth(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	status, text := http.StatusOK, "ok"
	if err := s.store.Ping(ctx); err != nil {
		status, text = http.StatusServiceUnavailable, "the store does not answer"
		s.log.Warn("unhealthy", "err", err)
	}
	s.answer(w, status, map[string]string{"status": text})
}

// servePackage hands a package to an agent, or to the operator.
func (s *Server) servePackage(w http.ResponseWriter, r *http.Request) {
	caller, err := s.api.Authenticate(r, nil, "ecs")
	if err == nil && caller.Kind == api.Role {
		err = &api.Error{Code: "AccessDeniedException", Message: "Only agents and the operator may fetch packages.", Status: http.StatusForbidden}
	}
	if err != nil {
		s.refuse(w, "package", err)
		return
	}
	s.packages.Serve(w, r, r.PathValue("file"))
}

// operatorOnly refuses a request that is not signed with the operator's key.
func (s *Server) operatorOnly(r *http.Request, body []byte, what string) error {
	caller, err := s.api.Authenticate(r, body, "ecs")
	if err == nil && caller.Kind != api.Operator {
		err = &api.Error{Code: "AccessDeniedException", Message: "Only the operator's key may " + what + ".", Status: http.StatusForbidden}
	}
	return err
}

// refuse answers with err, which is shown only if it was made to be.
func (s *Server) refuse(w http.ResponseWriter, what string, err error) {
	var refused *api.Error
	if !errors.As(err, &refused) {
		s.log.Error(what, "err", err)
		refused = &api.Error{Code: "ServerException", Message: "Service Unavailable. Please try again later.", Status: http.StatusInternalServerError}
	}
	refused.Write(w)
}

func (s *Server) answer(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, nil
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if _, err := w.Write(append(b, '\n')); err != nil {
		s.log.Debug("answer not written", "err", err)
	}
}
