package netns

import (
	"context"
	"errors"
	"os"
	"time"

	"berth.dev/berth/agent/fail"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/cni-plugins/ecs-bridge/bridge"
	"berth.dev/berth/eni"
)

// ensureBridged adopts a complete attachment and makes anything less anew. A failed ADD
// is always followed by its DEL, in package bridge; one that a crash interrupted, here.
// What is made anew gets new files as well: nothing uses the old ones, and they may name
// another address.
func (n *Network) ensureBridged(ctx context.Context, t *task.Task, c *task.Container) (*bridge.Attachment, error) {
	key := keyOf(t, c.Name)
	path := n.namespace(key)
	if n.host.Lookup(attachment(key)) != nil {
		a, err := n.host.Check(ctx, attachment(key), path)
		if err == nil {
			return a, nil
		}
		if bridge.KindOf(err) != bridge.Damaged {
			return nil, err
		}
		n.log.Info("making the network of a container anew", "task", t.ID(), "container", c.Name, "err", err)
		if err := n.remove(ctx, key, toBeMadeAnew); err != nil {
			return nil, err
		}
	}
	ports, err := requests(c)
	if err != nil {
		return nil, err
	}
	if err := n.ensureNamespace(path); err != nil {
		return nil, err
	}
	if err := fail.Point(fail.CNIBeforeAdd); err != nil {
		return nil, err
	}
	a, err := n.host.Add(ctx, bridge.Request{Key: attachment(key), Namespace: path, Ports: ports, Group: t.ID()})
	if err == nil {
		err = fail.Point(fail.CNIAfterAdd)
	}
	if err != nil {
		return nil, errors.Join(err, eni.RemoveNamespace(path))
	}
	return a, nil
}

// Remove takes one network away.
func (n *Network) Remove(ctx context.Context, t *task.Task, name string, _ task.Handle) error {
	if !safeID(t.ID()) {
		return nil // Ensure made nothing
	}
	err := n.remove(ctx, keyOf(t, name), forGood)
	for _, m := range filtered(t) {
		err = errors.Join(err, n.dropPolicy(m.mac)) // also of a network that was never made
	}
	return classify(err)
}

func (n *Network) remove(ctx context.Context, key string, again bool) error {
	if err := n.leaveNetworks(ctx, key); err != nil {
		return err
	}
	if err := n.removeElastic(ctx, key, again); err != nil {
		return err
	}
	if err := n.removeNetwork(ctx, key); err != nil {
		return err
	}
	return os.RemoveAll(n.filesOf(key))
}

// removeNetwork lets the kernel take the interface away with its namespace, which it does
// for many at once, in the background, where deleting an interface takes 20 to 30 ms under the one lock
// that every network change needs. An interface that stays, because a process still
// holds the namespace, is deleted.
func (n *Network) removeNetwork(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := eni.RemoveNamespace(n.namespace(key)); err != nil {
		return err
	}
	if a := n.host.Lookup(attachment(key)); a != nil {
		n.awaitNoLink(ctx, a.HostVeth)
	}
	if err := fail.Point(fail.CNIBeforeDel); err != nil {
		return err
	}
	return errors.Join(n.host.Del(ctx, attachment(key)), fail.Point(fail.CNIAfterDel))
}

func (n *Network) awaitNoLink(ctx context.Context, name string) {
	tick := time.NewTicker(vethPoll)
	defer tick.Stop()
	deadline := time.NewTimer(vethWait)
	defer deadline.Stop()
	for n.host.HasLink(name) {
		select {
		case <-tick.C:
		case <-deadline.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
