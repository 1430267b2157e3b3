package acs

import (
	"errors"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/acs"
)

const (
	running      = "RUNNING"
	stopped      = "STOPPED"
	provisioning = "PROVISIONING"

	// attaching stands for a desired status in the order to attach a task's interfaces.
	attaching = "ATTACHING"

	// payloadTasks bounds the tasks of one payload.
	payloadTasks = 100
	// sameAttempts is how often a payload of several tasks is sent as it is.
	sameAttempts = 3
	// singleAttempts is how often a task is then sent alone.
	singleAttempts = 5
)

var errDefinitionGone = errors.New("the task definition is gone")

// order is a task and the status that an agent is told to bring it to.
type order struct{ id, desired string }

// flight is a payload that is not acknowledged yet.
type flight struct {
	messageID string
	frame     []byte
	message   acs.Message
	orders    []order
	attempts  int
	due       time.Time // of the next attempt
}

// queue is what one session owes its agent. It does no I/O.
type queue struct {
	ackTimeout time.Duration

	due     []string            // task ids to look at, in order, without repetition
	isDue   map[string]struct{} // the same as a set
	alone   map[string]struct{} // to be sent in payloads of their own
	told    map[string]string   // desired status that was acknowledged or given up, by task
	flying  map[string]string   // desired status on its way, by task
	flights map[string]*flight  // by message id
}

func newQueue(ackTimeout time.Duration) *queue {
	return &queue{
		ackTimeout: ackTimeout,
		isDue:      make(map[string]struct{}),
		alone:      make(map[string]struct{}),
		told:       make(map[string]string),
		flying:     make(map[string]string),
		flights:    make(map[string]*flight),
	}
}

// look puts a task on the list of those that may have to be sent.
func (q *queue) look(id string) {
	if _, ok := q.isDue[id]; ok {
		return
	}
	q.isDue[id] = struct{}{}
	q.due = append(q.due, id)
}

// take empties the list.
func (q *queue) take() []string {
	ids := q.due
	q.due = nil
	clear(q.isDue)
	return ids
}

// sends tells whether the order is news to the agent.
func (q *queue) sends(o order) bool { return q.told[o.id] != o.desired && q.flying[o.id] != o.desired }

// sent notes a payload that is on its way.
func (q *queue) sent(f *flight, now time.Time) {
	f.attempts++
	// Twice as long each time: an agent that is slow is not helped by repetition.
	f.due = now.Add(q.ackTimeout << (f.attempts - 1))
	q.flights[f.messageID] = f
	for _, o := range f.orders {
		q.flying[o.id] = o.desired
	}
}

// acked notes an acknowledgement and returns the payload it was for, if any.
func (q *queue) acked(messageID string) *flight {
	f, ok := q.flights[messageID]
	if !ok {
		return nil
	}
	q.land(f)
	for _, o := range f.orders {
		q.tell(o)
	}
	return f
}

// tell notes that the agent knows. What it was told to stop it need not be told to run.
func (q *queue) tell(o order) {
	q.told[o.id] = o.desired
	delete(q.alone, o.id)
}

func (q *queue) land(f *flight) {
	delete(q.flights, f.messageID)
	for _, o := range f.orders {
		if q.flying[o.id] == o.desired {
			delete(q.flying, o.id)
		}
	}
}

// forget drops what is remembered of a task that is over.
func (q *queue) forget(id string) {
	delete(q.told, id)
	delete(q.alone, id)
}

// overdue settles the flights whose time has come. open tells whether an order still
// matters; one that does not counts as told. It returns the payloads to repeat and the
// orders that are given up.
func (q *queue) overdue(now time.Time, open func(order) bool) (repeat []*flight, gaveUp []order) {
	for _, f := range q.flights {
		if now.Before(f.due) {
			continue
		}
		rest := f.orders[:0:0]
		for _, o := range f.orders {
			if open(o) {
				rest = append(rest, o)
			}
		}
		switch {
		case len(rest) == 0:
			q.acked(f.messageID)
		case f.attempts < sameAttempts, len(f.orders) == 1 && f.attempts < singleAttempts:
			repeat = append(repeat, f)
		case len(f.orders) > 1:
			q.land(f)
			for _, o := range rest {
				q.alone[o.id] = struct{}{}
				q.look(o.id)
			}
		default:
			q.land(f)
			q.tell(rest[0])
			gaveUp = append(gaveUp, rest[0])
		}
	}
	return repeat, gaveUp
}

// next is when overdue has something to do; zero means never.
func (q *queue) next() time.Time {
	var at time.Time
	for _, f := range q.flights {
		if at.IsZero() || f.due.Before(at) {
			at = f.due
		}
	}
	return at
}

// idle tells whether everything that is owed was sent and acknowledged.
func (q *queue) idle() bool { return len(q.due) == 0 && len(q.flights) == 0 }

// owed is what an agent must be told of a task: to stop it until it has stopped, to run
// it until something was heard of it. With all, also tasks that run: an agent that has
// just started gets them again, with fresh credentials (agent protocol, "Minimum control
// plane").
func owed(t *store.Task, all bool) (order, bool) {
	last, desired := aws.ToString(t.Task.LastStatus), aws.ToString(t.Task.DesiredStatus)
	if last == stopped {
		return order{}, false
	}
	o := order{t.ID, desired}
	if last == provisioning && desired != stopped {
		// The agent is told of the task itself once it has the interfaces.
		return order{t.ID, attaching}, true
	}
	if desired == stopped || all {
		return o, true
	}
	return o, !heardOf(t)
}

// heardOf tells whether the agent has reported anything about a task.
func heardOf(t *store.Task) bool { return t.Task.ConnectivityAt != nil }
