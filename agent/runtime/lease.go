package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"berth.dev/berth/agent/task"

	"github.com/containerd/containerd/v2/core/leases"
)

// labelDownload marks the leases that hold what is being downloaded or unpacked; its
// value is the client that does it. A lease of a client that is no more holds bytes
// that nobody will ever ask for again.
const labelDownload = "berth/download"

// leaseLimit is how long a lease lasts that nobody deletes: longer than any pull.
const leaseLimit = 24 * time.Hour

// leased is ctx with a lease, which keeps what is made with it from being collected
// until it is released.
func (c *Client) leased(ctx context.Context) (_ context.Context, release func(), err error) {
	manager := c.cd.LeasesService()
	l, err := manager.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseLimit), leases.WithLabel(labelDownload, c.session))
	if err != nil {
		return nil, nil, fmt.Errorf("lease: %w", err)
	}
	return leases.WithLease(ctx, l.ID), func() {
		// ctx may be over, and the lease is to go all the same.
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
		defer cancel()
		if err := manager.Delete(dctx, l); err != nil && !isNotFound(err) {
			c.log.Warn("a lease stays until the agent is started again", "lease", l.ID, "err", err)
		}
	}, nil
}

// abandoned lists the leases of clients before this one.
func (c *Client) abandoned(ctx context.Context) ([]task.Owned, error) {
	list, err := c.cd.LeasesService().List(ctx, fmt.Sprintf("labels.%q", labelDownload))
	if err != nil {
		return nil, classify(err, "")
	}
	var out []task.Owned
	for _, l := range list {
		if l.Labels[labelDownload] == c.session {
			continue
		}
		h, err := json.Marshal(handle{Lease: l.ID})
		if err != nil {
			return nil, err
		}
		out = append(out, task.Owned{Resource: task.ResourceID{Kind: task.KindContainer}, Handle: h})
	}
	return out, nil
}

func (c *Client) abandon(ctx context.Context, id string) error {
	err := c.cd.LeasesService().Delete(ctx, leases.Lease{ID: id}, leases.SynchronousDelete)
	if isNotFound(err) {
		return nil
	}
	return classify(err, "")
}
