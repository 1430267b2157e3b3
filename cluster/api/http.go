package api

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
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
	var err error
	if a.operations, err = a.table(); err != nil {
		return nil, err
	}
	return a, nil
}

// ServeHTTP answers the AWS JSON 1.1 operations of ECS, and STS
// GetCallerIdentity, which is a form. Both are POST requests to "/"; the form may also be
// the query of a URL that was signed for somebody else to use.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	id := uuid()
	w.Header().Set("X-Amzn-Requestid", id)
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
		a.serveForm(w, r, body, id)
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
	id, err := a.Verifier.Verify(r, body, service)
	if err != nil {
		var refused *sigv4.Error
		if errors.As(err, &refused) {
			return Caller{}, &Error{Code: refused.Code, Message: refused.Message, Status: http.StatusBadRequest}
		}
		return Caller{}, err
	}
	var key *store.AccessKey
	a.Store.View(func(r store.Reader) { key, _ = store.Get(r, store.Keys, id) })
	if key == nil { // removed since the verifier looked
		return Caller{}, failure("UnrecognizedClientException", "The security token included in the request is invalid.")
	}
	c := Caller{AccessKeyID: id, InstanceARN: key.InstanceARN}
	iam := "arn:" + partition(a.Region) + ":iam::" + a.Account + ":"
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

func escapeXML(s string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(s)); err != nil {
		return ""
	}
	return b.String()
}

func isForm(r *http.Request) bool {
	t, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	return strings.EqualFold(strings.TrimSpace(t), "application/x-www-form-urlencoded")
}

// serveForm answers a request of the query protocol, which tells by its version what
// service it is for.
func (a *API) serveForm(w http.ResponseWriter, r *http.Request, body []byte, id string) {
	start := time.Now()
	text := string(body)
	if r.Method == http.MethodGet {
		text = r.URL.RawQuery
	}
	form, err := url.ParseQuery(text)
	if err != nil {
		a.replySTS(w, "", failure("MalformedInput", "The form could not be read."), id)
		return
	}
	answer, ok := a.Queries[form.Get("Version")]
	if !ok {
		a.serveSTS(w, r, body, form, id)
		return
	}
	operation, code := answer(w, r, body, form, id)
	if a.Observe != nil {
		a.Observe(operation, code, time.Since(start))
	}
	a.Log.Debug("call", "operation", operation, "code", code, "request", id, "dur", time.Since(start))
}

// serveSTS answers the query protocol of STS.
func (a *API) serveSTS(w http.ResponseWriter, r *http.Request, body []byte, form url.Values, id string) {
	c, err := a.Authenticate(r, body, "sts")
	var result string
	switch {
	case err != nil:
		err = stsError(a.errorOf(r.Context(), err))
	case form.Get("Action") != "GetCallerIdentity":
		err = failure("InvalidAction", "Could not find operation %s for version %s", clip(form.Get("Action")), clip(form.Get("Version")))
	default:
		result = fmt.Sprintf("<Arn>%s</Arn><UserId>%s</UserId><Account>%s</Account>", c.ARN, c.AccessKeyID, a.Account)
	}
	code := a.replySTS(w, result, err, id)
	if a.Observe != nil {
		a.Observe("GetCallerIdentity", code, 0)
	}
}

// stsError names an authentication error as the query services do.
func stsError(e *Error) error {
	out := *e
	out.Status = http.StatusForbidden
	switch e.Code {
	case "UnrecognizedClientException":
		out.Code = "InvalidClientTokenId"
	case "InvalidSignatureException":
		out.Code = "SignatureDoesNotMatch"
	case "MissingAuthenticationTokenException":
		out.Code = "MissingAuthenticationToken"
	case "IncompleteSignatureException":
		out.Code, out.Status = "IncompleteSignature", http.StatusBadRequest
	case "ServerException":
		out.Status = e.Status
	}
	return &out
}

// AuthenticateOperator lets a request of the query protocol pass that the operator has
// signed for a service. The error is the service's own in its names, with the status.
func (a *API) AuthenticateOperator(r *http.Request, body []byte, service string) error {
	c, err := a.Authenticate(r, body, service)
	if err != nil {
		return stsError(a.errorOf(r.Context(), err))
	}
	if c.Kind != Operator {
		return &Error{Code: "UnauthorizedOperation", Message: "You are not authorized to perform this operation. Only the operator's key is.", Status: http.StatusForbidden}
	}
	return nil
}

func (a *API) replySTS(w http.ResponseWriter, result string, err error, id string) string {
	const ns = `xmlns="https://sts.amazonaws.com/doc/2011-06-15/"`
	w.Header().Set("Content-Type", "text/xml")
	var e *Error
	if errors.As(err, &e) {
		a.write(w, e.Status, fmt.Appendf(nil, "<ErrorResponse %s><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>%s</RequestId></ErrorResponse>\n",
			ns, e.Code, escapeXML(e.Message), id))
		return e.Code
	}
	a.write(w, http.StatusOK, fmt.Appendf(nil, "<GetCallerIdentityResponse %s><GetCallerIdentityResult>%s</GetCallerIdentityResult><ResponseMetadata><RequestId>%s</RequestId></ResponseMetadata></GetCallerIdentityResponse>\n",
		ns, result, id))
	return ""
}
