package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/cmd/berth/internal/operator"
	"berth.dev/berth/cmd/berth/internal/screen"
)

func (a *app) events() *cobra.Command {
	c := &cobra.Command{
		Use:   "events TASK",
		Short: "Print the event log of a task",
		Long: `Prints what the agent of this host wanted, did, saw and reported for a task: the
last 128 entries, each with the time since the one before it. It is the first
place to look when a task does not do what it should.`,
		Example: `  berth events my-task
  berth events 4f2c --json`,
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
			events, err := a.system.Events(c.Context(), operator.Tail(t.TaskArn))
			if err != nil {
				return err
			}
			if a.screen.JSON {
				return a.screen.Value(events)
			}
			a.screen.Table(a.eventTable(events))
			return nil
		},
	}
	a.clusterFlag(c)
	return c
}

func (a *app) eventTable(events []task.Event) *screen.Table {
	// What is written down together is in the order of the decision, not of the clock.
	events = slices.Clone(events)
	slices.SortStableFunc(events, func(a, b task.Event) int { return a.At.Compare(b.At) })
	t := &screen.Table{}
	t.Row("TIME", "AFTER", "EVENT", "RESOURCE", "VERB", "")
	var before time.Time
	for _, e := range events {
		after := "-"
		if !before.IsZero() {
			after = fmt.Sprintf("%d ms", e.At.Sub(before).Milliseconds())
		}
		before = e.At
		resource := e.Resource.String()
		if resource == "/" {
			resource = "-"
		}
		verb, text := string(e.Verb), e.Text
		if verb == "" {
			verb = "-"
		}
		if e.Fact != nil && e.Fact.Failure != nil && !strings.Contains(text, e.Fact.Failure.Detail) {
			text = strings.TrimSpace(text + " " + e.Fact.Failure.String())
		}
		kind := string(e.Kind)
		if e.Kind == task.EventActionFailed {
			kind = a.screen.Colour(screen.Bad, kind)
		}
		t.Row(e.At.Local().Format("15:04:05.000"), after, kind, resource, verb, text)
	}
	return t
}
