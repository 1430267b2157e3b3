package daemon

import (
	"context"

	"golang.org/x/sync/errgroup"

	"berth.dev/berth/agent/attach"
)

// startAttachments waits for the network interfaces that the cluster has announced and
// will announce. It goes before the sweep, to which devices that wait for their task
// would look like nobody's.
func (a *agent) startAttachments(ctx context.Context, g *errgroup.Group) error {
	k, err := attach.New(ctx, attach.Config{
		Store: a.db, Devices: a.host.network, Known: a.engine.Known, Submit: a.ecs.SubmitAttachmentState, Log: a.log,
	})
	if err != nil {
		return err
	}
	a.attachments = k
	for _, i := range k.Interfaces() {
		a.host.network.Expect(&i)
	}
	g.Go(func() error { return ignoreCancel(ctx, k.Run(ctx)) })
	return nil
}
