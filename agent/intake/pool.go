package intake

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/acs"
)

// Pool carries out what the cluster wants of the volumes in the pool of this host.
type Pool interface {
	// Order takes orders and returns. Those that it has already are not taken again. Each
	// result is told by the last tell that came with the order.
	Order(orders []task.PoolOrder, tell func(ctx context.Context, o task.PoolOrder, fault error))
}

// maxPoolOrders bounds those of a message.
const maxPoolOrders = 4096

// Pool takes over what is to be done with volumes of the pool. Nothing of it is made
// durable: the cluster asks again until it has the result.
func (in *Intake) Pool(_ context.Context, m *acs.VolumePoolMessage, r acs.Responder) error {
	switch {
	case in.c.Pool == nil:
		return errors.New("this agent has no pool of block volumes")
	case len(m.Orders) > maxPoolOrders:
		return fmt.Errorf("%d orders for the pool of block volumes, more than %d", len(m.Orders), maxPoolOrders)
	}
	orders := make([]task.PoolOrder, 0, len(m.Orders))
	for i := range m.Orders {
		o, err := translateOrder(&m.Orders[i])
		if err != nil {
			return fmt.Errorf("order %d for the pool of block volumes: %w", i, err)
		}
		orders = append(orders, o)
	}
	in.c.Pool.Order(orders, func(ctx context.Context, o task.PoolOrder, fault error) {
		result := &acs.VolumePoolResult{MessageID: m.MessageID, Order: string(o.Kind), VolumeID: o.Volume, SnapshotID: o.Snapshot}
		if fault != nil {
			text := fault.Error()
			result.Fault = strings.ToValidUTF8(text[:min(len(text), maxFault)], "")
		}
		if err := r.Send(ctx, result); err != nil && ctx.Err() == nil {
			in.c.Log.Debug("a result of the volume pool is told again when the cluster asks", "volume", o.Volume, "err", err)
		}
	})
	return nil
}

// taskName is what the last part of a task's ARN is.
var taskName = regexp.MustCompile(`^[0-9A-Za-z_-]{1,128}$`)

// maxFault bounds a reason, in bytes.
const maxFault = 512

func translateOrder(w *acs.PoolOrder) (task.PoolOrder, error) {
	o := task.PoolOrder{Kind: task.PoolOrderKind(w.Order), Volume: w.VolumeID, Snapshot: w.SnapshotID, TaskID: w.TaskID, Name: w.VolumeName}
	aboutVolume, aboutSnapshot := true, true
	switch w.Order {
	case acs.PoolDeleteVolume:
		aboutSnapshot = false
	case acs.PoolDeleteSnapshot:
		aboutVolume = false
	case acs.PoolCreateSnapshot:
		if !taskName.MatchString(w.TaskID) || !volumeName.MatchString(w.VolumeName) {
			return o, errors.New("taskId or volumeName is not a name")
		}
	default:
		return o, fmt.Errorf("%.32q is not known", w.Order)
	}
	switch {
	case aboutVolume && !blockID.MatchString(w.VolumeID):
		return o, fmt.Errorf("volumeId %.64q is not that of a block volume", w.VolumeID)
	case aboutSnapshot && !snapshotID.MatchString(w.SnapshotID):
		return o, fmt.Errorf("snapshotId %.64q is not that of a snapshot", w.SnapshotID)
	}
	return o, nil
}
