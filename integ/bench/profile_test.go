package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/pprof"
	"testing"
)

// profileDir, if it is set, is where the processor profiles of agent and cluster are
// written that are taken while 100 tasks start: agent.pprof and cluster.pprof.
var profileDir = os.Getenv("BERTH_BENCH_PROFILE")

// profiled runs work and profiles agent and cluster meanwhile, where that is asked for.
func (x *bed) profiled(b *testing.B, work func()) {
	b.Helper()
	if profileDir == "" {
		work()
		return
	}
	own, err := os.Create(filepath.Join(profileDir, "cluster.pprof"))
	if err != nil {
		b.Fatal(err)
	}
	if err := pprof.StartCPUProfile(own); err != nil {
		b.Fatal(err)
	}
	agent := make(chan error, 1)
	go func() { agent <- x.agentProfile() }()
	work()
	pprof.StopCPUProfile()
	if err := own.Close(); err != nil {
		b.Error(err)
	}
	if err := <-agent; err != nil {
		b.Error(err)
	}
}

// agentProfile writes the agent's profile of the next seconds.
func (x *bed) agentProfile() error {
	socket := filepath.Join(x.Dir, "run", "agent.sock")
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	resp, err := c.Get("http://agent/debug/pprof/profile?seconds=8")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("profile of the agent: %s", resp.Status)
	}
	f, err := os.Create(filepath.Join(profileDir, "agent.pprof"))
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, resp.Body); err != nil {
		return err
	}
	return f.Close()
}
