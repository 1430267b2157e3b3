package state

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"

	"berth.dev/berth/agent/task"
)

func TestCommittedTasksAreLoadedAgain(t *testing.T) {
	dir := t.TempDir()
	db := openDir(t, dir)
	mustCommit(t, db, task.Commit{Message: &task.Message{ID: "m1", At: time.Now()}, Sequence: 5, Batches: []task.Batch{accept("a"), accept("b")}})
	mid := step("a", 3)
	mustCommit(t, db, commit(mid))
	mustClose(t, db)

	db = openDir(t, dir)
	got, err := db.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	known := *mid.Known
	for id, r := range mid.Records {
		r := *r
		r.Unconfirmed = true
		*known.Resource(id) = r
	}
	want := []task.Stored{{Task: taskOf("a"), Known: &known}, {Task: taskOf("b"), Known: accept("b").Known}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !db.Seen("m1") || db.Seen("m2") || db.Sequence() != 5 {
		t.Errorf("seen m1 %v, m2 %v, sequence %d", db.Seen("m1"), db.Seen("m2"), db.Sequence())
	}
	events, err := db.Events("a")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(append(accept("a").Events, mid.Events...), events); diff != "" {
		t.Error(diff)
	}
}

func TestFirstSpecIsKept(t *testing.T) {
	db := openDir(t, t.TempDir())
	mustCommit(t, db, commit(accept("a")))
	again := accept("a")
	again.Task.Family = "other"
	mustCommit(t, db, commit(again))
	got, err := db.Load(t.Context())
	if err != nil || len(got) != 1 || got[0].Task.Family != "my-task" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestCommitRefusesWhatCannotBeStored(t *testing.T) {
	db := openDir(t, t.TempDir())
	mustCommit(t, db, commit(accept("a")))
	broken := step("a", 1)
	broken.Records[task.ResourceID{Kind: task.KindContainer, Name: "web"}].Handle = task.Handle("{")
	for _, tc := range []struct {
		name  string
		c     task.Commit
		class task.Class
		text  string
	}{
		{"no id", commit(task.Batch{}), task.Invalid, "task id is empty"},
		{"slash", commit(task.Batch{TaskID: "a/b"}), task.Invalid, "slash"},
		{"long id", commit(task.Batch{TaskID: strings.Repeat("x", maxKey+1)}), task.Invalid, "longer than"},
		{"other task", commit(task.Batch{TaskID: "b", Task: taskOf("a")}), task.Invalid, "another task"},
		{"no record", commit(task.Batch{TaskID: "a", Records: map[task.ResourceID]*task.Record{{Kind: "k", Name: "n"}: nil}}), task.Invalid, "no record"},
		{"bad handle", commit(broken), task.Invalid, "encode"},
		{"no message id", task.Commit{Message: &task.Message{}}, task.Invalid, "message id is empty"},
		{"unknown task", commit(task.Batch{TaskID: "z", Known: &task.Known{}}), task.NotFound, "task z is not stored"},
	} {
		err := db.Commit(t.Context(), tc.c)
		if err == nil || task.ClassOf(err) != tc.class || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v (%s), want %s with %q", tc.name, err, task.ClassOf(err), tc.class, tc.text)
		}
	}
}

func TestUnknownTaskMayReportAndLog(t *testing.T) {
	db := openDir(t, t.TempDir())
	mustCommit(t, db, commit(task.Batch{TaskID: "bad", Changes: []task.Change{{TaskARN: "x/bad", Status: task.StatusStopped}}, Events: []task.Event{{}}}))
	rows, err := db.Outbox(t.Context(), 0)
	if err != nil || len(rows) != 1 || rows[0].TaskID != "bad" {
		t.Errorf("outbox %+v, %v", rows, err)
	}
	if all, err := db.Load(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%d tasks, %v", len(all), err)
	}
}

func TestEventsAreARing(t *testing.T) {
	dir := t.TempDir()
	db := openDir(t, dir)
	mustCommit(t, db, commit(accept("a")))
	for i := range 300 {
		mustCommit(t, db, commit(task.Batch{TaskID: "a", Events: []task.Event{{Text: fmt.Sprint(i)}}}))
	}
	check := func(first, last string) {
		t.Helper()
		events, err := db.Events("a")
		if err != nil {
			t.Fatal(err)
		}
		if n := len(events); n != ringSize || events[0].Text != first || events[n-1].Text != last {
			t.Errorf("%d events from %q to %q, want %d from %q to %q", n, events[0].Text, events[n-1].Text, ringSize, first, last)
		}
	}
	check("172", "299")
	many := make([]task.Event, 500)
	for i := range many {
		many[i].Text = fmt.Sprint("m", i)
	}
	mustCommit(t, db, commit(task.Batch{TaskID: "a", Events: many}))
	check("m372", "m499")
}

func TestDeleteLeavesRowsAndATombstone(t *testing.T) {
	dir := t.TempDir()
	db := openDir(t, dir)
	mustCommit(t, db, commit(accept("a"), accept("b")))
	mustCommit(t, db, commit(step("a", 1)))
	last := step("a", 2)
	last.Delete = true
	mustCommit(t, db, commit(last))
	for range 2 {
		all, err := db.Load(t.Context())
		if err != nil || len(all) != 1 || all[0].Task.ID() != "b" {
			t.Errorf("loaded %+v, %v", all, err)
		}
		if db.Pending() != 2 || !db.Tombstone(taskOf("a").ARN) || db.Tombstone(taskOf("b").ARN) {
			t.Errorf("%d rows, tombstones %v %v", db.Pending(), db.Tombstone(taskOf("a").ARN), db.Tombstone(taskOf("b").ARN))
		}
		if events, err := db.Events("a"); err != nil || len(events) != 0 {
			t.Errorf("events of a forgotten task: %v, %v", events, err)
		}
		mustCommit(t, db, commit(task.Batch{TaskID: "a", Delete: true})) // again is harmless
		mustClose(t, db)
		db = openDir(t, dir)
	}
}

func TestOutboxRowsAreNumberedOnce(t *testing.T) {
	dir := t.TempDir()
	db := openDir(t, dir)
	mustCommit(t, db, commit(accept("a")))
	mustCommit(t, db, commit(step("a", 1)))
	select {
	case <-db.Changed():
	default:
		t.Error("no wake after a row was appended")
	}
	mustCommit(t, db, commit(step("a", 2)))
	rows, err := db.Outbox(t.Context(), 0)
	if err != nil || len(rows) != 2 || rows[0].Seq >= rows[1].Seq {
		t.Fatalf("%+v, %v", rows, err)
	}
	if diff := cmp.Diff(step("a", 1).Changes[0], rows[0].Change); diff != "" {
		t.Error(diff)
	}
	if err := db.Delivered(t.Context(), "a", []uint64{rows[0].Seq, rows[1].Seq, 99}, task.Event{Kind: task.EventReportAcked}); err != nil {
		t.Fatal(err)
	}
	events, err := db.Events("a")
	if err != nil || events[len(events)-1].Kind != task.EventReportAcked || db.Pending() != 0 {
		t.Errorf("events %v, %v; %d pending", events, err, db.Pending())
	}
	mustClose(t, db)
	db = openDir(t, dir)
	mustCommit(t, db, commit(step("a", 3)))
	if next, err := db.Outbox(t.Context(), rows[1].Seq); err != nil || len(next) != 1 {
		t.Errorf("after emptying and opening again: %+v, %v", next, err)
	}
	if err := db.Delivered(t.Context(), "gone", nil, task.Event{}); err != nil {
		t.Errorf("event of an unknown task: %v", err)
	}
}

func TestInboxForgetsTheOldAndTheMany(t *testing.T) {
	dir := t.TempDir()
	db := openDir(t, dir)
	now := time.Now()
	mustCommit(t, db, task.Commit{Message: &task.Message{ID: "old", At: now.Add(-25 * time.Hour)}})
	if db.Seen("old") {
		t.Error("a message of yesterday is still remembered")
	}
	var wg sync.WaitGroup
	for i := range inboxMax + 500 {
		wg.Go(func() {
			if err := db.Commit(t.Context(), task.Commit{Message: &task.Message{ID: fmt.Sprint(i), At: now.Add(time.Duration(i))}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	mustCommit(t, db, task.Commit{Message: &task.Message{ID: "0", At: now.Add(time.Hour)}}) // seen again: young
	for range 40 {
		mustCommit(t, db, task.Commit{Sequence: 1})
	}
	if n := db.inbox.len(); n != inboxMax {
		t.Errorf("%d messages remembered, want %d", n, inboxMax)
	}
	if !db.Seen("0") {
		t.Error("a message that came again was forgotten with its first delivery")
	}
	stored := func() (n int) {
		if err := db.view(func(root *bolt.Bucket) error { n = root.Bucket(bucketInbox).Stats().KeyN; return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := stored(); n != inboxMax {
		t.Errorf("%d messages stored, want %d", n, inboxMax)
	}
	mustClose(t, db)
	db = openDir(t, dir)
	if n := db.inbox.len(); n != inboxMax {
		t.Errorf("%d messages after opening again", n)
	}
}

// hold makes the committer wait, so that what is committed meanwhile becomes one group.
func hold(t *testing.T, db *DB) (release func()) {
	t.Helper()
	in, out := make(chan struct{}), make(chan struct{})
	go func() {
		err := db.submit(context.Background(), false, func(*DB, *writer) error { close(in); <-out; return nil })
		if err != nil {
			t.Error(err)
		}
	}()
	<-in
	return func() { close(out) }
}

// queued waits until n requests wait for the committer.
func queued(t *testing.T, db *DB, n int) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		db.mu.Lock()
		have := len(db.queue)
		db.mu.Unlock()
		if have == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d requests are queued, want %d", have, n)
		}
		<-time.After(time.Millisecond)
	}
}

func txid(t *testing.T, db *DB) (id int) {
	t.Helper()
	if err := db.bolt.View(func(tx *bolt.Tx) error { id = tx.ID(); return nil }); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestWaitingCommitsShareATransactionAndOnlyTheBadOneFails(t *testing.T) {
	db := openDir(t, t.TempDir())
	release := hold(t, db)
	before := txid(t, db)
	errs := make([]error, 50)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			b := accept(fmt.Sprint("t", i))
			if i == 20 {
				b.Task = nil // a task that is not stored cannot have a status
			}
			errs[i] = db.Commit(t.Context(), task.Commit{Sequence: int64(100 - i), Batches: []task.Batch{b}})
		})
	}
	queued(t, db, len(errs))
	release()
	wg.Wait()
	for i, err := range errs {
		if (err != nil) != (i == 20) {
			t.Errorf("commit %d: %v", i, err)
		}
	}
	if n := txid(t, db) - before; n != 2 {
		t.Errorf("%d transactions, want 2: the one held and the group", n)
	}
	all, err := db.Load(t.Context())
	if err != nil || len(all) != 49 {
		t.Errorf("%d tasks, %v", len(all), err)
	}
	if db.Sequence() != 100 {
		t.Errorf("sequence %d, want the highest of the group", db.Sequence())
	}
}

func TestCancelledCommitIsNotWritten(t *testing.T) {
	db := openDir(t, t.TempDir())
	release := hold(t, db)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- db.Commit(ctx, commit(accept("a"))) }()
	queued(t, db, 1)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || task.ClassOf(err) != task.Canceled {
		t.Errorf("commit returned %v", err)
	}
	release()
	mustCommit(t, db, commit(accept("b")))
	all, err := db.Load(t.Context())
	if err != nil || len(all) != 1 || all[0].Task.ID() != "b" {
		t.Errorf("loaded %+v, %v", all, err)
	}
	if err := db.Commit(ctx, commit(accept("c"))); task.ClassOf(err) != task.Canceled {
		t.Errorf("commit with an ended context returned %v", err)
	}
}

func TestCloseAnswersWhatIsQueuedAndRefusesTheRest(t *testing.T) {
	dir := t.TempDir()
	db := openDir(t, dir)
	release := hold(t, db)
	done := make(chan error)
	go func() { done <- db.Commit(t.Context(), commit(accept("a"))) }()
	queued(t, db, 1)
	closed := make(chan error)
	go func() { closed <- db.Close() }()
	release()
	if err := errors.Join(<-done, <-closed); err != nil {
		t.Error(err)
	}
	if err := db.Commit(t.Context(), commit(accept("b"))); task.ClassOf(err) != task.Unavailable {
		t.Errorf("commit after the end: %v", err)
	}
	if all, err := openDir(t, dir).Load(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("%d tasks, %v", len(all), err)
	}
}

func TestFailedTransactionFailsAllAndIsTold(t *testing.T) {
	var told []error
	db, err := Open(t.Context(), Config{Dir: t.TempDir(), Trouble: func(err error) { told = append(told, err) }})
	if err != nil {
		t.Fatal(err)
	}
	// A bucket of the layout that is gone makes newWriter fail, not one request.
	if err := db.bolt.Update(func(tx *bolt.Tx) error { return tx.DeleteBucket(bucketRoot) }); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 2)
	for range 2 {
		go func() { errs <- db.Commit(t.Context(), commit(accept("a"))) }()
	}
	for range 2 {
		if err := <-errs; task.ClassOf(err) != task.Unavailable {
			t.Errorf("commit returned %v", err)
		}
	}
	if len(told) != 1 || told[0] == nil || db.Failing() == nil {
		t.Errorf("told %v, failing %v", told, db.Failing())
	}
	if err := db.Close(); err == nil {
		t.Error("the end of a broken database was called clean")
	}
}
