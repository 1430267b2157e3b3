package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"berth.dev/berth/agent/logs"
	"berth.dev/berth/agent/runtime/logfile"
	"berth.dev/berth/cmd/berth/internal/operator"
	"berth.dev/berth/cmd/berth/internal/screen"
	"berth.dev/berth/cmd/berth/internal/system"
)

// logOptions are the flags of "berth logs".
type logOptions struct {
	follow, stamps bool
	tail           int
	since          time.Duration
}

func (a *app) logs() *cobra.Command {
	o := logOptions{}
	c := &cobra.Command{
		Use:   "logs TASK [CONTAINER]",
		Short: "Print the output of a task's containers",
		Long: `Prints what the containers of a task on this host have written to their standard
output and error, from the rotated files below /var/log/berth/tasks. With
several containers each line says whose it is.

TASK is an ARN, an id or the first characters of one, or the family of the only
running or else the newest task.`,
		Example: `  berth logs my-task
  berth logs my-task web --follow
  berth logs 4f2c --tail 20 --timestamps`,
		Args: args(1, 2, "TASK [CONTAINER]"),
		RunE: func(c *cobra.Command, arg []string) error {
			if c.Flags().Changed("tail") && o.tail < 0 {
				return &exit{exitUsage, fmt.Errorf("--tail %d: must be 0 or more lines; see: %s --help", o.tail, c.CommandPath())}
			}
			api, cluster, err := a.api()
			if err != nil {
				return err
			}
			t, err := api.FindTask(c.Context(), cluster, arg[0])
			if err != nil {
				return err
			}
			names, err := containerNames(t, arg[1:])
			if err != nil {
				return err
			}
			return a.showLogs(c.Context(), api, cluster, t, names, o)
		},
	}
	f := c.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "go on until the task has stopped")
	f.BoolVarP(&o.stamps, "timestamps", "t", false, "begin each line with its time")
	f.IntVarP(&o.tail, "tail", "n", -1, "only the last `lines` of each container")
	f.DurationVar(&o.since, "since", 0, "only what is younger than this, such as 10m")
	a.clusterFlag(c)
	return c
}

// containerNames are the containers to show: the one asked for, or all.
func containerNames(t *types.Task, asked []string) ([]string, error) {
	var names []string
	for _, c := range t.Containers {
		names = append(names, aws.ToString(c.Name))
	}
	if len(asked) == 0 {
		return names, nil
	}
	if !slices.Contains(names, asked[0]) {
		return nil, fmt.Errorf("task %s has no container %s; it has: %s", operator.Short(t.TaskArn), asked[0], strings.Join(names, ", "))
	}
	return asked, nil
}

func (a *app) showLogs(ctx context.Context, api *operator.Client, cluster string, t *types.Task, names []string, o logOptions) error {
	read := logfile.Options{Tail: o.tail, Follow: o.follow}
	if o.since > 0 {
		read.Since = time.Now().Add(-o.since)
	}
	group, ctx := errgroup.WithContext(ctx)
	if o.follow {
		done := make(chan struct{})
		read.Done = done
		group.Go(func() error {
			defer close(done)
			_, err := a.watch(ctx, api, cluster, t, func(*types.Task) {})
			return err
		})
	}
	width := 0
	for _, name := range names {
		width = max(width, screen.Width(name))
	}
	missing := make([]bool, len(names))
	show := func(i int) error {
		name := names[i]
		path := filepath.Join(system.TaskLogs(a.system.Layout), operator.Tail(t.TaskArn), name, "log.json")
		prefix := ""
		if len(names) > 1 {
			prefix = a.screen.Colour(screen.Faint, name+strings.Repeat(" ", width-screen.Width(name))+" | ")
		}
		err := logfile.Read(ctx, path, read, func(e logfile.Entry) error { return a.entry(name, prefix, e, o.stamps) })
		if errors.Is(err, fs.ErrNotExist) {
			missing[i] = true
			return nil
		}
		return err
	}
	for i := range names {
		if o.follow {
			group.Go(func() error { return show(i) })
		} else if err := show(i); err != nil {
			return err
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, name := range names {
		a.noteShipping(name, filepath.Join(system.TaskLogs(a.system.Layout), operator.Tail(t.TaskArn), name))
	}
	if !slices.Contains(missing, false) {
		return fmt.Errorf("task %s has no output on this host: it never started, runs elsewhere, or was cleaned up", operator.Short(t.TaskArn))
	}
	return nil
}

// noteShipping says what is wrong with sending a container's output to where its log
// driver says.
func (a *app) noteShipping(name, dir string) {
	s, err := logs.ReadState(dir)
	switch {
	case err != nil:
		a.screen.Note("It is not known whether the output of %s was sent on: %v", name, err)
	case s.Error != "":
		a.screen.Note("The output of %s cannot be sent on since %s: %s", name, s.Since.Local().Format(time.DateTime), s.Error)
	}
	if s.Lost > 0 {
		a.screen.Note("%d lines of the output of %s were never sent on.", s.Lost, name)
	}
}

func (a *app) entry(name, prefix string, e logfile.Entry, stamps bool) error {
	if a.screen.JSON {
		return a.screen.Line(struct {
			Container string `json:"container"`
			logfile.Entry
		}{name, e})
	}
	if stamps {
		prefix += e.Time.Local().Format("2006-01-02T15:04:05.000") + " "
	}
	a.screen.Printf("%s%s", prefix, e.Log)
	return nil
}
