package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// maxTxnOps bounds the operations of one transaction of the embedded
	// etcd; an external one has its own setting, 128 unless changed.
	maxTxnOps = 16384
	// defaultTxnOps is an external etcd's, unless its operator has changed it.
	defaultTxnOps = 128
	// maxRequestBytes bounds one transaction. Raft entries up to this size
	// are fine on one member, whose log is a local file.
	maxRequestBytes = 16 << 20
	// keepRevisions is how much history etcd keeps for a watch that has to
	// be resumed.
	keepRevisions = "10000"
	// quotaBytes is where etcd stops taking writes: the largest size its
	// documentation suggests.
	quotaBytes = 8 << 30
)

// backend is the etcd behind a store.
type backend struct {
	client   *clientv3.Client
	embedded *embed.Etcd
}

func openBackend(ctx context.Context, c Config) (*backend, error) {
	if len(c.Endpoints) > 0 {
		client, err := clientv3.New(clientv3.Config{
			Endpoints:            c.Endpoints,
			DialTimeout:          5 * time.Second,
			DialKeepAliveTime:    10 * time.Second,
			DialKeepAliveTimeout: 5 * time.Second,
			Logger:               quietLogger(c.Log),
			MaxCallSendMsgSize:   maxRequestBytes,
		})
		if err != nil {
			return nil, fmt.Errorf("connect to etcd %v: %w", c.Endpoints, err)
		}
		return &backend{client: client}, nil
	}
	server, err := startEmbedded(ctx, filepath.Join(c.Dir, "etcd"), c.Log)
	if err != nil {
		return nil, err
	}
	return &backend{client: v3client.New(server.Server), embedded: server}, nil
}

// startEmbedded starts a single etcd member without any listener: only this
// process reaches it, by function calls.
func startEmbedded(ctx context.Context, dir string, log *slog.Logger) (*embed.Etcd, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make etcd directory: %w", err)
	}
	c := embed.NewConfig()
	c.Name = "berth"
	c.Dir = dir
	// The member's address is part of its identity on disk, but nothing
	// listens on it and nothing dials it.
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	c.ListenPeerUrls, c.ListenClientUrls, c.ListenClientHttpUrls = nil, nil, nil
	c.AdvertisePeerUrls, c.AdvertiseClientUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.Name + "=" + peer.String()
	// One member has nobody to lose an election to, so a short timeout only
	// makes the start fast.
	c.TickMs, c.ElectionMs = 10, 100
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModeRevision, keepRevisions
	c.MaxTxnOps, c.MaxRequestBytes = maxTxnOps, maxRequestBytes
	c.QuotaBackendBytes = quotaBytes
	c.SnapshotCount = 20000
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(quietLogger(log))
	server, err := embed.StartEtcd(c)
	if err != nil {
		return nil, fmt.Errorf("start etcd in %s: %w", dir, err)
	}
	select {
	case <-server.Server.ReadyNotify():
		return server, nil
	case err := <-server.Err():
		server.Close()
		return nil, fmt.Errorf("start etcd in %s: %w", dir, err)
	case <-ctx.Done():
		server.Close()
		return nil, fmt.Errorf("start etcd in %s: %w", dir, ctx.Err())
	}
}

func (b *backend) close() error {
	err := b.client.Close()
	if b.embedded != nil {
		b.embedded.Close()
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// quietLogger passes on as errors only what makes etcd give up, and its other
// errors for debugging: some are part of every first start, and what matters
// of them comes back as an error of a call.
func quietLogger(log *slog.Logger) *zap.Logger {
	if log == nil {
		return zap.NewNop()
	}
	return zap.New(&slogCore{log: log, LevelEnabler: zapcore.ErrorLevel})
}

// slogCore writes zap entries to a slog logger.
type slogCore struct {
	zapcore.LevelEnabler
	log    *slog.Logger
	fields []zapcore.Field
}

func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	with := *c
	with.fields = append(append([]zapcore.Field(nil), c.fields...), fields...)
	return &with
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range append(append([]zapcore.Field(nil), c.fields...), fields...) {
		f.AddTo(enc)
	}
	args := make([]any, 0, 2*len(enc.Fields))
	for k, v := range enc.Fields {
		args = append(args, slog.Any(k, v))
	}
	level := slog.LevelDebug
	if e.Level > zapcore.ErrorLevel {
		level = slog.LevelError
	}
	c.log.Log(context.Background(), level, "etcd: "+e.Message, args...) //nolint:forbidigo // zap has no context
	return nil
}

func (c *slogCore) Sync() error { return nil }
