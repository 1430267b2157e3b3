package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"berth.dev/berth/cmd/berth/internal/screen"
)

var update = flag.Bool("update", false, "rewrite docs/cli.md from the commands")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"berth": main})
}

// TestScripts runs berth as people do: arguments, what it prints, how it exits.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			root, err := os.MkdirTemp("", "b") // short, for sockets
			if err != nil {
				return err
			}
			e.Defer(func() { os.RemoveAll(root) })
			e.Setenv("ROOT", root)
			return nil
		},
		Condition: func(cond string) (bool, error) {
			return cond == "root" && os.Geteuid() == 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": code},
	})
}

// code runs a command and compares its exit code: code N COMMAND ARGS…
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND ARGS…")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// TestReferenceOfVerbs keeps docs/cli.md as the commands say.
func TestReferenceOfVerbs(t *testing.T) {
	var b bytes.Buffer
	b.WriteString("# Verbs of berth\n\nMade from the commands' own help; `go test ./cmd/berth -update` writes it again.\n" +
		"Every verb takes `--root` and `--json`. Exit codes: 0 for success, 1 for an error, 2 for wrong usage,\n" +
		"130 when interrupted, and what a verb says below.\n")
	root := (&app{screen: &screen.Screen{}}).command()
	describe(&b, root)
	path := filepath.Join("..", "..", "docs", "cli.md")
	if *update {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(have), b.String()); diff != "" {
		t.Errorf("docs/cli.md is not what the commands say; run: go test ./cmd/berth -update\n%s", diff)
	}
}

func describe(b *bytes.Buffer, c *cobra.Command) {
	if c.Runnable() && c.HasParent() && !c.HasSubCommands() {
		b.WriteString("\n## " + c.CommandPath() + "\n\n" + c.Short + ".\n\n```\n" + c.UseLine() + "\n```\n")
		if c.Long != "" {
			b.WriteString("\n" + c.Long + "\n")
		}
		if c.Example != "" {
			b.WriteString("\n```sh\n" + dedent(c.Example) + "\n```\n")
		}
		flags := ""
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if f.Hidden || f.Name == "help" {
				return
			}
			kind, usage := pflag.UnquoteUsage(f)
			name := "--" + f.Name
			if f.Shorthand != "" {
				name = "-" + f.Shorthand + ", " + name
			}
			if kind != "" {
				name += " " + strings.ToUpper(kind)
			}
			if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && f.DefValue != "0s" && f.DefValue != "-1" {
				usage += " (default " + f.DefValue + ")"
			}
			flags += "| `" + name + "` | " + usage + " |\n"
		})
		if flags != "" {
			b.WriteString("\n| flag | meaning |\n| --- | --- |\n" + flags)
		}
	}
	for _, sub := range c.Commands() {
		if !sub.Hidden && sub.Name() != "help" {
			describe(b, sub)
		}
	}
}

func dedent(s string) string {
	return strings.ReplaceAll(strings.TrimPrefix(s, "  "), "\n  ", "\n")
}

// TestEveryVerbTeaches: help says what a verb does, and shows how.
func TestEveryVerbTeaches(t *testing.T) {
	var check func(c *cobra.Command)
	check = func(c *cobra.Command) {
		if !c.Hidden && c.Runnable() && !c.HasSubCommands() && c.Name() != "version" && c.Name() != "help" {
			if c.Long == "" {
				t.Errorf("%s has no description", c.CommandPath())
			}
			if c.Example == "" && c.Name() != "containerd" {
				t.Errorf("%s has no example", c.CommandPath())
			}
			for line := range strings.Lines(c.Long) {
				if len(strings.TrimRight(line, "\n")) > 80 {
					t.Errorf("%s: a line of its help is longer than 80 columns: %q", c.CommandPath(), line)
				}
			}
		}
		for _, sub := range c.Commands() {
			check(sub)
		}
	}
	check((&app{screen: &screen.Screen{}}).command())
}
