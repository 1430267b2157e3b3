// Command ecs-eni is the CNI plugin that gives a container an elastic network interface,
// found on the host by its MAC address. Package elastic says what it does and how.
package main

import (
	"os"

	"berth.dev/berth/cni-plugins/ecs-eni/elastic"
	"berth.dev/berth/cni-plugins/plugin"
)

func main() { os.Exit(run()) }

func run() int {
	return plugin.Main(os.Args, "ecs-eni: CNI plugin of Berth for the network mode awsvpc", elastic.Funcs)
}
