package api

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"berth.dev/berth/cluster/iam"
	"berth.dev/berth/cluster/sigv4"
)

func escapeXML(s string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(s)); err != nil {
		return ""
	}
	return b.String()
}

// Namespaces of the answers of the query services.
const (
	namespaceSTS = "https://sts.amazonaws.com/doc/2011-06-15/"
	namespaceIAM = "https://iam.amazonaws.com/doc/2010-05-08/"
)

// serveForm answers a request of the query protocol, of a service of Queries by its
// version, or else of IAM or STS by what it was signed for.
func (a *API) serveForm(w http.ResponseWriter, r *http.Request, by *Signer, body []byte, id string) {
	start := time.Now()
	service, space := "sts", namespaceSTS
	if _, signed := sigv4.Scope(r); a.IAM != nil && signed == "iam" {
		service, space = "iam", namespaceIAM
	}
	var action, result string
	text := string(body)
	if r.Method == http.MethodGet {
		text = r.URL.RawQuery
	}
	form, err := url.ParseQuery(text)
	if answer, ok := a.Queries[form.Get("Version")]; ok && err == nil {
		operation, code := answer(w, r, body, form, id)
		if a.Observe != nil {
			a.Observe(operation, code, time.Since(start))
		}
		a.Log.Debug("call", "operation", operation, "code", code, "request", id, "dur", time.Since(start))
		a.calledForm(by.call(r, start, operation, id), form, code, nil)
		return
	}
	if err != nil {
		err = failure("MalformedInput", "The form could not be read.")
	} else {
		action = form.Get("Action")
		var c Caller
		if c, err = a.Authenticate(r, body, service); err != nil {
			err = queryError(a.errorOf(r.Context(), err))
		} else {
			result, err = a.query(WithCaller(r.Context(), c), c, service, action, form)
		}
	}
	code := a.replyQuery(w, r, space, action, result, err, id)
	a.calledForm(by.call(r, start, clip(action), id), form, code, err)
	if a.Observe != nil {
		if code != "" { // what is no operation must not become a name
			action = service
		}
		a.Observe(action, code, time.Since(start))
	}
}

// calledForm tells of the call of a form. What was answered is no part of it.
func (a *API) calledForm(c *Call, form url.Values, code string, err error) {
	if a.Called == nil {
		return
	}
	c.form = formOf(form)
	c.fail(code, err)
	a.Called(c)
}

// query performs an operation of a query service and returns the inside of its result.
func (a *API) query(ctx context.Context, c Caller, service, action string, form url.Values) (string, error) {
	switch {
	case service == "sts" && action == "GetCallerIdentity":
		user := c.AccessKeyID
		if c.Role != nil {
			user = c.Role.UserID
		}
		return fmt.Sprintf("<Arn>%s</Arn><UserId>%s</UserId><Account>%s</Account>", escapeXML(c.ARN), escapeXML(user), a.Account), nil
	case service == "sts" && action == "AssumeRole" && a.IAM != nil && c.Kind != Instance:
		return a.IAM.AssumeRole(ctx, c.Role, form)
	case service == "sts":
		return "", failure("InvalidAction", "Could not find operation %s for version %s", clip(action), clip(form.Get("Version")))
	case c.Kind == Operator:
		return a.IAM.Call(ctx, action, form)
	}
	resource := "*"
	if name := form.Get("RoleName"); name != "" {
		resource = "arn:" + Partition(a.Region) + ":iam::" + a.Account + ":role/" + clip(name)
	} else if arn := form.Get("PolicyArn"); arn != "" {
		resource = clip(arn)
	}
	if c.Kind == Role && a.IAM.Decide(c.Role.Role, "iam:"+action, resource, nil) == iam.Allowed {
		return a.IAM.Call(ctx, action, form)
	}
	return "", &Error{Code: "AccessDenied", Status: http.StatusForbidden, Message: fmt.Sprintf(
		"User: %s is not authorized to perform: iam:%s on resource: %s because no identity-based policy allows the iam:%s action", c.ARN, clip(action), resource, clip(action))}
}

// queryError names an authentication error as the query services do.
func queryError(e *Error) error {
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
	case "ExpiredTokenException":
		out.Code = "ExpiredToken"
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
		return queryError(a.errorOf(r.Context(), err))
	}
	if c.Kind != Operator {
		return &Error{Code: "UnauthorizedOperation", Message: "You are not authorized to perform this operation. Only the operator's key is.", Status: http.StatusForbidden}
	}
	return nil
}

func (a *API) replyQuery(w http.ResponseWriter, r *http.Request, space, action, result string, err error, id string) string {
	w.Header().Set("Content-Type", "text/xml")
	if err != nil {
		var code, message string
		var status int
		var refused *iam.Error
		if errors.As(err, &refused) {
			code, message, status = refused.Code, refused.Message, refused.Status
		} else {
			e := a.errorOf(r.Context(), err)
			code, message, status = e.Code, e.Message, e.Status
		}
		kind := "Sender"
		if status >= http.StatusInternalServerError {
			kind = "Receiver"
		}
		a.write(w, status, fmt.Appendf(nil, "<ErrorResponse xmlns=%q><Error><Type>%s</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>%s</RequestId></ErrorResponse>\n",
			space, kind, escapeXML(code), escapeXML(message), id))
		return code
	}
	a.write(w, http.StatusOK, fmt.Appendf(nil, "<%[1]sResponse xmlns=%[2]q><%[1]sResult>%[3]s</%[1]sResult><ResponseMetadata><RequestId>%[4]s</RequestId></ResponseMetadata></%[1]sResponse>\n",
		action, space, result, id))
	return ""
}
