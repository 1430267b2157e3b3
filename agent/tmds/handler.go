package tmds

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"path"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
)

// request is one request and who asks. It knows no other task than that.
type request struct {
	s    *Server
	w    http.ResponseWriter
	r    *http.Request
	rest []string // of the path

	taskID    string // "" while it is not known who asks
	host      bool   // it came over the host's network
	container string // that the path names
}

// taskHandler answers in the namespace of a task.
func (s *Server) taskHandler(taskID string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.serve(&request{s: s, w: w, r: r, taskID: taskID})
	})
}

// hostHandler answers tasks in the host's network.
func (s *Server) hostHandler() http.Handler {
	// Who is not known shares one limit.
	strangers := rate.NewLimiter(rate.Limit(s.c.Rate), s.c.Burst)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := &request{s: s, w: w, r: r, host: true}
		if id, ok := s.hostSubject(r); ok {
			q.taskID = id
		} else if !strangers.Allow() {
			q.tooMany()
			return
		}
		s.serve(q)
	})
}

// hostSubject is the task in the host's network that the path of a request names with an
// id that only that task has been given.
func (s *Server) hostSubject(r *http.Request) (taskID string, ok bool) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(parts) >= 2 && (parts[0] == "v3" || parts[0] == "v4" || parts[0] == "api"):
		of, known := s.ids[parts[1]]
		return of.taskID, known && s.onHost(of.taskID)
	case len(parts) == 3 && parts[0] == "v2" && parts[1] == "credentials":
		for id, g := range s.tasks {
			if !s.onHost(id) {
				continue
			}
			if v, ok := s.c.Tasks.View(g.arn); ok && v.Task.CredentialsID != "" && equal(v.Task.CredentialsID, parts[2]) {
				return id, true
			}
		}
	}
	return "", false
}

// onHost reports whether a task is in the host's network. The lock is held.
func (s *Server) onHost(taskID string) bool {
	e := s.endpoints[keyOf(taskID, hostName)]
	return e != nil && e.http == nil
}

// hostName is the name of the endpoint of a task whose containers share a network.
const hostName = "task"

// serve checks what all requests have to keep to, and hands the request on.
func (s *Server) serve(q *request) {
	r := q.r
	if !q.acceptable() {
		return
	}
	if clean := path.Clean(r.URL.Path); clean != r.URL.Path && clean+"/" != r.URL.Path {
		to := clean
		if r.URL.RawQuery != "" {
			to += "?" + r.URL.RawQuery
		}
		http.Redirect(q.w, r, to, http.StatusMovedPermanently)
		return
	}
	if g := s.guest(q.taskID); g != nil && !g.limit.Allow() {
		q.tooMany()
		return
	}
	q.rest = strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	version := q.next()
	if version != "api" && r.Method != http.MethodGet && r.Method != http.MethodHead {
		q.w.Header().Set("Allow", "GET, HEAD")
		q.text(http.StatusMethodNotAllowed, "Method Not Allowed")
		return
	}
	switch version {
	case "v1", "v2":
		q.v2(version)
	case "v3", "v4":
		q.v34(version)
	case "api":
		q.api()
	default:
		q.notFound()
	}
}

// acceptable answers requests that no client of the endpoints makes, but somebody may who
// has another program of the task make requests in his name: through a proxy, or by a
// name that leads here.
func (q *request) acceptable() bool {
	r := q.r
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	local := host == wellKnown
	if q.host {
		local = host == "127.0.0.1" || host == "localhost"
	}
	switch {
	case r.URL.Host != "" || r.URL.Path == "" || r.URL.Path[0] != '/' || r.URL.RawPath != "" || strings.Contains(r.RequestURI, "%"):
		q.text(http.StatusBadRequest, "Bad Request: the path must be plain")
	case !local:
		q.text(http.StatusBadRequest, "Bad Request: the host must be the endpoint's address")
	case r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("Forwarded") != "" || r.Header.Get("Via") != "":
		q.text(http.StatusForbidden, "Forbidden: requests through a proxy are not answered")
	default:
		return true
	}
	return false
}

func (q *request) tooMany() {
	if parts := strings.Split(q.r.URL.Path, "/"); len(parts) > 2 && parts[2] == "credentials" {
		q.audit(http.StatusTooManyRequests, "")
	}
	delay := time.NewTimer(overLimit)
	defer delay.Stop()
	select {
	case <-delay.C:
	case <-q.r.Context().Done():
	}
	q.text(http.StatusTooManyRequests, "You have reached maximum request limit.")
}

// next takes the next part of the path; "" at its end.
func (q *request) next() string {
	if len(q.rest) == 0 {
		return ""
	}
	p := q.rest[0]
	q.rest = q.rest[1:]
	return p
}

// end reports whether the path ends here, with or without a slash.
func (q *request) end() bool { return len(q.rest) == 0 || len(q.rest) == 1 && q.rest[0] == "" }

func (q *request) text(status int, text string) {
	q.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	q.w.WriteHeader(status)
	q.write([]byte(text))
}

func (q *request) notFound() { q.text(http.StatusNotFound, "404 page not found\n") }

func (q *request) json(status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		q.s.log.Error("a metadata document cannot be encoded", "task", q.taskID, "err", err)
		status, b = http.StatusInternalServerError, []byte(`"internal error"`)
	}
	q.w.Header().Set("Content-Type", "application/json")
	q.w.WriteHeader(status)
	q.write(b)
}

func (q *request) write(b []byte) {
	if _, err := q.w.Write(b); err != nil {
		q.s.log.Debug("metadata answer not written", "task", q.taskID, "err", err)
	}
}

func (s *Server) guest(taskID string) *guest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tasks[taskID]
}

// view is the task that asks.
func (q *request) view() (engine.View, bool) {
	g := q.s.guest(q.taskID)
	if g == nil {
		return engine.View{}, false
	}
	return q.s.c.Tasks.View(g.arn)
}

// find takes an id from the path and says which container of the asking task it stands
// for.
func (q *request) find() (id string, v engine.View, ok bool) {
	id = q.next()
	q.s.mu.Lock()
	of, known := q.s.ids[id]
	q.s.mu.Unlock()
	if !known || of.taskID != q.taskID {
		return id, v, false
	}
	q.container = of.container
	v, ok = q.view()
	return id, v, ok
}

func (q *request) timeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(q.r.Context(), callTimeout)
}

// v2 answers versions 1 and 2, where the caller itself says which task it is.
func (q *request) v2(version string) {
	switch kind := q.next(); {
	case kind == "credentials":
		q.credentials(version)
	case version == "v2" && (kind == "metadata" || kind == "metadataWithTags"):
		q.v2Metadata(kind == "metadataWithTags")
	case version == "v2" && kind == "stats":
		q.v2Stats()
	default:
		q.notFound()
	}
}

func (q *request) unassociated() {
	host, _, err := net.SplitHostPort(q.r.RemoteAddr)
	if err != nil {
		host = q.r.RemoteAddr
	}
	q.json(http.StatusBadRequest, "Unable to get task arn from request: unable to associate '"+host+"' with task")
}

func (q *request) v2Metadata(tags bool) {
	v, ok := q.view()
	if !ok {
		q.unassociated()
		return
	}
	if q.end() {
		q.json(http.StatusOK, q.describe(&v, 2, tags))
		return
	}
	id := q.next()
	c := byRuntimeID(&v, id)
	if tags || !q.end() {
		q.notFound()
		return
	}
	if c == nil {
		q.json(http.StatusBadRequest, "Unable to generate metadata for container '"+clip(id)+"'")
		return
	}
	q.json(http.StatusOK, container(&v, c, 2))
}

func (q *request) v2Stats() {
	v, ok := q.view()
	if !ok {
		q.unassociated()
		return
	}
	if q.end() {
		q.json(http.StatusOK, q.taskStats(&v, 2))
		return
	}
	id := q.next()
	if !q.end() {
		q.notFound()
		return
	}
	c := byRuntimeID(&v, id)
	if c == nil {
		q.json(http.StatusBadRequest, "Unable to get container stats for: "+clip(id))
		return
	}
	st, err := q.stats(&v, c, 2)
	if err != nil {
		q.json(http.StatusBadRequest, "Unable to get container stats for: "+clip(id))
		return
	}
	q.json(http.StatusOK, st)
}

// v34 answers versions 3 and 4. Their errors differ in form and status.
func (q *request) v34(version string) {
	id, v, ok := q.find()
	n, up, missing := 3, "V3", http.StatusInternalServerError
	if version == "v4" {
		n, up, missing = 4, "V4", http.StatusNotFound
	}
	what := q.next()
	lost := func(handler, what, rest string, status int) {
		q.json(status, up+" "+handler+" handler: unable to get "+what+" from request: unable to get "+rest+" from v3 endpoint ID: "+clip(id))
	}
	statsMissing := missing
	if n == 3 {
		statsMissing = http.StatusBadRequest
	}
	switch {
	case what == "":
		if !ok {
			lost("container metadata", "container ID", "docker ID", missing)
			return
		}
		q.json(http.StatusOK, container(&v, v.Task.Container(q.container), n))
	case (what == "task" || what == "taskWithTags") && q.end():
		if !ok {
			lost("task metadata", "task arn", "task Arn", missing)
			return
		}
		q.json(http.StatusOK, q.describe(&v, n, what == "taskWithTags"))
	case what == "stats" && q.end():
		if !ok {
			lost("container stats", "task arn", "task Arn", statsMissing)
			return
		}
		q.containerStats(&v, n)
	case what == "task" && len(q.rest) == 1 && q.rest[0] == "stats":
		if !ok {
			lost("task stats", "task arn", "task Arn", statsMissing)
			return
		}
		q.json(http.StatusOK, q.taskStats(&v, n))
	case what == "associations" && len(q.rest) > 0:
		q.associations(&v, ok, up, id)
	default:
		q.notFound()
	}
}

func (q *request) containerStats(v *engine.View, version int) {
	c := v.Task.Container(q.container)
	st, err := q.stats(v, c, version)
	if err != nil {
		status := http.StatusInternalServerError
		if version == 3 {
			status = http.StatusBadRequest
		}
		q.json(status, "Unable to get container stats for: "+record(&v.Known, containerID(c.Name)).RuntimeID)
		return
	}
	q.json(http.StatusOK, st)
}

// clip keeps what is repeated of a request short.
func clip(s string) string { return s[:min(len(s), 128)] }

func containerID(name string) task.ResourceID {
	return task.ResourceID{Kind: task.KindContainer, Name: name}
}
