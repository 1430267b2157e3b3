// Package doctor checks whether a host can run Berth, one prerequisite at a time,
// and says for each what to do where it is not met. A check looks; it changes nothing
// that outlives it.
package doctor

import (
	"context"
	"sync"
	"time"
)

// Verdict is the outcome of a check.
type Verdict string

// Verdicts. Only Failed keeps Berth from working.
const (
	OK      Verdict = "ok"
	Warning Verdict = "warning"
	Failed  Verdict = "failed"
)

// Result is what one check found.
type Result struct {
	Check   string  `json:"check"`
	Verdict Verdict `json:"verdict"`
	Found   string  `json:"found"`            // what is there
	Remedy  string  `json:"remedy,omitempty"` // what to do; for every verdict but OK
}

// Host is what the checks look at. The functions and paths are fields so that tests
// can show the checks any host.
type Host struct {
	Proc, Sys string // /proc and /sys
	UID       int
	StateDir  string // where images and databases will lie; need not exist yet

	// Containerd asks the containerd at an address for its version.
	Containerd func(ctx context.Context, address string) (version string, err error)
	// Configured is the containerd address the operator chose; "" for none.
	Configured string
	// Network makes and removes a veth pair, a bridge and a firewall table in a network
	// namespace of its own.
	Network func() error
	// Run runs a program and returns its output.
	Run func(ctx context.Context, name string, args ...string) (string, error)
	// Shim is the path of containerd-shim-runc-v2, or why it was not found.
	Shim func() (string, error)
	// Listening says who, if anyone, listens on a TCP address: "berth" for our own
	// programs and the containers they run.
	Listening func(address string) (who string)
	// Cluster returns the cluster's clock, and false when no cluster runs here.
	Cluster func(ctx context.Context) (now time.Time, ok bool)
	// Listen is the address of the cluster's API.
	Listen string
	// SystemSocket is where a containerd of the host's own would be.
	SystemSocket string
}

// one check may not hold up the others for longer than this.
const patience = 5 * time.Second

// Examine runs all checks, at the same time, and returns their results in a fixed order.
func Examine(ctx context.Context, h Host) []Result {
	checks := []struct {
		name string
		look func(context.Context, Host) Result
	}{
		{"root", root},
		{"kernel", kernel},
		{"overlayfs", overlayfs},
		{"cgroups", cgroups},
		{"network", network},
		{"ip_forward", forwarding},
		{"runc", runc},
		{"shim", shim},
		{"containerd", containerd},
		{"api port", apiPort},
		{"sample port", samplePort},
		{"disk", disk},
		{"certificates", certificates},
		{"clock", clock},
		{"clock skew", skew},
	}
	results := make([]Result, len(checks))
	var all sync.WaitGroup
	for i, c := range checks {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			results[i] = c.look(ctx, h)
			results[i].Check = c.name
		})
	}
	all.Wait()
	return results
}

func ok(found string) Result           { return Result{Verdict: OK, Found: found} }
func warn(found, remedy string) Result { return Result{Verdict: Warning, Found: found, Remedy: remedy} }
func failure(found, remedy string) Result {
	return Result{Verdict: Failed, Found: found, Remedy: remedy}
}
