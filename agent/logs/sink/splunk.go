package sink

import (
	"bytes"
	"cmp"
	"compress/flate"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// splunk posts events to Splunk's HTTP Event Collector.
type splunk struct {
	client *http.Client
	url    string
	token  string
	gzip   bool
	level  int
	format string
	tag    string
	extra  map[string]string
	head   splunkEvent
	verify string // URL to ask before anything is sent; "" when that is done
}

// splunkEvent is one event of the collector (Splunk, "Format events for HTTP Event
// Collector").
type splunkEvent struct {
	Event      any    `json:"event"`
	Time       string `json:"time"`
	Host       string `json:"host"`
	Source     string `json:"source,omitempty"`
	SourceType string `json:"sourcetype,omitempty"`
	Index      string `json:"index,omitempty"`
}

type splunkLine struct {
	Line   any               `json:"line"`
	Source string            `json:"source"`
	Tag    string            `json:"tag,omitempty"`
	Attrs  map[string]string `json:"attrs,omitempty"`
}

func newSplunk(c Config) (*splunk, error) {
	o := c.Options
	tag, err := c.tag("{{.ID}}")
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	t, err := tlsConfig(o["splunk-capath"], "", "", truth(o["splunk-insecureskipverify"]))
	if err != nil {
		return nil, fmt.Errorf("log option splunk-capath: %w", err)
	}
	t.ServerName = o["splunk-caname"]
	base := strings.TrimSuffix(o["splunk-url"], "/")
	s := &splunk{
		url: base + "/services/collector/event/1.0", token: o["splunk-token"], gzip: truth(o["splunk-gzip"]), level: flate.DefaultCompression,
		format: cmp.Or(o["splunk-format"], "inline"), tag: tag, extra: c.Stream.Extra, client: httpClient(t),
		head: splunkEvent{Host: host, Source: o["splunk-source"], SourceType: o["splunk-sourcetype"], Index: o["splunk-index"]},
	}
	if v, ok := o["splunk-verify-connection"]; !ok || truth(v) {
		s.verify = s.url
	}
	if v := o["splunk-gzip-level"]; v != "" {
		if s.level, err = strconv.Atoi(v); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// httpClient is one that gives up on a destination that does not answer.
func httpClient(t *tls.Config) *http.Client {
	return &http.Client{Timeout: replyTimeout, Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: t, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 1,
		TLSHandshakeTimeout: dialTimeout, IdleConnTimeout: 90 * time.Second,
	}}
}

func (s *splunk) Linger() time.Duration { return time.Second }

func (s *splunk) Close() error {
	s.client.CloseIdleConnections()
	return nil
}

func (s *splunk) Send(ctx context.Context, records []Record, _ bool) (int, error) {
	if s.verify != "" {
		// Refuses a wrong token with words of its own before events are at stake.
		if err := s.ask(ctx); err != nil {
			return 0, err
		}
		s.verify = ""
	}
	var body bytes.Buffer
	for i := range records {
		e, ok := s.event(&records[i])
		if !ok {
			continue
		}
		b, err := json.Marshal(e)
		if err != nil {
			return i, &Refused{N: 1, Err: err}
		}
		body.Write(b)
	}
	if body.Len() == 0 {
		return len(records), nil
	}
	if err := s.post(ctx, &body, len(records)); err != nil {
		return 0, err
	}
	return len(records), nil
}

func (s *splunk) event(r *Record) (splunkEvent, bool) {
	e := s.head
	e.Time = fmt.Sprintf("%f", float64(r.Time.UnixNano())/1e9)
	switch s.format {
	case "raw":
		if strings.TrimSpace(r.Line) == "" {
			return e, false
		}
		var prefix strings.Builder
		if s.tag != "" {
			prefix.WriteString(s.tag + " ")
		}
		for k, v := range s.extra {
			prefix.WriteString(k + "=" + v + " ")
		}
		e.Event = prefix.String() + r.Line
	default:
		l := splunkLine{Line: r.Line, Source: r.Stream, Tag: s.tag, Attrs: s.extra}
		if s.format == "json" && json.Valid([]byte(r.Line)) {
			l.Line = json.RawMessage(r.Line)
		}
		e.Event = l
	}
	return e, true
}

func (s *splunk) request(ctx context.Context, method, url string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err == nil {
		req.Header.Set("Authorization", "Splunk "+s.token)
	}
	return req, err
}

// ask looks whether there is a collector.
func (s *splunk) ask(ctx context.Context) error {
	req, err := s.request(ctx, http.MethodOptions, s.verify, nil)
	if err != nil {
		return err
	}
	_, err = s.answer(req)
	return err
}

func (s *splunk) post(ctx context.Context, body *bytes.Buffer, n int) error {
	var z bytes.Buffer
	if s.gzip {
		w, err := gzip.NewWriterLevel(&z, s.level)
		if err == nil {
			_, err = body.WriteTo(w)
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			return err
		}
		body = &z
	}
	req, err := s.request(ctx, http.MethodPost, s.url, body)
	if err != nil {
		return err
	}
	if s.gzip {
		req.Header.Set("Content-Encoding", "gzip")
	}
	status, err := s.answer(req)
	if err != nil && status == http.StatusBadRequest {
		return &Refused{N: n, Err: err}
	}
	return err
}

// answer carries a request out. The token is in no error.
func (s *splunk) answer(req *http.Request) (int, error) {
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp.StatusCode, nil
	}
	return resp.StatusCode, errors.Join(fmt.Errorf("%s: %s: %s", req.URL.Host, resp.Status, strings.TrimSpace(string(text))), err)
}
