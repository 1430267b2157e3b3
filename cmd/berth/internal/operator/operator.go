// Package operator is the operator's side of a cluster: the public ECS API with the
// operator's key, and the few questions that Berth's verbs ask of it.
package operator

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/smithy-go"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/cmd/berth/internal/layout"
)

// Key is an access key of the cluster: the operator's or an instance's.
type Key struct {
	AccessKeyID string
	Secret      task.Secret
}

// keyFile is the form of operator.json and of the answer to a key request.
type keyFile struct {
	AccessKeyID     string `json:"accessKeyId"`
	SecretAccessKey string `json:"secretAccessKey"`
	Region          string `json:"region,omitempty"`
	Endpoint        string `json:"endpoint,omitempty"`
	Account         string `json:"account,omitempty"`
	CA              string `json:"ca,omitempty"` // path of the certificate to trust
}

// Client calls a cluster's API.
type Client struct {
	*ecs.Client
	URL     string
	Region  string
	Account string
	Key     Key
	CA      string // path of the certificate to trust; empty without TLS

	http *http.Client
}

// ErrNoCluster says that no cluster was ever started with this layout.
var ErrNoCluster = errors.New("there is no cluster here; start one with: berth up")

// Open returns a client of the cluster that was started with l. The cluster need not
// run yet.
func Open(l layout.Layout) (*Client, error) {
	var f keyFile
	switch err := layout.ReadJSON(l.OperatorKey(), &f); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, ErrNoCluster
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%s holds the operator's key and only root may read it; run this as root", l.OperatorKey())
	case err != nil:
		return nil, err
	}
	if f.AccessKeyID == "" || f.SecretAccessKey == "" || f.Endpoint == "" {
		return nil, fmt.Errorf("%s lacks a key or an endpoint; stop the cluster, remove the file, and start it again", l.OperatorKey())
	}
	c := &Client{
		URL: f.Endpoint, Region: f.Region, Account: f.Account,
		Key: Key{AccessKeyID: f.AccessKeyID, Secret: task.NewSecret(f.SecretAccessKey)}, CA: f.CA,
	}
	var err error
	if c.http, err = trusting(f.CA); err != nil {
		return nil, err
	}
	c.Client = ecs.New(ecs.Options{
		BaseEndpoint: aws.String(c.URL),
		Region:       c.Region,
		HTTPClient:   c.http,
		Credentials:  credentials.NewStaticCredentialsProvider(f.AccessKeyID, f.SecretAccessKey, ""),
		Retryer:      retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts = 2; o.MaxBackoff = time.Second }),
	})
	return c, nil
}

// trusting is a client that trusts the authority whose certificate is in a file, or those
// of the system.
func trusting(ca string) (*http.Client, error) {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, IdleConnTimeout: 90 * time.Second}
	if ca == "" {
		return &http.Client{Transport: transport}, nil
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("the certificate of the cluster's authority: %w", err)
	}
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
	if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", ca)
	}
	return &http.Client{Transport: transport}, nil
}

// Region is the region that the cluster of a layout was made with, or "" when there is
// none yet.
func Region(l layout.Layout) (string, error) {
	var f keyFile
	err := layout.ReadJSON(l.OperatorKey(), &f)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return f.Region, err
}

// InstanceKey has the cluster make a key for one new container instance.
func (c *Client) InstanceKey(ctx context.Context) (Key, error) {
	answer, err := c.call(ctx, http.MethodPost, "/berth/v1/instance-keys", []byte("{}"), 64<<10)
	if err != nil {
		return Key{}, fmt.Errorf("make an instance key: %w", err)
	}
	var f keyFile
	if err := json.Unmarshal(answer, &f); err != nil || f.AccessKeyID == "" || f.SecretAccessKey == "" {
		return Key{}, errors.New("the cluster's answer to a key request holds no key; are cluster and berth of the same version?")
	}
	return Key{AccessKeyID: f.AccessKeyID, Secret: task.NewSecret(f.SecretAccessKey)}, nil
}

// call makes a signed call of what Berth's clusters have besides the ECS API. The answer
// has at most limit bytes.
func (c *Client) call(ctx context.Context, method, path string, body []byte, limit int64) ([]byte, error) {
	resp, err := c.send(ctx, method, path, body, http.Header{"Content-Type": {"application/json"}})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, limit))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the cluster refused: %s: %s", resp.Status, bytes.TrimSpace(answer))
	}
	return answer, nil
}

// send makes a signed call. The caller closes the answer's body.
func (c *Client) send(ctx context.Context, method, path string, body []byte, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.URL+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	sum := sha256.Sum256(body)
	signer := v4.NewSigner()
	creds := aws.Credentials{AccessKeyID: c.Key.AccessKeyID, SecretAccessKey: c.Key.Secret.Reveal()}
	if err := signer.SignHTTP(ctx, creds, req, hex.EncodeToString(sum[:]), "ecs", c.Region, time.Now()); err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.Explain(err)
	}
	return resp, nil
}

// Explain turns an error of a call into one that says what to do: what the API said,
// or that nobody answered.
func (c *Client) Explain(err error) error {
	var api smithy.APIError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &api):
		return &APIError{Code: api.ErrorCode(), Message: api.ErrorMessage()}
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF):
		return fmt.Errorf("the cluster at %s does not answer; see: berth status", c.URL)
	default:
		return fmt.Errorf("cluster at %s: %w", c.URL, err)
	}
}

// APIError is an error that the cluster answered, without the SDK's wrapping.
type APIError struct{ Code, Message string }

// Error is "Code: message" without a full stop.
func (e *APIError) Error() string {
	return e.Code + ": " + strings.TrimSuffix(e.Message, ".")
}
