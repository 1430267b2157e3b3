package events

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"berth.dev/berth/cluster/journal"
)

const (
	// firstDelay and maxDelay are the pauses between attempts, which double.
	firstDelay = time.Second
	maxDelay   = time.Minute
	// giveUp is how long one event is tried to be posted.
	giveUp = time.Hour
	// postTimeout is how long one attempt may take.
	postTimeout = 10 * time.Second
	// lastTime is what is left for a sink once there are no more events.
	lastTime = 2 * time.Second
	// maxWebhooks bounds the list, each of which has a goroutine and a connection.
	maxWebhooks = 16
)

// A sink hands events on.
type sink struct {
	name string // for logs and counts
	to   string
	// size is how many events send gets at most at once.
	size int
	// patience is how long one batch is tried; 0 means as long as it takes.
	patience time.Duration
	send     func(ctx context.Context, list []*Event) error
	close    func() error
}

// errRefused is a failure that trying again does not help.
var errRefused = errors.New("refused")

func (s *Stream) sinks() ([]*sink, error) {
	var out []*sink
	if len(s.config.Webhooks) > maxWebhooks {
		return nil, fmt.Errorf("events go to at most %d webhooks, not %d", maxWebhooks, len(s.config.Webhooks))
	}
	for _, target := range s.config.Webhooks {
		k, err := webhook(target, s.config.WebhookKey)
		if err != nil {
			return nil, err
		}
		out = append(out, k)
	}
	if s.config.File != "" {
		f, err := journal.Open(journal.Config{Path: s.config.File, Size: s.config.FileSize, Files: DefaultFiles})
		if err != nil {
			return nil, fmt.Errorf("file for events: %w", err)
		}
		out = append(out, &sink{name: "file", to: s.config.File, size: batch, close: f.Close, send: func(_ context.Context, list []*Event) error {
			var b []byte
			for _, e := range list {
				b = append(append(b, e.JSON()...), '\n')
			}
			return f.Write(b)
		}})
	}
	return out, nil
}

// webhook posts events one by one, in order. It follows no redirects.
func webhook(target string, key []byte) (*sink, error) {
	u, err := url.Parse(target)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return nil, errors.New("a webhook for events must be an http or https URL")
	case u.User != nil:
		return nil, fmt.Errorf("the webhook at %s must not have a password in its URL; sign events with a key instead", u.Host)
	}
	client := &http.Client{
		Timeout:       postTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	post := func(ctx context.Context, e *Event) error {
		body := e.JSON()
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
		if err != nil {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("User-Agent", "berth")
		if key != nil {
			mac := hmac.New(sha256.New, key)
			mac.Write(body)
			r.Header.Set("Berth-Signature", "sha256="+hex.EncodeToString(mac.Sum(nil)))
		}
		resp, err := client.Do(r)
		if err != nil {
			if ue, ok := errors.AsType[*url.Error](err); ok {
				err = ue.Err // without the URL, whose query may be a secret
			}
			return err
		}
		defer resp.Body.Close() //nolint:errcheck // nothing was written to it
		if _, err := io.CopyN(io.Discard, resp.Body, 64<<10); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		switch code := resp.StatusCode; {
		case code < 300:
			return nil
		case code >= 500 || code == http.StatusTooManyRequests || code == http.StatusRequestTimeout:
			return fmt.Errorf("answered with status %d", code)
		default:
			return fmt.Errorf("%w with status %d", errRefused, code)
		}
	}
	return &sink{
		name: "webhook", to: u.Scheme + "://" + u.Host, // paths of some services are secrets
		size: 1, patience: giveUp,
		send:  func(ctx context.Context, list []*Event) error { return post(ctx, list[0]) },
		close: func() error { client.CloseIdleConnections(); return nil },
	}, nil
}

// follow hands events to a sink until there are no more.
func (s *Stream) follow(ctx context.Context, k *sink) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.work.Go(func() { s.bound(ctx, cancel) })
	var place cursor
	for {
		list, lost, wake := s.take(&place)
		if lost > 0 {
			s.lose(k, lost, errors.New("events came faster than they could be handed on"))
		}
		for len(list) > 0 {
			n := min(k.size, len(list))
			if err := s.hand(ctx, k, list[:n]); err != nil {
				s.lose(k, uint64(n), err)
			} else {
				s.counts.sent.WithLabelValues(k.name).Add(float64(n))
			}
			list = list[n:]
		}
		if wake == nil {
			break
		}
		<-wake
	}
	if err := k.close(); err != nil {
		s.log.Error("events not closed", "way", k.name, "to", k.to, "err", err)
	}
}

// bound ends a sink's attempts a little after the last event.
func (s *Stream) bound(ctx context.Context, cancel func()) {
	for {
		s.mu.Lock()
		ended, wake := s.ended, s.wake
		s.mu.Unlock()
		if ended {
			break
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return
		}
	}
	select {
	case <-time.After(lastTime):
		cancel()
	case <-ctx.Done():
	}
}

func (s *Stream) lose(k *sink, n uint64, err error) {
	s.counts.lost.WithLabelValues(k.name).Add(float64(n))
	s.log.Error("events lost", "way", k.name, "to", k.to, "count", n, "err", err)
}

// hand sends until it is done, refused, or too late.
func (s *Stream) hand(ctx context.Context, k *sink, list []*Event) error {
	start, delay := time.Now(), firstDelay
	for attempt := 1; ; attempt++ {
		err := k.send(ctx, list)
		if err == nil {
			if attempt > 1 {
				s.log.Info("events are handed on again", "way", k.name, "to", k.to, "attempt", attempt)
			}
			return nil
		}
		late := k.patience > 0 && time.Since(start)+delay > k.patience
		if errors.Is(err, errRefused) || late || ctx.Err() != nil {
			return err
		}
		if attempt == 1 {
			s.log.Warn("events cannot be handed on, trying again", "way", k.name, "to", k.to, "err", err)
		}
		select {
		case <-time.After(delay + rand.N(delay/4)):
		case <-ctx.Done():
			return err
		}
		delay = min(2*delay, maxDelay)
	}
}
