package operator

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Event is a change of state of a task or a container instance, as Amazon EventBridge has
// it.
type Event struct {
	Kind   string    `json:"detail-type"`
	Time   time.Time `json:"time"`
	Detail Detail    `json:"detail"`
	// JSON is the whole event as it came.
	JSON json.RawMessage `json:"-"`
	// Gap says that events were missed, and nothing else.
	Gap bool `json:"-"`
}

// Detail is what Berth shows of the state after a change: of a task or of an instance.
type Detail struct {
	UpdatedAt time.Time `json:"updatedAt"`

	TaskARN           string `json:"taskArn"`
	TaskDefinitionARN string `json:"taskDefinitionArn"`
	LastStatus        string `json:"lastStatus"`
	DesiredStatus     string `json:"desiredStatus"`
	// HealthStatus is a text of a task, and an object of an instance.
	HealthStatus  any    `json:"healthStatus"`
	StoppedReason string `json:"stoppedReason"`
	Containers    []struct {
		Name     string `json:"name"`
		ExitCode *int   `json:"exitCode"`
		Reason   string `json:"reason"`
	} `json:"containers"`

	InstanceARN    string `json:"containerInstanceArn"`
	Status         string `json:"status"`
	AgentConnected bool   `json:"agentConnected"`
	Running        int    `json:"runningTasksCount"`
	Pending        int    `json:"pendingTasksCount"`
}

const (
	maxEvent   = 1 << 20 // bytes of one event
	watchAgain = time.Second
)

var errEvent = errors.New("an event is not understood")

// Watch calls f with every event of a cluster until ctx ends. A connection that ends is
// made again, and goes on behind the last event; only the first one that cannot be made is
// an error.
func (c *Client) Watch(ctx context.Context, cluster string, f func(Event)) error {
	last, connected := "", false
	for {
		body, err := c.events(ctx, cluster, last)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !connected:
			return fmt.Errorf("follow events: %w", err)
		case err == nil:
			connected = true
			last, err = readEvents(body, last, f)
			body.Close() //nolint:errcheck // it was only read
			if errors.Is(err, bufio.ErrTooLong) || errors.Is(err, errEvent) {
				return fmt.Errorf("follow events: %w", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchAgain):
		}
	}
}

func (c *Client) events(ctx context.Context, cluster, after string) (io.ReadCloser, error) {
	header := http.Header{"Accept": {"text/event-stream"}}
	if after != "" {
		header.Set("Last-Event-Id", after)
	}
	resp, err := c.send(ctx, http.MethodGet, "/berth/v1/events?"+url.Values{"cluster": {cluster}}.Encode(), nil, header)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close() //nolint:errcheck // it was only read
	said, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	return nil, errors.Join(fmt.Errorf("the cluster refused: %s: %s", resp.Status, bytes.TrimSpace(said)), err)
}

// readEvents reads a stream (HTML standard, section 9.2) and returns the id of its last
// event.
func readEvents(r io.Reader, last string, f func(Event)) (string, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxEvent)
	id, kind, data := "", "", ""
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "id":
			id = value
		case "event":
			kind = value
		case "data":
			data = value
		}
		if lines.Text() != "" || data == "" {
			continue
		}
		e := Event{Gap: kind == "gap", JSON: json.RawMessage(data)}
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return last, fmt.Errorf("%w; are cluster and berth of the same version? %w", errEvent, err)
		}
		f(e)
		if id != "" {
			last = id
		}
		id, kind, data = "", "", ""
	}
	return last, lines.Err()
}
