package tmds

import (
	"crypto/subtle"
	"net/http"
	"strings"

	"berth.dev/berth/agent/creds"
	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/tmds"
)

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// credentials answers versions 1 and 2 of the credentials endpoint (agent protocol,
// "Credentials").
func (q *request) credentials(version string) {
	prefix := "Credentials" + strings.ToUpper(version) + "Request: "
	refuse := func(status int, code, text string, role creds.Role) {
		q.audit(status, role)
		q.json(status, tmds.CredentialsError{Code: code, Message: prefix + text, Status: status})
	}
	id := q.r.URL.Query().Get("id")
	if version == "v2" {
		id = q.next()
	}
	if !q.end() {
		q.notFound()
		return
	}
	if id == "" {
		refuse(http.StatusBadRequest, "NoIdInRequest", "No Credential ID in the request", "")
		return
	}
	v, ok := q.view()
	if !ok || v.Known.Status == task.StatusStopped {
		refuse(http.StatusBadRequest, "InvalidIdInRequest", "Credentials not found", "")
		return
	}
	c, role, ok := q.held(&v, id)
	switch {
	case role == "":
		refuse(http.StatusBadRequest, "InvalidIdInRequest", "Credentials not found", "")
	case q.host && !q.entitled():
		q.audit(http.StatusForbidden, role)
		q.json(http.StatusForbidden, tmds.CredentialsError{Code: "AccessDenied", Message: prefix + "the token of the task is missing or wrong", Status: http.StatusForbidden})
	case !ok:
		refuse(http.StatusServiceUnavailable, "CredentialsUninitialized", "Credentials uninitialized for ID", role)
	default:
		q.audit(http.StatusOK, role)
		q.json(http.StatusOK, tmds.Credentials{
			RoleARN: c.RoleARN, AccessKeyID: c.AccessKeyID.Reveal(), SecretAccessKey: c.SecretAccessKey.Reveal(),
			Token: c.SessionToken.Reveal(), Expiration: c.Expiration,
		})
	}
}

// held finds the credentials that an id of the task stands for: the newest of the role,
// since a task asks with the id that it was started with as long as it lives. The role is
// "" for an id that is none of the task's.
func (q *request) held(v *engine.View, id string) (c creds.Credentials, role creds.Role, ok bool) {
	t := v.Task
	switch {
	case t.CredentialsID != "" && equal(id, t.CredentialsID):
		role = creds.Application
	case t.ExecutionCredentialsID != "" && equal(id, t.ExecutionCredentialsID):
		role = creds.Execution
	default:
		c, err := q.s.c.Credentials.Get(id, t.ARN)
		return c, c.Role, err == nil
	}
	c, err := q.s.c.Credentials.Of(t.ARN, role)
	return c, role, err == nil
}

// entitled reports whether a request over the host's network carries its task's token.
func (q *request) entitled() bool {
	return q.s.c.HostRoles && q.s.holds(q.taskID, strings.TrimSpace(q.r.Header.Get("Authorization")))
}
