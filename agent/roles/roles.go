// Package roles makes the configurations with which the agent calls AWS services: in the
// name of a task's execution role, or in its own. The standard settings of the AWS SDK
// hold for them, among which are AWS_ENDPOINT_URL and AWS_ENDPOINT_URL_SSM and so on.
package roles

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go"

	"berth.dev/berth/agent/creds"
	"berth.dev/berth/agent/task"
)

// Limits of one call. A service that cannot be reached is known after some 13 s, as
// long as a person waits for a registry (agent protocol, "State changes").
const (
	dialTimeout   = 3 * time.Second
	headerTimeout = 5 * time.Second // round trip (agent protocol, "Secrets")
	callTimeout   = 30 * time.Second
	attempts      = 4
	maxDelay      = 2 * time.Second
	// waitForRole is how long credentials are waited for that the cluster has promised
	// and, after a restart of the agent, sends again (agent protocol, "Task loop").
	waitForRole = time.Minute
	askEach     = 50 * time.Millisecond
)

// Config is what Roles needs.
type Config struct {
	Store    *creds.Store
	Instance aws.CredentialsProvider // the agent's own
	Region   string                  // of the agent
	Proxy    func(*http.Request) (*url.URL, error)
	Wait     time.Duration // for credentials that are on their way; 0 means 1 min
}

// Roles makes configurations. It asks nothing of the network by itself.
type Roles struct {
	c Config

	mu   sync.Mutex
	base *aws.Config // made when it is first needed
}

// New makes a Roles.
func New(c Config) *Roles {
	if c.Wait <= 0 {
		c.Wait = waitForRole
	}
	return &Roles{c: c}
}

// Region is the agent's own region.
func (r *Roles) Region() string { return r.c.Region }

// ErrNoExecutionRole says that a task needs an execution role and has none.
var ErrNoExecutionRole = errors.New("unable to find execution role credentials: the task definition names no executionRoleArn; set one that may read what it refers to")

// AsTask is the configuration for calls in the name of a task's execution role. It waits
// for credentials that the cluster has yet to send again, up to a minute.
func (r *Roles) AsTask(ctx context.Context, t *task.Task, region string) (aws.Config, error) {
	if t.ExecutionCredentialsID == "" {
		return aws.Config{}, task.Fail(task.Invalid, "", ErrNoExecutionRole)
	}
	ctx, cancel := context.WithTimeout(ctx, r.c.Wait)
	defer cancel()
	tick := time.NewTicker(askEach)
	defer tick.Stop()
	for {
		_, err := r.c.Store.Of(t.ARN, creds.Execution)
		if err == nil {
			return r.config(ctx, region, execution{r.c.Store, t.ARN})
		}
		select {
		case <-ctx.Done():
			return aws.Config{}, task.Failf(task.Unavailable, "", "unable to find execution role credentials: %w", err)
		case <-tick.C:
		}
	}
}

// Role names the execution role of a task, so that what is fetched in its name can be
// shared between tasks of the same role.
func (r *Roles) Role(t *task.Task) string {
	c, err := r.c.Store.Of(t.ARN, creds.Execution)
	if err != nil || c.RoleARN == "" {
		return t.ARN
	}
	return c.RoleARN
}

// Mounts returns the credentials in whose name a task mounts file systems: those of its
// task role or, without one, of its execution role.
func (r *Roles) Mounts(taskARN string) (creds.Credentials, error) {
	c, err := r.c.Store.Of(taskARN, creds.Application)
	if task.ClassOf(err) == task.NotFound {
		c, err = r.c.Store.Of(taskARN, creds.Execution)
	}
	if task.ClassOf(err) == task.NotFound {
		return c, task.Failf(task.Unavailable, "", "the task has credentials neither of a taskRoleArn nor of an executionRoleArn; set one that may mount the file system")
	}
	return c, err
}

// AsInstance is the configuration for calls in the agent's own name.
func (r *Roles) AsInstance(ctx context.Context, region string) (aws.Config, error) {
	return r.config(ctx, region, r.c.Instance)
}

// execution gives the newest credentials of a task's execution role.
type execution struct {
	store *creds.Store
	task  string
}

func (e execution) Retrieve(context.Context) (aws.Credentials, error) {
	c, err := e.store.Of(e.task, creds.Execution)
	if err != nil {
		return aws.Credentials{}, fmt.Errorf("execution role credentials: %w", err)
	}
	return aws.Credentials{
		AccessKeyID: c.AccessKeyID.Reveal(), SecretAccessKey: c.SecretAccessKey.Reveal(), SessionToken: c.SessionToken.Reveal(),
		Source: "execution role",
	}, nil
}

func (r *Roles) config(ctx context.Context, region string, as aws.CredentialsProvider) (aws.Config, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.base == nil {
		client := awshttp.NewBuildableClient().WithTimeout(callTimeout).
			WithDialerOptions(func(d *net.Dialer) { d.Timeout = dialTimeout }).
			WithTransportOptions(func(t *http.Transport) {
				t.ResponseHeaderTimeout = headerTimeout
				if r.c.Proxy != nil {
					t.Proxy = r.c.Proxy
				}
			})
		c, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithRegion(r.c.Region), awsconfig.WithHTTPClient(client),
			awsconfig.WithCredentialsProvider(aws.AnonymousCredentials{}),
			awsconfig.WithRetryer(func() aws.Retryer {
				return retry.NewStandard(func(o *retry.StandardOptions) {
					o.MaxAttempts, o.MaxBackoff, o.RateLimiter = attempts, maxDelay, ratelimit.None
				})
			}))
		if err != nil {
			return aws.Config{}, fmt.Errorf("AWS SDK configuration: %w", err)
		}
		r.base = &c
	}
	c := r.base.Copy()
	c.Credentials = as
	if region != "" {
		c.Region = region
	}
	return c, nil
}

// Overridden reports whether an endpoint of a service is set by hand, in which case it
// may be one that cannot be asked by names below its own.
func Overridden(service string) bool {
	return os.Getenv("AWS_ENDPOINT_URL_"+service) != "" || os.Getenv("AWS_ENDPOINT_URL") != ""
}

// Explain shortens an error of the SDK to what a reader needs: the service's code and
// words, or the fault of the network, with what to do about it. action is what the role
// must be allowed to do, such as "ssm:GetParameters".
func Explain(err error, action string) error {
	api, ok := errors.AsType[smithy.APIError](err)
	if !ok {
		if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" {
			return fmt.Errorf("the service cannot be reached: %w; check the network of the instance and the AWS_ENDPOINT_URL settings of the agent", error(dial))
		}
		return err
	}
	hint := ""
	switch code := api.ErrorCode(); {
	case strings.Contains(code, "AccessDenied") && !strings.Contains(api.ErrorMessage(), action):
		hint = "; check that the execution role may do " + action
	case strings.Contains(code, "AccessDenied"):
		hint = "; check the policies of the execution role"
	}
	return &explained{text: api.ErrorCode() + ": " + cut(api.ErrorMessage()) + hint, err: err}
}

type explained struct {
	text string
	err  error
}

func (e *explained) Error() string { return e.text }
func (e *explained) Unwrap() error { return e.err }

// cut bounds the words of a service.
func cut(s string) string {
	const most = 512
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
