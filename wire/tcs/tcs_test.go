package tcs

import (
	"encoding/json"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFrames(t *testing.T) {
	at := Time{time.UnixMilli(1746802078031).UTC()}
	for _, m := range []Message{
		&PublishMetricsRequest{
			Metadata: MetricsMetadata{Cluster: "c", ContainerInstance: "i", MessageID: "m", Fin: true}, Timestamp: at,
			TaskMetrics: []TaskMetric{{TaskARN: "t", TaskDefinitionFamily: "f", TaskDefinitionVersion: "1", ContainerMetrics: []ContainerMetric{{
				ContainerName: "web", CPU: &Set{Min: 1, Max: 2, SampleCount: 3, Sum: 4}, Storage: &Storage{ReadSizeBytes: NewLongSet(1, 2, 3, 4)},
			}}}},
		},
		&PublishHealthRequest{Tasks: []TaskHealth{{TaskARN: "t", Containers: []ContainerHealth{{ContainerName: "web", HealthStatus: "HEALTHY", StatusSince: at}}}}, Timestamp: at},
		&PublishInstanceStatusRequest{Statuses: []InstanceStatus{{Type: "ContainerRuntime", Status: "OK", LastUpdated: at, LastStatusChange: at}}, Timestamp: at},
		&HeartbeatMessage{Healthy: true},
		&Notice{Name: AckMetric, Message: "words"},
	} {
		frame, err := Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		for _, framed := range [][]byte{frame, WithHeaders(http.Header{"X-Amz-Date": {"d"}, "Authorization": {"a"}}, "host", frame)} {
			got, err := Decode(framed)
			if err != nil {
				t.Fatalf("%s: %v", m.TypeName(), err)
			}
			if diff := cmp.Diff(m, got); diff != "" {
				t.Errorf("%s: %s", m.TypeName(), diff)
			}
		}
	}
}

func TestHeaderBlock(t *testing.T) {
	got := string(WithHeaders(http.Header{"X-Amz-Date": {"d"}, "Authorization": {"a"}, "User-Agent": {"u"}}, "h", []byte("{}")))
	if want := "Authorization: a\r\nHost: h\r\nX-Amz-Date: d\r\n\r\n{}"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestTimeIsSecondsWithMilliseconds(t *testing.T) {
	b, err := json.Marshal(Time{time.UnixMilli(1746802078031)})
	if err != nil || string(b) != "1746802078.031" {
		t.Errorf("%s %v", b, err)
	}
}

func TestLongSetOverflow(t *testing.T) {
	got := NewLongSet(1, math.MaxInt64, math.MaxInt64+5, 2)
	want := &LongSet{Min: 1, Max: math.MaxInt64, Sum: math.MaxInt64, SampleCount: 2, OverflowSum: 5}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestBadFrames(t *testing.T) {
	for frame, want := range map[string]string{
		"GET / HTTP/1.1":                   "no end of the header block",
		"{":                                "not valid JSON",
		`{"type":"Other","message":{}}`:    "unknown message type",
		`{"type":"PublishMetricsRequest"}`: "without a message",
		`{"type":"HeartbeatMessage","message":"x"}`:                  "malformed",
		`{"type":"PublishHealthRequest","message":{"timestamp":-1}}`: "malformed",
	} {
		if _, err := Decode([]byte(frame)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", frame, err, want)
		}
	}
}

// FuzzTCSDecode decodes anything; what it accepts can be encoded and read again.
func FuzzTCSDecode(f *testing.F) {
	f.Add([]byte(`{"type":"PublishMetricsRequest","message":{"metadata":{"cluster":"c"},"taskMetrics":[],"timestamp":1.5}}`))
	f.Add([]byte("A: b\r\n\r\n" + `{"type":"AckPublishMetric","message":{"message":"x"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Decode(data)
		if err != nil {
			return
		}
		b, err := Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(b); err != nil && len(b) <= MaxFrame {
			t.Fatalf("%s does not read what was written: %v", b, err)
		}
	})
}
