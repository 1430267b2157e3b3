package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"berth.dev/berth/agent/config"
	"berth.dev/berth/cmd/berth/internal/layout"
	"berth.dev/berth/cmd/berth/internal/operator"
	"berth.dev/berth/cmd/berth/internal/screen"
	"berth.dev/berth/cmd/berth/internal/system"
)

// app is what the verbs share.
type app struct {
	screen  *screen.Screen
	root    string // --root
	cluster string // --cluster

	system *system.System // set before a verb runs
}

// Exit codes besides those that verbs document.
const (
	exitError       = 1
	exitUsage       = 2
	exitInterrupted = 130 // as shells show the end by SIGINT
)

// exit carries an exit code through cobra; text that is empty was said already.
type exit struct {
	code int
	err  error
}

func (e *exit) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

// run runs the verb that args name and returns the program's exit code.
func run(ctx context.Context, args []string, out, errw io.Writer) int {
	a := &app{screen: &screen.Screen{Out: out, Err: errw}}
	root := a.command()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errw)
	err := root.ExecuteContext(ctx)
	var e *exit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		if e.err != nil {
			a.complain(e.err)
		}
		return e.code
	case ctx.Err() != nil:
		return exitInterrupted
	}
	a.complain(err)
	return exitError
}

func (a *app) complain(err error) {
	fmt.Fprintf(a.screen.Err, "%s %v\n", a.screen.Colour(screen.Bad, "berth:"), err)
}

const about = `Berth runs containers that an ECS cluster asks for, directly on containerd, and
brings the cluster: a central service with the public ECS API.

The quickest way in is "berth up", which starts everything on this host and runs
a sample task. Then "berth ps" shows what runs, and the stock aws CLI works too:

  eval "$(berth env)"
  aws ecs list-tasks`

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "berth",
		Short: "Run ECS tasks on your own machines",
		Long:  about,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := "see: berth --help"
			if like := c.SuggestionsFor(args[0]); len(like) > 0 {
				hint = "did you mean: berth " + like[0]
			}
			return &exit{exitUsage, fmt.Errorf("there is no verb %q; %s", args[0], hint)}
		},
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return a.prepare()
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &exit{exitUsage, fmt.Errorf("%w; see: %s --help", err, c.CommandPath())}
	})
	flags := root.PersistentFlags()
	flags.StringVar(&a.root, "root", "", "keep everything of the system below this `directory`")
	flags.BoolVar(&a.screen.JSON, "json", false, "answer in JSON")
	groups := []struct {
		id, title string
		verbs     []*cobra.Command
	}{
		{"system", "The system on this host:", []*cobra.Command{a.up(), a.down(), a.status(), a.doctor(), a.env(), a.key(), a.token()}},
		{"tasks", "Tasks:", []*cobra.Command{a.runFile(), a.ps(), a.top(), a.logs(), a.stop(), a.events(), a.watchEvents(), a.image()}},
		{"programs", "The programs, one at a time:", []*cobra.Command{a.agentProgram(), a.clusterProgram(), a.containerdProgram()}},
	}
	for _, g := range groups {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, verb := range g.verbs {
			verb.GroupID = g.id
			root.AddCommand(verb)
		}
	}
	root.AddCommand(a.version(), a.stateProgram())
	return root
}

// prepare finds out where the system of --root lies.
func (a *app) prepare() error {
	l, err := layout.New(a.root)
	if err != nil {
		return &exit{exitUsage, err}
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		exe = real
	}
	a.system = &system.System{Layout: l, Screen: a.screen, Bin: filepath.Dir(exe)}
	return nil
}

// args makes a wrong number of arguments a usage error that names them.
func args(min, max int, names string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) >= min && len(args) <= max {
			return nil
		}
		if names == "" {
			return &exit{exitUsage, fmt.Errorf("%s takes no arguments; see: %s --help", c.CommandPath(), c.CommandPath())}
		}
		return &exit{exitUsage, fmt.Errorf("usage: %s %s; see: %s --help", c.CommandPath(), names, c.CommandPath())}
	}
}

// clusterFlag gives a verb the flag --cluster.
func (a *app) clusterFlag(c *cobra.Command) {
	c.Flags().StringVar(&a.cluster, "cluster", "", "`name` of the ECS cluster (default: the one this host registered in)")
}

// api opens the cluster's API and settles which ECS cluster is meant.
func (a *app) api() (*operator.Client, string, error) {
	c, err := operator.Open(a.system.Layout)
	if err != nil {
		return nil, "", err
	}
	if a.cluster != "" {
		return c, a.cluster, nil
	}
	now, err := a.system.Layout.ReadSystem()
	if err != nil && !errors.Is(err, layout.ErrNotUp) {
		return nil, "", err
	}
	if now.Cluster == "" {
		now.Cluster = system.DefaultCluster
	}
	return c, now.Cluster, nil
}

func (a *app) needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("this needs root: it starts containers; try: sudo berth …")
	}
	return nil
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  args(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			if a.screen.JSON {
				return a.screen.Value(map[string]string{"version": version})
			}
			a.screen.Printf("berth %s\n", version)
			return nil
		},
	}
}

// configuredContainerd is the containerd that the agent's settings name, if any.
func configuredContainerd() (string, error) {
	c, err := config.Load(config.Sources{Environ: os.Environ()})
	if err != nil {
		return "", err
	}
	return c.Berth.Containerd, nil
}
