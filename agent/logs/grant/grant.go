// Package grant is how the shipper gets from the agent what only the agent may have in
// its hands: the values of secret log options, and credentials for the services that
// logs are sent to. They go over a unix socket that only root can open, into memory, and
// are asked for again when they are about to expire. They are on no command line, in no
// environment and in no file.
package grant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"berth.dev/berth/agent/socket"
)

// Grant is what one stream is given.
type Grant struct {
	Options map[string]string `json:"options,omitempty"` // secret ones, with their values
	Region  string            `json:"region,omitempty"`  // the agent's

	AccessKeyID     string    `json:"accessKeyId,omitempty"`
	SecretAccessKey string    `json:"secretAccessKey,omitempty"`
	SessionToken    string    `json:"sessionToken,omitempty"`
	Expires         time.Time `json:"expires,omitzero"`
}

// Ask is what a stream asks for.
type Ask struct {
	TaskID, Container string
	// Credentials asks for those of the task's execution role if Execution is set, and
	// else of the instance.
	Credentials, Execution bool
	Secrets                bool
}

// maxAnswer bounds an answer in bytes.
const maxAnswer = 1 << 20

// timeout of one exchange. The agent may have to ask others.
const timeout = 90 * time.Second

// Client asks the agent.
type Client struct{ http http.Client }

// NewClient is for the agent that listens on a socket.
func NewClient(socket string) *Client {
	return &Client{http.Client{Timeout: timeout, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true, // it is seldom asked
	}}}
}

// Get asks for a grant.
func (c *Client) Get(ctx context.Context, a Ask) (Grant, error) {
	q := url.Values{"task": {a.TaskID}, "container": {a.Container}}
	for name, on := range map[string]bool{"credentials": a.Credentials, "execution": a.Execution, "secrets": a.Secrets} {
		if on {
			q.Set(name, "true")
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/v1/grant?"+q.Encode(), nil)
	if err != nil {
		return Grant{}, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return Grant{}, fmt.Errorf("the agent does not answer: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return Grant{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return Grant{}, fmt.Errorf("the agent refuses: %s", strings.TrimSpace(string(body)))
	}
	var g Grant
	if err := json.Unmarshal(body, &g); err != nil {
		return Grant{}, errors.New("the agent's answer cannot be read") // it may hold secrets
	}
	return g, nil
}

// Serve answers on the socket at path until ctx ends. give's errors are shown to the shipper and,
// through it, to people; they hold no secret.
func Serve(ctx context.Context, path string, give func(context.Context, Ask) (Grant, error), log *slog.Logger) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return fmt.Errorf("socket for logs: %w", err)
	}
	l, err := socket.Listen(path)
	if err != nil {
		return fmt.Errorf("socket for logs: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/grant", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		g, err := give(r.Context(), Ask{
			TaskID: q.Get("task"), Container: q.Get("container"), Credentials: q.Get("credentials") != "",
			Execution: q.Get("execution") != "", Secrets: q.Get("secrets") != "",
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(g); err != nil {
			log.Debug("socket for logs: answer", "err", err)
		}
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { s.Close() }) //nolint:errcheck // there is nobody left to tell
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("socket for logs: %w", err)
	}
	return nil
}
