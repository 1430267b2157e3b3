package api

import (
	"context"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
)

// SubmitTaskStateChange folds a change that an agent reports into the task. A change that
// tells nothing new is acknowledged like any other: agents repeat what they are not sure
// of, and an error would make them repeat it again.
func (a *API) SubmitTaskStateChange(ctx context.Context, in *ecs.SubmitTaskStateChangeInput) (_ *ecs.SubmitTaskStateChangeOutput, err error) {
	if a.Submitted != nil {
		defer func() { a.Submitted(CallerOf(ctx), in, err) }()
	}
	switch str(in.Status) {
	case statusPending, statusRunning, statusStopped, "":
	default:
		return nil, invalidParameter("status must be PENDING, RUNNING or STOPPED.")
	}
	if len(in.Attachments) > 0 && str(in.Status) == "" {
		return &ecs.SubmitTaskStateChangeOutput{Acknowledgment: aws.String("")}, a.submitTaskAttachments(ctx, in)
	}
	err = a.changeTask(ctx, in.Cluster, str(in.Task), func(t *types.Task, def *types.TaskDefinition) bool {
		return applyTaskChange(t, def, in, a.now())
	})
	if err != nil {
		return nil, err
	}
	return &ecs.SubmitTaskStateChangeOutput{Acknowledgment: aws.String("")}, nil
}

// SubmitContainerStateChange is the older form for one container.
func (a *API) SubmitContainerStateChange(ctx context.Context, in *ecs.SubmitContainerStateChangeInput) (*ecs.SubmitContainerStateChangeOutput, error) {
	change := &ecs.SubmitTaskStateChangeInput{Containers: []types.ContainerStateChange{{
		ContainerName: in.ContainerName, ExitCode: in.ExitCode, NetworkBindings: in.NetworkBindings,
		Reason: in.Reason, RuntimeId: in.RuntimeId, Status: in.Status,
	}}}
	err := a.changeTask(ctx, in.Cluster, str(in.Task), func(t *types.Task, def *types.TaskDefinition) bool {
		return applyTaskChange(t, def, change, a.now())
	})
	if err != nil {
		return nil, err
	}
	return &ecs.SubmitContainerStateChangeOutput{Acknowledgment: aws.String("")}, nil
}

// changeTask runs fn on a copy of a task's record and writes it if fn says that it
// changed. The end of a task gives back what it held in the same transaction.
func (a *API) changeTask(ctx context.Context, clusterName *string, ref string, fn func(*types.Task, *types.TaskDefinition) bool) error {
	cluster, err := clusterRef(clusterName)
	if err != nil {
		return err
	}
	id, err := childRef("task", cluster, ref)
	if err != nil {
		return err
	}
	caller := CallerOf(ctx)
	return a.placer.do(ctx, &job{weight: 2, commit: func(tx *store.Tx) error {
		if err := requireCluster(store.Peek(tx), cluster); err != nil {
			return err
		}
		key := store.Key(cluster, id)
		old, ok := store.Get(tx, store.Tasks, key)
		if !ok {
			return invalidParameter("The referenced task was not found.")
		}
		if err := ownInstance(caller, str(old.Task.ContainerInstanceArn)); err != nil {
			return err
		}
		t := *old
		t.Task = cloneTask(old.Task)
		def := a.definitionOf(store.Peek(tx), str(t.Task.TaskDefinitionArn))
		if !fn(&t.Task, def) {
			return nil
		}
		if str(t.Task.LastStatus) == statusStopped && str(old.Task.LastStatus) != statusStopped {
			release(tx, &t)
		}
		store.Put(tx, store.Tasks, key, &t)
		return nil
	}})
}

// submitTaskAttachments takes the form that only tells of attached interfaces.
func (a *API) submitTaskAttachments(ctx context.Context, in *ecs.SubmitTaskStateChangeInput) error {
	return a.changeTask(ctx, in.Cluster, str(in.Task), func(t *types.Task, _ *types.TaskDefinition) bool {
		changed := false
		for _, change := range in.Attachments {
			changed = setAttachment(t.Attachments, change) || changed
		}
		if changed {
			attached(t)
			t.Version++
		}
		return changed
	})
}

// setAttachment works on a list that the caller owns.
func setAttachment(list []types.Attachment, change types.AttachmentStateChange) bool {
	for i := range list {
		at := &list[i]
		arn := str(change.AttachmentArn)
		if str(at.Id) != arn[strings.LastIndexByte(arn, '/')+1:] || str(at.Status) == str(change.Status) {
			continue
		}
		at.Status = change.Status
		return true
	}
	return false
}

// SubmitAttachmentStateChanges takes notice of what an instance has attached. Only
// attachments that the cluster has announced are known; others are acknowledged, as
// they concern nothing that is recorded here.
func (a *API) SubmitAttachmentStateChanges(ctx context.Context, in *ecs.SubmitAttachmentStateChangesInput) (*ecs.SubmitAttachmentStateChangesOutput, error) {
	cluster, err := clusterRef(in.Cluster)
	if err != nil {
		return nil, err
	}
	caller := CallerOf(ctx)
	if err := a.submitVolumes(ctx, cluster, caller, in); err != nil {
		return nil, err
	}
	err = a.Store.Update(ctx, func(tx *store.Tx) error {
		if err := requireCluster(store.Peek(tx), cluster); err != nil {
			return err
		}
		if caller.Kind != Instance {
			return nil
		}
		id, err := childRef("container-instance", cluster, caller.InstanceARN)
		if err != nil {
			return err
		}
		old, ok := store.Get(tx, store.Instances, store.Key(cluster, id))
		if !ok {
			return invalidParameter("The referenced container instance was not found.")
		}
		inst := *old
		inst.Instance.Attachments = append([]types.Attachment{}, old.Instance.Attachments...)
		changed := false
		for _, change := range in.Attachments {
			changed = setAttachment(inst.Instance.Attachments, change) || changed
		}
		if changed {
			inst.Instance.Version++
			store.Put(tx, store.Instances, store.Key(cluster, id), &inst)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &ecs.SubmitAttachmentStateChangesOutput{Acknowledgment: aws.String("")}, nil
}

// submitVolumes takes notice of volumes that an instance has attached for tasks.
func (a *API) submitVolumes(ctx context.Context, cluster string, caller Caller, in *ecs.SubmitAttachmentStateChangesInput) error {
	if caller.Kind != Instance {
		return nil
	}
	instance, err := childRef("container-instance", cluster, caller.InstanceARN)
	if err != nil {
		return err
	}
	for id, changes := range a.volumeChanges(cluster, instance, in) {
		err := a.submitTaskAttachments(ctx, &ecs.SubmitTaskStateChangeInput{Cluster: in.Cluster, Task: aws.String(id), Attachments: changes})
		if err != nil {
			return err
		}
	}
	return nil
}

// FailTask ends a task that never reached its agent, with the reason.
func (a *API) FailTask(ctx context.Context, cluster, id, reason string) error {
	return a.changeTask(ctx, &cluster, id, func(t *types.Task, def *types.TaskDefinition) bool {
		return applyTaskChange(t, def, &ecs.SubmitTaskStateChangeInput{
			Status: aws.String(statusStopped), Reason: aws.String(reason),
		}, a.now())
	})
}
