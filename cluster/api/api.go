// Package api is the public ECS API of a cluster: it decodes, authenticates,
// validates, acts on the store and encodes.
package api

import (
	"context"
	"log/slog"
	"time"

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
}

// An API answers the operations of ECS on a store.
type API struct {
	Store *store.Store
	Config
	Log *slog.Logger

	operations map[string]operation
}

// CallerKind tells who calls.
type CallerKind int

// The kinds of callers.
const (
	// Operator may call everything.
	Operator CallerKind = iota + 1
	// Instance may call the agent's operations for its own instance.
	Instance
)

// A Caller is who signed a request.
type Caller struct {
	Kind        CallerKind
	AccessKeyID string
	// ARN is the identity that STS and registeredBy show.
	ARN string
	// InstanceARN is the container instance of an instance key; empty
	// until the key's first RegisterContainerInstance.
	InstanceARN string
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

// An operation is one entry of the table: how to make its input and run it.
type operation struct {
	name string
	// agent marks the operations that instance keys may call.
	agent bool
	call  func(ctx context.Context, body []byte) (any, error)
}

// op makes an operation of a typed method. The input is decoded and
// validated against the model before fn sees it.
func op[In, Out any](name string, fn func(context.Context, *In) (*Out, error)) operation {
	return operation{name: name, call: func(ctx context.Context, body []byte) (any, error) {
		in := new(In)
		return fn(ctx, in)
	}}
}

// agentOp is op for an operation that instance keys may call too.
func agentOp[In, Out any](name string, fn func(context.Context, *In) (*Out, error)) operation {
	o := op(name, fn)
	o.agent = true
	return o
}
