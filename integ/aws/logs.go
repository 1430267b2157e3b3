package aws

import (
	"fmt"
	"slices"
	"time"
)

// Limits of PutLogEvents (CloudWatch Logs API reference).
const (
	logEventsMax   = 10000
	logBytesMax    = 1 << 20
	logEventBytes  = 26
	logSpan        = 24 * time.Hour
	logEventsGiven = 10000
)

// LogEvent is one event of a log stream.
type LogEvent struct {
	Message       string `json:"message"`
	Timestamp     int64  `json:"timestamp"` // milliseconds
	IngestionTime int64  `json:"ingestionTime"`
}

// logGroups are the streams of each group, by region and name.
type logGroups map[string]map[string][]LogEvent

// CreateLogGroup makes a log group in a region.
func (s *Server) CreateLogGroup(region, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.groups[region+" "+name] == nil {
		s.groups[region+" "+name] = map[string][]LogEvent{}
	}
}

// LogEvents are the events of a stream so far.
func (s *Server) LogEvents(region, group, stream string) []LogEvent {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.groups[region+" "+group][stream])
}

type logInput struct {
	LogGroupName, LogStreamName string
	LogEvents                   []LogEvent
	StartFromHead               bool
	NextToken                   string
	Limit                       int
}

func (s *Server) logs() {
	s.groups = logGroups{}
	handle := func(operation string, run func(c Call, in *logInput) (any, error)) {
		s.Handle("logs", "Logs_20140328."+operation, func(c Call) (any, error) {
			var in logInput
			if err := decode(c, &in); err != nil {
				return nil, err
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			return run(c, &in)
		})
	}
	type none struct{}
	handle("CreateLogGroup", func(c Call, in *logInput) (any, error) {
		key := c.Region + " " + in.LogGroupName
		if s.groups[key] != nil {
			return nil, Faultf("ResourceAlreadyExistsException", "The specified log group already exists")
		}
		s.groups[key] = map[string][]LogEvent{}
		return none{}, nil
	})
	handle("CreateLogStream", func(c Call, in *logInput) (any, error) {
		g := s.groups[c.Region+" "+in.LogGroupName]
		if g == nil {
			return nil, Faultf("ResourceNotFoundException", "The specified log group does not exist.")
		}
		if _, ok := g[in.LogStreamName]; ok {
			return nil, Faultf("ResourceAlreadyExistsException", "The specified log stream already exists")
		}
		g[in.LogStreamName] = []LogEvent{}
		return none{}, nil
	})
	handle("PutLogEvents", func(c Call, in *logInput) (any, error) {
		g := s.groups[c.Region+" "+in.LogGroupName]
		if _, ok := g[in.LogStreamName]; !ok {
			return nil, Faultf("ResourceNotFoundException", "The specified log stream does not exist.")
		}
		if err := checkLogEvents(in.LogEvents); err != nil {
			return nil, err
		}
		now := time.Now().UnixMilli()
		for _, e := range in.LogEvents {
			e.IngestionTime = now
			g[in.LogStreamName] = append(g[in.LogStreamName], e)
		}
		return map[string]string{"nextSequenceToken": fmt.Sprint(len(g[in.LogStreamName]))}, nil
	})
	handle("GetLogEvents", func(c Call, in *logInput) (any, error) {
		g := s.groups[c.Region+" "+in.LogGroupName]
		events, ok := g[in.LogStreamName]
		if !ok {
			return nil, Faultf("ResourceNotFoundException", "The specified log stream does not exist.")
		}
		if in.Limit == 0 || in.Limit > logEventsGiven {
			in.Limit = logEventsGiven
		}
		return map[string]any{"events": events[:min(len(events), in.Limit)], "nextForwardToken": "f/end", "nextBackwardToken": "b/start"}, nil
	})
}

// checkLogEvents refuses what the service refuses.
func checkLogEvents(events []LogEvent) error {
	size := 0
	for i, e := range events {
		size += len(e.Message) + logEventBytes
		switch {
		case e.Message == "":
			return Faultf("InvalidParameterException", "1 validation error detected: Value '' at 'logEvents.%d.member.message' failed to satisfy constraint: Member must have length greater than or equal to 1", i+1)
		case i > 0 && e.Timestamp < events[i-1].Timestamp:
			return Faultf("InvalidParameterException", "Log events in a single PutLogEvents request must be in chronological order.")
		case time.Duration(e.Timestamp-events[0].Timestamp)*time.Millisecond >= logSpan:
			return Faultf("InvalidParameterException", "The batch of log events in a single PutLogEvents request cannot span more than 24 hours.")
		}
	}
	switch {
	case len(events) == 0 || len(events) > logEventsMax:
		return Faultf("InvalidParameterException", "1 validation error detected: Value at 'logEvents' failed to satisfy constraint: Member must have length between 1 and %d", logEventsMax)
	case size > logBytesMax:
		return Faultf("InvalidParameterException", "Upload too large: %d bytes exceeds limit of %d", size, logBytesMax)
	}
	return nil
}
