package sink

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/tinylib/msgp/msgp"

	"berth.dev/berth/agent/logs"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 250e6, time.UTC)

func stream(driver string) *logs.Stream {
	return &logs.Stream{
		TaskID: "0123456789abcdef", Container: "web", Driver: driver, ID: "00112233445566778899aabbccddeeff", Name: "ecs-fam-7-web-0011",
		Image: "busybox:1", Created: noon, Extra: map[string]string{"team": "blue"},
	}
}

func open(t *testing.T, driver string, options map[string]string) Sink {
	t.Helper()
	s, err := New(Config{Stream: stream(driver), Options: options, Region: "eu-west-1", JournalPath: options["journal"], Credentials: func(context.Context) (Credentials, error) {
		return Credentials{AccessKeyID: "AKIA", SecretAccessKey: "s", SessionToken: "t", Expires: time.Now().Add(time.Hour)}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() }) //nolint:errcheck // what it sent has been looked at
	return s
}

func records(lines ...string) (out []Record) {
	for i, l := range lines {
		r := Record{Line: l, Stream: "stdout", Time: noon.Add(time.Duration(i) * time.Second)}
		if strings.HasPrefix(l, "!") {
			r.Stream = "stderr"
		}
		out = append(out, r)
	}
	return out
}

func send(t *testing.T, s Sink, rs []Record) {
	t.Helper()
	if n, err := s.Send(t.Context(), rs, false); n != len(rs) || err != nil {
		t.Fatalf("%d of %d sent: %v", n, len(rs), err)
	}
}

// listen takes one connection after the other and hands over what serve makes of each.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	open.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open.Go(func() { defer c.Close(); serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); open.Wait() })
	return l.Addr().String()
}

func TestSyslogFormats(t *testing.T) {
	for format, want := range map[string][]string{
		"":             {"<30>", " 001122334455[", "]: hello"},
		"rfc3164":      {"<30>", "]: hello"},
		"rfc5424":      {"<30>1 " + noon.Local().Format("2006-01-02T15:04:05Z07:00") + " ", " 001122334455 ", " - hello"},
		"rfc5424micro": {"<30>1 " + noon.Local().Format("2006-01-02T15:04:05.000000Z07:00") + " ", " - hello"},
	} {
		got := make(chan string, 2)
		addr := listen(t, func(c net.Conn) {
			for sc := bufio.NewScanner(c); sc.Scan(); {
				got <- sc.Text()
			}
		})
		s := open(t, logs.Syslog, map[string]string{"syslog-address": "tcp://" + addr, "syslog-format": format})
		send(t, s, records("hello", "!bad"))
		line, bad := <-got, <-got
		for _, part := range want {
			if !strings.Contains(line, part) {
				t.Errorf("%s: %q has no %q", format, line, part)
			}
		}
		if !strings.HasPrefix(bad, "<27>") {
			t.Errorf("%s: an error is %q", format, bad)
		}
		s.Close()
	}
}

func TestSyslogToASocketOfTheHost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := open(t, logs.Syslog, map[string]string{"syslog-address": "unixgram://" + path, "syslog-facility": "local0", "tag": "a b:c"})
	send(t, s, records("hello"))
	b := make([]byte, 1000)
	n, err := c.Read(b)
	if got := string(b[:n]); err != nil || !strings.HasPrefix(got, "<134>") || !strings.Contains(got, " a_b_c[") || !strings.HasSuffix(got, "]: hello") {
		t.Errorf("%q, %v", got, err)
	}
}

func TestGELFOverTCPAndUDP(t *testing.T) {
	check := func(name string, b []byte) {
		t.Helper()
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatalf("%s: %v: %q", name, err, b)
		}
		if m["version"] != "1.1" || m["short_message"] == "" || m["_team"] != "blue" || m["_container_name"] != "ecs-fam-7-web-0011" || m["level"] != 6.0 {
			t.Errorf("%s: %v", name, m)
		}
	}
	frames := make(chan []byte, 1)
	addr := listen(t, func(c net.Conn) {
		if b, err := bufio.NewReader(c).ReadBytes(0); err == nil {
			frames <- b[:len(b)-1]
		}
	})
	send(t, open(t, logs.GELF, map[string]string{"gelf-address": "tcp://" + addr}), records("hello", "  "))
	check("TCP", <-frames)

	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := open(t, logs.GELF, map[string]string{"gelf-address": "udp://" + c.LocalAddr().String()})
	send(t, s, records("hello"))
	b := make([]byte, 65536)
	n, _, err := c.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(b[:n]))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	check("UDP", plain)

	// A message in parts, uncompressed; one that is too long for them is refused for good.
	s = open(t, logs.GELF, map[string]string{"gelf-address": "udp://" + c.LocalAddr().String(), "gelf-compression-type": "none"})
	send(t, s, records(strings.Repeat("x", 3000)))
	var whole []byte
	for i := 0; ; i++ {
		n, _, err := c.ReadFrom(b)
		if err != nil || n < 13 || b[0] != 0x1e || b[1] != 0x0f || int(b[10]) != i {
			t.Fatalf("part %d: %x, %v", i, b[:min(n, 12)], err)
		}
		whole = append(whole, b[12:n]...)
		if i+1 == int(b[11]) {
			break
		}
	}
	check("parts", whole)
	var refused *Refused
	if n, err := s.Send(t.Context(), records(strings.Repeat("x", 200_000), "y"), false); n != 0 || !errors.As(err, &refused) || refused.N != 1 {
		t.Errorf("a message that is too long: %d, %v", n, err)
	}
}

func TestJournald(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := open(t, logs.Journald, map[string]string{"journal": path})
	rs := records("!two\nlines")
	rs[0].Part = &Part{ID: "p", Ordinal: 1}
	send(t, s, rs)
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"PRIORITY=3\n", "TEAM=blue\n", "CONTAINER_PARTIAL_MESSAGE=true\n", "MESSAGE\n\x0a\x00\x00\x00\x00\x00\x00\x00!two\nlines"} {
		if !strings.Contains(string(b[:n]), want) {
			t.Errorf("%q has no %q", b[:n], want)
		}
	}
	for name, want := range map[string]string{"a.b-c": "A_B_C", "__x": "X", "9lives": "LIVES", "é": "", strings.Repeat("a", 70): strings.Repeat("A", 64)} {
		if got := fieldName(name); got != want {
			t.Errorf("field %q is %q, want %q", name, got, want)
		}
	}
}

func TestFluentdWaitsForItsAcknowledgement(t *testing.T) {
	answer := make(chan string, 1)
	got := make(chan []any, 1)
	addr := listen(t, func(c net.Conn) {
		r := msgp.NewReader(c)
		for {
			v, err := r.ReadIntf()
			m, ok := v.([]any)
			if err != nil || !ok {
				return
			}
			got <- m
			option, ok := m[2].(map[string]any)
			if !ok {
				return
			}
			ack, ok := option["chunk"].(string)
			if !ok {
				return
			}
			if a := <-answer; a != "" {
				ack = a
			}
			b := msgp.AppendString(msgp.AppendMapHeader(nil, 2), "other")
			b = msgp.AppendString(msgp.AppendInt(b, 1), "ack")
			if _, err := c.Write(msgp.AppendString(b, ack)); err != nil {
				return
			}
		}
	})
	s := open(t, logs.Fluentd, map[string]string{"fluentd-address": addr, "fluentd-request-ack": "true", "tag": "t"})
	answer <- ""
	rs := records("one", "!two")
	rs[1].Part = &Part{ID: "p", Ordinal: 2, Last: true}
	send(t, s, rs)
	m := <-got
	if m[0] != "t" || len(m[1].([]any)) != 2 {
		t.Errorf("message %v", m)
	}
	second := m[1].([]any)[1].([]any)[1]
	want := map[string]any{
		"container_id": "00112233445566778899aabbccddeeff", "container_name": "/ecs-fam-7-web-0011", "source": "stderr", "log": "!two", "team": "blue",
		"partial_message": "true", "partial_id": "p", "partial_ordinal": "2", "partial_last": "true",
	}
	if diff := cmp.Diff(any(want), second); diff != "" {
		t.Error(diff)
	}
	answer <- "of another chunk"
	if n, err := s.Send(t.Context(), rs, false); n != 0 || err == nil || !strings.Contains(err.Error(), "of another chunk") {
		t.Errorf("a wrong acknowledgement: %d, %v", n, err)
	}
	<-got
	answer <- ""
	send(t, s, rs) // by a new connection
}

func TestSplunk(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	status := http.StatusOK
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(r.Body)
			if err != nil {
				t.Error(err)
				return
			}
			body = z
		}
		b, err := io.ReadAll(body)
		if err != nil {
			t.Error(err)
		}
		asked = append(asked, r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization")+" "+string(b))
		w.WriteHeader(status)
	}))
	defer h.Close()
	for format, want := range map[string]string{
		"inline": `{"event":{"line":"{\"a\":1}","source":"stdout","tag":"001122334455","attrs":{"team":"blue"}},"time":"1795435200.250000"`,
		"json":   `{"event":{"line":{"a":1},"source":"stdout"`,
		"raw":    `{"event":"001122334455 team=blue {\"a\":1}"`,
	} {
		asked = nil
		s := open(t, logs.Splunk, map[string]string{"splunk-url": h.URL, "splunk-token": "secret-token", "splunk-format": format, "splunk-gzip": "true", "splunk-index": "main"})
		send(t, s, records(`{"a":1}`))
		mu.Lock()
		if len(asked) != 2 || !strings.HasPrefix(asked[0], "OPTIONS /services/collector/event/1.0 Splunk secret-token") || !strings.Contains(asked[1], want) {
			t.Errorf("%s: %q, want %s", format, asked, want)
		}
		mu.Unlock()
	}
	s := open(t, logs.Splunk, map[string]string{"splunk-url": h.URL, "splunk-token": "secret-token", "splunk-verify-connection": "false"})
	for code, gone := range map[int]bool{http.StatusBadRequest: true, http.StatusForbidden: false, http.StatusServiceUnavailable: false} {
		mu.Lock()
		status = code
		mu.Unlock()
		var refused *Refused
		n, err := s.Send(t.Context(), records("x"), false)
		if n != 0 || err == nil || errors.As(err, &refused) != gone || strings.Contains(err.Error(), "secret-token") {
			t.Errorf("answer %d: %d, %v", code, n, err)
		}
	}
}

// cloudWatch is the little of CloudWatch Logs that the sink uses.
type cloudWatch struct {
	mu     sync.Mutex
	groups map[string]bool
	calls  []string
	events []string
	refuse string // the type of the error that PutLogEvents answers with
}

func (c *cloudWatch) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	var in struct {
		LogGroupName, LogStreamName string
		LogEvents                   []struct {
			Message   string
			Timestamp int64
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	c.calls = append(c.calls, op+" "+in.LogGroupName+" "+in.LogStreamName)
	fail := func(kind string) {
		w.Header().Set("X-Amzn-Errortype", kind)
		w.WriteHeader(http.StatusBadRequest)
		io.WriteString(w, `{"__type":"`+kind+`","message":"made to fail"}`) //nolint:errcheck // a test sees it
	}
	switch {
	case op == "CreateLogGroup":
		c.groups[in.LogGroupName] = true
	case op == "CreateLogStream" && !c.groups[in.LogGroupName]:
		fail("ResourceNotFoundException")
		return
	case op == "PutLogEvents" && c.refuse != "":
		fail(c.refuse)
		return
	case op == "PutLogEvents":
		for _, e := range in.LogEvents {
			c.events = append(c.events, strconv.FormatInt(e.Timestamp%100000, 10)+" "+e.Message)
		}
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	io.WriteString(w, "{}") //nolint:errcheck // a test sees it
}

func TestAwslogs(t *testing.T) {
	cw := &cloudWatch{groups: map[string]bool{}}
	h := httptest.NewServer(cw)
	defer h.Close()
	o := map[string]string{"awslogs-group": "g", "awslogs-stream-prefix": "p", "awslogs-endpoint": h.URL}
	s := open(t, logs.Awslogs, o)
	if n, err := s.Send(t.Context(), records("x"), false); n != 0 || err == nil || !strings.Contains(err.Error(), "log group g does not exist; create it, or set log option awslogs-create-group") {
		t.Errorf("without a group: %d, %v", n, err)
	}
	o["awslogs-create-group"] = "true"
	o["awslogs-multiline-pattern"] = "^[A-Z]"
	s = open(t, logs.Awslogs, o)
	cw.calls = nil
	n, err := s.Send(t.Context(), records("One", " of two", "Two", " may go on"), true)
	if n != 2 || err != nil {
		t.Errorf("%d records, %v; want 2: the last event may go on", n, err)
	}
	send(t, s, records("Two", " went on"))
	want := []string{"CreateLogStream g p/web/0123456789abcdef", "CreateLogGroup g ", "CreateLogStream g p/web/0123456789abcdef", "PutLogEvents g p/web/0123456789abcdef", "PutLogEvents g p/web/0123456789abcdef"}
	if diff := cmp.Diff(want, cw.calls); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"250 One\n of two", "250 Two\n went on"}, trim(cw.events)); diff != "" {
		t.Error(diff)
	}
	for kind, gone := range map[string]bool{"InvalidParameterException": true, "AccessDeniedException": false, "ResourceNotFoundException": false} {
		cw.refuse = kind
		var refused *Refused
		if n, err := s.Send(t.Context(), records("x"), false); n != 0 || err == nil || errors.As(err, &refused) != gone {
			t.Errorf("%s: %d, %v", kind, n, err)
		}
	}
	cw.refuse = "DataAlreadyAcceptedException"
	send(t, s, records("x"))
}

// trim leaves the milliseconds of an event's time.
func trim(events []string) (out []string) {
	for _, e := range events {
		at, text, _ := strings.Cut(e, " ")
		out = append(out, at[max(0, len(at)-3):]+" "+text)
	}
	return out
}

func TestAwslogsCutsEventsAndBatches(t *testing.T) {
	a := &awslogs{}
	long := strings.Repeat("é", maxEventBytes/2+100)
	rs := records("a", "b")
	for i := range 3 {
		rs = append(rs, Record{Line: long, Stream: "stdout", Time: noon, Part: &Part{ID: "x", Ordinal: i + 1, Last: i == 2}})
	}
	events, complete := a.events(rs)
	if complete != len(rs) {
		t.Errorf("%d of %d records are complete", complete, len(rs))
	}
	var b strings.Builder
	for _, e := range events {
		if len(e.text) > maxEventBytes {
			t.Errorf("an event of %d bytes", len(e.text))
		}
		if len(e.text) > 10 {
			b.WriteString(e.text)
		}
	}
	if b.String() != strings.Repeat(long, 3) {
		t.Error("the pieces of a long line do not make it again")
	}
	var many []event
	for i := range 25_000 {
		many = append(many, event{text: "x", at: int64(i) * 10_000})
	}
	total := 0
	for _, batch := range batches(many) {
		total += len(batch)
		if len(batch) > maxEvents || batch[len(batch)-1].at-batch[0].at >= maxSpan.Milliseconds() {
			t.Errorf("a batch of %d events over %d ms", len(batch), batch[len(batch)-1].at-batch[0].at)
		}
	}
	if total != len(many) {
		t.Errorf("%d events in batches, want %d", total, len(many))
	}
}

func TestSinkThatCannotBeMade(t *testing.T) {
	for driver, options := range map[string]map[string]string{
		"json-file": nil, logs.Syslog: {"syslog-address": "gopher://h"}, logs.GELF: {"gelf-address": "x://"}, logs.Fluentd: {"tag": "{{.X}}"},
		logs.Splunk: {"splunk-capath": "/does/not/exist"},
	} {
		if s, err := New(Config{Stream: stream(driver), Options: options}); err == nil || !strings.Contains(err.Error(), driver) {
			t.Errorf("%s: %v, %v", driver, s, err)
		}
	}
	if _, err := New(Config{Stream: stream(logs.Awslogs), Options: map[string]string{"awslogs-group": "g"}}); err == nil || !strings.Contains(err.Error(), "awslogs-region") {
		t.Errorf("no region: %v", err)
	}
}

func FuzzAwslogsEvents(f *testing.F) {
	f.Add("one\ntwo\n!three", true)
	f.Add("A\n b\n!C\n d", false)
	f.Fuzz(func(t *testing.T, text string, multiline bool) {
		a := &awslogs{}
		if multiline {
			a.begin, _ = logs.DatetimePattern("A")
		}
		rs := records(strings.Split(text, "\n")...)
		events, complete := a.events(rs)
		got, want := 0, 0
		for _, e := range events {
			got += len(strings.ReplaceAll(e.text, "\n", ""))
		}
		for _, r := range rs {
			want += len(r.Line)
		}
		if got != want || complete < 0 || complete > len(rs) {
			t.Errorf("%d bytes of %d in events, %d of %d records complete", got, want, complete, len(rs))
		}
	})
}
