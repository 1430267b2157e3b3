package report

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/state"
	"berth.dev/berth/agent/task"
)

// memoryOutbox is an outbox without a disk.
type memoryOutbox struct {
	mu      sync.Mutex
	rows    []state.Row
	next    uint64
	events  map[string][]task.Event
	changed chan struct{}
	broken  error // what reading and deleting fail with
}

func newOutbox() *memoryOutbox {
	return &memoryOutbox{events: map[string][]task.Event{}, changed: make(chan struct{}, 1)}
}

func (o *memoryOutbox) put(id string, c task.Change) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.next++
	c.TaskARN = "arn/" + id
	o.rows = append(o.rows, state.Row{Seq: o.next, TaskID: id, Change: c})
	select {
	case o.changed <- struct{}{}:
	default:
	}
}

func (o *memoryOutbox) Changed() <-chan struct{} { return o.changed }

func (o *memoryOutbox) Outbox(_ context.Context, after uint64) ([]state.Row, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []state.Row
	for _, r := range o.rows {
		if r.Seq > after && len(out) < 3 { // a page
			out = append(out, r)
		}
	}
	return out, o.broken
}

func (o *memoryOutbox) Delivered(_ context.Context, id string, seqs []uint64, ev task.Event) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.broken != nil {
		return o.broken
	}
	o.rows = slices.DeleteFunc(o.rows, func(r state.Row) bool { return slices.Contains(seqs, r.Seq) })
	o.events[id] = append(o.events[id], ev)
	return nil
}

func (o *memoryOutbox) breakWith(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.broken = err
}

func (o *memoryOutbox) left() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.rows)
}

// cluster records what it is told; answer decides, and may wait.
type cluster struct {
	mu     sync.Mutex
	got    []string // "id STATUS"
	at     []time.Time
	answer func(ctx context.Context, id string, c task.Change) error
}

func (c *cluster) SubmitTaskStateChange(ctx context.Context, ch task.Change) error {
	id := ch.TaskARN[len("arn/"):]
	c.mu.Lock()
	c.got = append(c.got, id+" "+ch.Status.String())
	c.at = append(c.at, time.Now())
	answer := c.answer
	c.mu.Unlock()
	if answer == nil {
		return nil
	}
	return answer(ctx, id, ch)
}

func (c *cluster) set(answer func(context.Context, string, task.Change) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = answer
}

func (c *cluster) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	got := c.got
	c.got, c.at = nil, nil
	return got
}

// start runs a reporter in the bubble until the returned function is called.
func start(t *testing.T, o Outbox, c *cluster) (*Reporter, func()) {
	r := New(Config{Outbox: o, Submitter: c, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	return r, func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	}
}

// pass lets time go by, in the bubble.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func status(s task.Status) task.Change { return task.Change{Status: s} }

func unavailable() error { return &task.Error{Class: task.Unavailable, Err: errors.New("down")} }

func expect(t *testing.T, c *cluster, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, c.take()); diff != "" {
		t.Error(diff)
	}
}

func TestRowsAreSentAtOnceAndDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, c := newOutbox(), &cluster{}
		o.put("a", status(task.StatusCreated)) // from before the start
		_, stop := start(t, o, c)
		defer stop()
		synctest.Wait()
		expect(t, c, "a CREATED")
		began := time.Now()
		o.put("a", status(task.StatusRunning))
		synctest.Wait()
		o.put("a", status(task.StatusStopped))
		synctest.Wait()
		expect(t, c, "a RUNNING", "a STOPPED")
		if d := time.Since(began); d != 0 || o.left() != 0 {
			t.Errorf("took %v, %d rows left", d, o.left())
		}
		for _, ev := range o.events["a"] {
			if ev.Kind != task.EventReportAcked {
				t.Errorf("event %+v", ev)
			}
		}
	})
}

func TestRowsThatWaitTogetherAreSentAsOneButRunningIsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, c := newOutbox(), &cluster{answer: func(context.Context, string, task.Change) error { return unavailable() }}
		_, stop := start(t, o, c)
		defer stop()
		o.put("a", status(task.StatusNone))
		synctest.Wait()
		expect(t, c, "a NONE")
		for _, s := range []task.Status{task.StatusManifestPulled, task.StatusCreated, task.StatusRunning, task.StatusStopped} {
			o.put("a", status(s))
		}
		synctest.Wait()
		expect(t, c) // the delay is not cut short
		c.set(nil)
		pass(2 * time.Second)
		expect(t, c, "a RUNNING", "a STOPPED")
		if o.left() != 0 {
			t.Errorf("%d rows left", o.left())
		}
	})
}

func TestRefusedChangeIsDroppedAndTheNextIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox()
		c := &cluster{answer: func(_ context.Context, _ string, ch task.Change) error {
			if ch.Status == task.StatusRunning {
				return task.Failf(task.Invalid, "", "no such task")
			}
			return nil
		}}
		o.put("a", status(task.StatusRunning))
		o.put("a", status(task.StatusStopped))
		_, stop := start(t, o, c)
		defer stop()
		synctest.Wait()
		expect(t, c, "a RUNNING", "a STOPPED")
		events := o.events["a"]
		if o.left() != 0 || len(events) != 2 || events[0].Kind != task.EventReportDropped || events[0].Text != "RUNNING: no such task" || events[1].Kind != task.EventReportAcked {
			t.Errorf("%d rows left, events %+v", o.left(), events)
		}
	})
}

func TestDelaysGrowToTheirLimitAndOneTaskDoesNotHoldUpAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox()
		c := &cluster{answer: func(_ context.Context, id string, _ task.Change) error {
			if id == "bad" {
				return unavailable()
			}
			return nil
		}}
		_, stop := start(t, o, c)
		defer stop()
		o.put("bad", status(task.StatusRunning))
		o.put("good", status(task.StatusRunning))
		pass(10 * time.Minute)
		c.mu.Lock()
		defer c.mu.Unlock()
		var times []time.Time
		for i, g := range c.got {
			if g == "bad RUNNING" {
				times = append(times, c.at[i])
			}
		}
		if !slices.Contains(c.got, "good RUNNING") {
			t.Error("the other task was held up")
		}
		nominal := 1.0
		for i := range times[1:] {
			d := times[i+1].Sub(times[i]).Seconds()
			if d < nominal*0.8-0.001 || d > nominal*1.2+0.001 {
				t.Errorf("delay %d is %.2f s, want %.2f s within a fifth", i, d, nominal)
			}
			nominal = min(30, nominal*1.3)
		}
		if nominal != 30 || len(times) < 20 {
			t.Errorf("%d tries in 10 minutes, the last delay %.0f s", len(times), nominal)
		}
	})
}

func TestTenTasksAtOnceAndOneCallForEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox()
		var mu sync.Mutex
		now, most, perTask := 0, 0, map[string]int{}
		c := &cluster{answer: func(_ context.Context, id string, _ task.Change) error {
			mu.Lock()
			now++
			most = max(most, now)
			perTask[id]++
			if perTask[id] > 1 {
				t.Errorf("two calls at once for %s", id)
			}
			mu.Unlock()
			<-time.After(time.Second)
			mu.Lock()
			now--
			perTask[id]--
			mu.Unlock()
			return nil
		}}
		_, stop := start(t, o, c)
		defer stop()
		for _, s := range []task.Status{task.StatusRunning, task.StatusStopped} {
			for i := range 25 {
				o.put(fmt.Sprint("t", i), status(s))
			}
		}
		pass(time.Minute)
		if most != 10 || o.left() != 0 {
			t.Errorf("%d calls at once, want 10; %d rows left", most, o.left())
		}
		seen := map[string]string{}
		for _, g := range c.take() {
			var id, s string
			if _, err := fmt.Sscan(g, &id, &s); err != nil {
				t.Fatal(err)
			}
			seen[id] += s + " "
		}
		for id, s := range seen {
			if s != "RUNNING STOPPED " {
				t.Errorf("%s: %s", id, s)
			}
		}
	})
}

func TestDeliveredChangeIsNotSentAgainWhileTheDatabaseFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, c := newOutbox(), &cluster{}
		_, stop := start(t, o, c)
		defer stop()
		synctest.Wait()
		c.set(func(context.Context, string, task.Change) error { o.breakWith(unavailable()); return nil })
		o.put("a", status(task.StatusStopped))
		pass(time.Hour)
		expect(t, c, "a STOPPED")
		o.breakWith(nil)
		pass(time.Minute)
		expect(t, c)
		if o.left() != 0 {
			t.Errorf("%d rows left", o.left())
		}
	})
}

func TestOutboxThatCannotBeReadIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, c := newOutbox(), &cluster{}
		o.put("a", status(task.StatusStopped))
		o.breakWith(unavailable())
		_, stop := start(t, o, c)
		defer stop()
		pass(5 * time.Minute)
		expect(t, c)
		o.breakWith(nil)
		pass(40 * time.Second)
		expect(t, c, "a STOPPED")
	})
}

func TestSubmitterThatHangsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox()
		c := &cluster{answer: func(ctx context.Context, _ string, _ task.Change) error { <-ctx.Done(); return ctx.Err() }}
		_, stop := start(t, o, c)
		o.put("a", status(task.StatusStopped))
		pass(submitTimeout + 2*time.Second)
		expect(t, c, "a STOPPED", "a STOPPED")
		stop() // ends the call that hangs now
		if o.left() != 1 {
			t.Error("a change that nobody accepted was deleted")
		}
	})
}

func TestResync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, c := newOutbox(), &cluster{}
		r, stop := start(t, o, c)
		defer stop()
		resync := func(changes ...task.Change) {
			t.Helper()
			if err := r.Resync(t.Context(), changes); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		current := func(id string, s task.Status, containers []task.ContainerChange) task.Change {
			return task.Change{TaskARN: "arn/" + id, Status: s, Containers: containers}
		}
		resync(current("a", task.StatusRunning, nil), current("b", task.StatusCreated, nil))
		got := c.take()
		slices.Sort(got)
		if diff := cmp.Diff([]string{"a RUNNING", "b CREATED"}, got); diff != "" {
			t.Error(diff)
		}
		if len(o.events) != 0 {
			t.Errorf("a change that is not in the outbox left the events %v", o.events)
		}

		// What the engine looked up before a newer change was sent must not follow it.
		var last task.Change
		c.set(func(_ context.Context, _ string, ch task.Change) error { last = ch; return nil })
		o.put("a", task.Change{Status: task.StatusRunning, Containers: web(task.ContainerStopped)})
		o.put("b", status(task.StatusStopped))
		synctest.Wait()
		c.take()
		resync(current("a", task.StatusRunning, web(task.ContainerRunning)), current("b", task.StatusRunning, nil))
		expect(t, c, "a RUNNING")
		if last.Containers[0].Status != task.ContainerStopped {
			t.Errorf("a container went back: %+v", last)
		}

		// A task with changes waiting needs none.
		c.set(func(context.Context, string, task.Change) error { return unavailable() })
		o.put("z", status(task.StatusStopped))
		synctest.Wait()
		resync(current("z", task.StatusRunning, nil))
		expect(t, c, "z STOPPED")
	})
}

// With a real database, from the commit of a row to the call.
func TestIdleReporterSubmitsSoonAfterTheCommit(t *testing.T) {
	db, err := state.Open(t.Context(), state.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	called := make(chan time.Time, 1)
	c := &cluster{answer: func(context.Context, string, task.Change) error { called <- time.Now(); return nil }}
	_, stop := start(t, db, c)
	defer stop()
	var all []time.Duration
	for i := range 50 {
		id := fmt.Sprint("t", i)
		err := db.Commit(t.Context(), task.Commit{Batches: []task.Batch{{TaskID: id, Changes: []task.Change{{TaskARN: "arn/" + id, Status: task.StatusStopped}}}}})
		if err != nil {
			t.Fatal(err)
		}
		committed := time.Now()
		all = append(all, (<-called).Sub(committed))
	}
	for deadline := time.Now().Add(time.Minute); db.Pending() > 0; <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d rows are left", db.Pending())
		}
	}
	slices.Sort(all)
	t.Logf("from the commit to the call: p50 %v, worst %v", all[len(all)/2], all[len(all)-1])
	if p50 := all[len(all)/2]; p50 > 5*time.Millisecond { // far above what is seen, for busy machines
		t.Errorf("p50 is %v", p50)
	}
}
