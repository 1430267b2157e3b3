package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"berth.dev/berth/agent/config"
	"berth.dev/berth/agent/ecs"
	"berth.dev/berth/agent/join"
	"berth.dev/berth/agent/state"
	wire "berth.dev/berth/wire/join"
)

// defaultCA is where the certificate of the cluster's authority is kept unless
// BERTH_CA_FILE says where.
const defaultCA = "/etc/berth/ca.pem"

const joinUsage = `Usage: %[1]s join [flags] TOKEN

Makes this host a member of the cluster that TOKEN is of, as "berth token create"
and "berth cluster" print it: exchanges it for a key, and writes the key, the
certificate of the cluster's authority and the settings. "-" reads the token from
standard input. Then: systemctl enable --now berth-agent

Flags:
`

// place is where this host's membership is kept.
func place(c *config.Config) join.Place {
	p := join.Place{KeyFile: c.Berth.KeyFile, CAFile: c.Berth.CAFile, Settings: config.UserFile, Profile: c.Cluster.Profile}
	if p.CAFile == "" {
		p.CAFile = defaultCA
	}
	return p
}

// joinMain is the verb join.
func joinMain(ctx context.Context, name string, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	f := flag.NewFlagSet(name+" join", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprintf(stderr, joinUsage, name)
		f.PrintDefaults()
	}
	endpoint := f.String("endpoint", "", "`URL` of the cluster, instead of the token's")
	fingerprint := f.String("ca-fingerprint", "", "`SHA-256` that the token must name as that of the cluster's authority")
	again := f.Bool("again", false, "join although this host is a member of a cluster already")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		return config.ExitOK
	} else if err != nil || f.NArg() != 1 {
		if err == nil {
			f.Usage()
		}
		return 2
	}
	err := joinWith(ctx, f.Arg(0), *endpoint, *fingerprint, *again, stdin, stdout)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return config.ExitError
	}
	return config.ExitOK
}

func joinWith(ctx context.Context, text, endpoint, fingerprint string, again bool, stdin io.Reader, stdout io.Writer) error {
	if text == "-" {
		b, err := io.ReadAll(io.LimitReader(stdin, wire.MaxToken+2))
		if err != nil {
			return err
		}
		text = string(b)
	}
	t, err := wire.Parse(text)
	if err != nil {
		return err
	}
	if plain := strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(fingerprint)); plain != "" && plain != strings.ToLower(t.Fingerprint) {
		return errors.New("the token names another authority than -ca-fingerprint does")
	}
	if endpoint != "" {
		t.Endpoint = endpoint
		if err := t.Check(); err != nil {
			return err
		}
	}
	// Settings that are not there yet, such as the region, come with the membership.
	c, err := config.Load(config.Sources{Environ: append(os.Environ(), "AWS_DEFAULT_REGION=none")})
	if err != nil {
		return err
	}
	if of, err := state.Instance(c.Berth.StateDir); err != nil {
		return err
	} else if of != "" && !again {
		return fmt.Errorf("this host is the container instance %s already; to make it a new one, run berth-agent teardown and remove %s, or use -again to give it a new key", of, c.Berth.StateDir)
	}
	p := place(c)
	if err := p.Prepare(); err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	m, err := join.Redeem(ctx, t, host, ecs.Proxy(c))
	if err != nil {
		return err
	}
	if err := p.Write(m, time.Now().UTC()); err != nil {
		return fmt.Errorf("write the membership: %w; the token was used, so make another", err)
	}
	fmt.Fprintf(stdout, "This host is a member of cluster %s at %s.\n", m.Cluster, m.Endpoint)
	return nil
}

// keys renews the agent's key.
func keys(c *config.Config, identity aws.CredentialsProvider, log *slog.Logger) (*join.Keys, error) {
	tlsConfig, err := ecs.TLS(c)
	if err != nil {
		return nil, err
	}
	return &join.Keys{
		Place: place(c), Every: c.Berth.KeyRotation, Region: c.Cluster.Region, Credentials: identity, Log: log,
		Client: &http.Client{
			Transport:     &http.Transport{Proxy: ecs.Proxy(c), TLSClientConfig: tlsConfig, DisableKeepAlives: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		Changed: func() {
			if cache, ok := identity.(*aws.CredentialsCache); ok {
				cache.Invalidate()
			}
		},
	}, nil
}

// rotateKey is the verb rotate-key.
func rotateKey(ctx context.Context, c *config.Config, log *slog.Logger) error {
	k, err := keys(c, ecs.Credentials(c), log)
	if err != nil {
		return err
	}
	return k.Rotate(ctx)
}

// keepKey renews the key while the agent runs.
func (a *agent) keepKey(ctx context.Context) error {
	k, err := keys(a.c, a.identity, a.log)
	if err != nil {
		return config.Terminal(err)
	}
	k.Run(ctx)
	return nil
}
