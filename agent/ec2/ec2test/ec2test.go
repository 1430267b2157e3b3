// Package ec2test is an instance metadata service for tests: the second version only,
// with the values that a test gives it.
package ec2test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

const token = "not-a-secret"

// Service is a metadata service.
type Service struct {
	URL string

	mu     sync.Mutex
	values map[string]string
}

// Start starts a service with values by their path below /latest/, such as
// meta-data/instance-id or user-data.
func Start(t testing.TB, values map[string]string) *Service {
	t.Helper()
	s := &Service{values: map[string]string{}}
	for path, value := range values {
		s.values[path] = value
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.URL = server.URL
	return s
}

// Set gives a path a value.
func (s *Service) Set(path, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[path] = value
}

// ServeHTTP answers one request.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/latest/"), "/")
	if r.Method == http.MethodPut && path == "api/token" {
		w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "300")
		io.WriteString(w, token) //nolint:errcheck // the client sees it
		return
	}
	if r.Header.Get("X-Aws-Ec2-Metadata-Token") != token {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	s.mu.Lock()
	value, ok := s.values[path]
	s.mu.Unlock()
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	io.WriteString(w, value) //nolint:errcheck // as above
}
