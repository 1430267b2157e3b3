package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth.dev/berth/cmd/berth/internal/doctor"
	"berth.dev/berth/cmd/berth/internal/screen"
	"berth.dev/berth/cmd/berth/internal/system"
)

func (a *app) doctor() *cobra.Command {
	var listen string
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check whether this host has all that Berth needs",
		Long: `Looks at every prerequisite and says for each that is not met what to do.
Changes nothing. Exits with 1 when something is missing that Berth cannot work
without.`,
		Example: `  berth doctor
  berth doctor --json | jq '.[] | select(.verdict != "ok")'`,
		Args: args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			h, err := a.host(listen)
			if err != nil {
				return err
			}
			results := doctor.Examine(c.Context(), h)
			failed := 0
			for _, r := range results {
				if r.Verdict == doctor.Failed {
					failed++
				}
			}
			if a.screen.JSON {
				if err := a.screen.Value(results); err != nil {
					return err
				}
			} else {
				a.showResults(results)
			}
			if failed > 0 {
				return &exit{exitError, fmt.Errorf("%d of %d checks failed", failed, len(results))}
			}
			return nil
		},
	}
	c.Flags().StringVar(&listen, "listen", system.DefaultListen, "the `address` that the cluster's API is to have")
	return c
}

func (a *app) showResults(results []doctor.Result) {
	t := &screen.Table{}
	for _, r := range results {
		mark := map[doctor.Verdict]string{
			doctor.OK:      a.screen.Colour(screen.Good, "ok"),
			doctor.Warning: a.screen.Colour(screen.Warn, "warning"),
			doctor.Failed:  a.screen.Colour(screen.Bad, "failed"),
		}[r.Verdict]
		t.Row(r.Check, mark, r.Found)
		if r.Remedy != "" {
			t.Row("", "", "→ "+r.Remedy)
		}
	}
	a.screen.Table(t)
}

// host is this host, for the checks.
func (a *app) host(listen string) (doctor.Host, error) {
	configured, err := configuredContainerd()
	if err != nil {
		return doctor.Host{}, err
	}
	if now, err := a.system.Layout.ReadSystem(); err == nil {
		if configured == "" {
			configured = now.Containerd
		}
		if u, err := url.Parse(now.URL); err == nil {
			listen = u.Host
		}
	}
	return doctor.Host{
		Proc: "/proc", Sys: "/sys", UID: os.Geteuid(),
		StateDir: a.system.Layout.Lib(), Listen: listen, SystemSocket: system.SystemSocket,
		Configured: configured,
		Containerd: a.system.ContainerdVersion,
		Network:    probeNetwork,
		Run:        output,
		Shim:       a.findShim,
		Listening:  system.Listener,
		Cluster:    func(ctx context.Context) (time.Time, bool) { return clockOf(ctx, "http://"+listen) },
	}, nil
}

// probeNetwork makes what a task in bridge mode needs, in a network namespace that
// ends with the thread it is made on.
func probeNetwork() error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so that the thread and its namespace end here
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("network namespaces: %w", err)
			}
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}, PeerName: "probe1"}); err != nil {
				return fmt.Errorf("veth: %w", err)
			}
			if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "probe2"}}); err != nil {
				return fmt.Errorf("bridge: %w", err)
			}
			n := &nftables.Conn{}
			t := n.AddTable(&nftables.Table{Name: "probe", Family: nftables.TableFamilyINet})
			n.AddChain(&nftables.Chain{
				Name: "nat", Table: t, Type: nftables.ChainTypeNAT,
				Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
			})
			if err := n.Flush(); err != nil {
				return fmt.Errorf("nftables: %w", err)
			}
			return nil
		}()
	}()
	return <-done
}

// output runs a program and returns what it prints.
func output(ctx context.Context, name string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout = &out
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%s is not in PATH", name)
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return out.String(), nil
}

// findShim looks for the shim as Berth's own containerd does.
func (a *app) findShim() (string, error) {
	const name = "containerd-shim-runc-v2"
	beside := filepath.Join(a.system.Bin, name)
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is neither beside berth nor in PATH", name)
	}
	return path, nil
}

// clockOf reads the clock of the cluster at url from an answer's Date.
func clockOf(ctx context.Context, url string) (time.Time, bool) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return time.Time{}, false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return time.Time{}, false
	}
	defer resp.Body.Close()
	t, err := http.ParseTime(resp.Header.Get("Date"))
	return t, err == nil
}
