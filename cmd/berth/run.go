package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/spf13/cobra"

	"berth.dev/berth/cmd/berth/internal/operator"
	"berth.dev/berth/cmd/berth/internal/screen"
)

func (a *app) runFile() *cobra.Command {
	var detach bool
	c := &cobra.Command{
		Use:   "run FILE",
		Short: "Register and run a task definition file, and follow the task to its end",
		Long: `Registers the task definition in FILE, unless its newest revision says the same,
runs one task of it, and prints each change of its state with the time since the
start. FILE is what "aws ecs register-task-definition --cli-input-json" takes.

Exits with the exit code of the task: that of the first essential container
whose code is not 0, else 0; and 1, with the reasons, when no container ever
ran. Ctrl-C stops the task; a second one leaves it to itself.`,
		Example: `  berth run examples/my-task.json
  berth run --detach examples/my-task.json    # only start it
  berth run job.json && echo it worked`,
		Args: args(1, 1, "FILE"),
		RunE: func(c *cobra.Command, arg []string) error {
			in, err := operator.ReadDefinition(arg[0])
			if err != nil {
				return err
			}
			api, cluster, err := a.api()
			if err != nil {
				return err
			}
			d, _, err := api.Register(c.Context(), in)
			if err != nil {
				return err
			}
			start := time.Now()
			t, err := api.Run(c.Context(), &ecs.RunTaskInput{
				Cluster: &cluster, TaskDefinition: d.TaskDefinitionArn, StartedBy: aws.String("berth run"),
			})
			if err != nil {
				return err
			}
			if detach {
				if a.screen.JSON {
					return a.screen.Value(taskViews([]types.Task{*t})[0])
				}
				a.screen.Printf("%s\n", operator.Tail(t.TaskArn))
				return nil
			}
			return a.follow(c.Context(), api, cluster, d, t, start)
		},
	}
	c.Flags().BoolVarP(&detach, "detach", "d", false, "print the task's id and return")
	a.clusterFlag(c)
	return c
}

// follow shows the states of a task to its end, which becomes the exit code.
func (a *app) follow(ctx context.Context, api *operator.Client, cluster string, d *types.TaskDefinition, t *types.Task, start time.Time) error {
	show := func(t *types.Task) { a.transition(t, start) }
	ended, err := a.watch(ctx, api, cluster, t, show)
	if err != nil && ctx.Err() != nil {
		ended, err = a.stopFollowed(context.WithoutCancel(ctx), api, cluster, t, show)
	}
	if err != nil {
		return err
	}
	code := operator.ExitCode(ended, func(name string) bool { return operator.Essential(d, name) })
	if code == 0 {
		return nil
	}
	return &exit{code, fmt.Errorf("task %s: %s", operator.Short(ended.TaskArn), operator.WhyStopped(ended))}
}

// stopFollowed stops the task after the first Ctrl-C.
func (a *app) stopFollowed(ctx context.Context, api *operator.Client, cluster string, t *types.Task, show func(*types.Task)) (*types.Task, error) {
	ctx, cancel := signal.NotifyContext(ctx, os.Interrupt)
	defer cancel()
	a.screen.Note("Stopping the task; press Ctrl-C again to leave it to itself")
	_, err := api.StopTask(ctx, &ecs.StopTaskInput{Cluster: &cluster, Task: t.TaskArn, Reason: aws.String("interrupted in berth run")})
	if err != nil {
		return t, api.Explain(err)
	}
	ended, err := a.watch(ctx, api, cluster, t, show)
	if err != nil && ctx.Err() != nil {
		return t, &exit{exitInterrupted, fmt.Errorf("task %s is left stopping", operator.Short(t.TaskArn))}
	}
	return ended, err
}

// transition shows what became of a task.
func (a *app) transition(t *types.Task, start time.Time) {
	if a.screen.JSON {
		_ = a.screen.Line(taskViews([]types.Task{*t})[0]) // a closed pipe is the reader's choice
		return
	}
	status, remark := aws.ToString(t.LastStatus), ""
	colour := screen.Warn
	switch status {
	case "RUNNING":
		colour = screen.Good
		if p := ports(t); p != "-" {
			remark = p
		}
	case "STOPPED":
		colour, remark = screen.Bold, operator.WhyStopped(t)
	}
	if aws.ToString(t.DesiredStatus) == "STOPPED" && status != "STOPPED" {
		remark = "stopping"
	}
	line := &screen.Table{}
	line.Row(fmt.Sprintf("%6.2fs", time.Since(start).Seconds()), operator.Short(t.TaskArn), a.screen.Colour(colour, fmt.Sprintf("%-12s", status)), remark)
	a.screen.Table(line)
}
