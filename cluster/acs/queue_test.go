package acs

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/cluster/store"
)

// TestQueueGivesUp walks a payload of three tasks that is never acknowledged through its
// repetitions, to payloads of one, to the end.
func TestQueueGivesUp(t *testing.T) {
	q := newQueue(time.Second)
	now := time.Unix(0, 0)
	orders := []order{{"a", running}, {"b", running}, {"c", running}}
	for _, o := range orders {
		q.look(o.id)
		q.look(o.id)
	}
	if diff := cmp.Diff([]string{"a", "b", "c"}, q.take()); diff != "" {
		t.Fatal(diff)
	}
	q.sent(&flight{messageID: "m", orders: orders}, now)
	settled := map[string]bool{"b": true}
	open := func(o order) bool { return !settled[o.id] }

	for attempt := 1; attempt < sameAttempts; attempt++ {
		if repeat, _ := q.overdue(q.next().Add(-1), open); len(repeat) != 0 {
			t.Fatalf("repeated before its time")
		}
		now = q.next()
		repeat, gaveUp := q.overdue(now, open)
		if len(repeat) != 1 || len(gaveUp) != 0 {
			t.Fatalf("attempt %d: %d to repeat, %d given up", attempt, len(repeat), len(gaveUp))
		}
		q.sent(repeat[0], now)
		if wait := q.next().Sub(now); wait != time.Second<<attempt {
			t.Errorf("attempt %d: next after %v", attempt+1, wait)
		}
	}
	now = q.next()
	if repeat, gaveUp := q.overdue(now, open); len(repeat)+len(gaveUp) != 0 {
		t.Fatalf("after the last common attempt: %v, %v", repeat, gaveUp)
	}
	if diff := cmp.Diff([]string{"a", "c"}, q.take()); diff != "" {
		t.Fatalf("to be sent alone:\n%s", diff)
	}
	if !q.sends(orders[0]) {
		t.Fatal("a task that is to be sent alone is not sent")
	}
	q.sent(&flight{messageID: "alone", orders: orders[:1]}, now)
	if q.sends(orders[0]) {
		t.Error("a task is sent while it is on its way")
	}
	attempts := 1
	for {
		now = q.next()
		repeat, gaveUp := q.overdue(now, open)
		if len(gaveUp) == 1 {
			break
		}
		attempts++
		q.sent(repeat[0], now)
	}
	if attempts != singleAttempts {
		t.Errorf("sent alone %d times, want %d", attempts, singleAttempts)
	}
	if q.sends(orders[0]) {
		t.Error("a task that was given up is sent again")
	}
	if !q.sends(order{"a", stopped}) {
		t.Error("the stop of a task that was given up is not sent")
	}
	if !q.next().IsZero() || !q.idle() {
		t.Error("the queue is not empty")
	}
}

func TestQueueAck(t *testing.T) {
	q := newQueue(time.Second)
	run, stop := order{"a", running}, order{"a", stopped}
	q.sent(&flight{messageID: "1", orders: []order{run}}, time.Unix(0, 0))
	if !q.sends(stop) {
		t.Error("the stop waits for the acknowledgement of the start")
	}
	q.sent(&flight{messageID: "2", orders: []order{stop}}, time.Unix(0, 0))
	q.acked("2")
	if q.sends(stop) {
		t.Error("the stop is sent after it was acknowledged")
	}
	q.acked("1")
	q.acked("unknown")
	if !q.idle() {
		t.Error("the queue is not empty")
	}
}

func TestOwed(t *testing.T) {
	now := time.Now()
	cases := map[string]struct {
		desired, last string
		heard         bool
		owed, all     bool
	}{
		"just placed":            {"RUNNING", "PENDING", false, true, true},
		"heard of":               {"RUNNING", "PENDING", true, false, true},
		"runs":                   {"RUNNING", "RUNNING", true, false, true},
		"to stop":                {"STOPPED", "RUNNING", true, true, true},
		"to stop, never started": {"STOPPED", "PENDING", false, true, true},
		"stopped":                {"STOPPED", "STOPPED", true, false, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			task := &store.Task{ID: "a", Task: types.Task{DesiredStatus: aws.String(c.desired), LastStatus: aws.String(c.last)}}
			if c.heard {
				task.Task.ConnectivityAt = &now
			}
			if _, got := owed(task, false); got != c.owed {
				t.Errorf("owed = %t", got)
			}
			if _, got := owed(task, true); got != c.all {
				t.Errorf("owed to an agent that has just started = %t", got)
			}
		})
	}
}

func TestSequenceGrows(t *testing.T) {
	var s sequence
	at := time.UnixMilli(1000)
	got := []int64{s.next(at), s.next(at), s.next(at.Add(-time.Hour)), s.next(at.Add(time.Second))}
	if diff := cmp.Diff([]int64{1000, 1001, 1002, 2000}, got); diff != "" {
		t.Error(diff)
	}
}
