package daemon

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/agent/config"
	"berth.dev/berth/agent/ecs"
	"berth.dev/berth/agent/update"
	wireupdate "berth.dev/berth/wire/update"
)

const (
	agentUnit  = "berth-agent.service"
	updateUnit = "berth-agent-update"

	// installTimeout bounds the work of the package manager, and the wait for its lock.
	installTimeout = 5 * time.Minute
	lockPause      = 3 * time.Second
	// readyTimeout is how long a new agent may take to be ready. It waits for containerd
	// and the cluster, which were there a moment ago.
	readyTimeout = 5 * time.Minute
	readyPause   = 500 * time.Millisecond
	// maxStarts is how often a new agent is started before it is given up.
	maxStarts = 3
)

// packageKind is the kind of package that updates of this agent come in; empty where
// there are none.
func packageKind(c *config.Config) string {
	if !c.Updates.Enabled || c.Cluster.BackendHost == "" {
		return ""
	}
	self, err := os.Executable()
	if err != nil {
		return ""
	}
	return update.Installed(context.Background(), self) //nolint:forbidigo // bounded, and before anything runs
}

// updates makes what answers the cluster's update messages.
func (a *agent) updates(tlsConfig *tls.Config) *update.Updater {
	c := update.Config{
		Enabled: a.c.Updates.Enabled, Dir: a.c.Updates.DownloadDir, Running: a.o.Version, Kind: packageKind(a.c),
		Credentials: a.identity, Region: a.c.Cluster.Region, Log: a.log,
		Origin: func(ctx context.Context) (string, error) {
			if a.c.Cluster.BackendHost == "" {
				return "", nil // AWS offers no packages of Berth's
			}
			return a.ecs.Endpoint(ctx, a.instance().InstanceARN)
		},
		Client: &http.Client{
			Transport:     &http.Transport{Proxy: ecs.Proxy(a.c), TLSClientConfig: tlsConfig, DisableKeepAlives: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	if c.Dir == "" {
		c.Dir = filepath.Join(a.c.Berth.StateDir, "updates")
	}
	c.Install = func(ctx context.Context, _ update.Plan) error {
		if c.Kind == "" {
			a.update <- struct{}{} // once: the agent ends
			return nil
		}
		return a.installApart(ctx, c.Dir)
	}
	return update.New(c)
}

// endForUpdate ends the agent when its supervisor has to start another (agent protocol,
// "Exit codes").
func (a *agent) endForUpdate(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.update:
		return config.ErrUpdate
	}
}

// installApart has systemd run the installation in a unit of its own: the package ends
// this process, and with it everything in its unit would be no more.
func (a *agent) installApart(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "systemd-run", "--quiet", "--collect", "--service-type=exec", "--unit="+updateUnit,
		"--description=Installs another version of berth-agent", "--", a.o.CheckProgram, "install-update", dir, a.socket())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("systemd cannot run the installation: %w: %.200s", err, bytes.TrimSpace(out))
	}
	return nil
}

// installUpdate is what runs in that unit.
func installUpdate(ctx context.Context, dir, socket string, stderr io.Writer) int {
	log := newLog(&config.Config{}, stderr)
	h := &systemHost{client: &http.Client{Transport: &http.Transport{DialContext: dialSocket(socket), DisableKeepAlives: true}, Timeout: 10 * time.Second}, log: log}
	if err := update.Install(ctx, dir, h, log); err != nil {
		log.Error("the update of the agent failed", "err", err)
		return config.ExitError
	}
	return config.ExitOK
}

// systemHost is a host with systemd and a package manager.
type systemHost struct {
	client *http.Client // of the agent's socket
	log    *slog.Logger
}

// Install has dpkg or rpm install a file. Settings that were changed stay.
func (h *systemHost) Install(ctx context.Context, kind, path string) error {
	ctx, cancel := context.WithTimeout(ctx, installTimeout)
	defer cancel()
	args := []string{"dpkg", "--force-confold", "--install", path}
	if kind == wireupdate.RPM {
		args = []string{"rpm", "-U", "--oldpackage", "--replacepkgs", "--nosignature", path}
	}
	for {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
		out, err := cmd.CombinedOutput()
		if err == nil {
			return nil
		}
		if !bytes.Contains(out, []byte("locked by another process")) {
			return fmt.Errorf("%s: %w: %.1000s", args[0], err, bytes.TrimSpace(out))
		}
		h.log.Info("waiting for another package manager")
		if !pause(ctx, lockPause) {
			return errors.New("another package manager does not end")
		}
	}
}

// Restart starts the agent anew, also one that has been given up.
func (h *systemHost) Restart(ctx context.Context) error {
	for _, args := range [][]string{{"reset-failed", agentUnit}, {"restart", "--no-block", agentUnit}} {
		if out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput(); err != nil && args[0] == "restart" {
			return fmt.Errorf("systemctl %s: %w: %.200s", strings.Join(args, " "), err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// Ready waits for the agent of a version.
func (h *systemHost) Ready(ctx context.Context, version string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	before := -1
	for {
		s, err := h.state(ctx)
		if err == nil && s.Ready && s.Version == version {
			return nil
		}
		unit, starts := h.unit(ctx)
		if before < 0 || starts < before { // counted from zero by a start that was asked for
			before = starts
		}
		switch {
		case unit == "failed" || unit == "inactive":
			return fmt.Errorf("its unit is %s", unit)
		case starts-before >= maxStarts:
			return fmt.Errorf("it ended %d times", starts-before)
		}
		if !pause(ctx, readyPause) {
			return fmt.Errorf("it is not ready after %v: %w", readyTimeout, errors.Join(err, ctx.Err()))
		}
	}
}

func (h *systemHost) state(ctx context.Context) (s State, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/v1/state", http.NoBody)
	if err != nil {
		return s, err
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&s)
}

// unit is the state of the agent's unit, and how often it was started by itself.
func (h *systemHost) unit(ctx context.Context) (state string, starts int) {
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=ActiveState,NRestarts,Job", agentUnit).Output()
	if err != nil {
		return "", 0
	}
	job := ""
	for line := range strings.Lines(string(out)) {
		switch key, value, _ := strings.Cut(strings.TrimSpace(line), "="); key {
		case "ActiveState":
			state = value
		case "NRestarts":
			starts, err = strconv.Atoi(value)
		case "Job":
			job = value
		}
	}
	if err != nil || job != "" && job != "0" {
		return "", starts // it is being started
	}
	return state, starts
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
