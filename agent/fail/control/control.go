// Package control serves the failpoints over HTTP, for the agent's debug socket. It
// is apart from agent/fail so that packages with failpoints do not import net/http.
package control

import (
	"fmt"
	"io"
	"net/http"

	"berth.dev/berth/agent/fail"
)

// maxBody is more than the longest terms that are accepted.
const maxBody = 8 << 10

// Handler answers GET with one line per failpoint, "name passed terms", PUT /NAME with
// the terms as the body, and DELETE /NAME. Mount it below a prefix with
// http.StripPrefix. In a program without failpoints, changes answer 501.
func Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", list)
	mux.HandleFunc("PUT /{name}", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		terms, err := fail.ParseTerms(string(body))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		set(w, r, terms)
	})
	mux.HandleFunc("DELETE /{name}", func(w http.ResponseWriter, r *http.Request) { set(w, r, nil) })
	return mux
}

func list(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	for _, s := range fail.Status() {
		if _, err := fmt.Fprintf(w, "%s %d %s\n", s.Name, s.Passed, s.Terms); err != nil {
			return // the client is gone
		}
	}
}

func set(w http.ResponseWriter, r *http.Request, terms fail.Terms) {
	name, err := fail.Parse(r.PathValue("name"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	if err := fail.Set(name, terms); err != nil {
		http.Error(w, err.Error(), http.StatusNotImplemented)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
