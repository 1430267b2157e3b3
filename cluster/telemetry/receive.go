package telemetry

import (
	"context"

	"berth.dev/berth/wire/tcs"
)

// Records enters health into what the API shows.
type Records interface {
	ReportHealth(ctx context.Context, instanceARN string, tasks []tcs.TaskHealth) error
	ReportInstanceStatus(ctx context.Context, instanceARN string, statuses []tcs.InstanceStatus) error
}

// Receiver sorts what agents publish: use is kept here, health goes to the records.
func (k *Keeper) Receiver(r Records) func(ctx context.Context, instanceARN string, m tcs.Message) error {
	return func(ctx context.Context, instanceARN string, m tcs.Message) error {
		switch m := m.(type) {
		case *tcs.PublishMetricsRequest:
			if err := k.waitForRoom(ctx, m.Timestamp.Time); err != nil {
				return err
			}
			k.Take(instanceARN, m)
			return nil
		case *tcs.PublishHealthRequest:
			return r.ReportHealth(ctx, instanceARN, m.Tasks)
		case *tcs.PublishInstanceStatusRequest:
			return r.ReportInstanceStatus(ctx, instanceARN, m.Statuses)
		default:
			return nil // it asks for nothing
		}
	}
}
