package events

import (
	"fmt"
	"net/http"
	"time"
)

const (
	// keepAlive is how often a quiet stream says something, so that those between do
	// not take it for dead.
	keepAlive = 15 * time.Second
	// writeTimeout is how long a client may take for what it is sent.
	writeTimeout = 15 * time.Second
)

// Serve answers a request with a stream of server-sent events (HTML standard, section
// 9.2) of one ECS cluster, or of all if its name is empty. The id of an event in the header
// Last-Event-ID makes it go on behind that one. A client that has missed events is sent
// one of type gap first, and should look at the state itself.
func (s *Stream) Serve(w http.ResponseWriter, r *http.Request, cluster string) error {
	var after *Position
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		p, err := ParsePosition(id)
		if err != nil {
			return err
		}
		after = &p
	}
	if !s.enter() {
		w.Header().Set("Retry-After", "10")
		http.Error(w, "too many clients follow the events", http.StatusServiceUnavailable)
		return nil
	}
	defer s.leave()
	control := http.NewResponseController(w)
	// The server's time for a whole request is not for one that stays.
	if err := control.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("stream events: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	place, missed := s.place(after)
	send := func(b []byte) bool {
		if control.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
			return false
		}
		if _, err := w.Write(b); err != nil {
			return false
		}
		return control.Flush() == nil
	}
	first := []byte("retry: 2000\n\n")
	if missed {
		first = append(first, gap...)
	}
	if !send(first) {
		return nil
	}
	s.serve(r, cluster, &place, send)
	return nil
}

const gap = "event: gap\ndata: {}\n\n"

func (s *Stream) serve(r *http.Request, cluster string, place *cursor, send func([]byte) bool) {
	quiet := time.NewTicker(keepAlive)
	defer quiet.Stop()
	for {
		list, lost, wake := s.take(place)
		var b []byte
		if lost > 0 {
			s.counts.lost.WithLabelValues("stream").Add(float64(lost))
			b = append(b, gap...)
		}
		n := 0
		for _, e := range list {
			if cluster == "" || e.Cluster == cluster {
				b = fmt.Appendf(b, "id: %s\ndata: %s\n\n", e.Position, e.JSON())
				n++
			}
		}
		if len(b) > 0 {
			if !send(b) {
				return
			}
			s.counts.sent.WithLabelValues("stream").Add(float64(n))
			quiet.Reset(keepAlive)
		}
		if wake == nil {
			return
		}
		select {
		case <-wake:
		case <-quiet.C:
			if !send([]byte(":\n\n")) {
				return
			}
		case <-s.closing:
			return
		case <-r.Context().Done():
			return
		}
	}
}

func (s *Stream) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readers >= maxReaders {
		return false
	}
	s.readers++
	return true
}

func (s *Stream) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers--
}
