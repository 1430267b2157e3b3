// Command ecs-eni is the CNI plugin that gives a container an elastic network interface,
// found on the host by its MAC address. Package elastic says what it does and how.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/containernetworking/cni/pkg/skel"

	"berth.dev/berth/cni-plugins/ecs-eni/elastic"
)

const about = "ecs-eni: CNI plugin of Berth for the network mode awsvpc"

func main() { os.Exit(run()) }

func run() int {
	if len(os.Args) > 1 && os.Args[1] == "--version" {
		if err := printVersion(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if e := skel.PluginMainFuncsWithError(elastic.Funcs(ctx, false), elastic.Versions(), about); e != nil {
		if err := e.Print(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return 1
	}
	return 0
}

// printVersion answers --version in the form that agents ask for (agent protocol, "CNI
// chain for the pause container").
func printVersion() error {
	out := struct {
		Version      string `json:"version"`
		Dirty        bool   `json:"dirty"`
		GitShortHash string `json:"gitShortHash"`
	}{Version: "unknown"}
	if info, ok := debug.ReadBuildInfo(); ok {
		out.Version = info.Main.Version
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				out.GitShortHash = s.Value[:min(8, len(s.Value))]
			case "vcs.modified":
				out.Dirty = s.Value == "true"
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}
