package main

import (
	"context"
	"errors"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/spf13/cobra"

	"berth.dev/berth/cmd/berth/internal/operator"
	"berth.dev/berth/cmd/berth/internal/screen"
)

func (a *app) stop() *cobra.Command {
	var reason string
	var noWait bool
	c := &cobra.Command{
		Use:   "stop TASK",
		Short: "Stop a task and wait for its end",
		Long: `Asks the containers of a task to end (SIGTERM), ends them when their stopTimeout
has passed (SIGKILL), and waits for that.

TASK is an ARN, an id or the first characters of one, or the family of the only
running task.`,
		Example: `  berth stop my-task
  berth stop 4f2c --reason "new release"`,
		Args: args(1, 1, "TASK"),
		RunE: func(c *cobra.Command, arg []string) error {
			api, cluster, err := a.api()
			if err != nil {
				return err
			}
			t, err := api.FindTask(c.Context(), cluster, arg[0])
			if err != nil {
				return err
			}
			if aws.ToString(t.LastStatus) == "STOPPED" {
				return a.showStopped(t, "had stopped already")
			}
			if _, err := api.StopTask(c.Context(), &ecs.StopTaskInput{Cluster: &cluster, Task: t.TaskArn, Reason: &reason}); err != nil {
				return api.Explain(err)
			}
			if noWait {
				return a.showStopped(t, "is told to stop")
			}
			step := a.screen.Begin("stopping", operator.Short(t.TaskArn))
			t, err = a.watch(c.Context(), api, cluster, t, func(*types.Task) {})
			step.Fail() // the table says it better
			if err != nil {
				return err
			}
			return a.showStopped(t, "")
		},
	}
	c.Flags().StringVar(&reason, "reason", "stopped by berth stop", "the `text` that the task's stoppedReason will show")
	c.Flags().BoolVar(&noWait, "no-wait", false, "return at once")
	a.clusterFlag(c)
	return c
}

func (a *app) showStopped(t *types.Task, remark string) error {
	if a.screen.JSON {
		return a.screen.Value(taskViews([]types.Task{*t})[0])
	}
	if remark == "" {
		a.screen.Table(a.taskTable([]types.Task{*t}, time.Now()))
		return nil
	}
	a.screen.Printf("Task %s %s\n", operator.Short(t.TaskArn), remark)
	return nil
}

// watchInterval is how often the cluster is asked about a task that is watched.
const watchInterval = 200 * time.Millisecond

// watch asks for a task until it has stopped, and calls seen whenever its status, or
// what is wanted of it, is another one than before.
func (a *app) watch(ctx context.Context, api *operator.Client, cluster string, t *types.Task, seen func(*types.Task)) (*types.Task, error) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	last := ""
	for {
		found, err := api.Describe(ctx, cluster, aws.ToString(t.TaskArn))
		switch {
		case err != nil && ctx.Err() != nil:
			return t, context.Cause(ctx)
		case err != nil:
			var said *operator.APIError
			if errors.As(err, &said) {
				return t, err
			}
			last = a.waitForCluster(last, err)
		case len(found) == 0:
			return t, errors.New("the cluster no longer knows task " + operator.Tail(t.TaskArn))
		default:
			t = &found[0]
			if now := aws.ToString(t.LastStatus) + aws.ToString(t.DesiredStatus); now != last {
				last = now
				seen(t)
			}
			if aws.ToString(t.LastStatus) == "STOPPED" {
				return t, nil
			}
		}
		select {
		case <-ctx.Done():
			return t, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// waitForCluster says once that the cluster does not answer; tasks do not need it.
func (a *app) waitForCluster(last string, err error) string {
	const away = "away"
	if last != away {
		a.screen.Note("%s %v; waiting for it", a.screen.Colour(screen.Warn, "berth:"), err)
	}
	return away
}
