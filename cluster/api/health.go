package api

import (
	"context"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/tcs"
)

// statusAge is how old the recorded time of an instance's check may get before a check
// that says the same is written again: agents check every 30 s, and nobody needs a
// transaction for each.
const statusAge = 5 * time.Minute

// ReportHealth takes what an agent says of its containers' health. What is new of it is
// written; a task that is not on that instance is passed over.
func (a *API) ReportHealth(ctx context.Context, instanceARN string, tasks []tcs.TaskHealth) error {
	for i := range tasks {
		report := &tasks[i]
		cluster, id, ok := splitTaskARN(report.TaskARN)
		if !ok || !a.healthDiffers(cluster, id, instanceARN, report) {
			continue
		}
		err := a.changeTask(WithCaller(ctx, Caller{Kind: Instance, InstanceARN: instanceARN}), &cluster, id, func(t *types.Task, def *types.TaskDefinition) bool {
			return applyHealth(t, def, report)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// splitTaskARN takes cluster and ID from the ARN of a task.
func splitTaskARN(arn string) (cluster, id string, ok bool) {
	_, rest, ok := strings.Cut(arn, ":task/")
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, "/")
}

// healthDiffers reports whether a task's record says anything else than the report.
func (a *API) healthDiffers(cluster, id, instanceARN string, report *tcs.TaskHealth) (differs bool) {
	a.Store.View(func(r store.Reader) {
		t, ok := store.Get(r, store.Tasks, store.Key(cluster, id))
		if !ok || str(t.Task.ContainerInstanceArn) != instanceARN || str(t.Task.LastStatus) == statusStopped {
			return
		}
		for i := range t.Task.Containers {
			c := &t.Task.Containers[i]
			if s, told := healthOf(report, str(c.Name)); told && s != c.HealthStatus {
				differs = true
			}
		}
	})
	return differs
}

func healthOf(report *tcs.TaskHealth, container string) (types.HealthStatus, bool) {
	for i := range report.Containers {
		c := &report.Containers[i]
		if c.ContainerName != container {
			continue
		}
		switch s := types.HealthStatus(c.HealthStatus); s {
		case types.HealthStatusHealthy, types.HealthStatusUnhealthy, types.HealthStatusUnknown:
			return s, true
		}
	}
	return "", false
}

// applyHealth enters a report into a task. The task is UNHEALTHY when an essential
// container is, HEALTHY when all essential containers with a health check are, and
// UNKNOWN otherwise (ECS API model, Task$healthStatus).
func applyHealth(t *types.Task, def *types.TaskDefinition, report *tcs.TaskHealth) bool {
	if str(t.LastStatus) == statusStopped {
		return false
	}
	changed := false
	for i := range t.Containers {
		c := &t.Containers[i]
		if s, told := healthOf(report, str(c.Name)); told && s != c.HealthStatus {
			c.HealthStatus = s
			changed = true
		}
	}
	if !changed {
		return false
	}
	t.HealthStatus = taskHealth(t, def)
	t.Version++
	return true
}

func taskHealth(t *types.Task, def *types.TaskDefinition) types.HealthStatus {
	if def == nil {
		return types.HealthStatusUnknown
	}
	checked, healthy := 0, 0
	for i := range def.ContainerDefinitions {
		cd := &def.ContainerDefinitions[i]
		if cd.HealthCheck == nil || cd.Essential != nil && !*cd.Essential {
			continue
		}
		checked++
		switch containerHealth(t, str(cd.Name)) {
		case types.HealthStatusUnhealthy:
			return types.HealthStatusUnhealthy
		case types.HealthStatusHealthy:
			healthy++
		}
	}
	if checked > 0 && healthy == checked {
		return types.HealthStatusHealthy
	}
	return types.HealthStatusUnknown
}

func containerHealth(t *types.Task, name string) types.HealthStatus {
	for i := range t.Containers {
		if str(t.Containers[i].Name) == name {
			return t.Containers[i].HealthStatus
		}
	}
	return types.HealthStatusUnknown
}

// instanceChecks are the checks of agents that the API knows, by their name on the wire.
var instanceChecks = map[string]types.InstanceHealthCheckType{
	"ContainerRuntime": types.InstanceHealthCheckTypeContainerRuntime,
}

// ReportInstanceStatus takes the results of an agent's own checks.
func (a *API) ReportInstanceStatus(ctx context.Context, instanceARN string, statuses []tcs.InstanceStatus) error {
	_, rest, ok := strings.Cut(instanceARN, ":container-instance/")
	cluster, id, two := strings.Cut(rest, "/")
	if !ok || !two {
		return invalidParameter("The container instance ARN is not one.")
	}
	key := store.Key(cluster, id)
	differs := false
	a.Store.View(func(r store.Reader) {
		if inst, ok := store.Get(r, store.Instances, key); ok {
			_, differs = mergeStatus(inst.Instance.HealthStatus, statuses)
		}
	})
	if !differs {
		return nil
	}
	return a.Store.Update(ctx, func(tx *store.Tx) error {
		old, ok := store.Get(tx, store.Instances, key)
		if !ok {
			return nil // deregistered meanwhile
		}
		merged, differs := mergeStatus(old.Instance.HealthStatus, statuses)
		if !differs {
			return nil
		}
		inst := *old
		inst.Instance.HealthStatus = merged
		store.Put(tx, store.Instances, key, &inst)
		return nil
	})
}

// mergeStatus enters results into what is recorded, as a new value, and reports whether
// they say anything that is worth writing.
func mergeStatus(old *types.ContainerInstanceHealthStatus, statuses []tcs.InstanceStatus) (*types.ContainerInstanceHealthStatus, bool) {
	merged := &types.ContainerInstanceHealthStatus{}
	if old != nil {
		merged.Details = append(merged.Details, old.Details...)
	}
	differs := false
	for i := range statuses {
		s := &statuses[i]
		check, known := instanceChecks[s.Type]
		if !known {
			continue
		}
		result := types.InstanceHealthCheckResult{
			Type: check, Status: types.InstanceHealthCheckState(s.Status),
			LastUpdated: aws.Time(s.LastUpdated.Time), LastStatusChange: aws.Time(s.LastStatusChange.Time),
		}
		at := -1
		for j := range merged.Details {
			if merged.Details[j].Type == check {
				at = j
			}
		}
		switch {
		case at < 0:
			merged.Details = append(merged.Details, result)
			differs = true
		case merged.Details[at].Status != result.Status || s.LastUpdated.Sub(aws.ToTime(merged.Details[at].LastUpdated)) > statusAge:
			merged.Details[at] = result
			differs = true
		}
	}
	merged.OverallStatus = types.InstanceHealthCheckStateInsufficientData
	for i := range merged.Details {
		switch merged.Details[i].Status {
		case types.InstanceHealthCheckStateImpaired:
			merged.OverallStatus = types.InstanceHealthCheckStateImpaired
			return merged, differs
		case types.InstanceHealthCheckStateOk:
			merged.OverallStatus = types.InstanceHealthCheckStateOk
		}
	}
	return merged, differs
}
