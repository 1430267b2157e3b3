// Command ecs-branch-eni is the CNI plugin that gives a container a branch network interface,
// a VLAN on a trunk of the host. Package elastic says what it does and how.
package main

import (
	"os"

	"berth.dev/berth/cni-plugins/ecs-eni/elastic"
	"berth.dev/berth/cni-plugins/plugin"
)

func main() { os.Exit(run()) }

func run() int {
	return plugin.Main(os.Args, "ecs-branch-eni: CNI plugin of Berth for the network mode awsvpc, on a trunk", elastic.BranchFuncs)
}
