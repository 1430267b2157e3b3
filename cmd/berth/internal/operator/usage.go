package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"berth.dev/berth/cluster/telemetry"
)

const usageLimit = 256 << 20 // bytes of an answer: 100,000 containers with all their points

// Usage is what the containers of a cluster have used since a time, as their agents have
// said.
func (c *Client) Usage(ctx context.Context, cluster string, since time.Time) ([]telemetry.Container, error) {
	q := url.Values{"cluster": {cluster}}
	if !since.IsZero() {
		q.Set("since", strconv.FormatInt(since.UnixMilli(), 10))
	}
	answer, err := c.call(ctx, http.MethodGet, "/berth/v1/usage?"+q.Encode(), nil, usageLimit)
	if err != nil {
		return nil, fmt.Errorf("ask for usage: %w", err)
	}
	var out struct {
		Containers []telemetry.Container `json:"containers"`
	}
	if err := json.Unmarshal(answer, &out); err != nil {
		return nil, fmt.Errorf("the cluster's answer on usage is not understood; are cluster and berth of the same version? %w", err)
	}
	return out.Containers, nil
}
