// Command berth is Berth for people: it starts and stops the whole system on this
// host, is each of its programs but the agent's small one, and asks and tells the
// cluster what an operator wants to know and do.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version and hash are set when the program is linked (Makefile).
var (
	version = "0.0.0"
	hash    = "development"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
