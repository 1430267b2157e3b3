package api

import (
	"context"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
)

const (
	maxDescribe    = 100
	maxReasonChars = 1024
)

// StopTask asks for a task's end and answers at once; its agent does the rest. Stopping
// a task that is stopping or stopped changes nothing.
func (a *API) StopTask(ctx context.Context, in *ecs.StopTaskInput) (*ecs.StopTaskOutput, error) {
	cluster, err := clusterRef(in.Cluster)
	if err != nil {
		return nil, err
	}
	id, err := childRef("task", cluster, str(in.Task))
	if err != nil {
		return nil, err
	}
	if len(str(in.Reason)) > maxReasonChars {
		return nil, invalidParameter("reason must have at most %d characters.", maxReasonChars)
	}
	var out types.Task
	err = a.placer.do(ctx, &job{weight: 2, commit: func(tx *store.Tx) error {
		if err := requireCluster(store.Peek(tx), cluster); err != nil {
			return err
		}
		old, ok := store.Get(tx, store.Tasks, store.Key(cluster, id))
		if !ok {
			return invalidParameter("The referenced task was not found.")
		}
		if str(old.Task.DesiredStatus) == statusStopped {
			out = old.Task
			return nil
		}
		t := *old
		t.Task = cloneTask(old.Task)
		a.stop(&t, types.TaskStopCodeUserInitiated, orElse(str(in.Reason), reasonStoppedByUser))
		store.Put(tx, store.Tasks, store.Key(cluster, id), &t)
		out = t.Task
		return nil
	}})
	if err != nil {
		return nil, err
	}
	out.Tags = nil
	return &ecs.StopTaskOutput{Task: &out}, nil
}

// stop sets the desired status of a task that the caller owns.
func (a *API) stop(t *store.Task, code types.TaskStopCode, reason string) {
	now := a.now()
	t.Task.DesiredStatus = aws.String(statusStopped)
	t.Task.StopCode, t.Task.StoppedReason, t.Task.StoppingAt = code, aws.String(reason), &now
	t.Task.Version++
}

// DescribeTasks answers with the tasks that are known, also those that stopped a while
// ago; the others are failures with reason MISSING.
func (a *API) DescribeTasks(_ context.Context, in *ecs.DescribeTasksInput) (*ecs.DescribeTasksOutput, error) {
	cluster, err := clusterRef(in.Cluster)
	if err != nil {
		return nil, err
	}
	if n := len(in.Tasks); n < 1 || n > maxDescribe {
		return nil, invalidParameter("Tasks must be between 1 and %d, %d given.", maxDescribe, n)
	}
	ids := make([]string, len(in.Tasks))
	for i, ref := range in.Tasks {
		if ids[i], err = childRef("task", cluster, ref); err != nil {
			return nil, err
		}
	}
	out := &ecs.DescribeTasksOutput{Tasks: []types.Task{}, Failures: []types.Failure{}}
	withTags := slices.Contains(in.Include, types.TaskFieldTags)
	a.Store.View(func(r store.Reader) {
		if err = requireCluster(r, cluster); err != nil {
			return
		}
		for _, id := range ids {
			t, ok := store.Get(r, store.Tasks, store.Key(cluster, id))
			if !ok {
				out.Failures = append(out.Failures, types.Failure{
					Arn: aws.String(a.arn("task", cluster, id)), Reason: aws.String("MISSING"),
				})
				continue
			}
			view := t.Task
			if !withTags {
				view.Tags = nil
			}
			out.Tasks = append(out.Tasks, view)
		}
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// ListTasks lists ARNs of the tasks that pass all filters. Without a desired status it
// lists those that are to run.
func (a *API) ListTasks(_ context.Context, in *ecs.ListTasksInput) (*ecs.ListTasksOutput, error) {
	cluster, err := clusterRef(in.Cluster)
	if err != nil {
		return nil, err
	}
	f, err := a.taskFilter(cluster, in)
	if err != nil {
		return nil, err
	}
	page, err := newPage(in.NextToken, in.MaxResults, maxDescribe, maxDescribe, "ListTasks", cluster, str(in.ContainerInstance), str(in.Family),
		str(in.StartedBy), str(in.ServiceName), string(in.DesiredStatus), string(in.LaunchType))
	if err != nil {
		return nil, err
	}
	out := &ecs.ListTasksOutput{TaskArns: []string{}}
	a.Store.View(func(r store.Reader) {
		if err = requireCluster(r, cluster); err != nil {
			return
		}
		if f.instance != "" {
			if _, ok := store.Get(r, store.Instances, store.Key(cluster, f.instance)); !ok {
				err = invalidParameter("The referenced container instance was not found.")
				return
			}
		}
		each := func(key string, t *store.Task) bool {
			if !f.match(t) {
				return true
			}
			if !page.take(key) {
				return false
			}
			out.TaskArns = append(out.TaskArns, str(t.Task.TaskArn))
			return true
		}
		if f.instance != "" {
			store.Lookup(r, store.TasksByInstance, f.instance, func(key string, t *store.Task) bool {
				return key <= page.after || each(key, t)
			})
			return
		}
		store.ScanAfter(r, store.Tasks, store.Prefix(cluster), page.after, each)
	})
	if err != nil {
		return nil, err
	}
	out.NextToken = page.next()
	return out, nil
}

// taskFilter holds the filters of ListTasks; empty members match everything.
type taskFilter struct {
	instance, family, startedBy, group string
	desired                            string
	launchType                         types.LaunchType
}

func (a *API) taskFilter(cluster string, in *ecs.ListTasksInput) (*taskFilter, error) {
	f := &taskFilter{
		family: str(in.Family), startedBy: str(in.StartedBy), launchType: in.LaunchType,
		desired: orElse(string(in.DesiredStatus), statusRunning),
	}
	if f.startedBy != "" && (f.family != "" || str(in.ServiceName) != "" || str(in.ContainerInstance) != "") {
		return nil, invalidParameter("startedBy must be the only filter.")
	}
	if str(in.ServiceName) != "" {
		return nil, failure("ServiceNotFoundException", "Service not found.")
	}
	if str(in.ContainerInstance) != "" {
		var err error
		if f.instance, err = childRef("container-instance", cluster, str(in.ContainerInstance)); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *taskFilter) match(t *store.Task) bool {
	return str(t.Task.DesiredStatus) == f.desired &&
		(f.family == "" || familyOf(str(t.Task.TaskDefinitionArn)) == f.family) &&
		(f.startedBy == "" || str(t.Task.StartedBy) == f.startedBy) &&
		(f.launchType == "" || t.Task.LaunchType == f.launchType)
}

// familyOf cuts the family out of a task definition's ARN.
func familyOf(arn string) string {
	name := arn[strings.LastIndexByte(arn, '/')+1:]
	family, _, _ := strings.Cut(name, ":")
	return family
}
