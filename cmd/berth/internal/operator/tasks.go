package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// Tail is the last element of an ARN: a task's id, a cluster's name, family:revision.
func Tail(arn *string) string {
	s := aws.ToString(arn)
	return s[strings.LastIndexByte(s, '/')+1:]
}

// Short is the part of a task's id that people type: enough to be unique on any
// cluster one would look at by eye.
func Short(arn *string) string { return first(Tail(arn), 8) }

func first(s string, n int) string { return s[:min(n, len(s))] }

// describeMax is how many tasks DescribeTasks takes at once (ECS API model).
const describeMax = 100

// Tasks returns the tasks of a cluster with the desired status "RUNNING" or
// "STOPPED", newest first.
func (c *Client) Tasks(ctx context.Context, cluster string, desired types.DesiredStatus) ([]types.Task, error) {
	var arns []string
	pages := ecs.NewListTasksPaginator(c, &ecs.ListTasksInput{Cluster: &cluster, DesiredStatus: desired})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, c.Explain(err)
		}
		arns = append(arns, page.TaskArns...)
	}
	tasks, err := c.Describe(ctx, cluster, arns...)
	slices.SortStableFunc(tasks, func(a, b types.Task) int {
		return aws.ToTime(b.CreatedAt).Compare(aws.ToTime(a.CreatedAt))
	})
	return tasks, err
}

// Describe returns the tasks with these ARNs or ids that the cluster knows.
func (c *Client) Describe(ctx context.Context, cluster string, arns ...string) ([]types.Task, error) {
	var tasks []types.Task
	for some := range slices.Chunk(arns, describeMax) {
		out, err := c.DescribeTasks(ctx, &ecs.DescribeTasksInput{
			Cluster: &cluster, Tasks: some, Include: []types.TaskField{types.TaskFieldTags},
		})
		if err != nil {
			return nil, c.Explain(err)
		}
		tasks = append(tasks, out.Tasks...)
	}
	return tasks, nil
}

// FindTask returns the task that what names: an ARN, an id, the first four or more
// characters of an id, or a family (with or without a revision). Of a family it is
// the only running task, or else the newest one that has stopped.
func (c *Client) FindTask(ctx context.Context, cluster, what string) (*types.Task, error) {
	if strings.HasPrefix(what, "arn:") || len(what) == 32 {
		tasks, err := c.Describe(ctx, cluster, what)
		if err == nil && len(tasks) == 0 {
			err = notFound(what, cluster)
		}
		if err != nil {
			return nil, err
		}
		return &tasks[0], nil
	}
	for _, desired := range []types.DesiredStatus{types.DesiredStatusRunning, types.DesiredStatusStopped} {
		tasks, err := c.Tasks(ctx, cluster, desired)
		if err != nil {
			return nil, err
		}
		t, err := pick(tasks, what, desired)
		if t != nil || err != nil {
			return t, err
		}
	}
	return nil, notFound(what, cluster)
}

func notFound(what, cluster string) error {
	return fmt.Errorf("no task %s in cluster %s; list them with: berth ps --all", what, cluster)
}

// pick finds what among tasks, which are newest first.
func pick(tasks []types.Task, what string, desired types.DesiredStatus) (*types.Task, error) {
	var byID, byFamily []*types.Task
	for i := range tasks {
		t := &tasks[i]
		definition := Tail(t.TaskDefinitionArn)
		family, _, _ := strings.Cut(definition, ":")
		switch {
		case len(what) >= 4 && strings.HasPrefix(Tail(t.TaskArn), what):
			byID = append(byID, t)
		case what == definition || what == family:
			byFamily = append(byFamily, t)
		}
	}
	found := byID
	if len(found) == 0 {
		found = byFamily
	}
	switch {
	case len(found) == 0:
		return nil, nil
	case len(found) > 1 && (len(byID) > 1 || desired == types.DesiredStatusRunning):
		ids := make([]string, len(found))
		for i, t := range found {
			ids[i] = Short(t.TaskArn)
		}
		return nil, fmt.Errorf("%s means %d tasks: %s; name one of them", what, len(found), strings.Join(ids, ", "))
	}
	return found[0], nil
}

// Run starts one task of a definition.
func (c *Client) Run(ctx context.Context, in *ecs.RunTaskInput) (*types.Task, error) {
	out, err := c.RunTask(ctx, in)
	if err != nil {
		return nil, c.Explain(err)
	}
	if len(out.Tasks) > 0 {
		return &out.Tasks[0], nil
	}
	var why []error
	for _, f := range out.Failures {
		why = append(why, errors.New(explainFailure(f)))
	}
	return nil, fmt.Errorf("%s was not placed: %w", Tail(in.TaskDefinition), errors.Join(why...))
}

// explainFailure puts a placement failure (ECS API, "API failure reasons") in words.
func explainFailure(f types.Failure) string {
	reason := aws.ToString(f.Reason)
	words := map[string]string{
		"RESOURCE:CPU":    "not enough CPU is left; see: berth ps",
		"RESOURCE:MEMORY": "not enough memory is left; see: berth ps",
		"RESOURCE:PORTS":  "a host port it asks for is taken by another task; see: berth ps",
		"AGENT":           "the agent is not connected; see: berth status",
		"ATTRIBUTE":       "no instance has an attribute that it requires",
		"EMPTY CLUSTER":   "the cluster has no instance; see: berth status",
		"INACTIVE":        "the instance is not active",
	}[reason]
	detail := aws.ToString(f.Detail)
	switch {
	case words != "" && detail != "":
		return fmt.Sprintf("%s (%s): %s", reason, words, detail)
	case words != "":
		return fmt.Sprintf("%s (%s)", reason, words)
	case detail != "":
		return reason + ": " + detail
	default:
		return reason
	}
}

// ExitCode is what a stopped task counts as: the exit code of the essential container
// that ended first, or of the first one in the list with a code that is not 0; and 1
// for a task none of whose essential containers ever ran. essential names the
// essential containers.
func ExitCode(t *types.Task, essential func(name string) bool) int {
	ran := false
	for _, c := range t.Containers {
		if !essential(aws.ToString(c.Name)) || c.ExitCode == nil {
			continue
		}
		ran = true
		if *c.ExitCode != 0 {
			return int(*c.ExitCode)
		}
	}
	if !ran || t.StopCode == types.TaskStopCodeTaskFailedToStart {
		return 1
	}
	return 0
}

// WhyStopped puts together what a stopped task says about its end.
func WhyStopped(t *types.Task) string {
	var parts []string
	if r := aws.ToString(t.StoppedReason); r != "" {
		parts = append(parts, r)
	}
	for _, c := range t.Containers {
		what := ""
		if c.ExitCode != nil {
			what = fmt.Sprintf("exit code %d", *c.ExitCode)
		}
		if r := aws.ToString(c.Reason); r != "" && r != aws.ToString(t.StoppedReason) {
			what = strings.Trim(what+", "+r, ", ")
		}
		if what != "" {
			parts = append(parts, fmt.Sprintf("container %s: %s", aws.ToString(c.Name), what))
		}
	}
	if len(parts) == 0 {
		return "no reason is known"
	}
	return strings.Join(parts, "; ")
}
