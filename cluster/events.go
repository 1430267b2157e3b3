package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"berth.dev/berth/cluster/api"
	"berth.dev/berth/cluster/events"
	"berth.dev/berth/cluster/store"
)

// Events says to whom state changes of tasks and container instances are told, besides
// those who ask for the stream.
type Events struct {
	// File gets them as lines of JSON. It is rotated at 16 MiB, eight are kept.
	File string
	// Webhooks are URLs that each is posted to. @ and a path names a file with the URL,
	// for one that is a secret.
	Webhooks []string
	// WebhookKeyFile holds the key that what is posted is signed with.
	WebhookKeyFile string
}

// maxWebhookKey bounds the key in bytes.
const maxWebhookKey = 4096

// key reads the key that webhooks are signed with; nil means none.
func (e *Events) key() ([]byte, error) {
	if e.WebhookKeyFile == "" {
		return nil, nil
	}
	key, err := readWord(e.WebhookKeyFile)
	if err != nil {
		return nil, fmt.Errorf("key of the webhooks for events: %w", err)
	}
	if len(key) < 16 || len(key) > maxWebhookKey {
		return nil, fmt.Errorf("the key of the webhooks for events in %s must have 16 to %d bytes", e.WebhookKeyFile, maxWebhookKey)
	}
	return key, nil
}

// readWord reads a small file without the space around its text.
func readWord(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(io.LimitReader(f, maxWebhookKey+1))
	return bytes.TrimSpace(b), err
}

// webhooks are the URLs, those in files read.
func (e *Events) webhooks() ([]string, error) {
	out := make([]string, len(e.Webhooks))
	for i, target := range e.Webhooks {
		out[i] = target
		if path, ok := strings.CutPrefix(target, "@"); ok {
			b, err := readWord(path)
			if err != nil {
				return nil, fmt.Errorf("URL of a webhook for events: %w", err)
			}
			out[i] = string(b)
		}
	}
	return out, nil
}

func (s *Server) openEvents(ctx context.Context) error {
	c := s.config
	key, err := c.Events.key()
	if err != nil {
		return err
	}
	webhooks, err := c.Events.webhooks()
	if err != nil {
		return err
	}
	s.events, err = events.Open(ctx, events.Config{
		Store: s.store, Region: c.Region, Account: c.Account, Instance: api.ShowInstance,
		File: c.Events.File, Webhooks: webhooks, WebhookKey: key, Metrics: s.metrics.registry, Log: c.Log,
	})
	return err
}

// serveEvents streams state changes, of one ECS cluster if the query names it. Only the
// operator may ask.
func (s *Server) serveEvents(w http.ResponseWriter, r *http.Request) {
	if err := s.operatorOnly(r, nil, "follow events"); err != nil {
		s.refuse(w, "events not told", err)
		return
	}
	cluster := r.URL.Query().Get("cluster")
	if i := strings.LastIndexByte(cluster, '/'); i >= 0 { // an ARN
		cluster = cluster[i+1:]
	}
	if cluster != "" {
		known := false
		s.store.View(func(r store.Reader) { _, known = store.Get(r, store.Clusters, cluster) })
		if !known {
			s.refuse(w, "events not told", &api.Error{Code: "ClusterNotFoundException", Message: "Cluster not found.", Status: http.StatusBadRequest})
			return
		}
	}
	switch err := s.events.Serve(w, r, cluster); {
	case errors.Is(err, events.ErrPosition):
		s.refuse(w, "events not told", &api.Error{Code: "InvalidParameterException", Message: "Last-Event-ID is not the id of an event.", Status: http.StatusBadRequest})
	case err != nil:
		s.refuse(w, "events not told", err)
	}
}
