package control

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"berth.dev/berth/agent/fail"
)

func request(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w.Code, w.Body.String()
}

func TestHandler(t *testing.T) {
	changed := http.StatusNotImplemented
	if fail.Enabled {
		changed = http.StatusNoContent
	}
	for _, tc := range []struct {
		method, path, body string
		want               int
	}{
		{"GET", "/", "", http.StatusOK},
		{"PUT", "/exit.observed", "1*error(x)", changed},
		{"PUT", "/exit.observed", "nonsense", http.StatusBadRequest},
		{"PUT", "/no.such", "off", http.StatusNotFound},
		{"PUT", "/exit.observed", strings.Repeat("x", maxBody+1), http.StatusRequestEntityTooLarge},
		{"DELETE", "/exit.observed", "", changed},
		{"POST", "/exit.observed", "off", http.StatusMethodNotAllowed},
	} {
		if code, body := request(t, tc.method, tc.path, tc.body); code != tc.want {
			t.Errorf("%s %s: %d %s, want %d", tc.method, tc.path, code, body, tc.want)
		}
	}
}

func TestListNamesEveryFailpoint(t *testing.T) {
	_, body := request(t, "GET", "/", "")
	if n := strings.Count(body, "\n"); n != len(fail.Names()) {
		t.Errorf("%d lines, want %d", n, len(fail.Names()))
	}
	if fail.Enabled {
		request(t, "PUT", "/exit.observed", "1*error(x)")
		defer request(t, "DELETE", "/exit.observed", "")
		if _, body := request(t, "GET", "/", ""); !strings.Contains(body, "exit.observed 0 1*error(x)\n") {
			t.Errorf("the setting is not listed:\n%s", body)
		}
	}
}
