package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	failpoint "berth.dev/berth/agent/fail"
	"berth.dev/berth/agent/task"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Auth gives the credentials for a registry host; "" means none. An identity token has
// no user name.
type Auth func(host string) (user string, secret task.Secret, err error)

// Remote is an image as a registry describes it.
type Remote struct {
	Name      string // normalized
	Digest    string
	MediaType string
	Size      int64

	resolver remotes.Resolver
}

// Limits of talking to registries.
const (
	registryDial    = 10 * time.Second
	registryHeaders = 60 * time.Second
	maxRetryAfter   = 60 * time.Second
	parallelLayers  = 3
)

// Resolve asks the registry what ref is at the moment. connect bounds how long the
// connection may take; 0 means 10 s. Errors have the classes NotFound, Permission,
// Unavailable (the registry could not be reached), Exhausted (it asks to come back
// later) and Unclassified.
func (c *Client) Resolve(ctx context.Context, ref string, auth Auth, connect time.Duration) (Remote, error) {
	name, err := NormalizeRef(ref)
	if err != nil {
		return Remote{}, fail(task.Invalid, "", err)
	}
	if connect <= 0 {
		connect = registryDial
	}
	resolver := c.resolver(auth, connect)
	_, d, err := resolver.Resolve(ctx, name)
	if err != nil {
		return Remote{}, registryError(name, err)
	}
	return Remote{Name: name, Digest: d.Digest.String(), MediaType: d.MediaType, Size: d.Size, resolver: resolver}, nil
}

// Progress is how far a pull is.
type Progress struct {
	Bytes int64 // read so far
	Open  int64 // downloads that are under way; with none, layers are being unpacked
}

// Pull downloads and unpacks what Resolve found, layers in parallel, and stores the
// image under its name. progress is called often and from several goroutines.
func (c *Client) Pull(ctx context.Context, r Remote, progress func(Progress)) (Image, error) {
	d := ocispec.Descriptor{MediaType: r.MediaType, Digest: digest.Digest(r.Digest), Size: r.Size}
	nctx, release, err := c.leased(c.ns(ctx))
	if err != nil {
		return Image{}, classify(err, "")
	}
	defer release()
	options := []containerd.RemoteOpt{
		containerd.WithResolver(&pinned{Resolver: r.resolver, d: d, progress: progress}),
		containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(c.cfg.Snapshotter),
		containerd.WithMaxConcurrentDownloads(parallelLayers),
		containerd.WithPullLabel(LabelPulled, time.Now().UTC().Format(time.RFC3339)),
	}
	if c.cfg.Snapshotter != DefaultSnapshotter {
		// A snapshotter that fetches layers lazily learns from these labels where they are.
		options = append(options, containerd.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper(r.Name)))
	}
	_, err = c.cd.Pull(nctx, r.Name, options...)
	if err != nil {
		return Image{}, registryError(r.Name, err)
	}
	i, err := c.ready(nctx, r.Name, d)
	i.Pulled = true
	return i, classify(err, "")
}

func (c *Client) resolver(auth Auth, connect time.Duration) remotes.Resolver {
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&dialer{limit: connect}).dial,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: registryHeaders,
		MaxIdleConnsPerHost:   parallelLayers,
		IdleConnTimeout:       30 * time.Second,
	}
	client := &http.Client{Transport: &patient{transport}}
	creds := func(host string) (string, string, error) {
		if auth == nil {
			return "", "", nil
		}
		user, secret, err := auth(host)
		return user, secret.Reveal(), err
	}
	plain := docker.ConfigureDefaultRegistries(
		docker.WithClient(client),
		docker.WithAuthorizer(docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(creds))),
		docker.WithPlainHTTP(docker.MatchLocalhost))
	hosts := plain
	if c.cfg.HostsDir != "" {
		dir := dockerconfig.HostDirFromRoot(c.cfg.HostsDir)
		configured := dockerconfig.ConfigureHosts(context.Background(), dockerconfig.HostOptions{ //nolint:forbidigo // only carries its logger
			HostDir: dir, Credentials: creds,
			UpdateClient: func(h *http.Client) error {
				if t, ok := h.Transport.(*http.Transport); ok {
					t.DialContext = (&dialer{limit: connect}).dial
					h.Transport = &patient{t}
				}
				return nil
			},
		})
		hosts = func(host string) ([]docker.RegistryHost, error) {
			if _, err := dir(host); err != nil {
				if errdefs.IsNotFound(err) {
					return plain(host)
				}
				return nil, err
			}
			return configured(host)
		}
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: hosts})
}

// dialer bounds name resolution and connection together.
type dialer struct {
	limit time.Duration
	net.Dialer
}

// dialError marks failures before a connection, so that they are told apart from a
// registry that was reached.
type dialError struct{ error }

func (e dialError) Unwrap() error { return e.error }

// Timeout is false: the resolver would try five times more at once, and when to try
// again is the caller's decision.
func (e dialError) Timeout() bool { return false }

// Temporary completes net.Error.
func (e dialError) Temporary() bool { return false }

func (d *dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	dctx, cancel := context.WithTimeout(ctx, d.limit)
	defer cancel()
	conn, err := d.DialContext(dctx, network, addr)
	if err != nil {
		return nil, dialError{err}
	}
	return conn, nil
}

// patient waits as long as a registry asks for before its answer is passed on; the
// resolver then tries again.
type patient struct{ next http.RoundTripper }

func (p *patient) RoundTrip(q *http.Request) (*http.Response, error) {
	r, err := p.next.RoundTrip(q)
	if err != nil || r.StatusCode != http.StatusTooManyRequests && r.StatusCode != http.StatusServiceUnavailable {
		return r, err
	}
	wait := retryAfter(r.Header.Get("Retry-After"), time.Now())
	if wait <= 0 {
		return r, nil
	}
	select {
	case <-q.Context().Done():
		return nil, errors.Join(q.Context().Err(), r.Body.Close())
	case <-time.After(wait):
		return r, nil
	}
}

// retryAfter reads how long a registry asks to be left alone, up to a minute: as seconds
// or as the time until when (RFC 9110, section 10.2.3). 0 means that it does not.
func retryAfter(v string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(v); err == nil {
		seconds = min(max(0, seconds), int(maxRetryAfter/time.Second))
		return time.Duration(seconds) * time.Second
	}
	until, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	return min(max(0, until.Sub(now)), maxRetryAfter)
}

// pinned resolves to a digest that is known already and counts what is fetched.
type pinned struct {
	remotes.Resolver
	d        ocispec.Descriptor
	progress func(Progress)
	read     atomic.Int64
	open     atomic.Int64
}

func (p *pinned) tell() {
	if p.progress != nil {
		p.progress(Progress{Bytes: p.read.Load(), Open: p.open.Load()})
	}
}

func (p *pinned) Resolve(_ context.Context, ref string) (string, ocispec.Descriptor, error) {
	return ref, p.d, nil
}

func (p *pinned) Fetcher(ctx context.Context, ref string) (remotes.Fetcher, error) {
	f, err := p.Resolver.Fetcher(ctx, ref)
	if err != nil {
		return nil, err
	}
	return remotes.FetcherFunc(func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		rc, err := f.Fetch(ctx, d)
		if err != nil {
			return nil, err
		}
		p.open.Add(1)
		p.tell()
		return &counted{ReadCloser: rc, p: p}, nil
	}), nil
}

type counted struct {
	io.ReadCloser
	p      *pinned
	closed atomic.Bool
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	if n > 0 {
		c.p.read.Add(int64(n))
		c.p.tell()
		if err := failpoint.Point(failpoint.ImageMidPull); err != nil {
			return n, err
		}
	}
	return n, err
}

func (c *counted) Close() error {
	if !c.closed.Swap(true) {
		c.p.open.Add(-1)
		c.p.tell()
	}
	return c.ReadCloser.Close()
}

// registryError maps what a registry or the way to it answered.
func registryError(name string, err error) error {
	var status remoteserrors.ErrUnexpectedStatus
	var dial dialError
	var known *task.Error
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, context.Canceled):
		return fail(task.Canceled, "", err)
	case errors.As(err, &dial):
		if errors.Is(err, context.DeadlineExceeded) || isTimeout(dial.error) {
			err = fmt.Errorf("request canceled while waiting for connection: %w", err)
		}
		return fail(task.Unavailable, "", err)
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return denied(name, err)
	case errors.As(err, &status):
		switch {
		case status.StatusCode == http.StatusUnauthorized, status.StatusCode == http.StatusForbidden:
			return denied(name, err)
		case status.StatusCode == http.StatusNotFound:
			return fail(task.NotFound, "", fmt.Errorf("manifest for %s not found: manifest unknown: %w", name, err))
		case status.StatusCode == http.StatusTooManyRequests:
			return fail(task.Exhausted, "", err)
		case status.StatusCode >= 500:
			return fail(task.Unavailable, "", err)
		}
		return fail(task.Unclassified, "", err)
	case strings.Contains(err.Error(), "no match for platform"):
		return fail(task.Invalid, "", fmt.Errorf("image %s is for other platforms than this machine's, %s: build it for this one, or place the task on an instance of its own: %w", name, platforms.DefaultString(), err))
	case errdefs.IsNotFound(err):
		return fail(task.NotFound, "", fmt.Errorf("manifest for %s not found: manifest unknown: %w", name, err))
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fail(task.Unavailable, "", err)
	default:
		return classify(err, "")
	}
}

func denied(name string, err error) error {
	return fail(task.Permission, "", fmt.Errorf(
		"pull access denied for %s, repository does not exist or may require authorization: denied: requested access to the resource is denied: %w", name, err))
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
