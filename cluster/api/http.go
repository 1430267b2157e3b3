package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"

	"berth.dev/berth/cluster/awsjson"
	"berth.dev/berth/cluster/sigv4"
	"berth.dev/berth/cluster/store"
)

const (
	// targetPrefix is what X-Amz-Target begins with for ECS (ECS API model).
	targetPrefix = "AmazonEC2ContainerServiceV20141113."
	contentType  = "application/x-amz-json-1.1"
	// maxBody bounds a request. The largest legal one is a task definition
	// of 64 KiB.
	maxBody = 1 << 20
)

// New makes an API over a store.
func New(s *store.Store, v *sigv4.Verifier, c Config, log *slog.Logger) (*API, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	a := &API{Store: s, Config: c, Log: log, Verifier: v}
	if c.IAM != nil && v != nil {
		v.Session = c.IAM.Secret
	}
	var err error
	if a.operations, err = a.table(); err != nil {
		return nil, err
	}
	return a, nil
}

// ServeHTTP answers the AWS JSON 1.1 operations of ECS, and those of IAM and
// STS, which are forms. All are POST requests to "/"; a form may also be
// the query of a URL that was signed for somebody else to use.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	id := uuid()
	w.Header().Set("X-Amzn-Requestid", id)
	r, by := WithSigner(r)
	presigned := r.Method == http.MethodGet && sigv4.Presigned(r)
	if r.Method != http.MethodPost && !presigned {
		w.Header().Set("Allow", http.MethodPost)
		a.reply(w, r, nil, &Error{Code: "UnknownOperationException", Message: "Requests are POST requests.", Status: http.StatusMethodNotAllowed})
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		a.reply(w, r, nil, unreadable(err))
		return
	}
	if isForm(r) || presigned {
		a.serveForm(w, r, by, body, id)
		return
	}
	name, known := strings.CutPrefix(r.Header.Get("X-Amz-Target"), targetPrefix)
	o, offered := a.operations[name]
	var out any
	if !known || !offered {
		name = "unknown"
		err = failure("UnknownOperationException", "The operation %s is not offered.", clip(r.Header.Get("X-Amz-Target")))
	} else {
		out, err = a.perform(r, o, body)
	}
	code := a.reply(w, r, out, err)
	if a.Observe != nil {
		a.Observe(name, code, time.Since(start))
	}
	a.Log.Debug("call", "operation", name, "code", code, "request", id, "dur", time.Since(start))
	if a.Called != nil {
		c := by.call(r, start, name, id)
		c.Output, c.body, c.input = out, body, o.input
		c.fail(code, err)
		a.Called(c)
	}
}

func unreadable(err error) error {
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return &Error{Code: "RequestEntityTooLargeException", Message: fmt.Sprintf("The request is larger than %d bytes.", maxBody), Status: http.StatusRequestEntityTooLarge}
	}
	return failure("SerializationException", "The request body could not be read.")
}

// perform authenticates, authorizes and runs an operation.
func (a *API) perform(r *http.Request, o operation, body []byte) (out any, err error) {
	c, err := a.Authenticate(r, body, "ecs")
	if err != nil {
		return nil, err
	}
	if c.Kind == Instance && !o.agent {
		return nil, forbidden(c, "ecs", o.name)
	}
	if err := a.permit(c, o.name, body); err != nil {
		return nil, err
	}
	defer func() {
		if p := recover(); p != nil {
			a.Log.Error("operation panicked", "operation", o.name, "err", p, "stack", string(debug.Stack()))
			out, err = nil, &Error{Code: "ServerException", Message: "Internal error.", Status: http.StatusInternalServerError}
		}
	}()
	return o.call(WithCaller(r.Context(), c), o.check, body)
}

// Authenticate verifies the signature of a request, whose body has been read
// into body, for a service ("ecs" or "sts"), and tells who signed it. A
// refusal is an *Error.
func (a *API) Authenticate(r *http.Request, body []byte, service string) (Caller, error) {
	c, err := a.authenticate(r, body, service)
	if from, parsed := netip.ParseAddrPort(r.RemoteAddr); parsed == nil {
		c.Address = from.Addr().Unmap().WithZone("").String()
	}
	noteSigner(r.Context(), service, c)
	return c, err
}

func (a *API) authenticate(r *http.Request, body []byte, service string) (Caller, error) {
	id, err := a.Verifier.Verify(r, body, service)
	if err != nil {
		var refused *sigv4.Error
		if errors.As(err, &refused) {
			return Caller{}, &Error{Code: refused.Code, Message: refused.Message, Status: http.StatusBadRequest}
		}
		return Caller{}, err
	}
	if token := sigv4.Token(r); token != "" && a.IAM != nil {
		return a.roleCaller(id, token)
	}
	var key *store.AccessKey
	a.Store.View(func(r store.Reader) { key, _ = store.Get(r, store.Keys, id) })
	if key == nil { // removed since the verifier looked
		return Caller{}, failure("UnrecognizedClientException", "The security token included in the request is invalid.")
	}
	c := Caller{AccessKeyID: id, InstanceARN: key.InstanceARN}
	iam := "arn:" + Partition(a.Region) + ":iam::" + a.Account + ":"
	if key.Kind == store.KeyOperator {
		c.Kind, c.ARN = Operator, iam+"user/berth-operator"
	} else {
		c.Kind, c.ARN = Instance, iam+"user/berth-instance/"+id
	}
	return c, nil
}

// reply writes an answer and returns the error code, "" for success.
func (a *API) reply(w http.ResponseWriter, r *http.Request, out any, err error) string {
	h := w.Header()
	h.Set("Content-Type", contentType)
	if err == nil {
		a.write(w, http.StatusOK, awsjson.Marshal(out))
		return ""
	}
	e := a.errorOf(r.Context(), err)
	h.Set("X-Amzn-Errortype", e.Code)
	a.write(w, e.Status, e.body())
	return e.Code
}

func (a *API) write(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		a.Log.Debug("answer not written", "err", err)
	}
}

// errorOf is what the caller is told of an error: ours of this package as
// they are, any other as a ServerException without its text, which is
// logged.
func (a *API) errorOf(ctx context.Context, err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	if ctx.Err() == nil {
		a.Log.Error("operation failed", "err", err)
	}
	return &Error{
		Code:    "ServerException",
		Message: "Service Unavailable. Please try again later.",
		Status:  http.StatusInternalServerError,
	}
}

func isForm(r *http.Request) bool {
	t, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	return strings.EqualFold(strings.TrimSpace(t), "application/x-www-form-urlencoded")
}
