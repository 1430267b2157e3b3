package intake

import (
	"io"
	"log/slog"
	"maps"
	"slices"
	"testing"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/acs"
)

// lostWith is an intake after the loss of the state, with tasks found on the host.
func (w *world) lostWith(t *testing.T, ids ...string) (*Intake, map[string]*task.Known) {
	known := map[string]*task.Known{}
	var l Lost
	for _, id := range ids {
		known[id] = &task.Known{Desired: task.StatusRunning}
		l.Found = append(l.Found, task.Stored{Task: &task.Task{ARN: arn(id)}, Known: known[id]})
	}
	in := New(Config{Engine: w, Store: w, Credentials: w, Lost: &l, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	t.Cleanup(in.Close)
	return in, known
}

func (w *world) taken() []string { return slices.Sorted(maps.Keys(w.accepted)) }

func manifestOf(id string, timeline int64, desired map[string]string) *acs.TaskManifestMessage {
	m := &acs.TaskManifestMessage{MessageID: id, ClusterARN: cluster, ContainerInstanceARN: instance, Timeline: timeline}
	for _, name := range slices.Sorted(maps.Keys(desired)) {
		m.Tasks = append(m.Tasks, acs.TaskIdentifier{TaskARN: arn(name), TaskClusterARN: cluster, DesiredStatus: desired[name]})
	}
	return m
}

func TestFoundTasksWaitForTheCluster(t *testing.T) {
	w := newWorld(t)
	in, known := w.lostWith(t, "named", "listed", "stopping", "unlisted")
	if err := in.Payload(t.Context(), payload("m-1", 1, want("named", "RUNNING"), want("new", "RUNNING"), want("newer", "RUNNING")), w); err != nil {
		t.Fatal(err)
	}
	expect(t, "taken up by the payload", w.taken(), []string{arn("named")})
	// A new task that waits may be stopped, and is not taken for another one.
	if err := in.Payload(t.Context(), payload("m-2", 2, want("newer", "STOPPED"), want("new", "RUNNING")), w); err != nil {
		t.Fatal(err)
	}
	w.names()
	if err := in.Manifest(t.Context(), manifestOf("m-3", 3, map[string]string{"named": "RUNNING", "listed": "RUNNING", "stopping": "STOPPED", "new": "RUNNING"}), w); err != nil {
		t.Fatal(err)
	}
	expect(t, "taken up by the manifest", w.taken(),
		[]string{arn("listed"), arn("named"), arn("new"), arn("newer"), arn("stopping"), arn("unlisted")})
	expect(t, "asked about", w.names(), []string{"ack m-3", "ask m-3 unlisted"})
	if k := known["stopping"]; k.Desired != task.StatusStopped || k.StopRequested.IsZero() {
		t.Errorf("to be stopped: %+v", k)
	}
	if k := known["unlisted"]; k.Desired != task.StatusRunning || k.Sent != task.StatusStopped {
		t.Errorf("not listed, to go on in silence: %+v", k)
	}
	if k := known["listed"]; k.Desired != task.StatusRunning || k.Sent != task.StatusNone {
		t.Errorf("listed: %+v", k)
	}
	for id, n := range w.accepted {
		if n != 1 {
			t.Errorf("%s was taken up %d times", id, n)
		}
	}
}

func TestManifestThatCannotBeStoredChangesNothing(t *testing.T) {
	w := newWorld(t)
	in, _ := w.lostWith(t, "a")
	w.fail = io.ErrShortWrite
	if err := in.Manifest(t.Context(), manifestOf("m-1", 1, map[string]string{}), w); err == nil {
		t.Fatal("no error")
	}
	expect(t, "taken up", len(w.taken()), 0)
	w.fail = nil
	if err := in.Manifest(t.Context(), manifestOf("m-2", 2, map[string]string{"a": "RUNNING"}), w); err != nil {
		t.Fatal(err)
	}
	expect(t, "taken up", w.taken(), []string{arn("a")})
}
