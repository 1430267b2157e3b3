package tmds

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"berth.dev/berth/agent/creds"
	"berth.dev/berth/agent/engine"
	"berth.dev/berth/wire/tmds"
)

// api answers what a task asks of its agent.
func (q *request) api() {
	_, v, ok := q.find()
	switch path := strings.Join(q.rest, "/"); {
	case path == "task-protection/v1/state":
		q.protection(&v, ok)
	case strings.HasPrefix(path, "fault/v1/"):
		q.fault(&v, ok, strings.TrimPrefix(path, "fault/v1/"))
	default:
		q.notFound()
	}
}

// protection reads or changes the protection of the task (agent protocol, "Task
// protection").
func (q *request) protection(v *engine.View, found bool) {
	refuse := func(status int, arn, code, text string) {
		q.json(status, tmds.ProtectionResponse{Error: &tmds.ProtectionError{ARN: arn, Code: code, Message: text}})
	}
	var set *tmds.ProtectionRequest
	switch q.r.Method {
	case http.MethodGet:
	case http.MethodPut:
		set = new(tmds.ProtectionRequest)
		if err := decode(q.w, q.r, set); err != nil {
			refuse(http.StatusBadRequest, "", "InvalidParameterException", "UpdateTaskProtection: failed to decode request")
			return
		}
	default:
		q.w.Header().Set("Allow", "GET, PUT")
		q.text(http.StatusMethodNotAllowed, "Method Not Allowed")
		return
	}
	if !found {
		refuse(http.StatusNotFound, "", "ResourceNotFoundException", "Failed to find a task for the request")
		return
	}
	arn := v.Task.ARN
	if set != nil && set.ProtectionEnabled == nil {
		refuse(http.StatusBadRequest, arn, "InvalidParameterException", "Invalid request: does not contain 'ProtectionEnabled' field")
		return
	}
	c, err := q.s.c.Credentials.Of(arn, creds.Application)
	if err != nil {
		refuse(http.StatusForbidden, arn, "AccessDeniedException", "Invalid Request: no task IAM role credentials available for task")
		return
	}
	ctx, cancel := q.timeout()
	defer cancel()
	out, err := q.s.c.Cluster.Protection(ctx, c, arn, set)
	var call *CallError
	switch {
	case err == nil:
		q.json(http.StatusOK, out)
	case errors.As(err, &call):
		q.json(call.Status, tmds.ProtectionResponse{RequestID: call.RequestID, Error: &tmds.ProtectionError{ARN: arn, Code: call.Code, Message: call.Message}})
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		refuse(http.StatusGatewayTimeout, arn, "RequestCanceled", "Timed out calling ECS Task Protection API")
	default:
		q.s.log.Warn("task protection", "task", q.taskID, "err", err)
		refuse(http.StatusInternalServerError, arn, "ServerException", "the ECS API could not be asked")
	}
}

// decode reads a body that has the members of v and no others.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one document")
	}
	return nil
}
