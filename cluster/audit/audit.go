// Package audit records calls of the API in the form of AWS CloudTrail, without what may
// be a secret, in a file of bounded size.
//
// Records are made and written behind the calls. A call waits for a moment at most when
// the disk does not keep up; then its record is lost, which is counted and logged.
package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"berth.dev/berth/cluster/api"
	"berth.dev/berth/cluster/awsjson"
	"berth.dev/berth/cluster/journal"
)

const (
	// DefaultSize and DefaultFiles bound the records to 128 MiB.
	DefaultSize  = 16 << 20
	DefaultFiles = 8

	maxQueue   = 4096
	maxPending = 32 << 20 // bytes of requests that wait
	maxWait    = 50 * time.Millisecond
	maxBatch   = 1 << 20 // bytes written at once
	// maxElements is the size in bytes from which parameters or an answer are left out.
	maxElements = 100 << 10
	maxText     = 1024 // bytes of a user agent or an error's message
	// maxStrangers is how many refused signatures are recorded in a second, so that
	// nobody without a key can push out the records of others.
	maxStrangers = 10
	complaints   = time.Minute // between two log lines about lost records
)

// Config says where records go.
type Config struct {
	// Path is the file.
	Path string
	// Size is at how many bytes it is rotated; 0 means DefaultSize.
	Size            int64
	Region, Account string
	// Metrics may be nil.
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// A Log takes records. Make one with Open.
type Log struct {
	config  Config
	queue   chan *api.Call
	pending atomic.Int64
	lost    prometheus.Counter
	stop    chan struct{}
	once    sync.Once
	work    sync.WaitGroup
	end     error

	mu         sync.Mutex
	complained time.Time
	second     int64 // of the strangers
	strangers  int
}

// Open opens the file and starts.
func Open(c Config) (*Log, error) {
	if c.Size <= 0 {
		c.Size = DefaultSize
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	f, err := journal.Open(journal.Config{Path: c.Path, Size: c.Size, Files: DefaultFiles})
	if err != nil {
		return nil, fmt.Errorf("audit record: %w", err)
	}
	l := &Log{
		config: c, queue: make(chan *api.Call, maxQueue), stop: make(chan struct{}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{Name: "berth_audit_lost_total", Help: "Calls without an audit record."}),
	}
	if c.Metrics != nil {
		c.Metrics.MustRegister(l.lost)
	}
	l.work.Go(func() { l.run(f) })
	return l, nil
}

// Record takes a call, which must not change any more.
func (l *Log) Record(c *api.Call) {
	if c.Caller.AccessKeyID == "" && !l.stranger(c.At) {
		l.lose(1, "refused calls come too fast", nil)
		return
	}
	size := int64(c.Size())
	if l.pending.Add(size) > maxPending {
		l.pending.Add(-size)
		l.lose(1, "requests wait", nil)
		return
	}
	select {
	case l.queue <- c:
		return
	default:
	}
	t := time.NewTimer(maxWait)
	defer t.Stop()
	select {
	case l.queue <- c:
	case <-t.C:
		l.pending.Add(-size)
		l.lose(1, "the disk does not keep up", nil)
	case <-l.stop:
		l.pending.Add(-size)
		l.lose(1, "the cluster ends", nil)
	}
}

func (l *Log) stranger(at time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := at.Unix(); s != l.second {
		l.second, l.strangers = s, 0
	}
	l.strangers++
	return l.strangers <= maxStrangers
}

func (l *Log) lose(n int, why string, err error) {
	l.lost.Add(float64(n))
	l.mu.Lock()
	now := time.Now()
	quiet := now.Sub(l.complained) < complaints
	if !quiet {
		l.complained = now
	}
	l.mu.Unlock()
	if !quiet {
		l.config.Log.Error("audit records are lost", "why", why, "count", n, "err", err)
	}
}

// Close writes what was taken and closes the file.
func (l *Log) Close() error {
	l.once.Do(func() {
		close(l.stop)
		l.work.Wait()
	})
	return l.end
}

func (l *Log) run(f *journal.File) {
	defer func() { l.end = f.Close() }()
	for {
		select {
		case c := <-l.queue:
			l.write(f, c)
			continue
		default:
		}
		select {
		case c := <-l.queue:
			l.write(f, c)
		case <-l.stop:
			if len(l.queue) == 0 {
				return
			}
		}
	}
}

// write writes a call and those that wait behind it.
func (l *Log) write(f *journal.File, c *api.Call) {
	var b []byte
	n := 0
	for c != nil {
		n++
		l.pending.Add(-int64(c.Size()))
		b = append(append(b, l.record(c)...), '\n')
		c = nil
		if len(b) < maxBatch {
			select {
			case c = <-l.queue:
			default:
			}
		}
	}
	if err := f.Write(b); err != nil {
		l.lose(n, "the file cannot be written", err)
	}
}

type identity struct {
	Type        string `json:"type"`
	PrincipalID string `json:"principalId,omitempty"`
	ARN         string `json:"arn,omitempty"`
	AccountID   string `json:"accountId"`
	AccessKeyID string `json:"accessKeyId,omitempty"`
}

// record is an event of CloudTrail (CloudTrail user guide, "CloudTrail record contents").
type record struct {
	EventVersion       string          `json:"eventVersion"`
	UserIdentity       identity        `json:"userIdentity"`
	EventTime          string          `json:"eventTime"`
	EventSource        string          `json:"eventSource"`
	EventName          string          `json:"eventName"`
	AWSRegion          string          `json:"awsRegion"`
	SourceIPAddress    string          `json:"sourceIPAddress"`
	UserAgent          string          `json:"userAgent"`
	ErrorCode          string          `json:"errorCode,omitempty"`
	ErrorMessage       string          `json:"errorMessage,omitempty"`
	RequestParameters  json.RawMessage `json:"requestParameters"`
	ResponseElements   json.RawMessage `json:"responseElements"`
	RequestID          string          `json:"requestID"`
	EventID            string          `json:"eventID"`
	ReadOnly           bool            `json:"readOnly"`
	EventType          string          `json:"eventType"`
	ManagementEvent    bool            `json:"managementEvent"`
	RecipientAccountID string          `json:"recipientAccountId"`
	EventCategory      string          `json:"eventCategory"`
}

// Hides tells whether the values below a member of a request or an answer may be secrets.
func Hides(member string) bool {
	switch member {
	case "environment", "options", "driverOpts",
		"instanceIdentityDocument", "instanceIdentityDocumentSignature", "token", "tokenValue",
		"secretAccessKey", "password":
		return true
	}
	return false
}

func (l *Log) record(c *api.Call) []byte {
	r := record{
		EventVersion: "1.08", EventTime: c.At.UTC().Format(time.RFC3339), EventSource: c.Service + ".amazonaws.com",
		EventName: c.Operation, AWSRegion: l.config.Region, SourceIPAddress: c.Address, UserAgent: clip(c.UserAgent),
		ErrorCode: c.Code, ErrorMessage: clip(c.Message), RequestID: c.RequestID, EventID: c.EventID, ReadOnly: c.ReadOnly(),
		EventType: "AwsApiCall", ManagementEvent: true, RecipientAccountID: l.config.Account, EventCategory: "Management",
		UserIdentity: identity{Type: "Unknown", AccountID: l.config.Account},
	}
	if c.Caller.AccessKeyID != "" {
		r.UserIdentity = identity{kind(c.Caller.Kind), c.Caller.AccessKeyID, c.Caller.ARN, l.config.Account, c.Caller.AccessKeyID}
		// What somebody without a key says is not kept.
		r.RequestParameters = elements(c.Input())
	}
	if !r.ReadOnly && c.Code == "" {
		r.ResponseElements = elements(c.Output)
	}
	b, err := json.Marshal(r)
	if err != nil { // the parts are JSON of our own
		l.lose(1, "a record cannot be encoded", err)
		return []byte("{}")
	}
	return b
}

// kind is the type of a user's identity in CloudTrail.
func kind(k api.CallerKind) string {
	if k == api.Role {
		return "AssumedRole"
	}
	return "IAMUser"
}

// elements is a request or an answer without secrets, null for nil.
func elements(v any) json.RawMessage {
	var b []byte
	switch v := v.(type) {
	case nil:
		return nil
	case map[string]string: // a form, whose secrets were left out
		var err error
		if b, err = json.Marshal(v); err != nil {
			return nil
		}
	default:
		b = awsjson.AppendDocument(nil, v, Hides)
	}
	if bytes.Equal(b, []byte("{}")) {
		return nil
	}
	if len(b) > maxElements {
		return fmt.Appendf(nil, `{"omitted":true,"originalSize":%d,"reason":"too large"}`, len(b))
	}
	return b
}

func clip(s string) string {
	if len(s) > maxText {
		return s[:maxText]
	}
	return s
}
