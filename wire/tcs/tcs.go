// Package tcs has the messages of the telemetry service, in both directions, their codec
// and their limits (agent protocol, "TCS websocket").
//
// A frame of the cluster is one JSON object of type and message. A frame of an agent has
// a block of signed HTTP headers before it.
package tcs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Limits of the protocol.
const (
	MaxTasks = 10      // tasks in one request
	MaxBody  = 1 << 20 // bytes of one request
	// MaxFrame is a request and its headers.
	MaxFrame = MaxBody + 64<<10
)

// Message is any of the messages below.
type Message interface{ TypeName() string }

// Time is a point in time, in JSON the seconds since 1970 with milliseconds.
type Time struct{ time.Time }

// MarshalJSON writes the number.
func (t Time) MarshalJSON() ([]byte, error) {
	ms := t.UnixMilli()
	return fmt.Appendf(nil, "%d.%03d", ms/1000, ms%1000), nil
}

// UnmarshalJSON reads the number; one that is no time is an error.
func (t *Time) UnmarshalJSON(b []byte) error {
	f, err := strconv.ParseFloat(string(b), 64)
	if err != nil || math.IsNaN(f) || f < 0 || f > 1e11 {
		return errors.New("a timestamp is not a number of seconds")
	}
	t.Time = time.UnixMilli(int64(math.Round(f * 1000))).UTC()
	return nil
}

// Set is minimum, maximum, sum and count (CWStatsSet, UDoubleCWStatsSet).
type Set struct {
	Min         float64 `json:"min"`
	Max         float64 `json:"max"`
	SampleCount int64   `json:"sampleCount"`
	Sum         float64 `json:"sum"`
}

// LongSet is the same of whole numbers that may not fit a signed 64-bit integer: what is
// above its largest value is in the overflow members (ULongStatsSet).
type LongSet struct {
	Min         int64 `json:"min"`
	Max         int64 `json:"max"`
	Sum         int64 `json:"sum"`
	SampleCount int64 `json:"sampleCount"`
	OverflowMin int64 `json:"overflowMin"`
	OverflowMax int64 `json:"overflowMax"`
	OverflowSum int64 `json:"overflowSum"`
}

// NewLongSet splits each value into what fits and the overflow.
func NewLongSet(minimum, maximum, sum uint64, count int64) *LongSet {
	s := &LongSet{SampleCount: count}
	s.Min, s.OverflowMin = split(minimum)
	s.Max, s.OverflowMax = split(maximum)
	s.Sum, s.OverflowSum = split(sum)
	return s
}

func split(v uint64) (fits, overflow int64) {
	if v <= math.MaxInt64 {
		return int64(v), 0
	}
	return math.MaxInt64, int64(v % math.MaxInt64)
}

// MetricsMetadata goes with every metrics request. All requests of one cycle have the
// same MessageID; Fin is set in the last one. Idle says that there is nothing to measure.
type MetricsMetadata struct {
	Cluster           string `json:"cluster"`
	ContainerInstance string `json:"containerInstance"`
	MessageID         string `json:"messageId"`
	Idle              bool   `json:"idle"`
	Fin               bool   `json:"fin"`
}

// PublishMetricsRequest is what the containers of up to 10 tasks used.
type PublishMetricsRequest struct {
	Metadata    MetricsMetadata `json:"metadata"`
	TaskMetrics []TaskMetric    `json:"taskMetrics"`
	Timestamp   Time            `json:"timestamp"`
}

// TaskMetric is one task's part.
type TaskMetric struct {
	TaskARN               string            `json:"taskArn"`
	ClusterARN            string            `json:"clusterArn,omitempty"`
	TaskDefinitionFamily  string            `json:"taskDefinitionFamily"`
	TaskDefinitionVersion string            `json:"taskDefinitionVersion"`
	ContainerMetrics      []ContainerMetric `json:"containerMetrics"`
	VolumeMetrics         []VolumeMetric    `json:"volumeMetrics,omitempty"`
	EphemeralStorage      *EphemeralStorage `json:"ephemeralStorageMetrics,omitempty"`
}

// ContainerMetric is one container's part.
type ContainerMetric struct {
	ContainerName string   `json:"containerName"`
	ContainerARN  string   `json:"containerArn,omitempty"`
	CPU           *Set     `json:"cpuStatsSet,omitempty"`    // percent of the whole machine
	Memory        *Set     `json:"memoryStatsSet,omitempty"` // MiB
	Storage       *Storage `json:"storageStatsSet,omitempty"`
	Network       *Network `json:"networkStatsSet,omitempty"`
	Restart       *Restart `json:"restartStatsSet,omitempty"`
}

// Storage is bytes read and written so far.
type Storage struct {
	ReadSizeBytes  *LongSet `json:"readSizeBytes,omitempty"`
	WriteSizeBytes *LongSet `json:"writeSizeBytes,omitempty"`
}

// Network is what went over the container's interfaces so far, and a second.
type Network struct {
	RxBytes          *LongSet `json:"rxBytes,omitempty"`
	RxDropped        *LongSet `json:"rxDropped,omitempty"`
	RxErrors         *LongSet `json:"rxErrors,omitempty"`
	RxPackets        *LongSet `json:"rxPackets,omitempty"`
	TxBytes          *LongSet `json:"txBytes,omitempty"`
	TxDropped        *LongSet `json:"txDropped,omitempty"`
	TxErrors         *LongSet `json:"txErrors,omitempty"`
	TxPackets        *LongSet `json:"txPackets,omitempty"`
	RxBytesPerSecond *Set     `json:"rxBytesPerSecond,omitempty"`
	TxBytesPerSecond *Set     `json:"txBytesPerSecond,omitempty"`
}

// Restart counts restarts since the last request.
type Restart struct {
	RestartCount int64 `json:"restartCount"`
}

// VolumeMetric is the use of a block volume, in bytes.
type VolumeMetric struct {
	VolumeID   string `json:"volumeId"`
	VolumeName string `json:"volumeName"`
	Utilized   *Set   `json:"utilized,omitempty"`
	Size       *Set   `json:"size,omitempty"`
}

// EphemeralStorage is what a task wrote to its own storage.
type EphemeralStorage struct {
	BytesUtilized *LongSet `json:"bytesUtilized,omitempty"`
}

// HealthMetadata goes with every health request.
type HealthMetadata struct {
	Cluster           string `json:"cluster"`
	ContainerInstance string `json:"containerInstance"`
	MessageID         string `json:"messageId"`
	Fin               bool   `json:"fin"`
}

// PublishHealthRequest is the health of the containers of up to 10 tasks.
type PublishHealthRequest struct {
	Metadata  HealthMetadata `json:"metadata"`
	Tasks     []TaskHealth   `json:"tasks"`
	Timestamp Time           `json:"timestamp"`
}

// TaskHealth is one task's part.
type TaskHealth struct {
	TaskARN               string            `json:"taskArn"`
	ClusterARN            string            `json:"clusterArn,omitempty"`
	TaskDefinitionFamily  string            `json:"taskDefinitionFamily"`
	TaskDefinitionVersion string            `json:"taskDefinitionVersion"`
	Containers            []ContainerHealth `json:"containers"`
}

// ContainerHealth is HEALTHY, UNHEALTHY or UNKNOWN, and since when.
type ContainerHealth struct {
	ContainerName string `json:"containerName"`
	HealthStatus  string `json:"healthStatus"`
	StatusSince   Time   `json:"statusSince"`
	StatusMessage string `json:"statusMessage,omitempty"`
}

// InstanceStatusMetadata goes with every instance status request.
type InstanceStatusMetadata struct {
	Cluster           string `json:"cluster"`
	ContainerInstance string `json:"containerInstance"`
	RequestID         string `json:"requestId"`
}

// PublishInstanceStatusRequest is the result of the agent's own checks.
type PublishInstanceStatusRequest struct {
	Metadata  InstanceStatusMetadata `json:"metadata"`
	Statuses  []InstanceStatus       `json:"statuses"`
	Timestamp Time                   `json:"timestamp"`
}

// InstanceStatus is the result of one check: OK, IMPAIRED, INSUFFICIENT_DATA or
// INITIALIZING.
type InstanceStatus struct {
	Type             string `json:"type"` // ContainerRuntime is the one that is always there
	Status           string `json:"status"`
	StatusReason     string `json:"statusReason,omitempty"`
	LastUpdated      Time   `json:"lastUpdated"`
	LastStatusChange Time   `json:"lastStatusChange"`
}

// StartTelemetrySessionRequest is in the model and needs no answer.
type StartTelemetrySessionRequest struct {
	Cluster           string `json:"cluster"`
	ContainerInstance string `json:"containerInstance"`
}

// HeartbeatMessage is a sign of life of the cluster.
type HeartbeatMessage struct {
	Healthy bool `json:"healthy"`
}

// Notice is a message of the cluster that has a name and words: an ack, an exception,
// or StopTelemetrySessionMessage.
type Notice struct {
	Name    string `json:"-"`
	Message string `json:"message"`
}

// Names of notices.
const (
	AckMetric         = "AckPublishMetric"
	AckHealth         = "AckPublishHealth"
	AckInstanceStatus = "AckPublishInstanceStatus"
	StopSession       = "StopTelemetrySessionMessage"
	BadRequest        = "BadRequestException"
	InvalidParameter  = "InvalidParameterException"
	ResourceInvalid   = "ResourceValidationException"
	ServerFault       = "ServerException"
)

// TypeName is the name in the frame.
func (*PublishMetricsRequest) TypeName() string        { return "PublishMetricsRequest" }
func (*PublishHealthRequest) TypeName() string         { return "PublishHealthRequest" }
func (*PublishInstanceStatusRequest) TypeName() string { return "PublishInstanceStatusRequest" }
func (*StartTelemetrySessionRequest) TypeName() string { return "StartTelemetrySessionRequest" }
func (*HeartbeatMessage) TypeName() string             { return "HeartbeatMessage" }
func (n *Notice) TypeName() string                     { return n.Name }

// Error makes an exception an error.
func (n *Notice) Error() string { return n.Name + ": " + n.Message }

// newMessage is the closed table of message types.
func newMessage(name string) Message {
	switch name {
	case "PublishMetricsRequest":
		return new(PublishMetricsRequest)
	case "PublishHealthRequest":
		return new(PublishHealthRequest)
	case "PublishInstanceStatusRequest":
		return new(PublishInstanceStatusRequest)
	case "StartTelemetrySessionRequest":
		return new(StartTelemetrySessionRequest)
	case "HeartbeatMessage":
		return new(HeartbeatMessage)
	case AckMetric, AckHealth, AckInstanceStatus, StopSession, BadRequest, InvalidParameter, ResourceInvalid, ServerFault:
		return &Notice{Name: name}
	default:
		return nil
	}
}

type frame struct {
	Type    string          `json:"type"`
	Message json.RawMessage `json:"message"`
}

// Encode makes the JSON of a frame, which is all of a frame of the cluster.
func Encode(m Message) ([]byte, error) {
	body, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("tcs: encode %s: %w", m.TypeName(), err)
	}
	return json.Marshal(frame{m.TypeName(), body})
}

// Decode reads a frame of either direction, with or without the header block. Error
// texts hold no more than a few bytes of it.
func Decode(data []byte) (Message, error) {
	if len(data) > MaxFrame {
		return nil, fmt.Errorf("tcs: a frame of %d bytes; at most %d are taken", len(data), MaxFrame)
	}
	if !bytes.HasPrefix(bytes.TrimLeft(data, " \r\n\t"), []byte("{")) {
		_, body, ok := bytes.Cut(data, []byte("\r\n\r\n"))
		if !ok {
			return nil, errors.New("tcs: no end of the header block")
		}
		data = body
	}
	var f frame
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, errors.New("tcs: the frame is not valid JSON")
	}
	m := newMessage(f.Type)
	if m == nil {
		return nil, fmt.Errorf("tcs: unknown message type %.32q", f.Type)
	}
	if len(f.Message) == 0 {
		return nil, fmt.Errorf("tcs: %s without a message", f.Type)
	}
	if err := json.Unmarshal(f.Message, m); err != nil {
		return nil, fmt.Errorf("tcs: %s is malformed", f.Type)
	}
	return m, nil
}

// signed are the headers that go before a frame, in this order.
var signed = []string{"Authorization", "Host", "X-Amz-Date", "X-Amz-Security-Token"}

// WithHeaders puts the signed headers of a request before the JSON of a frame.
func WithHeaders(h http.Header, host string, frame []byte) []byte {
	var b strings.Builder
	for _, name := range signed {
		value := h.Get(name)
		if name == "Host" {
			value = host
		}
		if value != "" {
			fmt.Fprintf(&b, "%s: %s\r\n", name, value)
		}
	}
	b.WriteString("\r\n")
	return append([]byte(b.String()), frame...)
}
