package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"berth.dev/berth/cmd/berth/internal/screen"
)

func (a *app) down() *cobra.Command {
	var purge bool
	c := &cobra.Command{
		Use:   "down",
		Short: "Stop everything that up started, and leave nothing behind",
		Long: `Stops the tasks of this host and waits for their end, stops the agent, the
cluster and Berth's own containerd, and removes every mount, namespace,
interface, firewall rule and cgroup that they made. A containerd of the host's
own runs on. Databases, images and logs stay for the next "berth up", unless
--purge is given. Exits with 1 and a list when something could not be removed.`,
		Example: `  berth down
  berth down --purge    # forget everything, also tasks, keys and images`,
		Args: args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.needRoot(); err != nil {
				return err
			}
			return a.downAll(c.Context(), purge)
		},
	}
	c.Flags().BoolVar(&purge, "purge", false, "remove databases, keys, images and logs as well")
	return c
}

func (a *app) downAll(ctx context.Context, purge bool) error {
	r, err := a.system.Down(ctx, purge)
	if r == nil {
		return err
	}
	if a.screen.JSON {
		if e := a.screen.Value(r); e != nil {
			return e
		}
	}
	if err != nil {
		return err
	}
	if len(r.Left) > 0 {
		return &exit{exitError, fmt.Errorf("still there after everything was stopped:\n  %s", strings.Join(r.Left, "\n  "))}
	}
	if a.screen.JSON {
		return nil
	}
	switch what := strings.Join(r.Programs, ", "); {
	case what == "" && r.Tasks == 0:
		a.screen.Printf("Nothing of Berth runs here.\n")
	default:
		a.screen.Printf("%s: %s stopped, and nothing is left running, mounted or configured.\n", a.screen.Colour(screen.Good, "Berth is down"), what)
	}
	if r.Kept != "" && len(r.Programs) > 0 {
		a.screen.Printf("Data stays in %s; to remove it as well: %s down --purge\n", r.Kept, a.self())
	}
	return nil
}
