package cluster

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"golang.org/x/sys/unix"

	"berth.dev/berth/cluster/acs"
	"berth.dev/berth/cluster/api"
	"berth.dev/berth/cluster/audit"
	"berth.dev/berth/cluster/cloudwatch"
	"berth.dev/berth/cluster/ec2"
	"berth.dev/berth/cluster/events"
	"berth.dev/berth/cluster/iam"
	"berth.dev/berth/cluster/packages"
	"berth.dev/berth/cluster/series"
	"berth.dev/berth/cluster/sigv4"
	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/tcs"
	"berth.dev/berth/cluster/telemetry"
	"berth.dev/berth/otlp"
	"berth.dev/berth/wire/update"
)

// Defaults of a Config.
const (
	DefaultListen  = "127.0.0.1:7700"
	DefaultRegion  = "us-east-1"
	DefaultAccount = "000000000000"
)

const (
	// closeTimeout bounds how long Close waits for requests.
	closeTimeout = 5 * time.Second
	// sweepInterval is how often what is marked for deletion is looked for.
	sweepInterval = time.Minute
	// maxKeyRequest bounds the body of a request for an instance key.
	maxKeyRequest = 64 << 10
)

// Config says how a cluster runs. Empty members mean their default.
type Config struct {
	// Dir is the cluster's directory; it is made, with mode 0700.
	Dir string
	// Listen is the address and port. On addresses other than loopback the
	// cluster serves TLS.
	Listen string
	// Advertise is the host name or address that clients are told; the
	// default is the listening address, or the machine's name if that is
	// all addresses.
	Advertise string
	// Region and Account are in every ARN and cannot change once there are
	// records. Account has 12 digits.
	Region, Account string
	// Foreign takes a role that the role store does not know, as RolesAtAWS does; nil
	// refuses tasks with such roles.
	Foreign func(ctx context.Context, roleARN, session string) (iam.Keys, error)
	// Endpoints of an etcd cluster; none means an embedded one.
	Endpoints []string
	// Node names this process among those on the same etcd. The default is made of the
	// machine's name and the listening address, so it stays the same over restarts.
	Node string
	// StoppedRetention is how long stopped tasks stay visible; at least the
	// hour that ECS promises by default.
	StoppedRetention time.Duration
	// AuditFile gets a record of every call of the API; "" means audit/audit.log in Dir,
	// and "off" that there are none.
	AuditFile string
	// Events says to whom state changes are told.
	Events Events
	// SeriesBytes is the room on disk for the series of what is measured; 0 means
	// series.DefaultMaxBytes.
	SeriesBytes int64
	// OTLPEndpoint is the URL of an OpenTelemetry receiver that the metrics are pushed to;
	// "" means none.
	OTLPEndpoint string
	Log          *slog.Logger
	// Faults make the cluster misbehave, for tests.
	Faults Faults
}

// Faults are the knobs of tests. The zero value is none.
type Faults struct {
	// ACS are the faults of the agents' sessions.
	ACS *acs.Faults
	// Ledger gets what is sent to and received from agents.
	Ledger func(acs.Entry)
	// SubmitStatus answers a Submit operation with this HTTP status instead
	// of performing it; 0 performs it.
	SubmitStatus func(operation string) int
	// ClockSkew is added to the clock that signatures are checked with.
	ClockSkew time.Duration
}

// submitted puts the state changes that agents report into the ledger.
func (f *Faults) submitted() func(api.Caller, *ecs.SubmitTaskStateChangeInput, error) {
	if f.Ledger == nil {
		return nil
	}
	return func(c api.Caller, in *ecs.SubmitTaskStateChangeInput, err error) {
		e := acs.Entry{
			At: time.Now(), Kind: acs.EntrySubmitted, Instance: c.InstanceARN, Type: "SubmitTaskStateChange",
			Tasks: []acs.TaskEntry{{ARN: aws.ToString(in.Task), Desired: aws.ToString(in.Status)}},
		}
		if err != nil {
			e.Detail = err.Error()
		}
		f.Ledger(e)
	}
}

// Server is a running cluster.
type Server struct {
	config   Config
	url      string
	operator Key
	ca       *authority
	lock     *os.File
	store    *store.Store
	keys     *keyring
	iam      *iam.Service
	api      *api.API
	acs      *acs.Server
	tcs      *tcs.Server
	node     string
	member   *store.Membership // nil with an embedded etcd
	packages *packages.Shelf
	usage    *telemetry.Keeper
	series   *series.Store
	recorder *telemetry.Recorder
	watch    *cloudwatch.Server
	events   *events.Stream
	audit    *audit.Log // nil without records
	metrics  *metrics
	http     *http.Server
	log      *slog.Logger

	stop context.CancelFunc
	work sync.WaitGroup
	once sync.Once
	end  error
}

var (
	accountRule = regexp.MustCompile(`^[0-9]{12}$`)
	regionRule  = regexp.MustCompile(`^[a-z]{2}(-[a-z0-9]+)+$`)
	nodeRule    = regexp.MustCompile(`^[A-Za-z0-9._:@\[\]-]{1,255}$`)
)

func (c *Config) complete() error {
	c.Listen = cmp.Or(c.Listen, DefaultListen)
	c.Region = cmp.Or(c.Region, DefaultRegion)
	c.Account = cmp.Or(c.Account, DefaultAccount)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.OTLPEndpoint != "" {
		if err := otlp.Check(c.OTLPEndpoint); err != nil {
			return err
		}
	}
	switch {
	case c.Dir == "":
		return errors.New("the cluster's directory is not set")
	case !accountRule.MatchString(c.Account):
		return fmt.Errorf("account %q is not a number of 12 digits", c.Account)
	case !regionRule.MatchString(c.Region):
		return fmt.Errorf("region %q is not a region name such as us-east-1", c.Region)
	case c.Node != "" && !nodeRule.MatchString(c.Node):
		return fmt.Errorf("node name %q has more than 255 characters, or others than letters, digits and ._:@[]-", c.Node)
	}
	return nil
}

// Open starts a cluster and returns when it serves.
func Open(ctx context.Context, c Config) (*Server, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	s := &Server{config: c, log: c.Log, metrics: newMetrics()}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) open(ctx context.Context) error {
	c := s.config
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	if err := s.takeDir(); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w; is another cluster running there?", c.Listen, err)
	}
	if err := s.prepare(ctx, listener.Addr()); err != nil {
		return errors.Join(err, listener.Close())
	}
	if s.ca != nil {
		listener = tls.NewListener(listener, s.http.TLSConfig)
	}
	s.goRun("placer", run, s.api.RunTasks)
	s.goRun("sessions", run, s.acs.Run)
	s.goRun("sweeper", run, s.sweep)
	s.goRun("recorder", run, s.recorder.Run)
	if c.OTLPEndpoint != "" {
		s.goRun("exporter", run, s.push)
	}
	if s.member != nil {
		s.goRun("node", run, func(ctx context.Context) error { return s.member.Keep(ctx, s.acs.Rejoined) })
	}
	s.work.Go(func() {
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("the listener ended", "err", err)
		}
	})
	s.log.Info("cluster serves", "url", s.url, "region", c.Region, "account", c.Account)
	return nil
}

// takeDir makes the directory and takes its lock.
func (s *Server) takeDir() error {
	if err := os.MkdirAll(s.config.Dir, 0o700); err != nil {
		return fmt.Errorf("make the cluster's directory: %w", err)
	}
	path := filepath.Join(s.config.Dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("open the cluster's lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("the directory %s is in use by another cluster process: %w", s.config.Dir, err), f.Close())
	}
	s.lock = f
	return nil
}

// prepare opens the records and makes all parts, before anything serves.
func (s *Server) prepare(ctx context.Context, addr net.Addr) error {
	c := s.config
	var err error
	if s.keys, err = openKeyring(c.Dir); err != nil {
		return err
	}
	if s.store, err = store.Open(ctx, store.Config{Dir: c.Dir, Endpoints: c.Endpoints, Log: c.Log}); err != nil {
		return err
	}
	if err := s.pinIdentity(ctx); err != nil {
		return err
	}
	if err := s.keys.pin(ctx, s.store); err != nil {
		return err
	}
	if s.node, err = nodeName(c.Node, addr); err != nil {
		return err
	}
	if s.operator, err = s.keys.operator(ctx, s.store); err != nil {
		return err
	}
	verifier := &sigv4.Verifier{
		Region: c.Region,
		Secret: s.secret,
		Now:    func() time.Time { return time.Now().Add(c.Faults.ClockSkew) },
	}
	s.iam = &iam.Service{
		Store: s.store, Root: s.keys.root, Account: c.Account, Partition: api.Partition(c.Region), Foreign: c.Foreign,
		Now: verifier.Now,
	}
	if err := s.openAudit(); err != nil {
		return err
	}
	s.packages = packages.New(filepath.Join(c.Dir, "packages"))
	s.api, err = api.New(s.store, verifier, api.Config{
		Region: c.Region, Account: c.Account, Node: s.node, StoppedRetention: c.StoppedRetention,
		IAM: s.iam, Endpoint: s.URL, Packages: s.packages, Observe: s.metrics.observe, Submitted: c.Faults.submitted(), Called: s.called,
	}, c.Log)
	if err != nil {
		return err
	}
	network := ec2.New(ec2.Config{
		Store: s.store, Region: c.Region, Account: c.Account, Authenticate: s.api.AuthenticateOperator, Log: c.Log,
	})
	s.acs = acs.New(acs.Config{
		Store: s.store, Authenticate: s.api.Authenticate, Fail: s.api.FailTask, Credentials: s.iam.TaskCredentials,
		PackageURL: func(file string) string { return s.url + update.Path + file },
		Node:       s.node, Faults: c.Faults.ACS, Ledger: c.Faults.Ledger, Log: c.Log,
	})
	if err := s.openTelemetry(); err != nil {
		return err
	}
	s.api.Queries = map[string]api.Query{ec2.Version: network.Serve, cloudwatch.Version: s.watch.ServeForm}
	if err := s.openEvents(ctx); err != nil {
		return err
	}
	s.tcs = tcs.New(tcs.Config{Authenticate: s.api.Authenticate, Received: s.usage.Receiver(s.api), Log: c.Log})
	s.metrics.gauge("berth_tcs_sessions", "Open telemetry sessions.", func() float64 { return float64(s.tcs.Sessions()) })
	s.http = &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
	}
	if err := s.settleAddress(addr); err != nil {
		return err
	}
	f := operatorFile{Key: s.operator, Region: c.Region, Endpoint: s.url, Account: c.Account}
	if s.ca != nil {
		f.CA, f.Fingerprint = s.ca.path, s.ca.fingerprint()
	}
	if err := f.write(c.Dir); err != nil {
		return err
	}
	if len(c.Endpoints) > 0 {
		s.member, err = s.store.Join(ctx, store.Node{Name: s.node, URL: s.url, Joined: time.Now().UTC()})
	}
	return err
}

// nodeName is the name that is set, or what stays the same of this process.
func nodeName(set string, addr net.Addr) (string, error) {
	if set != "" {
		return set, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("find the machine's name: %w; set the node's name", err)
	}
	return host + "@" + addr.String(), nil
}

// settleAddress finds the URL that clients use, and the certificate for it.
func (s *Server) settleAddress(addr net.Addr) error {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return fmt.Errorf("listening on %s, which is no TCP address", addr)
	}
	host := s.config.Advertise
	if tcp.IP.IsLoopback() {
		s.url = "http://" + net.JoinHostPort(cmp.Or(host, tcp.IP.String()), fmt.Sprint(tcp.Port))
		return nil
	}
	hosts, err := certHosts(host, tcp.IP)
	if err != nil {
		return err
	}
	if host == "" {
		host = tcp.IP.String()
		if tcp.IP.IsUnspecified() {
			if host, err = os.Hostname(); err != nil {
				return fmt.Errorf("find the machine's name: %w; set the advertised host", err)
			}
		}
	}
	s.url = "https://" + net.JoinHostPort(host, fmt.Sprint(tcp.Port))
	s.http.TLSConfig, s.ca, err = openTLS(s.config.Dir, hosts, time.Now())
	return err
}

// pinIdentity refuses to run records under another region or account than
// the one in their ARNs.
func (s *Server) pinIdentity(ctx context.Context) error {
	want := map[string]string{"region": s.config.Region, "account": s.config.Account}
	return s.store.Update(ctx, func(tx *store.Tx) error {
		for name, value := range want {
			v, ok := store.Get(tx, store.Meta, name)
			if !ok {
				store.Put(tx, store.Meta, name, &store.Value{Text: value})
			} else if v.Text != value {
				return fmt.Errorf("the cluster was made with %s %s and cannot run with %s; use that, or another directory", name, v.Text, value)
			}
		}
		return nil
	})
}

func (s *Server) secret(id string) (string, bool) {
	known := false
	s.store.View(func(r store.Reader) { _, known = store.Get(r, store.Keys, id) })
	if !known {
		return "", false
	}
	return s.keys.secret(id), true
}

func (s *Server) goRun(what string, ctx context.Context, fn func(context.Context) error) {
	s.work.Go(func() {
		if err := fn(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("a part of the cluster ended", "part", what, "err", err)
		}
	})
}

// sweep removes what is marked for deletion and not in use any more.
func (s *Server) sweep(ctx context.Context) error {
	t := time.NewTicker(sweepInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		s.usage.Sweep()
		if !s.api.Leads() {
			continue
		}
		if err := s.api.SweepDefinitions(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("deleted task definitions cannot be removed", "err", err)
		}
		if err := s.api.SweepUpdates(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("updates of agents that do not go on cannot be given up", "err", err)
		}
		if err := s.sweepTokens(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("join tokens that have ended cannot be removed", "err", err)
		}
	}
}

// URL is the base URL of the cluster, without a slash at its end.
func (s *Server) URL() string { return s.url }

// OperatorKey is the key that may call everything.
func (s *Server) OperatorKey() Key { return s.operator }

// Fingerprint is the SHA-256 of the cluster's CA certificate in hexadecimal,
// empty if it serves plain HTTP.
func (s *Server) Fingerprint() string {
	if s.ca == nil {
		return ""
	}
	return s.ca.fingerprint()
}

// Close ends the cluster: no new requests, those under way get a few
// seconds, sessions are closed. It may be called more than once.
func (s *Server) Close() error {
	s.once.Do(func() {
		var errs []error
		if s.events != nil {
			s.events.EndReaders() // they would stay
		}
		if s.http != nil {
			ctx, cancel := context.WithTimeout(context.Background(), closeTimeout) //nolint:forbidigo // nobody is left to cancel it
			if err := s.http.Shutdown(ctx); err != nil {
				errs = append(errs, s.http.Close())
			}
			cancel()
		}
		s.stop() // the parts; sessions of agents end with it
		if s.tcs != nil {
			s.tcs.Close()
		}
		s.work.Wait()
		if s.series != nil {
			errs = append(errs, s.series.Close())
		}
		if s.store != nil {
			errs = append(errs, s.store.Close())
		}
		if s.events != nil {
			s.events.Wait() // ends with the store
		}
		if s.audit != nil {
			errs = append(errs, s.audit.Close())
		}
		if s.lock != nil {
			errs = append(errs, s.lock.Close())
		}
		s.end = errors.Join(errs...)
	})
	return s.end
}
