// Package api is the public ECS API of a cluster: it decodes, authenticates,
// validates, acts on the store and encodes.
package api

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ecs"

	"berth.dev/berth/cluster/iam"
	"berth.dev/berth/cluster/packages"
	"berth.dev/berth/cluster/sigv4"
	"berth.dev/berth/cluster/store"
)

// Config is what an API needs besides its store.
type Config struct {
	// Region and Account appear in every ARN.
	Region, Account string
	// Endpoint is the base URL the agents are told, as
	// http://127.0.0.1:7700, without a trailing slash.
	Endpoint func() string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Observe is told about every answered call: its operation, the error
	// code or "", and how long it took. It may be nil.
	Observe func(operation, code string, took time.Duration)
	// Called is told about every answered call and must not change what it gets. It may
	// be nil.
	Called func(c *Call)
	// Submitted is told about every answered SubmitTaskStateChange; it must
	// not change what it gets. It may be nil.
	Submitted func(c Caller, in *ecs.SubmitTaskStateChangeInput, err error)
	// Node is this process's name among those on the same store; empty for one that is
	// alone.
	Node string
	// IAM is the role store; nil means that there are no roles.
	IAM *iam.Service
	// Packages are those that agents are updated to; nil means none.
	Packages *packages.Shelf
	// StoppedRetention is how long stopped tasks and deregistered instances
	// stay visible; 0 means one hour, the least that ECS promises.
	StoppedRetention time.Duration
}

// An API answers the operations of ECS on a store. Make one with New.
type API struct {
	Store *store.Store
	Config
	Log *slog.Logger
	// Verifier checks signatures.
	Verifier *sigv4.Verifier

	// Queries answer requests of other services, which are forms, by the version of their
	// API. They are set before the first request.
	Queries map[string]Query

	operations map[string]operation
	placer     placer
}

// A Query answers a request that is a form and whose body has been read. It returns the
// operation, and the code of the error or "".
type Query func(w http.ResponseWriter, r *http.Request, body []byte, values url.Values, id string) (operation, code string)

// CallerKind tells who calls.
type CallerKind int

// The kinds of callers.
const (
	// Operator may call everything.
	Operator CallerKind = iota + 1
	// Instance may call the agent's operations for its own instance.
	Instance
	// Role may call what the policies of its role allow.
	Role
)

// A Caller is who signed a request.
type Caller struct {
	Kind        CallerKind
	AccessKeyID string
	// ARN is the identity that STS and registeredBy show.
	ARN string
	// Role is who has a temporary key of a role; nil for other keys.
	Role *iam.Principal
	// InstanceARN is the container instance of an instance key; empty
	// until the key's first RegisterContainerInstance.
	InstanceARN string
	// Address is the IP address that the request came from.
	Address string
}

// now is the time of the API's clock, in the precision that answers have.
func (a *API) now() time.Time {
	now := time.Now
	if a.Now != nil {
		now = a.Now
	}
	return now().UTC().Truncate(time.Millisecond)
}

// Leads tells whether this process does the work that only one has to do.
func (a *API) Leads() (leads bool) {
	a.Store.View(func(r store.Reader) {
		leader := store.Leader(r)
		leads = leader == "" || leader == a.Node
	})
	return leads
}

type callerKey struct{}

// WithCaller returns a context that carries the caller.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerOf returns the caller that the request was authenticated as; the
// zero Caller if there is none.
func CallerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}
