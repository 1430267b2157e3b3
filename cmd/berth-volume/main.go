// Command berth-volume does for the agent what could wait for somebody else's server:
// it mounts network file systems. One process does one thing and ends; when a server
// does not answer, only that process waits.
//
//	berth-volume do              reads one order from standard input
//	berth-volume proxy FILE      encrypts what a mount sends to its server; runs on
//	berth-volume in NETNS …      the same in another network namespace
package main

import (
	"context"
	"fmt"
	"os"

	"berth.dev/berth/volumes"
)

func main() {
	code, err := run(os.Args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = 0
	}
	os.Exit(code)
}

func run(args []string) (int, error) {
	switch {
	case len(args) == 2 && args[1] == "do":
		return volumes.Work(context.Background(), os.Stdin)
	case len(args) == 2 && args[1] == "identify":
		return 1, volumes.Identify()
	case len(args) == 3 && args[1] == "proxy":
		return 1, volumes.Proxy(args[2])
	case len(args) > 3 && args[1] == "in":
		return 1, volumes.Enter(args[2], append(args[:1:1], args[3:]...))
	}
	return 2, fmt.Errorf("usage: berth-volume [in NETNS] do | proxy FILE; started by the agent")
}
