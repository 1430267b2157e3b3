// Command ecs-bridge is the CNI plugin that connects a container to the host through a
// bridge, with published ports. Package bridge says what it makes and how.
package main

import (
	"os"

	"berth.dev/berth/cni-plugins/ecs-bridge/bridge"
	"berth.dev/berth/cni-plugins/plugin"
)

func main() { os.Exit(run()) }

func run() int {
	return plugin.Main(os.Args, "ecs-bridge: CNI plugin of Berth for the network mode bridge", bridge.Funcs)
}
