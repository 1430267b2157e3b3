package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/spf13/cobra"

	"berth.dev/berth/cmd/berth/internal/operator"
	"berth.dev/berth/cmd/berth/internal/screen"
)

func (a *app) ps() *cobra.Command {
	var all, stats bool
	c := &cobra.Command{
		Use:   "ps",
		Short: "List the tasks of the cluster",
		Long: `Lists the tasks that are to run, or with --all also those that have stopped and
the cluster still remembers. The first column is what other verbs take as TASK.
With --stats it shows what their containers use; "berth top" shows how that
changes.`,
		Example: `  berth ps
  berth ps --all
  berth ps --stats
  berth ps --json | jq -r '.[].taskArn'`,
		Args: args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			api, cluster, err := a.api()
			if err != nil {
				return err
			}
			if stats {
				if all {
					return &exit{exitUsage, errors.New("--all and --stats exclude each other: a stopped task uses nothing")}
				}
				return a.topOnce(c.Context(), api, cluster, orders[len(orders)-1])
			}
			tasks, err := api.Tasks(c.Context(), cluster, types.DesiredStatusRunning)
			if err != nil {
				return err
			}
			if all {
				stopped, err := api.Tasks(c.Context(), cluster, types.DesiredStatusStopped)
				if err != nil {
					return err
				}
				tasks = append(tasks, stopped...)
			}
			if a.screen.JSON {
				return a.screen.Value(taskViews(tasks))
			}
			if len(tasks) == 0 {
				a.screen.Note("No tasks in cluster %s; run one with: %s run FILE", cluster, a.self())
				return nil
			}
			a.screen.Table(a.taskTable(tasks, time.Now()))
			return nil
		},
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "stopped tasks too")
	c.Flags().BoolVar(&stats, "stats", false, "what their containers use")
	a.clusterFlag(c)
	return c
}

func (a *app) taskTable(tasks []types.Task, now time.Time) *screen.Table {
	t := &screen.Table{}
	t.Row("TASK", "DEFINITION", "STATUS", "SINCE", "PORTS", "")
	for i := range tasks {
		task := &tasks[i]
		status, since := aws.ToString(task.LastStatus), aws.ToTime(task.CreatedAt)
		colour, remark := screen.Warn, ""
		switch status {
		case "RUNNING":
			colour, since = screen.Good, aws.ToTime(task.StartedAt)
			if aws.ToString(task.DesiredStatus) == "STOPPED" {
				remark = "stopping"
			}
		case "STOPPED":
			colour, since, remark = screen.Faint, aws.ToTime(task.StoppedAt), operator.WhyStopped(task)
		}
		t.Row(operator.Short(task.TaskArn), operator.Tail(task.TaskDefinitionArn), a.screen.Colour(colour, status),
			screen.Age(since, now), ports(task), remark)
	}
	return t
}

// ports lists where a task's published ports are: 80->80/tcp.
func ports(t *types.Task) string {
	var all []string
	seen := map[string]bool{}
	for _, c := range t.Containers {
		for _, b := range c.NetworkBindings {
			host, inside := fmt.Sprint(aws.ToInt32(b.HostPort)), fmt.Sprint(aws.ToInt32(b.ContainerPort))
			if b.HostPortRange != nil {
				host, inside = *b.HostPortRange, aws.ToString(b.ContainerPortRange)
			}
			if p := fmt.Sprintf("%s->%s/%s", host, inside, b.Protocol); !seen[p] { // IPv4 and IPv6 are two bindings
				seen[p] = true
				all = append(all, p)
			}
		}
	}
	if len(all) == 0 {
		return "-"
	}
	return strings.Join(all, " ")
}

// taskView is a task in Berth's JSON: what the table shows, with whole names and times.
type taskView struct {
	ARN        string            `json:"taskArn"`
	Definition string            `json:"taskDefinitionArn"`
	Status     string            `json:"lastStatus"`
	Desired    string            `json:"desiredStatus"`
	Created    *time.Time        `json:"createdAt,omitempty"`
	Started    *time.Time        `json:"startedAt,omitempty"`
	Stopped    *time.Time        `json:"stoppedAt,omitempty"`
	StopCode   string            `json:"stopCode,omitempty"`
	Reason     string            `json:"stoppedReason,omitempty"`
	Containers []containerView   `json:"containers"`
	Tags       map[string]string `json:"tags,omitempty"`
}

type containerView struct {
	Name   string   `json:"name"`
	Status string   `json:"lastStatus"`
	Exit   *int32   `json:"exitCode,omitempty"`
	Reason string   `json:"reason,omitempty"`
	Digest string   `json:"imageDigest,omitempty"`
	Ports  []string `json:"ports,omitempty"`
}

func taskViews(tasks []types.Task) []taskView {
	views := make([]taskView, 0, len(tasks))
	for _, t := range tasks {
		v := taskView{
			ARN: aws.ToString(t.TaskArn), Definition: aws.ToString(t.TaskDefinitionArn),
			Status: aws.ToString(t.LastStatus), Desired: aws.ToString(t.DesiredStatus),
			Created: t.CreatedAt, Started: t.StartedAt, Stopped: t.StoppedAt,
			StopCode: string(t.StopCode), Reason: aws.ToString(t.StoppedReason), Containers: []containerView{},
		}
		for _, tag := range t.Tags {
			if v.Tags == nil {
				v.Tags = map[string]string{}
			}
			v.Tags[aws.ToString(tag.Key)] = aws.ToString(tag.Value)
		}
		for _, c := range t.Containers {
			cv := containerView{
				Name: aws.ToString(c.Name), Status: aws.ToString(c.LastStatus), Exit: c.ExitCode,
				Reason: aws.ToString(c.Reason), Digest: aws.ToString(c.ImageDigest),
			}
			if p := ports(&types.Task{Containers: []types.Container{c}}); p != "-" {
				cv.Ports = strings.Fields(p)
			}
			v.Containers = append(v.Containers, cv)
		}
		views = append(views, v)
	}
	return views
}
