package report

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"berth.dev/berth/agent/fail"
	"berth.dev/berth/agent/state"
	"berth.dev/berth/agent/task"
)

// Figures of the agent protocol, "State change submission": tasks at once, and the
// delays between tries of one task.
const (
	concurrency = 10
	backoffMin  = time.Second
	backoffMax  = 30 * time.Second
	backoffRate = 1.3
	jitter      = 0.2 // of the delay, to either side
)

const (
	// submitTimeout ends a call that the submitter itself did not end. It then counts
	// as one that could not be made, though the cluster may have accepted it.
	submitTimeout = time.Minute
	// rememberedTasks is for how many tasks it is remembered what was sent.
	rememberedTasks = 2048
)

// Outbox is where the changes come from; agent/state implements it.
type Outbox interface {
	// Outbox returns rows numbered above after, in order; not always all of them.
	Outbox(ctx context.Context, after uint64) ([]state.Row, error)
	// Delivered deletes rows and appends the event to the task's log, in one commit.
	Delivered(ctx context.Context, taskID string, seqs []uint64, ev task.Event) error
	// Changed has a value after rows were added.
	Changed() <-chan struct{}
}

// Submitter tells the cluster of one change. The class of its error decides: Invalid
// drops the change, everything else is tried again.
type Submitter interface {
	SubmitTaskStateChange(ctx context.Context, c task.Change) error
}

// Config is what New needs.
type Config struct {
	Outbox    Outbox
	Submitter Submitter
	Log       *slog.Logger
}

// Reporter sends what is in the outbox. It is driven by Run.
type Reporter struct {
	Config
	resync chan []task.Change
	pings  chan struct{}
}

// New returns a reporter that Run starts.
func New(c Config) *Reporter {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Reporter{Config: c, resync: make(chan []task.Change), pings: make(chan struct{})}
}

// Resync has the current status of live tasks sent once more, for a cluster that may
// have missed something: on every new session. A change is passed over when the same
// task has changes waiting, which say more, or when a higher status was sent already.
// It returns when Run has taken the changes, and does not wait for their delivery.
func (r *Reporter) Resync(ctx context.Context, changes []task.Change) error {
	select {
	case r.resync <- changes:
		return nil
	case <-ctx.Done():
		return &task.Error{Class: task.Canceled, Err: fmt.Errorf("resync: %w", ctx.Err())}
	}
}

// Ping returns nil when the loop of Run has answered, and an error when it has not by
// the end of ctx.
func (r *Reporter) Ping(ctx context.Context) error {
	select {
	case r.pings <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the loop that sends state changes does not answer: %w", ctx.Err())
	}
}

// queue is what waits of one task.
type queue struct {
	taskID  string
	rows    []row
	sending bool
	listed  bool // in run.ready
	attempt int  // failures in a row
	due     time.Time
}

// run is the state of Run, which only its goroutine touches.
type run struct {
	*Reporter
	after   uint64 // the last row that was read
	queues  map[string]*queue
	ready   []*queue // those that may be sent, in the order in which they became so
	busy    int
	results chan result
	waiting []*queue               // those that failed, the earliest due first
	retry   *time.Timer            // for the first of waiting, or for reading
	reading bool                   // the outbox is to be read again
	failed  int                    // readings of the outbox that failed in a row
	readAt  time.Time              // when to read it again after a failure
	sent    map[string]task.Change // all that was sent of a task, merged
	order   []string               // keys of sent, oldest first
}

type result struct {
	queue *queue
	taken int // rows that were sent as one
	err   error
}

// Run sends until ctx ends, and returns when no call is under way. It fails only by the
// end of ctx.
func (r *Reporter) Run(ctx context.Context) error {
	s := &run{
		Reporter: r,
		queues:   make(map[string]*queue),
		results:  make(chan result),
		retry:    time.NewTimer(math.MaxInt64),
		sent:     make(map[string]task.Change),
		reading:  true,
	}
	defer s.retry.Stop()
	for ctx.Err() == nil {
		now := time.Now()
		if s.reading && !now.Before(s.readAt) {
			s.read(ctx)
		}
		s.wakeDue(now)
		s.start(ctx)
		s.arm(now)
		select {
		case <-r.Outbox.Changed():
			s.reading = true
		case <-r.pings:
		case changes := <-r.resync:
			s.addCurrent(changes)
		case res := <-s.results:
			s.settle(res)
		case <-s.retry.C:
		case <-ctx.Done():
		}
	}
	for ; s.busy > 0; s.busy-- {
		<-s.results
	}
	return ctx.Err()
}

// read takes what is new from the outbox into the queues.
func (s *run) read(ctx context.Context) {
	for {
		rows, err := s.Outbox.Outbox(ctx, s.after)
		if err != nil {
			if ctx.Err() == nil {
				s.readAt = time.Now().Add(backoff(s.failed))
				s.failed++
				s.Log.Error("the outbox cannot be read; trying again", "attempt", s.failed, "err", err)
			}
			return
		}
		s.failed = 0
		if len(rows) == 0 {
			s.reading = false
			return
		}
		for _, r := range rows {
			s.add(r.TaskID, row{r.Seq, r.Change})
			s.after = r.Seq
		}
	}
}

func (s *run) add(taskID string, r row) {
	q := s.queues[taskID]
	if q == nil {
		q = &queue{taskID: taskID}
		s.queues[taskID] = q
	}
	q.rows = append(q.rows, r)
	s.list(q)
}

// addCurrent queues what Resync was given.
func (s *run) addCurrent(changes []task.Change) {
	for _, c := range changes {
		id := c.TaskARN[strings.LastIndexByte(c.TaskARN, '/')+1:]
		sent := s.sent[id]
		if s.queues[id] == nil && c.Status >= sent.Status {
			// What was sent may be newer than c, which was looked up before.
			c.Containers = slices.Clone(c.Containers)
			s.add(id, row{change: merge(c, sent)})
		}
	}
}

// list puts a queue in line unless it is in line, being sent, or waiting after a failure.
func (s *run) list(q *queue) {
	if !q.listed && !q.sending && q.due.IsZero() {
		q.listed = true
		s.ready = append(s.ready, q)
	}
}

// wakeDue puts the queues in line whose delay is over.
func (s *run) wakeDue(now time.Time) {
	for len(s.waiting) > 0 && !now.Before(s.waiting[0].due) {
		q := s.waiting[0]
		s.waiting = s.waiting[1:]
		q.due = time.Time{}
		s.list(q)
	}
}

// arm sets the timer to the next time at which something is due.
func (s *run) arm(now time.Time) {
	var next time.Time
	if s.reading {
		next = s.readAt
	}
	if len(s.waiting) > 0 && (next.IsZero() || s.waiting[0].due.Before(next)) {
		next = s.waiting[0].due
	}
	if next.IsZero() {
		s.retry.Stop()
		return
	}
	s.retry.Reset(next.Sub(now))
}

// start sends for the queues that are first in line, as far as calls are free.
func (s *run) start(ctx context.Context) {
	for s.busy < concurrency && len(s.ready) > 0 {
		q := s.ready[0]
		s.ready = s.ready[1:]
		q.listed, q.sending = false, true
		s.busy++
		rows := q.rows[:group(q.rows):group(q.rows)]
		attempt := q.attempt
		go func() {
			s.results <- result{q, len(rows), s.send(ctx, q.taskID, rows, attempt)}
		}()
	}
}

// settle takes the outcome of a call.
func (s *run) settle(res result) {
	s.busy--
	q := res.queue
	q.sending = false
	if res.err != nil {
		q.due = time.Now().Add(backoff(q.attempt))
		q.attempt++
		i, _ := slices.BinarySearchFunc(s.waiting, q.due, func(w *queue, due time.Time) int { return w.due.Compare(due) })
		s.waiting = slices.Insert(s.waiting, i, q)
		return
	}
	q.attempt = 0
	if sent := mergeAll(q.rows[:res.taken]); len(sent.Attachments) == 0 {
		s.remember(q.taskID, sent)
	}
	q.rows = q.rows[res.taken:]
	if len(q.rows) == 0 {
		delete(s.queues, q.taskID)
		return
	}
	s.list(q)
}

// remember keeps what was sent of a task, for Resync.
func (s *run) remember(taskID string, c task.Change) {
	before, ok := s.sent[taskID]
	if ok {
		before.Containers = slices.Clone(before.Containers)
		s.sent[taskID] = merge(before, c)
		return
	}
	s.sent[taskID] = c
	s.order = append(s.order, taskID)
	if len(s.order) > rememberedTasks {
		delete(s.sent, s.order[0])
		s.order = s.order[1:]
	}
}

// send makes one try for some rows of a task. A nil error means that they are dealt
// with: accepted or refused for good, and no longer in the outbox.
func (s *run) send(ctx context.Context, taskID string, rows []row, attempt int) error {
	change := mergeAll(rows)
	log := s.Log.With("task", taskID, "status", change.Status.String())
	start := time.Now()
	err := fail.Point(fail.ReportBeforeSubmit)
	if err == nil {
		limited, cancel := context.WithTimeout(ctx, submitTimeout)
		err = s.Submitter.SubmitTaskStateChange(limited, change)
		cancel()
	}
	ev := task.Event{At: time.Now(), Kind: task.EventReportAcked, Text: change.Status.String()}
	switch {
	case err == nil:
		log.Debug("state change accepted", "attempt", attempt+1, "dur", ev.At.Sub(start))
	case ctx.Err() != nil:
		return err
	case task.ClassOf(err) == task.Invalid:
		log.Error("state change refused for good; it is dropped", "attempt", attempt+1, "err", err)
		ev.Kind = task.EventReportDropped
		ev.Text += ": " + err.Error()
	default:
		log.Warn("state change not delivered; trying again", "attempt", attempt+1, "dur", ev.At.Sub(start), "err", err)
		return err
	}
	if err := fail.Point(fail.ReportAfterSubmit); err != nil {
		return err
	}
	return s.settleRows(ctx, taskID, rows, ev)
}

// settleRows deletes rows that are dealt with. They must not be sent again because the
// disk is full, so this is tried until it succeeds or ctx ends; the database itself
// raises the alarm.
func (s *run) settleRows(ctx context.Context, taskID string, rows []row, ev task.Event) error {
	seqs := make([]uint64, 0, len(rows))
	for _, r := range rows {
		if r.seq > 0 {
			seqs = append(seqs, r.seq)
		}
	}
	if len(seqs) == 0 {
		return nil
	}
	for try := 0; ; try++ {
		err := s.Outbox.Delivered(ctx, taskID, seqs, ev)
		if err == nil || ctx.Err() != nil {
			return err
		}
		s.Log.Error("a delivered state change cannot be recorded; trying again", "task", taskID, "attempt", try+1, "err", err)
		select {
		case <-time.After(backoff(try)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// backoff is the delay after the given number of earlier failures in a row.
func backoff(failures int) time.Duration {
	d := float64(backoffMin) * math.Pow(backoffRate, float64(min(failures, 64)))
	d = min(d, float64(backoffMax))
	return time.Duration(d * (1 + jitter*(2*rand.Float64()-1)))
}
