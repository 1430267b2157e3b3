package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"berth.dev/berth/cmd/berth/internal/operator"
	"berth.dev/berth/cmd/berth/internal/screen"
	"berth.dev/berth/cmd/berth/internal/system"
)

func (a *app) up() *cobra.Command {
	var o system.Options
	var foreground, noSample bool
	c := &cobra.Command{
		Use:   "up",
		Short: "Start everything on this host and run the sample task",
		Long: `Starts, in the background and in this order: a containerd, unless the host has
one that answers; the central cluster; and the agent, which registers this host
with it. Then it runs the task definition examples/my-task.json and waits until
that answers on its port. What runs already is left as it is.`,
		Example: `  berth up
  berth up --no-sample
  berth up --foreground                        # with all logs, until Ctrl-C
  berth up --containerd private                # even if the host has a containerd
  berth --root /srv/two up --listen 127.0.0.1:7701   # a second, separate system`,
		Args: args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.needRoot(); err != nil {
				return err
			}
			for name, at := range map[string]*string{"listen": &o.Listen, "region": &o.Region, "cluster": &o.Cluster} {
				if !c.Flags().Changed(name) {
					*at = "" // what runs already is not to be compared with a default
				}
			}
			if err := a.completeOptions(&o, noSample); err != nil {
				return err
			}
			logs := a.system.LogEnds()
			r, err := a.system.Up(c.Context(), o)
			if err != nil {
				return err
			}
			if a.screen.JSON && !foreground {
				return a.screen.Value(r)
			}
			a.summary(r, foreground)
			if foreground {
				return a.foreground(c.Context(), logs)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.Listen, "listen", system.DefaultListen, "`address` of the cluster's API")
	f.StringVar(&o.Region, "region", system.DefaultRegion, "`region` that the cluster calls itself")
	f.StringVar(&o.Cluster, "cluster", system.DefaultCluster, "`name` of the ECS cluster that this host joins")
	f.StringVar(&o.Containerd, "containerd", "", "`socket` of the containerd to use, or \"private\" for Berth's own (default: the agent's setting, the host's, Berth's own)")
	f.StringVar(&o.Sample, "sample", "", "task definition `file` of the sample (default: examples/my-task.json beside the programs)")
	f.BoolVar(&noSample, "no-sample", false, "start no sample task")
	f.BoolVar(&foreground, "foreground", false, "show all logs, and stop everything on Ctrl-C")
	return c
}

// completeOptions fills in what follows from where the programs lie and how the agent
// is configured.
func (a *app) completeOptions(o *system.Options, noSample bool) error {
	if o.Containerd == "" {
		address, err := configuredContainerd()
		if err != nil {
			return err
		}
		o.Containerd = address
	}
	o.Image = filepath.Join(a.system.Bin, "my-image.tar")
	if noSample {
		o.Sample = ""
		return nil
	}
	if o.Sample != "" {
		return nil
	}
	o.Sample = filepath.Join(filepath.Dir(a.system.Bin), "examples", "my-task.json")
	if _, err := os.Stat(o.Sample); err != nil {
		return errors.New("the sample " + o.Sample + " is not there; name it with --sample FILE, or start without it: berth up --no-sample")
	}
	return nil
}

// self is how to call this program from here, with the flags that choose the system.
func (a *app) self() string {
	name := os.Args[0]
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, filepath.Join(a.system.Bin, "berth")); err == nil && !strings.HasPrefix(rel, "..") {
			name = rel
		}
	}
	if a.root != "" {
		name += " --root " + a.root
	}
	return name
}

func (a *app) summary(r *system.Report, foreground bool) {
	berth := a.self()
	facts := &screen.Table{Indent: "  "}
	facts.Row("API", r.URL, "region "+r.Region)
	facts.Row("Cluster", r.Cluster, "this host is "+operator.Tail(&r.Instance))
	if r.Sample != "" {
		facts.Row("Sample", r.Sample, "task "+operator.Short(&r.Task))
	}
	facts.Row("Logs", a.system.Layout.Log("*.log"))
	a.screen.Printf("\n%s in %s\n\n", a.screen.Colour(screen.Good, "Berth is up"), screen.Span(r.Took))
	a.screen.Table(facts)
	if foreground {
		a.screen.Printf("\nCtrl-C stops everything. The logs:\n\n")
		return
	}
	next := &screen.Table{Indent: "  "}
	next.Row(berth+" ps", "what runs")
	if r.Task != "" {
		next.Row(berth+" logs my-task", "its output")
		next.Row(berth+" events my-task", "what happened to it")
	}
	next.Row(berth+" status", "how the system is")
	next.Row(`eval "$(`+berth+` env)"`, "then: aws ecs list-tasks")
	a.screen.Printf("\nTry\n")
	a.screen.Table(next)
	stop := &screen.Table{Indent: "  "}
	stop.Row(berth+" down", "stops everything; data stays in "+a.system.Layout.Lib())
	a.screen.Printf("\nStop\n")
	a.screen.Table(stop)
}

// foreground shows the logs until ctx ends or a program does, and then stops all.
func (a *app) foreground(ctx context.Context, logs map[string]int64) error {
	ended := a.system.Follow(ctx, logs)
	if ended != nil {
		a.screen.Note("%s", a.screen.Colour(screen.Bad, ended.Error()))
	}
	ctx = context.WithoutCancel(ctx) // a second Ctrl-C is not waited for
	if err := a.downAll(ctx, false); err != nil {
		return err
	}
	if ended != nil {
		return &exit{exitError, nil}
	}
	return nil
}
