package intake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/acs"
)

// world is a store, an engine and a session in memory. It checks the order of things:
// nothing is sent or taken up before it is committed.
type world struct {
	t        testing.TB
	mu       sync.Mutex
	seen     map[string]bool
	seq      int64
	known    map[string]task.Status // committed
	accepted map[string]int         // by the engine
	tombs    map[string]bool
	changes  []task.Change
	sent     []acs.Message
	creds    map[string]string
	fail     error
	commits  int
}

func newWorld(t testing.TB) *world {
	return &world{
		t: t, seen: map[string]bool{}, known: map[string]task.Status{}, accepted: map[string]int{},
		tombs: map[string]bool{}, creds: map[string]string{},
	}
}

func (w *world) intake() *Intake {
	return New(Config{Engine: w, Store: w, Credentials: w, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
}

func (w *world) Commit(_ context.Context, c task.Commit) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return w.fail
	}
	w.commits++
	if c.Message != nil {
		w.seen[c.Message.ID] = true
	}
	w.seq = max(w.seq, c.Sequence)
	for _, b := range c.Batches {
		w.changes = append(w.changes, b.Changes...)
		if b.Task != nil {
			if _, twice := w.known[b.Task.ARN]; twice {
				w.t.Errorf("task %s was stored twice", b.TaskID)
			}
			w.known[b.Task.ARN] = b.Known.Desired
		} else if b.Known != nil {
			w.known[arn(b.TaskID)] = b.Known.Desired
		}
	}
	return nil
}

func (w *world) Seen(id string) bool       { return w.seen[id] }
func (w *world) Tombstone(arn string) bool { return w.tombs[arn] }
func (w *world) Sequence() int64           { return w.seq }

func (w *world) Known(arn string) (task.Status, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.accepted[arn] == 0 {
		return 0, false
	}
	return w.known[arn], true
}

func (w *world) Accept(tasks ...task.Stored) {
	for _, s := range tasks {
		if _, ok := w.known[s.Task.ARN]; !ok {
			w.t.Errorf("task %s was taken up before it was committed", s.Task.ID())
		}
		w.accepted[s.Task.ARN]++
	}
}

func (w *world) SetDesired(_ context.Context, arn string, s task.Status, _ int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return w.fail
	}
	if w.accepted[arn] == 0 {
		return task.Failf(task.NotFound, "", "not known")
	}
	w.known[arn] = max(w.known[arn], s)
	return nil
}

func (w *world) Running() []string {
	var arns []string
	for arn := range w.accepted {
		if w.known[arn] == task.StatusRunning {
			arns = append(arns, arn)
		}
	}
	return arns
}

func (w *world) Set(arn, roleType string, c acs.IAMRoleCredentials) {
	w.creds[arn+" "+roleType] = c.CredentialsID
}

func (w *world) Send(_ context.Context, m acs.Message) error {
	if a, ok := m.(*acs.AckRequest); ok && !w.seen[a.MessageID] {
		w.t.Errorf("message %s was acknowledged before it was committed", a.MessageID)
	}
	w.sent = append(w.sent, m)
	return nil
}

// names lists what was sent, with message ids, and forgets it.
func (w *world) names() []string {
	var out []string
	for _, m := range w.sent {
		switch m := m.(type) {
		case *acs.AckRequest:
			out = append(out, "ack "+m.MessageID)
		case *acs.IAMRoleCredentialsAckRequest:
			out = append(out, "credentials "+m.MessageID+" "+m.CredentialsID+" "+m.Expiration)
		case *acs.TaskStopVerificationMessage:
			for _, c := range m.StopCandidates {
				out = append(out, "ask "+m.MessageID+" "+(&task.Task{ARN: c.TaskARN}).ID())
			}
		default:
			out = append(out, m.TypeName())
		}
	}
	w.sent = nil
	return out
}

func arn(id string) string { return "arn:aws:ecs:eu-west-1:111122223333:task/lab/" + id }

func payload(id string, seq int64, tasks ...acs.Task) *acs.PayloadMessage {
	return &acs.PayloadMessage{MessageID: id, ClusterARN: cluster, ContainerInstanceARN: instance, SeqNum: seq, Tasks: tasks}
}

func want(id, desired string) acs.Task {
	return *simple(func(w *acs.Task) { w.ARN, w.DesiredStatus = arn(id), desired })
}

func expect(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestPayloadIsTakenOnce(t *testing.T) {
	w := newWorld(t)
	in := w.intake()
	m := example(t)
	for range 3 {
		if err := in.Payload(t.Context(), m, w); err != nil {
			t.Fatal(err)
		}
		expect(t, "sent", w.names(), []string{"ack m-17", "credentials m-17 c-1 2026-01-01T06:00:00Z"})
	}
	expect(t, "accepted", w.accepted, map[string]int{taskOne: 1})
	expect(t, "credentials", w.creds, map[string]string{taskOne + " TaskApplication": "c-1"})
	if w.commits != 1 || w.seq != 17 {
		t.Errorf("%d commits, sequence %d", w.commits, w.seq)
	}
}

func TestSameTaskInTwoMessages(t *testing.T) {
	w := newWorld(t)
	in := w.intake()
	for _, id := range []string{"m-1", "m-2"} {
		if err := in.Payload(t.Context(), payload(id, 1, want("a", "RUNNING")), w); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, "sent", w.names(), []string{"ack m-1", "ack m-2"})
	expect(t, "accepted", w.accepted, map[string]int{arn("a"): 1})
}

func TestPayloadWithoutIds(t *testing.T) {
	for _, m := range []*acs.PayloadMessage{
		{ClusterARN: cluster, ContainerInstanceARN: instance}, {MessageID: "m", ContainerInstanceARN: instance}, {MessageID: "m", ClusterARN: cluster},
	} {
		w := newWorld(t)
		if err := w.intake().Payload(t.Context(), m, w); err == nil || w.commits != 0 || len(w.sent) != 0 {
			t.Errorf("%+v: err %v, %d commits, sent %v", m, err, w.commits, w.sent)
		}
	}
}

func TestNothingIsAnsweredThatIsNotStored(t *testing.T) {
	w := newWorld(t)
	in := w.intake()
	w.fail = errors.New("disk is gone")
	if err := in.Payload(t.Context(), example(t), w); !errors.Is(err, w.fail) {
		t.Errorf("got %v", err)
	}
	if len(w.sent) != 0 || len(w.accepted) != 0 {
		t.Errorf("sent %v, accepted %v", w.sent, w.accepted)
	}
}

func TestCommittedTaskStartsWithoutASession(t *testing.T) {
	w := newWorld(t)
	broken := senderFunc(func(acs.Message) error { return io.ErrClosedPipe })
	if err := w.intake().Payload(t.Context(), payload("m", 1, want("a", "RUNNING")), broken); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
	expect(t, "accepted", w.accepted, map[string]int{arn("a"): 1})
}

type senderFunc func(acs.Message) error

func (f senderFunc) Send(_ context.Context, m acs.Message) error { return f(m) }

func TestBadTaskAmongGoodOnes(t *testing.T) {
	w := newWorld(t)
	bad := want("bad", "RUNNING")
	bad.Containers[0].DockerConfig = &acs.DockerConfig{HostConfig: "{"}
	m := payload("m-1", 5, want("a", "RUNNING"), want("odd", "PAUSED"), bad, want("b", "RUNNING"))
	if err := w.intake().Payload(t.Context(), m, w); err != nil {
		t.Fatal(err)
	}
	expect(t, "sent", w.names(), []string{"ack m-1"})
	expect(t, "accepted", w.accepted, map[string]int{arn("a"): 1, arn("b"): 1})
	if len(w.changes) != 2 {
		t.Fatalf("changes %+v", w.changes)
	}
	expect(t, "odd", w.changes[0].Reason, "UnrecogniedTaskError: Error loading task - Unrecognized TaskStatus")
	c := w.changes[1]
	if c.TaskARN != arn("bad") || c.Status != task.StatusStopped || c.Reason != "" || c.Containers[0].Exit != nil ||
		!strings.HasPrefix(c.Containers[0].Reason, "HostConfigError: ") || c.Containers[0].Status != task.ContainerStopped {
		t.Errorf("bad: %+v", c)
	}
}

func TestTaskWithoutARNIsNotAnswered(t *testing.T) {
	w := newWorld(t)
	in := w.intake()
	nameless := want("x", "RUNNING")
	nameless.ARN = ""
	if err := in.Payload(t.Context(), payload("m-1", 5, want("a", "RUNNING"), nameless), w); err == nil {
		t.Error("no error")
	}
	expect(t, "sent", w.names(), []string(nil))
	expect(t, "accepted", w.accepted, map[string]int{arn("a"): 1})
	if w.seen["m-1"] {
		t.Error("the message counts as done")
	}
}

func TestStop(t *testing.T) {
	w := newWorld(t)
	in := w.intake()
	for _, m := range []*acs.PayloadMessage{
		payload("m-1", 1, want("a", "RUNNING"), want("b", "RUNNING")),
		payload("m-2", 2, want("a", "STOPPED"), want("b", "STOPPED"), want("never", "STOPPED")),
		payload("m-3", 1, want("a", "RUNNING"), want("never", "RUNNING")), // late
	} {
		if err := in.Payload(t.Context(), m, w); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, "sent", w.names(), []string{"ack m-1", "ack m-2", "ack m-3"})
	for _, id := range []string{"a", "b", "never"} {
		if s, ok := w.Known(arn(id)); !ok || s != task.StatusStopped || w.accepted[arn(id)] != 1 {
			t.Errorf("task %s: desired %v, known %v, accepted %d times", id, s, ok, w.accepted[arn(id)])
		}
	}
}

func TestStopThatIsNotDurableIsNotAnswered(t *testing.T) {
	w := newWorld(t)
	in := w.intake()
	if err := in.Payload(t.Context(), payload("m-1", 1, want("a", "RUNNING")), w); err != nil {
		t.Fatal(err)
	}
	w.names()
	w.fail = task.Fail(task.Unavailable, "", errors.New("disk is gone"))
	if err := in.Payload(t.Context(), payload("m-2", 2, want("a", "STOPPED")), w); err == nil || len(w.sent) != 0 || w.seen["m-2"] {
		t.Errorf("err %v, sent %v", err, w.sent)
	}
}

func TestTombstone(t *testing.T) {
	w := newWorld(t)
	w.tombs[arn("old")] = true
	m := payload("m-1", 1, want("old", "RUNNING"))
	m.Tasks[0].RoleCredentials = &acs.IAMRoleCredentials{CredentialsID: "c"}
	if err := w.intake().Payload(t.Context(), m, w); err != nil {
		t.Fatal(err)
	}
	if len(w.accepted) != 0 || len(w.changes) != 1 || w.changes[0].Status != task.StatusStopped || len(w.creds) != 0 {
		t.Errorf("accepted %v, changes %+v, credentials %v", w.accepted, w.changes, w.creds)
	}
}

func TestPrivilegedIsRefusedWhenForbidden(t *testing.T) {
	w := newWorld(t)
	in := New(Config{Engine: w, Store: w, Credentials: w, NoPrivileged: true, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	root := want("a", "RUNNING")
	root.Containers[0].DockerConfig = &acs.DockerConfig{HostConfig: `{"Privileged":true}`}
	if err := in.Payload(t.Context(), payload("m", 1, root), w); err != nil {
		t.Fatal(err)
	}
	if len(w.accepted) != 0 || len(w.changes) != 1 || !strings.Contains(w.changes[0].Containers[0].Reason, "ECS_DISABLE_PRIVILEGED") {
		t.Errorf("accepted %v, changes %+v", w.accepted, w.changes)
	}
}

func TestCredentialsMessage(t *testing.T) {
	w := newWorld(t)
	in := w.intake()
	m := &acs.IAMRoleCredentialsMessage{
		MessageID: "i-1", TaskARN: arn("a"), RoleType: acs.RoleTaskExecution,
		RoleCredentials: &acs.IAMRoleCredentials{CredentialsID: "c-9", Expiration: "then"},
	}
	if err := in.Credentials(t.Context(), m, w); err == nil {
		t.Error("credentials of an unknown task were acknowledged")
	}
	expect(t, "kept all the same", w.creds, map[string]string{arn("a") + " TaskExecution": "c-9"})
	if err := in.Payload(t.Context(), payload("m-1", 1, want("a", "RUNNING")), w); err != nil {
		t.Fatal(err)
	}
	w.names()
	if err := in.Credentials(t.Context(), m, w); err != nil {
		t.Fatal(err)
	}
	expect(t, "sent", w.names(), []string{"credentials i-1 c-9 then"})
	for name, broken := range map[string]func(*acs.IAMRoleCredentialsMessage){
		"message id": func(m *acs.IAMRoleCredentialsMessage) { m.MessageID = "" },
		"task":       func(m *acs.IAMRoleCredentialsMessage) { m.TaskARN = "" },
		"role":       func(m *acs.IAMRoleCredentialsMessage) { m.RoleType = "Root" },
		"nothing":    func(m *acs.IAMRoleCredentialsMessage) { m.RoleCredentials = nil },
		"id":         func(m *acs.IAMRoleCredentialsMessage) { m.RoleCredentials = &acs.IAMRoleCredentials{} },
	} {
		c := *m
		broken(&c)
		if err := in.Credentials(t.Context(), &c, w); err == nil || len(w.sent) != 0 {
			t.Errorf("without %s: err %v, sent %v", name, err, w.sent)
		}
	}
}

func manifest(id string, timeline int64, running ...string) *acs.TaskManifestMessage {
	m := &acs.TaskManifestMessage{MessageID: id, ClusterARN: cluster, ContainerInstanceARN: instance, Timeline: timeline}
	for _, r := range running {
		m.Tasks = append(m.Tasks, acs.TaskIdentifier{TaskARN: arn(r), DesiredStatus: "RUNNING"})
	}
	return m
}

func TestManifest(t *testing.T) {
	w := newWorld(t)
	confirmed := 0
	in := New(Config{Engine: w, Store: w, Credentials: w, Confirmed: func() { confirmed++ }, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err := in.Payload(t.Context(), payload("m-1", 10, want("a", "RUNNING"), want("b", "RUNNING"), want("c", "RUNNING")), w); err != nil {
		t.Fatal(err)
	}
	w.names()
	step := func(what string, m *acs.TaskManifestMessage, sent ...string) {
		t.Helper()
		if err := in.Manifest(t.Context(), m, w); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		expect(t, what, w.names(), sent)
	}
	step("old timeline", manifest("t-1", 10))
	step("all there", manifest("t-2", 11, "a", "b", "c"), "ack t-2")
	step("two missing", manifest("t-3", 12, "b"), "ack t-3", "ask t-3 a", "ask t-3 c")
	step("again", manifest("t-3", 12, "b"), "ack t-3")
	if confirmed != 2 || w.seq != 12 {
		t.Errorf("%d manifests confirmed, sequence %d", confirmed, w.seq)
	}
	answer := func(id string, ids ...string) error {
		m := &acs.TaskStopVerificationAck{MessageID: id}
		for _, id := range ids {
			m.StopTasks = append(m.StopTasks, acs.TaskIdentifier{TaskARN: arn(id)})
		}
		return in.StopVerified(t.Context(), m)
	}
	if answer("t-2", "b") == nil {
		t.Error("an answer to an older manifest was obeyed")
	}
	if err := answer("t-3", "a", "gone"); err != nil {
		t.Error(err)
	}
	if answer("t-3", "b") == nil {
		t.Error("a second answer was obeyed")
	}
	got := map[string]task.Status{}
	maps.Copy(got, w.known)
	expect(t, "desired", got, map[string]task.Status{arn("a"): task.StatusStopped, arn("b"): task.StatusRunning, arn("c"): task.StatusRunning})
	if err := in.Payload(t.Context(), payload("m-2", 3, want("d", "RUNNING")), w); err != nil || w.seq != 12 {
		t.Errorf("payload below the timeline: %v, sequence %d", err, w.seq)
	}
	if err := in.Manifest(t.Context(), &acs.TaskManifestMessage{MessageID: "t-4", ClusterARN: cluster, ContainerInstanceARN: instance, Timeline: 99, Tasks: []acs.TaskIdentifier{{TaskARN: arn("a")}}}, w); err == nil {
		t.Error("an entry without desiredStatus was taken")
	}
}

func TestHeartbeat(t *testing.T) {
	w := newWorld(t)
	if err := w.intake().Heartbeat(t.Context(), &acs.HeartbeatMessage{MessageID: "h-1"}, w); err != nil {
		t.Fatal(err)
	}
	expect(t, "sent", w.sent, []acs.Message{&acs.HeartbeatAckRequest{MessageID: "h-1"}})
}

// TestShuffledDeliveries delivers starts and stops in any order, each one to five
// times: whatever the order, a task that was ever told to stop ends up stopped, and
// every task is taken up once (reliability plan, N1 and N2).
func TestShuffledDeliveries(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(t)
		in := w.intake()
		stopped := map[string]bool{}
		var deliveries []*acs.PayloadMessage
		for i := range 8 {
			id := fmt.Sprint("t", i)
			messages := []*acs.PayloadMessage{payload("start-"+id, int64(2*i+1), want(id, "RUNNING"))}
			if rng.IntN(2) == 0 {
				stopped[arn(id)] = true
				messages = append(messages, payload("stop-"+id, int64(2*i+2), want(id, "STOPPED")))
			}
			for _, m := range messages {
				for range 1 + rng.IntN(5) {
					deliveries = append(deliveries, m)
				}
			}
		}
		rng.Shuffle(len(deliveries), func(i, j int) { deliveries[i], deliveries[j] = deliveries[j], deliveries[i] })
		for _, m := range deliveries {
			if err := in.Payload(t.Context(), m, w); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(w.names()); n != len(deliveries) {
			t.Errorf("seed %d: %d deliveries got %d acknowledgements", seed, len(deliveries), n)
		}
		for a, n := range w.accepted {
			if n != 1 || (w.known[a] == task.StatusStopped) != stopped[a] {
				t.Errorf("seed %d: task %s taken up %d times, desired %s, stop sent: %v", seed, a, n, w.known[a], stopped[a])
			}
		}
		if len(w.accepted) != 8 {
			t.Errorf("seed %d: %d tasks", seed, len(w.accepted))
		}
	}
}

// FuzzIntake feeds any frames: nothing crashes, no task is stored twice, a stopped task
// never runs again, and nothing is answered before it is stored (the world checks).
func FuzzIntake(f *testing.F) {
	frame := func(m acs.Message) []byte {
		b, err := acs.Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	f.Add(frame(example(f)), frame(payload("x", 3, want("9f8e7d", "STOPPED"))), frame(manifest("t", 9, "9f8e7d")))
	f.Add(frame(payload("y", 3, want("a", "STOPPED"), want("a", "RUNNING"))), frame(manifest("t", 9)), frame(&acs.TaskStopVerificationAck{MessageID: "t"}))
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		w := newWorld(t)
		in := w.intake()
		stopped := map[string]bool{}
		for _, frame := range [][]byte{a, b, c, a} {
			m, err := acs.Decode(frame)
			if err != nil {
				continue
			}
			deliver(t.Context(), in, m, w)
			for arn, s := range w.known {
				if stopped[arn] && s != task.StatusStopped {
					t.Fatalf("task %s runs again", arn)
				}
				stopped[arn] = s == task.StatusStopped
			}
		}
	})
}

// deliver dispatches like a session and ignores the errors that a session logs.
func deliver(ctx context.Context, in *Intake, m acs.Message, r acs.Responder) {
	switch m := m.(type) {
	case *acs.PayloadMessage:
		_ = in.Payload(ctx, m, r)
	case *acs.TaskManifestMessage:
		_ = in.Manifest(ctx, m, r)
	case *acs.TaskStopVerificationAck:
		_ = in.StopVerified(ctx, m)
	case *acs.IAMRoleCredentialsMessage:
		_ = in.Credentials(ctx, m, r)
	}
}

func TestManyStopsShareTime(t *testing.T) {
	w := newWorld(t)
	in := w.intake()
	var start, stop []acs.Task
	for i := range 100 {
		start = append(start, want(fmt.Sprint("t", i), "RUNNING"))
		stop = append(stop, want(fmt.Sprint("t", i), "STOPPED"))
	}
	begin := time.Now()
	if err := errors.Join(in.Payload(t.Context(), payload("m-1", 1, start...), w), in.Payload(t.Context(), payload("m-2", 2, stop...), w)); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > time.Minute {
		t.Errorf("took %v", d)
	}
	if r := w.Running(); len(r) != 0 {
		t.Errorf("still wanted: %v", slices.Sorted(slices.Values(r)))
	}
}
