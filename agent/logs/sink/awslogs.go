package sink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"berth.dev/berth/agent/logs"
)

// Limits of PutLogEvents (CloudWatch Logs API reference). An event may be 1 MiB since
// 2025; Docker's 256 KiB are kept because readers of logs know that size.
const (
	maxEvents     = 10000
	maxBatchBytes = 1 << 20
	eventOverhead = 26
	maxEventBytes = 256<<10 - eventOverhead
	maxSpan       = 24 * time.Hour
)

// flushEach is how long events are collected (Docker's awslogs driver: 5 s).
const flushEach = 5 * time.Second

// awslogs puts events into a stream of CloudWatch Logs.
type awslogs struct {
	client        *cloudwatchlogs.Client
	group, stream string
	createGroup   bool
	createStream  bool
	begin         *regexp.Regexp // of the first line of an event; nil: each line is one
	linger        time.Duration
	ready         bool // the stream is there
}

func newAwslogs(c Config) (*awslogs, error) {
	o := c.Options
	region := cmp.Or(o["awslogs-region"], c.Region)
	if region == "" {
		return nil, errors.New("log option awslogs-region is missing, and the agent has no region of its own")
	}
	a := &awslogs{group: o["awslogs-group"], createGroup: truth(o["awslogs-create-group"]), createStream: true, linger: flushEach}
	if v, ok := o["awslogs-create-stream"]; ok {
		a.createStream = truth(v)
	}
	if v := o["awslogs-force-flush-interval-seconds"]; v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, err
		}
		a.linger = time.Duration(n) * time.Second
	}
	var err error
	if a.stream, err = awsStream(&c); err != nil {
		return nil, err
	}
	switch {
	case o["awslogs-datetime-format"] != "":
		a.begin, err = logs.DatetimePattern(o["awslogs-datetime-format"])
	case o["awslogs-multiline-pattern"] != "":
		a.begin, err = regexp.Compile(o["awslogs-multiline-pattern"])
	}
	if err != nil {
		return nil, err
	}
	emf := o["awslogs-format"] != ""
	a.client = cloudwatchlogs.New(cloudwatchlogs.Options{
		Region: region, Credentials: aws.NewCredentialsCache(provider(c.Credentials)), HTTPClient: httpClient(nil),
		// The stream tries again itself, without end and with a growing delay.
		Retryer:    retry.AddWithMaxAttempts(retry.NewStandard(), 2),
		APIOptions: emfHeader(emf),
	}, func(p *cloudwatchlogs.Options) {
		if e := o["awslogs-endpoint"]; e != "" {
			p.BaseEndpoint = &e
		}
	})
	return a, nil
}

// awsStream is the name of the stream: given, made from the prefix as ECS does, or from
// the tag.
func awsStream(c *Config) (string, error) {
	if v := c.Options["awslogs-stream"]; v != "" {
		return v, nil
	}
	if v := c.Options["awslogs-stream-prefix"]; v != "" {
		return v + "/" + c.Stream.Container + "/" + c.Stream.TaskID, nil
	}
	name, err := c.tag("{{.FullID}}")
	// The API forbids these two.
	return strings.NewReplacer(":", "_", "*", "_").Replace(name), err
}

// provider turns the source of credentials into the SDK's.
func provider(get func(context.Context) (Credentials, error)) aws.CredentialsProviderFunc {
	return func(ctx context.Context) (aws.Credentials, error) {
		c, err := get(ctx)
		return aws.Credentials{
			AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken,
			Source: "berth-agent", CanExpire: !c.Expires.IsZero(), Expires: c.Expires,
		}, err
	}
}

// emfHeader says that events are in the embedded metric format.
func emfHeader(on bool) []func(*middleware.Stack) error {
	if !on {
		return nil
	}
	return []func(*middleware.Stack) error{smithyhttp.SetHeaderValue("x-amzn-logs-format", "json/emf")}
}

func (a *awslogs) Linger() time.Duration { return a.linger }

func (a *awslogs) Close() error { return nil }

// event is one event, made of one record or several.
type event struct {
	text string
	at   int64 // ms
}

// Send puts what it is given, lines of one event joined.
func (a *awslogs) Send(ctx context.Context, records []Record, more bool) (int, error) {
	if !a.ready {
		if err := a.prepare(ctx); err != nil {
			return 0, err
		}
		a.ready = true
	}
	events, complete := a.events(records)
	if more && complete > 0 && complete < len(records) {
		records = records[:complete]
		events, _ = a.events(records)
	}
	// Records are counted as sent when all are: a batch that fails in between is sent
	// again, which is better than a piece that is missing.
	for _, batch := range batches(events) {
		err := a.put(ctx, batch)
		var refused *Refused
		if errors.As(err, &refused) {
			refused.N = len(records)
		}
		if err != nil {
			var gone *types.ResourceNotFoundException
			a.ready = !errors.As(err, &gone)
			return 0, err
		}
	}
	return len(records), nil
}

// events joins pieces of long lines and lines of one event, up to the size of an event,
// and sorts the events by time. complete is how many of the records come before the
// first that belongs to an event which may go on.
func (a *awslogs) events(records []Record) (out []event, complete int) {
	out = make([]event, 0, len(records))
	open := map[string]*joined{} // the event that a stream's next line may belong to
	flush := func(j *joined) {
		if j != nil && j.text.Len() > 0 {
			out = append(out, event{text: j.text.String(), at: j.at})
		}
	}
	for i, r := range records {
		j := open[r.Stream]
		line := r.Line
		switch {
		case j != nil && j.part != "" && r.Part != nil && r.Part.ID == j.part:
		case j != nil && j.part == "" && a.begin != nil && !a.begin.MatchString(line):
			line = "\n" + line
		default:
			flush(j)
			j = &joined{at: r.Time.UnixMilli(), first: i}
			open[r.Stream] = j
		}
		for j.text.Len()+len(line) > maxEventBytes {
			cut := cutAt(line, maxEventBytes-j.text.Len())
			j.text.WriteString(line[:cut])
			line = line[cut:]
			flush(j)
			j = &joined{at: j.at, first: i}
			open[r.Stream] = j
		}
		j.text.WriteString(line)
		j.part = ""
		if r.Part != nil && !r.Part.Last {
			j.part = r.Part.ID
		}
		if j.part == "" && a.begin == nil {
			flush(j)
			delete(open, r.Stream)
		}
	}
	complete = len(records)
	for _, name := range []string{"stdout", "stderr", "berth"} {
		if j := open[name]; j != nil {
			flush(j)
			complete = min(complete, j.first)
		}
	}
	slices.SortStableFunc(out, func(x, y event) int { return cmp.Compare(x.at, y.at) })
	return out, complete
}

type joined struct {
	text  strings.Builder
	at    int64
	first int    // record that it begins with
	part  string // the long line that goes on
}

// cutAt is a place of at most n bytes to cut s that is not inside of a character.
func cutAt(s string, n int) int {
	if n >= len(s) {
		return len(s)
	}
	for i := n; i > max(0, n-4); i-- {
		if s[i]&0xc0 != 0x80 {
			return i
		}
	}
	return n
}

// batches cuts events, which are in the order of their times, to what one call takes.
func batches(events []event) [][]event {
	var out [][]event
	start, size := 0, 0
	for i, e := range events {
		n := len(e.text) + eventOverhead
		if i > start && (i-start >= maxEvents || size+n > maxBatchBytes || time.Duration(e.at-events[start].at)*time.Millisecond >= maxSpan) {
			out = append(out, events[start:i])
			start, size = i, 0
		}
		size += n
	}
	if start < len(events) {
		out = append(out, events[start:])
	}
	return out
}

func (a *awslogs) put(ctx context.Context, batch []event) error {
	in := &cloudwatchlogs.PutLogEventsInput{LogGroupName: &a.group, LogStreamName: &a.stream}
	for i := range batch {
		in.LogEvents = append(in.LogEvents, types.InputLogEvent{Message: &batch[i].text, Timestamp: &batch[i].at})
	}
	_, err := a.client.PutLogEvents(ctx, in)
	var again *types.DataAlreadyAcceptedException
	var invalid *types.InvalidParameterException
	switch {
	case errors.As(err, &again):
		return nil
	case errors.As(err, &invalid):
		return &Refused{Err: err}
	case err != nil:
		return fmt.Errorf("log group %s, stream %s: %w", a.group, a.stream, err)
	}
	return nil
}

// prepare makes the stream, and the group where that is asked for.
func (a *awslogs) prepare(ctx context.Context) error {
	if !a.createStream {
		return nil
	}
	var there *types.ResourceAlreadyExistsException
	var missing *types.ResourceNotFoundException
	stream := &cloudwatchlogs.CreateLogStreamInput{LogGroupName: &a.group, LogStreamName: &a.stream}
	_, err := a.client.CreateLogStream(ctx, stream)
	if errors.As(err, &missing) && a.createGroup {
		_, err = a.client.CreateLogGroup(ctx, &cloudwatchlogs.CreateLogGroupInput{LogGroupName: &a.group})
		if err == nil || errors.As(err, &there) {
			_, err = a.client.CreateLogStream(ctx, stream)
		}
	}
	switch {
	case err == nil || errors.As(err, &there):
		return nil
	case errors.As(err, &missing):
		return fmt.Errorf("log group %s does not exist; create it, or set log option awslogs-create-group to true and allow logs:CreateLogGroup: %w", a.group, err)
	}
	return fmt.Errorf("create log stream %s in log group %s: %w", a.stream, a.group, err)
}
