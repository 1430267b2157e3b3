package daemon

import (
	"context"

	"golang.org/x/sync/errgroup"

	"berth.dev/berth/agent/attach"
	"berth.dev/berth/agent/intake"
	"berth.dev/berth/agent/task"
)

// startAttachments waits for the network interfaces and volumes that the cluster has
// announced and will announce. It goes before the sweep, to which devices that wait for their task
// would look like nobody's.
func (a *agent) startAttachments(ctx context.Context, g *errgroup.Group) error {
	var blocks attach.Volumes
	if a.c.Features.EBS {
		blocks = a.host.volumes
	}
	k, err := attach.New(ctx, attach.Config{
		Store: a.db, Devices: a.host.network, Volumes: blocks, Known: a.wanted, Submit: a.ecs.SubmitAttachmentState, Log: a.log,
		Held: func(arn string) bool { _, ok := a.engine.Known(arn); return ok },
	})
	if err != nil {
		return err
	}
	a.attachments = k
	for _, i := range k.Interfaces() {
		a.host.network.Expect(&i)
	}
	g.Go(func() error { return ignoreCancel(ctx, k.Run(ctx)) })
	if o := a.host.volumes.Orders(); a.c.Features.EBS && o != nil {
		a.orders = o
		g.Go(func() error { return ignoreCancel(ctx, o.Run(ctx)) })
	}
	return nil
}

// pool is what the cluster's orders for the pool of block volumes go to; nil where there
// is none.
func (a *agent) pool() intake.Pool {
	if a.orders == nil {
		return nil
	}
	return a.orders
}

// wanted is the desired status of a task; one that was stopped and forgotten counts as
// STOPPED.
func (a *agent) wanted(arn string) (task.Status, bool) {
	if s, ok := a.engine.Known(arn); ok {
		return s, true
	}
	return task.StatusStopped, a.db.Tombstone(arn)
}
