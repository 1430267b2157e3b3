// Command berth-agent is the node agent as a daemon, and nothing else: what a host
// image carries.
package main

import (
	"os"

	"berth.dev/berth/agent/daemon"
)

// Set by the build.
var (
	version = "0.0.0"
	hash    = "development"
)

func main() {
	os.Exit(daemon.Main("berth-agent", os.Args[1:], version, hash, os.Stdout, os.Stderr))
}
