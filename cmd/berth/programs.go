package main

import (
	"errors"
	"io"
	"log/slog"
	"slices"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	agentdaemon "berth.dev/berth/agent/daemon"
	"berth.dev/berth/agent/runtime/embedded"
	"berth.dev/berth/cluster"
	"berth.dev/berth/cmd/berth/internal/system"
)

func (a *app) containerdProgram() *cobra.Command {
	var o embedded.Config
	c := &cobra.Command{
		Use:   "containerd",
		Short: "Run Berth's own containerd in the foreground",
		Long: `Runs a containerd 2.x with what Berth needs of it, for hosts that have none. It
ends on SIGTERM; the containers it started live on and are found again by the
next one. "berth up" starts it where it is needed.`,
		Args: args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			l := a.system.Layout
			for _, d := range []struct {
				at *string
				to string
			}{
				{&o.Root, l.ContainerdRoot()}, {&o.State, l.ContainerdState()}, {&o.Address, l.ContainerdSocket()},
			} {
				if *d.at == "" {
					*d.at = d.to
				}
			}
			o.ShimDir = a.system.Bin
			o.Log = programLog(c.ErrOrStderr())
			o.Ready = func() { notify(o.Log, daemon.SdNotifyReady) }
			return embedded.Main(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Root, "containerd-root", "", "`directory` of images and records (default /var/lib/berth/containerd)")
	f.StringVar(&o.State, "containerd-state", "", "`directory` of run-time state (default /run/berth/containerd)")
	f.StringVar(&o.Address, "address", "", "`path` of the socket (default /run/berth/containerd/containerd.sock)")
	f.StringVar(&o.Level, "log-level", "warn", "the least `level` to log: error, warn, info or debug")
	return c
}

func (a *app) agentProgram() *cobra.Command {
	return &cobra.Command{
		Use:   "agent",
		Short: "Run the agent in the foreground",
		Long: `Runs the node agent, as the program berth-agent does: it registers this host
with the cluster and runs the tasks it is sent. Its settings are ECS_* and
BERTH_* variables and files (docs/settings.md); its own flags are those that
"berth agent -help" lists. Its end does not end any task. Exits with 5 when
starting it again cannot help. "berth agent join TOKEN" makes this host a member
of the cluster that the token is of, with a key of its own and all settings.`,
		Example: `  berth agent join berth1.eyJlIjoi…
  ECS_BACKEND_HOST=http://127.0.0.1:7700 ECS_EXTERNAL=true AWS_DEFAULT_REGION=us-east-1 berth agent`,
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			if slices.Contains(args, "--help") {
				return c.Help()
			}
			return agentMain(c, "berth agent", args)
		},
	}
}

// stateProgram is how an agent that is this program has its database looked at by a
// child process.
func (a *app) stateProgram() *cobra.Command {
	return &cobra.Command{
		Use:                "state",
		Short:              "Look at a state database of the agent",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			return agentMain(c, "berth", append([]string{"state"}, args...))
		},
	}
}

func agentMain(c *cobra.Command, name string, args []string) error {
	if code := agentdaemon.Main(name, args, version, hash, c.OutOrStdout(), c.ErrOrStderr()); code != 0 {
		return &exit{code: code}
	}
	return nil
}

func (a *app) clusterProgram() *cobra.Command {
	var o cluster.Config
	var atAWS bool
	var seriesSize uint32
	c := &cobra.Command{
		Use:   "cluster",
		Short: "Run the central cluster in the foreground",
		Long: `Runs the central cluster: the public ECS API, the sessions of the agents,
placement, and the store of all of it, an etcd of its own unless
--etcd-endpoints names one. The operator's key is made at the first start, in
operator.json of its directory.

On addresses other than loopback it serves TLS with a certificate of its own
authority, and prints, where its output is a terminal, a token with which one
host can join within an hour: berth agent join TOKEN. "berth token create" makes
more of them.

Several of these programs may serve one etcd, each with a directory of its own
into which root.key, and tls if there is one, was copied from the first.`,
		Example: `  berth cluster
  berth cluster --dir /srv/cluster --listen 127.0.0.1:7701 --region eu-west-1`,
		Args: args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Dir == "" {
				o.Dir = a.system.Layout.ClusterDir()
			}
			o.Log = programLog(c.ErrOrStderr())
			o.SeriesBytes = int64(seriesSize) << 20
			if atAWS {
				var err error
				if o.Foreign, err = cluster.RolesAtAWS(c.Context(), o.Region); err != nil {
					return err
				}
			}
			s, err := cluster.Open(c.Context(), o)
			if err != nil {
				return err
			}
			o.Log.Info("the cluster is ready", "url", s.URL())
			notify(o.Log, daemon.SdNotifyReady+"\nSTATUS=serving "+s.URL())
			if err := a.welcome(c.Context(), s); err != nil {
				return errors.Join(err, s.Close())
			}
			<-c.Context().Done()
			notify(o.Log, daemon.SdNotifyStopping)
			return s.Close()
		},
	}
	f := c.Flags()
	f.StringVar(&o.Dir, "dir", "", "`directory` of the store and the keys (default /var/lib/berth/cluster)")
	f.StringVar(&o.Listen, "listen", system.DefaultListen, "`address` of the API")
	f.StringVar(&o.Region, "region", system.DefaultRegion, "`region` that appears in ARNs")
	f.StringVar(&o.Account, "account", "", "12 `digits` of the account that appears in ARNs (default 000000000000)")
	f.BoolVar(&atAWS, "roles-at-aws", false, "take roles that are not in the cluster's role store at AWS, with the identity of this program's environment")
	f.StringSliceVar(&o.Endpoints, "etcd-endpoints", nil, "`URLs` of an etcd cluster to keep the records in")
	f.StringVar(&o.Advertise, "advertise", "", "`host` that clients and agents are told (default the listening address)")
	f.StringVar(&o.Node, "node", "", "`name` of this process among those on one etcd (default the machine's name and the listening address)")
	f.StringVar(&o.AuditFile, "audit-file", "", "`path` of the record of all API calls, or off (default audit/audit.log in the directory)")
	f.StringVar(&o.OTLPEndpoint, "otlp-endpoint", "", "`URL` of an OpenTelemetry receiver that the metrics are pushed to")
	f.Uint32Var(&seriesSize, "series-size", 256, "room on disk for the series of what is measured, in `MiB`")
	f.StringVar(&o.Events.File, "events-file", "", "`path` of a file that gets state changes as lines of JSON")
	f.StringArrayVar(&o.Events.Webhooks, "events-webhook", nil, "`URL` that every state change is posted to, or @ and the path of a file with it; may be given several times")
	f.StringVar(&o.Events.WebhookKeyFile, "events-webhook-key", "", "`path` of a file with the key that signs what is posted")
	return c
}

// notify tells systemd, where it started the program, how that is (sd_notify(3)).
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd could not be told", "state", state, "err", err)
	}
}

// programLog is the log of a program that runs in the foreground.
func programLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
