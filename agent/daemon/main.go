package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/journal"

	"berth.dev/berth/agent/cni"
	"berth.dev/berth/agent/config"
	"berth.dev/berth/agent/ecs"
	"berth.dev/berth/agent/roles"
	"berth.dev/berth/agent/runtime"
	"berth.dev/berth/agent/state"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/eni"
	wireupdate "berth.dev/berth/wire/update"
)

const usage = `Usage: %[1]s [flags]            run the agent
       %[1]s join TOKEN         make this host a member of a cluster of Berth's
       %[1]s rotate-key [flags] have that cluster make a new key for this host
       %[1]s bake -clean|-check prepare this machine to be copied as an image
       %[1]s teardown [flags]   remove everything of the agent's from this host
       %[1]s state check FILE   look at a state database without opening it

The settings are those of the ECS agent: ECS_* in the environment, then
/etc/ecs/ecs.config, then a JSON file; BERTH_* are Berth's own.

Flags:
`

// Main is the program berth-agent, and what "berth agent" does: args are the arguments
// after the program's name. It returns the exit code: 0 for a clean end, 1 for an error
// after which it may be started again, 5 for one that a new start cannot cure.
func Main(name string, args []string, version, hash string, stdout, stderr io.Writer) int {
	if len(args) == 3 && args[0] == "state" && args[1] == "check" {
		return state.CheckMain(args[2], stderr)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if len(args) > 0 && args[0] == "join" {
		return joinMain(ctx, name, args[1:], os.Stdin, stdout, stderr)
	}
	if len(args) == 3 && args[0] == "install-update" {
		return installUpdate(ctx, args[1], args[2], stderr)
	}
	if len(args) > 0 && args[0] == "bake" {
		return bakeMain(name, args[1:], stdout, stderr)
	}
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprintf(stderr, usage, name)
		f.PrintDefaults()
	}
	showVersion := f.Bool("version", false, "print the version and exit")
	level := f.String("loglevel", "", "crit, error, warn, info or debug (instead of ECS_LOGLEVEL)")
	attributes := f.Bool("ecs-attributes", false, "print the attributes that this host registers, and exit")
	check := f.Bool("healthcheck", false, "ask the running agent whether it is ready; exit code 0 or 1")
	verb := ""
	if len(args) > 0 && (args[0] == "teardown" || args[0] == "rotate-key") {
		verb, args = args[0], args[1:]
	}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return config.ExitOK
		}
		return config.ExitTerminal
	}
	if f.NArg() > 0 {
		fmt.Fprintf(stderr, "%s: unknown argument %q; see %s -help\n", name, f.Arg(0), name)
		return config.ExitTerminal
	}
	if *showVersion {
		fmt.Fprintf(stdout, "Berth agent %s (%s)\n", version, hash)
		return config.ExitOK
	}
	c, instance, err := load(ctx, verb == "" && !*check)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return config.ExitTerminal
	}
	if *level != "" {
		c.Logging.Level = *level
	}
	log := newLog(c, stderr)
	switch {
	case *attributes:
		err = printAttributes(c, stdout)
	case *check:
		err = healthcheck(ctx, c)
	case verb == "teardown":
		err = Teardown(ctx, c, log)
	case verb == "rotate-key":
		err = rotateKey(ctx, c, log)
	default:
		self, selfErr := os.Executable()
		if selfErr != nil {
			err = selfErr
			break
		}
		err = Run(ctx, Options{Settings: c, Version: version, Hash: hash, CheckProgram: self, EC2: instance, Log: log})
	}
	if err != nil {
		log.Error("the agent ends", "err", err, "code", config.ExitCode(err))
	}
	return config.ExitCode(err)
}

// newLog makes the agent's log by the settings of the protocol. Where standard error
// is the journal, entries go there with fields instead of as text.
func newLog(c *config.Config, w io.Writer) *slog.Logger {
	levels := map[string]slog.Level{
		"crit": slog.LevelError + 4, "error": slog.LevelError, "warn": slog.LevelWarn, "info": slog.LevelInfo, "debug": slog.LevelDebug,
	}
	if direct, err := journal.StderrIsJournalStream(); err == nil && direct && w == os.Stderr {
		return slog.New(newJournal(levels[c.Logging.Level], journal.Send, w))
	}
	o := &slog.HandlerOptions{Level: levels[c.Logging.Level]}
	if c.Logging.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// gather describes this host, with the attributes of what it has.
func gather(c *config.Config) (ecs.HostFacts, error) {
	facts, err := ecs.Gather()
	if err != nil {
		return facts, err
	}
	if kind := packageKind(c); kind != "" {
		facts.Capabilities = append(facts.Capabilities, wireupdate.Attribute+kind)
	}
	facts.IPv6 = eni.HasIPv6()
	if c.Network.TaskENI && c.Network.Trunking && !c.Cluster.External {
		facts.VLAN = eni.HasVLAN()
	}
	runtimes, err := runtime.FindRuntimes(c.Berth.Runtimes)
	if err != nil {
		return facts, config.Terminal(fmt.Errorf("BERTH_RUNTIMES: %w", err))
	}
	if c.Roles.SELinux && runtime.HasSELinux() {
		facts.Capabilities = append(facts.Capabilities, "com.amazonaws.ecs.capability.selinux")
	}
	if c.Roles.AppArmor && runtime.HasAppArmor() {
		facts.Capabilities = append(facts.Capabilities, "com.amazonaws.ecs.capability.apparmor")
	}
	gpus, err := gpusOf(c)
	if err != nil {
		return facts, config.Terminal(err)
	}
	if gpus != nil {
		facts.GPUs = gpus.IDs()
	}
	networks, err := cni.Names(c.Berth.CNIConfigDir)
	if err != nil {
		slog.Warn("some networks of BERTH_CNI_CONFIG_DIR cannot be used", "err", err)
	}
	for _, name := range networks {
		facts.Capabilities = append(facts.Capabilities, task.NetworkAttribute+name)
	}
	for _, r := range runtimes {
		facts.Capabilities = append(facts.Capabilities, runtime.RuntimeAttribute+r.Name)
	}
	return facts, nil
}

// gpusOf are the GPUs that tasks may be given, or nil where there are to be none.
func gpusOf(c *config.Config) (*runtime.GPUs, error) {
	if !c.Features.GPU {
		return nil, nil
	}
	g, err := runtime.FindGPUs(c.Berth.GPUKind, c.Berth.CDIDirs)
	if err != nil {
		return nil, fmt.Errorf("BERTH_GPU_KIND, BERTH_CDI_DIRS: %w", err)
	}
	return g, nil
}

func printAttributes(c *config.Config, w io.Writer) error {
	facts, err := gather(c)
	if err != nil {
		return err
	}
	for _, a := range ecs.Attributes(c, facts, true) {
		if _, err := fmt.Fprintf(w, "%s\t%s\n", a.Name, a.Value); err != nil {
			return err
		}
	}
	return nil
}

// healthcheck asks the agent that runs here.
func healthcheck(ctx context.Context, c *config.Config) error {
	ctx, cancel := context.WithTimeout(ctx, 25*time.Second) // agent protocol, "-healthcheck"
	defer cancel()
	a := &agent{c: c}
	client := http.Client{Transport: &http.Transport{DialContext: dialSocket(a.socket())}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/v1/state", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("no agent answers on %s: %w", a.socket(), err)
	}
	defer resp.Body.Close()
	var s State
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return err
	}
	if !s.Ready {
		return errors.New("the agent is not ready")
	}
	return nil
}

// Teardown removes everything of the agent's from this host: containers, namespaces,
// the bridge, firewall rules and cgroups. The agent must not run; it holds the lock of
// the state directory, which is taken first.
func Teardown(ctx context.Context, c *config.Config, log *slog.Logger) error {
	db, err := state.Open(ctx, state.Config{Dir: c.Berth.StateDir, Log: log})
	if err != nil {
		return fmt.Errorf("state directory %s: %w; is the agent still running?", c.Berth.StateDir, err)
	}
	h, err := openHost(ctx, c, roles.New(roles.Config{}), log)
	if err != nil {
		return errors.Join(err, db.Close())
	}
	return errors.Join(h.teardown(ctx), h.close(), db.Close())
}
