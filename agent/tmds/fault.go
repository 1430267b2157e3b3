package tmds

import (
	"net/http"

	"berth.dev/berth/agent/engine"
)

// faults is what a task's fault injection has to remember.
type faults struct{}

func newFaults() *faults { return &faults{} }

// fault answers requests to disturb the task's own network.
func (q *request) fault(v *engine.View, found bool, _ string) {
	if q.r.Method != http.MethodPost {
		q.w.Header().Set("Allow", "POST")
		q.text(http.StatusMethodNotAllowed, "Method Not Allowed")
		return
	}
	if !found {
		q.json(http.StatusNotFound, faultError{"unable to get task arn from request"})
		return
	}
	q.json(http.StatusBadRequest, faultError{"enableFaultInjection is not enabled for task: " + v.Task.ARN})
}

type faultError struct {
	Error string `json:"Error"`
}
