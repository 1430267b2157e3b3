package ecs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/smithy-go"

	"berth.dev/berth/agent/config"
	"berth.dev/berth/agent/task"
)

// Client calls the ECS API for one container instance.
type Client struct {
	c    *config.Config
	host HostFacts
	api  *ecs.Client
	log  *slog.Logger
	wait func(ctx context.Context, d time.Duration) error // between tries of Register

	mu       sync.Mutex // held while the endpoint is asked for
	endpoint map[string]endpoint
}

// New makes a client. version is how the agent calls itself in requests. It asks
// nothing of the network.
func New(c *config.Config, h HostFacts, credentials aws.CredentialsProvider, version string, log *slog.Logger) (*Client, error) {
	if c.Cluster.Region == "" {
		return nil, config.Terminal(errors.New("no region; set AWS_DEFAULT_REGION"))
	}
	base, err := baseEndpoint(c.Cluster.BackendHost)
	if err != nil {
		return nil, config.Terminal(err)
	}
	family := c.Host.OSFamily
	if family == "" {
		family = h.OSFamily
	}
	http, err := newDoer(c, UserAgent(version, family))
	if err != nil {
		return nil, config.Terminal(err)
	}
	options := ecs.Options{
		Region: c.Cluster.Region, Credentials: credentials, HTTPClient: http,
		Retryer: retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts = quickAttempts
			o.RateLimiter = ratelimit.None
			o.Backoff = retry.BackoffDelayerFunc(quickDelay)
		}),
	}
	if base != "" {
		options.BaseEndpoint = &base
	}
	return &Client{
		c: c, host: h, api: ecs.New(options), log: log, wait: sleep,
		endpoint: make(map[string]endpoint),
	}, nil
}

// quickAttempts is how often a request is sent at once before its caller is told; the
// callers have their own, longer delays.
const quickAttempts = 4

// quickDelay is the delay before try n+1 (agent protocol, "Submit retry rules": 2^n
// times 30 to 59 ms).
func quickDelay(n int, _ error) (time.Duration, error) {
	return time.Duration(1<<min(n, 6)) * time.Duration(30+rand.IntN(30)) * time.Millisecond, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Cluster is the name that the agent's requests give the cluster: as configured, or
// "default".
func (cl *Client) Cluster() string {
	if cl.c.Cluster.Name == "" {
		return defaultCluster
	}
	return cl.c.Cluster.Name
}

// code is the error code that the API answered with, or "".
func code(err error) string {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorCode()
	}
	return ""
}

// classed gives an error of the API a class. Only what can never succeed is Invalid;
// everything else may be tried again (agent protocol, "Submit retry rules").
func classed(what string, err error) error {
	if err == nil {
		return nil
	}
	class := task.Unavailable
	switch c := code(err); {
	case c == "InvalidParameterException":
		class = task.Invalid
	case c == "ThrottlingException" || c == "LimitExceededException":
		class = task.Exhausted
	case errors.Is(err, context.Canceled):
		class = task.Canceled
	}
	return &task.Error{Class: class, Err: fmt.Errorf("%s: %w", what, brief(err))}
}

// brief keeps of an SDK error what a reader needs: the API's code and words, or the
// fault of the network.
func brief(err error) error {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return &apiError{code: e.ErrorCode(), words: cut(e.ErrorMessage(), 512), err: err}
	}
	return err
}

// apiError is an answer of the API that is no success.
type apiError struct {
	code, words string
	err         error
}

func (e *apiError) Error() string { return e.code + ": " + e.words }
func (e *apiError) Unwrap() error { return e.err }
