// Package lab gives tests a cluster in their own process, with clients for it and with
// simulated container instances: they register, hold an ACS session and report states
// like an agent, and run nothing.
package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ecs"

	"berth.dev/berth/cluster"
)

// Region and Account are those of every lab.
const (
	Region  = "us-east-1"
	Account = "123456789012"
)

// Lab is a cluster for one test.
type Lab struct {
	t      testing.TB
	Server *cluster.Server
	URL    string
	Dir    string
	Key    cluster.Key // the operator's
	ECS    *ecs.Client // as the operator
	HTTP   *http.Client
	change func(*cluster.Config)
}

// Start opens a cluster on a free port of loopback and closes it with the test.
func Start(t testing.TB) *Lab {
	t.Helper()
	return StartWith(t, func(*cluster.Config) {})
}

// StartWith is Start with changes to the cluster's configuration.
func StartWith(t testing.TB, change func(*cluster.Config)) *Lab {
	t.Helper()
	l := &Lab{t: t, change: change, Dir: t.TempDir(), HTTP: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 32}}}
	l.open("127.0.0.1:0")
	t.Cleanup(l.close)
	return l
}

func (l *Lab) open(listen string) {
	l.t.Helper()
	c := cluster.Config{Dir: l.Dir, Listen: listen, Region: Region, Account: Account, Log: slog.New(slog.DiscardHandler)}
	l.change(&c)
	s, err := cluster.Open(context.Background(), c)
	if err != nil {
		l.t.Fatalf("open cluster: %v", err)
	}
	l.Server, l.URL, l.Key = s, s.URL(), s.OperatorKey()
	l.ECS = l.Client(l.Key)
}

func (l *Lab) close() {
	l.HTTP.CloseIdleConnections()
	if err := l.Server.Close(); err != nil {
		l.t.Errorf("close cluster: %v", err)
	}
}

// Reopen closes the cluster and opens it again on the same directory.
func (l *Lab) Reopen() {
	l.t.Helper()
	l.close()
	l.open("127.0.0.1:0")
}

// Client is a client of the ECS API with a key.
func (l *Lab) Client(k cluster.Key) *ecs.Client {
	return ecs.New(ecs.Options{
		Region: Region, BaseEndpoint: aws.String(l.URL), HTTPClient: l.HTTP, RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(k.AccessKeyID, k.SecretAccessKey, ""),
	})
}

// Answer is what came back for a raw request.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Code is the error code of an ECS API answer, "" for success.
func (a Answer) Code() string {
	if a.Status == http.StatusOK {
		return ""
	}
	var e struct {
		Type string `json:"__type"`
	}
	if err := json.Unmarshal(a.Body, &e); err != nil {
		return fmt.Sprintf("no error object: %.80q", a.Body)
	}
	return e.Type
}

// Call makes a signed call of the ECS API with a body as it is given.
func (l *Lab) Call(operation string, body []byte) (Answer, error) {
	req, err := l.Request(http.MethodPost, "/", body)
	if err != nil {
		return Answer{}, err
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	req.Header.Set("X-Amz-Target", "AmazonEC2ContainerServiceV20141113."+operation)
	if err := Sign(req, body, l.Key, time.Now()); err != nil {
		return Answer{}, err
	}
	return l.Do(req)
}

// Request makes an unsigned request.
func (l *Lab) Request(method, path string, body []byte) (*http.Request, error) {
	return http.NewRequestWithContext(context.Background(), method, l.URL+path, bytes.NewReader(body))
}

// Sign signs a request for the ECS API.
func Sign(req *http.Request, body []byte, k cluster.Key, at time.Time) error {
	sum := sha256.Sum256(body)
	c := aws.Credentials{AccessKeyID: k.AccessKeyID, SecretAccessKey: k.SecretAccessKey}
	return v4.NewSigner().SignHTTP(req.Context(), c, req, hex.EncodeToString(sum[:]), "ecs", Region, at)
}

// Do makes a request and reads its answer, up to 16 MiB of it.
func (l *Lab) Do(req *http.Request) (Answer, error) {
	resp, err := l.HTTP.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	return Answer{resp.StatusCode, resp.Header, body}, err
}

// InstanceKey asks the cluster for a key of a new container instance.
func (l *Lab) InstanceKey() cluster.Key {
	l.t.Helper()
	req, err := l.Request(http.MethodPost, "/berth/v1/instance-keys", nil)
	if err == nil {
		err = Sign(req, nil, l.Key, time.Now())
	}
	if err != nil {
		l.t.Fatal(err)
	}
	a, err := l.Do(req)
	var k cluster.Key
	if err == nil {
		err = json.Unmarshal(a.Body, &k)
	}
	if err != nil || a.Status != http.StatusOK || k.AccessKeyID == "" {
		l.t.Fatalf("instance key: status %d, %v", a.Status, err)
	}
	return k
}
