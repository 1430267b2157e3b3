package acstest

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ecs"

	cacs "berth.dev/berth/cluster/acs"
	"berth.dev/berth/cluster/api"
	"berth.dev/berth/cluster/ec2"
	"berth.dev/berth/cluster/iam"
	"berth.dev/berth/cluster/sigv4"
	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/tcs"
	"berth.dev/berth/cluster/telemetry"
)

// The lab's operator, and where it is.
const (
	LabRegion = "us-east-1"
	labKey    = "AKIALABOPERATOR00000"
	labSecret = "lab-operator-secret"
	LabNode   = "lab"
)

// Lab is a store, an API and an ACS server on one loopback port: what a cluster is made
// of, with every knob within reach. It can be stopped and started again on its data.
type Lab struct {
	URL      string
	Store    *store.Store
	API      *api.API
	ACS      *cacs.Server
	Usage    *telemetry.Keeper // what agents have published since the last Start
	Operator *ecs.Client

	t      testing.TB
	dir    string
	addr   string
	acs    func(*cacs.Config)
	config func(*api.Config)
	stop   func()
}

// NewLab starts a lab that ends with the test. Both functions may be nil.
func NewLab(t testing.TB, config func(*api.Config), acs func(*cacs.Config)) *Lab {
	t.Helper()
	l := &Lab{t: t, dir: t.TempDir(), addr: "127.0.0.1:0", acs: acs, config: config}
	l.Start()
	t.Cleanup(l.Stop)
	return l
}

// Credentials are the operator's.
func (l *Lab) Credentials() aws.CredentialsProvider {
	return credentials.NewStaticCredentialsProvider(labKey, labSecret, "")
}

// secret derives the secret of a lab key; the operator's is fixed.
func secret(id string) string {
	if id == labKey {
		return labSecret
	}
	return "secret-of-" + id
}

// foreign stands for AWS, where roles are taken that the lab's role store does not know.
func foreign(_ context.Context, roleARN, session string) (iam.Keys, error) {
	return iam.Keys{
		AccessKeyID: "ASIAFOREIGN000000000", SecretAccessKey: "secret-of-" + roleARN, SessionToken: "token-of-" + session,
		Expires: time.Now().Add(time.Hour),
	}, nil
}

// InstanceKey makes a key for one instance.
func (l *Lab) InstanceKey(id string) aws.CredentialsProvider {
	l.t.Helper()
	l.put(&store.AccessKey{ID: id, Kind: store.KeyInstance, CreatedAt: time.Now()})
	return credentials.NewStaticCredentialsProvider(id, secret(id), "")
}

func (l *Lab) put(k *store.AccessKey) {
	l.t.Helper()
	err := l.Store.Update(context.Background(), func(tx *store.Tx) error {
		if _, known := store.Get(tx, store.Keys, k.ID); !known {
			store.Put(tx, store.Keys, k.ID, k)
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// Start starts the lab; its address and data stay the same from one start to the next.
func (l *Lab) Start() {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.NewTextHandler(logWriter{l.t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	var err error
	if l.Store, err = store.Open(ctx, store.Config{Dir: l.dir, Log: log}); err != nil {
		cancel()
		l.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", l.addr)
	if err != nil {
		cancel()
		l.t.Fatal(err)
	}
	l.addr = ln.Addr().String()
	l.URL = "http://" + l.addr
	l.put(&store.AccessKey{ID: labKey, Kind: store.KeyOperator, CreatedAt: time.Now()})
	verifier := &sigv4.Verifier{Region: LabRegion, Secret: func(id string) (string, bool) {
		known := false
		l.Store.View(func(r store.Reader) { _, known = store.Get(r, store.Keys, id) })
		return secret(id), known
	}}
	config := api.Config{Region: LabRegion, Account: "000000000000", Endpoint: func() string { return l.URL }}
	config.IAM = &iam.Service{Store: l.Store, Root: []byte("the root key of the lab's cluster"), Account: config.Account, Partition: "aws", Foreign: foreign}
	if l.config != nil {
		l.config(&config)
	}
	if l.API, err = api.New(l.Store, verifier, config, log); err != nil {
		cancel()
		l.t.Fatal(err)
	}
	network := ec2.New(ec2.Config{
		Store: l.Store, Region: LabRegion, Account: config.Account, Authenticate: l.API.AuthenticateOperator, Log: log,
	})
	l.API.Queries = map[string]api.Query{ec2.Version: network.Serve}
	c := cacs.Config{Store: l.Store, Authenticate: l.API.Authenticate, Fail: l.API.FailTask, Node: LabNode, Log: log}
	if config.IAM != nil {
		c.Credentials = config.IAM.TaskCredentials
	}
	if l.acs != nil {
		l.acs(&c)
	}
	l.ACS = cacs.New(c)
	l.Usage = telemetry.New(nil)
	published := tcs.New(tcs.Config{Authenticate: l.API.Authenticate, Received: l.Usage.Receiver(l.API), Log: log})
	mux := http.NewServeMux()
	mux.Handle("/", l.API)
	mux.Handle("/ws", l.ACS)
	mux.Handle("/tcs/ws", published)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	var work sync.WaitGroup
	work.Go(func() { l.ended("placer", ctx, l.API.RunTasks(ctx)) })
	work.Go(func() { l.ended("sessions", ctx, l.ACS.Run(ctx)) })
	work.Go(func() { server.Serve(ln) }) //nolint:errcheck // always ends with ErrServerClosed here
	l.Operator = ecs.New(ecs.Options{Region: LabRegion, BaseEndpoint: aws.String(l.URL), Credentials: l.Credentials()})
	var once sync.Once
	l.stop = func() {
		once.Do(func() {
			cancel()
			server.Close() //nolint:errcheck // the test is over with it
			published.Close()
			work.Wait()
			if err := l.Store.Close(); err != nil {
				l.t.Errorf("close the store: %v", err)
			}
		})
	}
}

// Stop ends the lab; its data stays for the next Start.
func (l *Lab) Stop() { l.stop() }

func (l *Lab) ended(what string, ctx context.Context, err error) {
	if ctx.Err() == nil {
		l.t.Errorf("%s ended: %v", what, err)
	}
}

// WaitFor fails the test unless the condition holds within a bounded time.
func WaitFor(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
		<-tick.C
	}
}

// logWriter sends the log to the test.
type logWriter struct{ t testing.TB }

func (w logWriter) Write(b []byte) (int, error) {
	fmt.Fprint(w.t.Output(), string(b)) //nolint:errcheck // the test's own output
	return len(b), nil
}
