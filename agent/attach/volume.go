package attach

import (
	"context"
	"errors"
	"time"

	"berth.dev/berth/agent/task"
)

// name is what the cluster calls the device of an attachment.
func name(a *task.Attachment) string {
	if a.Volume != nil {
		return "volume " + a.Volume.Block.ID
	}
	return "interface " + a.Interface.ID + " " + a.Interface.MAC
}

func taskID(a *task.Attachment) string { return (&task.Task{ARN: a.TaskARN}).ID() }

// stage makes a volume ready and has the cluster told. One that cannot be made ready, or
// not in time, ends its task with the reason.
func (k *Keeper) stage(ctx context.Context, a task.Attachment) error {
	start := time.Now()
	limited, cancel := context.WithDeadline(ctx, a.Expires)
	defer cancel()
	err := k.retry(limited, a, "attach", func() error {
		err := k.c.Volumes.Stage(limited, taskID(&a), a.Volume)
		if err != nil && !task.ClassOf(err).Retriable() {
			reason := task.ReasonOf(err, task.ResourceInitialization)
			return &task.Error{Class: task.Invalid, Reason: reason, Err: err} // another try helps nothing
		}
		return err
	})
	if err != nil {
		if ctx.Err() != nil {
			return err // taken up again by the next run, or not wanted any more
		}
		return errors.Join(err, k.refuse(ctx, a, err))
	}
	a.Status = task.AttachmentAttached
	if err := k.retry(limited, a, "report", func() error { return k.c.Submit(limited, a.ARN, a.Status) }); err != nil {
		return err
	}
	commit := task.Commit{Attachments: map[string]*task.Attachment{a.ARN: &a}}
	if err := k.retry(limited, a, "record", func() error { return k.c.Store.Commit(limited, commit) }); err != nil {
		return err
	}
	k.c.Log.Info("a block volume is attached", "attachment", a.ARN, "volume", a.Volume.Block.ID, "task", taskID(&a), "dur", time.Since(start))
	return nil
}

// refuse reports that the task of a volume cannot run.
func (k *Keeper) refuse(ctx context.Context, a task.Attachment, why error) error {
	if k.c.Held(a.TaskARN) {
		return nil // its volume fails, and it says so itself
	}
	return k.c.Store.Commit(ctx, task.Commit{Batches: []task.Batch{{TaskID: taskID(&a), Changes: []task.Change{{
		TaskARN: a.TaskARN, ClusterARN: a.ClusterARN, Status: task.StatusStopped, Reason: task.ReasonOf(why, task.ResourceInitialization).String(),
		ExecutionStopped: time.Now(),
	}}}}})
}

// abandon takes away what was made for an attachment that nobody needs.
func (k *Keeper) abandon(ctx context.Context, a task.Attachment) error {
	switch {
	case a.Volume == nil:
		return k.c.Devices.Abandon(ctx, &a.Interface)
	case a.Status == task.AttachmentAttached:
		// Its task was here, or the cluster knows that it never will be. A volume that is
		// to be kept may hold something.
		return k.c.Volumes.Unstage(ctx, taskID(&a), a.Volume)
	default:
		fresh := *a.Volume
		block := *fresh.Block
		block.Delete = true // nothing was ever written to it
		fresh.Block = &block
		return k.c.Volumes.Unstage(ctx, taskID(&a), &fresh)
	}
}
