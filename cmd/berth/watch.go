package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth.dev/berth/cmd/berth/internal/operator"
	"berth.dev/berth/cmd/berth/internal/screen"
)

func (a *app) watchEvents() *cobra.Command {
	c := &cobra.Command{
		Use:   "watch",
		Short: "Print changes of tasks and container instances as they happen",
		Long: `Prints a line for every change of state of a task or a container instance of the
cluster, until Ctrl-C. A connection that ends is made again, and what happened
meanwhile follows. With --json each line is the event in the shape that Amazon
EventBridge has for it.`,
		Example: `  berth watch
  berth watch --json | jq 'select(.detail.lastStatus == "STOPPED") | .detail.stoppedReason'`,
		Args: args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			api, cluster, err := a.api()
			if err != nil {
				return err
			}
			var failed error
			ctx, stop := context.WithCancel(c.Context())
			defer stop()
			err = api.Watch(ctx, cluster, func(e operator.Event) {
				if failed = a.showEvent(e); failed != nil {
					stop() // nobody reads any more
				}
			})
			return errors.Join(err, failed)
		},
	}
	a.clusterFlag(c)
	return c
}

func (a *app) showEvent(e operator.Event) error {
	switch {
	case a.screen.JSON && !e.Gap:
		return a.screen.Line(e.JSON)
	case a.screen.JSON:
		a.screen.Note("Events were missed; look at the state itself")
	case e.Gap:
		a.screen.Printf("%s\n", a.screen.Colour(screen.Warn, "Events were missed; see: berth ps --all"))
	default:
		a.screen.Printf("%s\n", a.eventLine(&e))
	}
	return nil
}

// eventLine is an event in one line.
func (a *app) eventLine(e *operator.Event) string {
	d := &e.Detail
	at := d.UpdatedAt
	if at.IsZero() {
		at = e.Time
	}
	line := at.Local().Format(time.TimeOnly)
	if d.TaskARN == "" {
		state, colour := "connected", screen.Good
		if !d.AgentConnected {
			state, colour = "not connected", screen.Bad
		}
		return fmt.Sprintf("%s  instance %s  %s, %s, %d running, %d pending", line, operator.Short(&d.InstanceARN),
			d.Status, a.screen.Colour(colour, state), d.Running, d.Pending)
	}
	status, colour := d.LastStatus, screen.Faint
	switch d.LastStatus {
	case "RUNNING":
		colour = screen.Good
	case "STOPPED":
		colour = screen.Warn
	}
	definition := d.TaskDefinitionARN[strings.LastIndexByte(d.TaskDefinitionARN, '/')+1:]
	parts := []string{a.screen.Colour(colour, status)}
	if d.DesiredStatus != d.LastStatus {
		parts = append(parts, "wanted "+d.DesiredStatus)
	}
	if d.HealthStatus == "HEALTHY" || d.HealthStatus == "UNHEALTHY" {
		parts = append(parts, fmt.Sprint(d.HealthStatus))
	}
	for _, c := range d.Containers {
		switch {
		case c.ExitCode != nil && c.Reason != "":
			parts = append(parts, fmt.Sprintf("%s exit code %d: %s", c.Name, *c.ExitCode, c.Reason))
		case c.ExitCode != nil:
			parts = append(parts, fmt.Sprintf("%s exit code %d", c.Name, *c.ExitCode))
		case c.Reason != "":
			parts = append(parts, c.Name+": "+c.Reason)
		}
	}
	if d.StoppedReason != "" {
		parts = append(parts, d.StoppedReason)
	}
	return fmt.Sprintf("%s  task %s  %s  %s", line, operator.Short(&d.TaskARN), definition, strings.Join(parts, ", "))
}
