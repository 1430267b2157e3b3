// Command world shows that something left a host as it found it:
//
//	world take FILE       keeps a snapshot in FILE
//	world compare FILE    lists what differs from it now, and fails when anything does
package main

import (
	"context"
	"fmt"
	"os"

	"berth.dev/berth/integ/world"
)

func main() {
	same, err := run(context.Background(), os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "world:", err)
		os.Exit(2)
	}
	if !same {
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (bool, error) {
	if len(args) != 2 || args[0] != "take" && args[0] != "compare" {
		return false, fmt.Errorf("usage: world take|compare FILE")
	}
	now, err := world.Take(ctx, world.Host())
	if err != nil {
		return false, err
	}
	if args[0] == "take" {
		return true, now.Save(args[1])
	}
	before, err := world.Load(args[1])
	if err != nil {
		return false, err
	}
	lines := world.Diff(before, now)
	if len(lines) == 0 {
		fmt.Println("The host is as it was before.")
		return true, nil
	}
	fmt.Println("The host is not as it was before (+ is new, - is gone):")
	for _, line := range lines {
		fmt.Println(" ", line)
	}
	return false, nil
}
