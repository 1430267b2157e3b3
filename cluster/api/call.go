package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"time"

	"berth.dev/berth/cluster/awsjson"
)

// A Call is an answered request, for an audit record. It does not change.
type Call struct {
	At        time.Time
	Operation string
	// Service is the first part of the service's name: ecs, ec2 or sts.
	Service string
	// Caller is empty where the signature was refused.
	Caller             Caller
	Address, UserAgent string
	RequestID, EventID string
	// Code and Message are of the error; empty for success.
	Code, Message string
	// Output is the answer, a pointer to a struct of the API's model, or nil.
	Output any

	body  []byte
	input reflect.Type      // of the body; nil for a form
	form  map[string]string // without what signs it
}

// Size is about how many bytes of memory the call holds. A form is counted by its names
// and values.
func (c *Call) Size() int {
	n := 1024 + len(c.body) + len(c.UserAgent)
	for name, value := range c.form {
		n += len(name) + len(value)
	}
	return n
}

// ReadOnly tells whether the operation changes nothing.
func (c *Call) ReadOnly() bool {
	for _, verb := range []string{"Describe", "List", "Get", "Discover"} {
		if strings.HasPrefix(c.Operation, verb) {
			return true
		}
	}
	return false
}

// Input is the decoded request: a pointer to a struct of the API's model, the members of a
// form, or nil if it is neither.
func (c *Call) Input() any {
	switch {
	case c.form != nil:
		return c.form
	case c.input == nil:
		return nil
	}
	in := reflect.New(c.input).Interface()
	if awsjson.Unmarshal(c.body, in) != nil {
		return nil // the caller was told
	}
	return in
}

// Signer is where Authenticate leaves who signed a request, for its Call.
type Signer struct {
	caller  Caller
	service string
}

type signerKey struct{}

// WithSigner prepares a request for its Call.
func WithSigner(r *http.Request) (*http.Request, *Signer) {
	s := &Signer{}
	return r.WithContext(context.WithValue(r.Context(), signerKey{}, s)), s
}

func noteSigner(ctx context.Context, service string, c Caller) {
	if s, ok := ctx.Value(signerKey{}).(*Signer); ok {
		s.service, s.caller = service, c
	}
}

// call makes the Call of a request.
func (s *Signer) call(r *http.Request, at time.Time, operation, id string) *Call {
	c := &Call{
		At: at, Operation: operation, Service: s.service, Caller: s.caller,
		UserAgent: r.UserAgent(), RequestID: id, EventID: uuid(),
	}
	if operation == "" {
		c.Operation = "unknown"
	}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		c.Address = host
	}
	if c.Service == "" {
		c.Service = "ecs"
	}
	return c
}

// Call makes the Call of a request that is none of the API's own. err is what was
// answered, or nil.
func (s *Signer) Call(r *http.Request, at time.Time, operation string, err error, out any) *Call {
	c := s.call(r, at, operation, uuid())
	switch e, told := errors.AsType[*Error](err); {
	case told:
		c.Code, c.Message = e.Code, e.Message
	case err != nil:
		c.Code = "ServerException"
	default:
		c.Output = out
	}
	return c
}

// fail enters the error that was answered.
func (c *Call) fail(code string, err error) {
	var e *Error
	if c.Code = code; code != "" && errors.As(err, &e) {
		c.Message = e.Message // other errors are not told
	}
}

// formOf are the members of a form without those that sign it or may be secrets.
func formOf(values url.Values) map[string]string {
	out := make(map[string]string, len(values))
	for name, v := range values {
		low := strings.ToLower(name)
		if strings.HasPrefix(low, "x-amz-") || name == "Action" || name == "Version" || len(v) == 0 {
			continue
		}
		out[name] = v[0]
		for _, word := range []string{"password", "secret", "token", "userdata", "keymaterial", "authorization"} {
			if strings.Contains(low, word) {
				out[name] = awsjson.Hidden
			}
		}
	}
	return out
}
