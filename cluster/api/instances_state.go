package api

import (
	"context"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/sched"
	"berth.dev/berth/cluster/store"
)

// maxStateChanges is how many instances one UpdateContainerInstancesState may name.
const maxStateChanges = 10

// DescribeContainerInstances answers with the instances that are known; the others are
// failures with reason MISSING.
func (a *API) DescribeContainerInstances(_ context.Context, in *ecs.DescribeContainerInstancesInput) (*ecs.DescribeContainerInstancesOutput, error) {
	cluster, err := clusterRef(in.Cluster)
	if err != nil {
		return nil, err
	}
	if n := len(in.ContainerInstances); n < 1 || n > maxDescribe {
		return nil, invalidParameter("Container instances must be between 1 and %d, %d given.", maxDescribe, n)
	}
	out := &ecs.DescribeContainerInstancesOutput{ContainerInstances: []types.ContainerInstance{}, Failures: []types.Failure{}}
	withTags := slices.Contains(in.Include, types.ContainerInstanceFieldTags)
	withHealth := slices.Contains(in.Include, types.ContainerInstanceFieldContainerInstanceHealth)
	a.Store.View(func(r store.Reader) {
		if err = requireCluster(r, cluster); err != nil {
			return
		}
		for _, ref := range in.ContainerInstances {
			var id string
			if id, err = childRef("container-instance", cluster, ref); err != nil {
				return
			}
			inst, ok := store.Get(r, store.Instances, store.Key(cluster, id))
			if !ok {
				out.Failures = append(out.Failures, a.missingInstance(cluster, id))
				continue
			}
			alloc, _ := store.Get(r, store.Allocations, store.Key(cluster, id))
			view := instanceView(r, inst, alloc)
			if !withTags {
				view.Tags = nil
			}
			if !withHealth {
				view.HealthStatus = nil
			}
			out.ContainerInstances = append(out.ContainerInstances, view)
		}
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (a *API) missingInstance(cluster, id string) types.Failure {
	return types.Failure{Arn: aws.String(a.arn("container-instance", cluster, id)), Reason: aws.String("MISSING")}
}

// ListContainerInstances lists the ARNs of the instances that pass the status and the
// expression of the cluster query language. Without a status, deregistered ones are left
// out.
func (a *API) ListContainerInstances(_ context.Context, in *ecs.ListContainerInstancesInput) (*ecs.ListContainerInstancesOutput, error) {
	cluster, err := clusterRef(in.Cluster)
	if err != nil {
		return nil, err
	}
	var query *sched.Query
	if filter := str(in.Filter); filter != "" {
		if query, err = sched.ParseQuery(filter); err != nil {
			return nil, invalidParameter("Invalid filter: %s", err)
		}
	}
	page, err := newPage(in.NextToken, in.MaxResults, maxDescribe, maxDescribe, "ListContainerInstances", cluster, str(in.Filter), string(in.Status))
	if err != nil {
		return nil, err
	}
	out := &ecs.ListContainerInstancesOutput{ContainerInstanceArns: []string{}}
	a.Store.View(func(r store.Reader) {
		if err = requireCluster(r, cluster); err != nil {
			return
		}
		store.ScanAfter(r, store.Instances, store.Prefix(cluster), page.after, func(key string, inst *store.Instance) bool {
			status := str(inst.Instance.Status)
			if in.Status != "" && status != string(in.Status) || in.Status == "" && status == instanceInactive {
				return true
			}
			if query != nil && !query.Match(queryView(r, inst)) {
				return true
			}
			if !page.take(key) {
				return false
			}
			out.ContainerInstanceArns = append(out.ContainerInstanceArns, str(inst.Instance.ContainerInstanceArn))
			return true
		})
	})
	if err != nil {
		return nil, err
	}
	out.NextToken = page.next()
	return out, nil
}

// queryView is an instance as an expression of the query language sees it.
func queryView(r store.Reader, inst *store.Instance) *sched.View {
	v := &sched.View{
		AgentConnected: inst.Instance.AgentConnected,
		EC2InstanceID:  str(inst.Instance.Ec2InstanceId),
		Attributes:     make(map[string]string, len(inst.Instance.Attributes)),
	}
	if i := inst.Instance.VersionInfo; i != nil {
		v.AgentVersion = str(i.AgentVersion)
	}
	if at := inst.Instance.RegisteredAt; at != nil {
		v.RegisteredAt = *at
	}
	for _, at := range inst.Instance.Attributes {
		v.Attributes[str(at.Name)] = str(at.Value)
	}
	var groups []string
	store.Lookup(r, store.TasksByInstance, inst.ID, func(_ string, t *store.Task) bool {
		if holds(t) {
			groups = append(groups, str(t.Task.Group))
			if str(t.Task.LastStatus) == statusRunning {
				v.RunningTasks++
			}
		}
		return true
	})
	v.Groups = slices.Values(groups)
	return v
}

// UpdateContainerInstancesState drains instances, or makes them take tasks again. An
// agent may do it for its own instance.
func (a *API) UpdateContainerInstancesState(ctx context.Context, in *ecs.UpdateContainerInstancesStateInput) (*ecs.UpdateContainerInstancesStateOutput, error) {
	cluster, err := clusterRef(in.Cluster)
	if err != nil {
		return nil, err
	}
	if n := len(in.ContainerInstances); n < 1 || n > maxStateChanges {
		return nil, invalidParameter("Container instances must be between 1 and %d, %d given.", maxStateChanges, n)
	}
	if in.Status != types.ContainerInstanceStatusActive && in.Status != types.ContainerInstanceStatusDraining {
		return nil, invalidParameter("Container instance status should be one of [DRAINING,ACTIVE].")
	}
	var out *ecs.UpdateContainerInstancesStateOutput
	err = a.Store.Update(ctx, func(tx *store.Tx) error {
		out = &ecs.UpdateContainerInstancesStateOutput{ContainerInstances: []types.ContainerInstance{}, Failures: []types.Failure{}}
		if err := requireCluster(tx, cluster); err != nil {
			return err
		}
		for _, ref := range in.ContainerInstances {
			id, err := childRef("container-instance", cluster, ref)
			if err != nil {
				return err
			}
			if err := ownInstance(CallerOf(ctx), a.arn("container-instance", cluster, id)); err != nil {
				return err
			}
			key := store.Key(cluster, id)
			old, ok := store.Get(tx, store.Instances, key)
			if !ok {
				out.Failures = append(out.Failures, a.missingInstance(cluster, id))
				continue
			}
			if str(old.Instance.Status) == instanceInactive {
				out.Failures = append(out.Failures, types.Failure{Arn: old.Instance.ContainerInstanceArn, Reason: aws.String(instanceInactive)})
				continue
			}
			inst := *old
			if str(inst.Instance.Status) != string(in.Status) {
				inst.Instance.Status = aws.String(string(in.Status))
				inst.Instance.Version++
				store.Put(tx, store.Instances, key, &inst)
			}
			alloc, _ := store.Get(store.Peek(tx), store.Allocations, key)
			view := instanceView(store.Peek(tx), &inst, alloc)
			view.Tags = nil
			out.ContainerInstances = append(out.ContainerInstances, view)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// DeregisterContainerInstance ends an instance's part in the cluster. With tasks on it
// that takes force: they are then no longer followed, and count as stopped.
func (a *API) DeregisterContainerInstance(ctx context.Context, in *ecs.DeregisterContainerInstanceInput) (*ecs.DeregisterContainerInstanceOutput, error) {
	cluster, err := clusterRef(in.Cluster)
	if err != nil {
		return nil, err
	}
	id, err := childRef("container-instance", cluster, str(in.ContainerInstance))
	if err != nil {
		return nil, err
	}
	key, now := store.Key(cluster, id), a.now()
	var view types.ContainerInstance
	err = a.Store.Update(ctx, func(tx *store.Tx) error {
		if err := requireCluster(tx, cluster); err != nil {
			return err
		}
		old, ok := store.Get(tx, store.Instances, key)
		if !ok || str(old.Instance.Status) == instanceInactive {
			return invalidParameter("The referenced container instance was not found.")
		}
		var live []*store.Task
		store.Lookup(tx, store.TasksByInstance, id, func(_ string, t *store.Task) bool {
			if holds(t) {
				live = append(live, t)
			}
			return true
		})
		if len(live) > 0 && !aws.ToBool(in.Force) {
			return invalidParameter("Found running tasks on the instance.")
		}
		for _, t := range live {
			orphan := *t
			orphan.Task = cloneTask(t.Task)
			a.orphan(&orphan)
			store.Put(tx, store.Tasks, store.Key(cluster, t.ID), &orphan)
		}
		inst := *old
		inst.Instance.Status = aws.String(instanceInactive)
		inst.Instance.AgentConnected = false
		inst.Instance.Version++
		inst.DeregisteredAt = &now
		store.Put(tx, store.Instances, key, &inst)
		// A placement that is being committed compares the allocation, so it cannot
		// put a task on an instance that is gone.
		store.Delete(tx, store.Allocations, key)
		view = inst.Instance
		view.RunningTasksCount, view.PendingTasksCount = 0, 0
		view.RemainingResources = view.RegisteredResources
		view.Tags = nil
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &ecs.DeregisterContainerInstanceOutput{ContainerInstance: &view}, nil
}

// orphan ends a task in the records only.
func (a *API) orphan(t *store.Task) {
	now := a.now()
	if t.Task.StopCode == "" {
		t.Task.StopCode = types.TaskStopCodeInfrastructureHealth
		t.Task.StoppedReason = aws.String("Host container instance (" + t.InstanceID + ") was deregistered by force")
	}
	stopped(&t.Task, nil, "", now)
	t.Task.LastStatus = aws.String(statusStopped)
	t.Task.Version++
}

// DiscoverPollEndpoint tells an agent where its two websockets are. Agents add "/ws" and
// their query to each (agent protocol, "Connecting").
func (a *API) DiscoverPollEndpoint(ctx context.Context, in *ecs.DiscoverPollEndpointInput) (*ecs.DiscoverPollEndpointOutput, error) {
	if ref := str(in.ContainerInstance); strings.HasPrefix(ref, "arn:") {
		if err := ownInstance(CallerOf(ctx), ref); err != nil {
			return nil, err
		}
	}
	base := strings.TrimSuffix(a.Endpoint(), "/")
	return &ecs.DiscoverPollEndpointOutput{
		Endpoint:          aws.String(base),
		TelemetryEndpoint: aws.String(base + "/tcs"),
	}, nil
}
