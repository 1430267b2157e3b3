package plan

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"berth.dev/berth/agent/task"
)

// sim is a host in memory: it carries out actions with outcomes and an order that
// are drawn at random, crashes the agent at random, and checks the promises that
// plan makes while it does so.
type sim struct {
	t       *testing.T
	r       *rand.Rand
	task    *task.Task
	k       *task.Known
	stored  []byte // the last commit
	now     time.Time
	world   map[task.ResourceID]*thing
	flying  []Action
	pending []task.Fact // observations that have not been delivered
	starts  map[string]int
	sent    []task.Change
	highest task.Status
	crashes int
	done    bool
	spec    simSpec
}

// simSpec says what the world does to a task.
type simSpec struct {
	exits  map[string]int // containers that end by themselves, with this code
	fail   map[task.ResourceID]task.Class
	flaky  float64 // share of actions that fail once with Unavailable
	crash  float64 // share of steps after which the agent crashes
	lose   float64 // share of networks that are gone after a crash
	ignore map[string]bool
}

type thing struct {
	exists  bool
	process task.ProcessState
	exit    *task.Exit
}

type storedKnown struct {
	Known   *task.Known
	Records map[string]*task.Record
}

func newSim(t *testing.T, seed uint64, tk *task.Task, spec simSpec) *sim {
	s := &sim{
		t: t, r: rand.New(rand.NewPCG(seed, 1)), task: tk, now: time.Unix(1_700_000_000, 0).UTC(),
		k:     &task.Known{Desired: task.StatusRunning, Received: time.Unix(1_700_000_000, 0)},
		world: map[task.ResourceID]*thing{}, starts: map[string]int{}, spec: spec,
	}
	s.commit()
	return s
}

var simSettings = Settings{
	StopTimeout: 30 * time.Second, CreateTimeout: 4 * time.Minute, StartTimeout: 3 * time.Minute,
	PullTimeout: 2 * time.Hour, Retention: time.Hour, Jitter: time.Minute, Relist: time.Minute,
}

func (s *sim) commit() {
	out := storedKnown{Known: s.k, Records: map[string]*task.Record{}}
	for id, r := range s.k.Resources {
		out.Records[id.Kind+" "+id.Name] = r
	}
	b, err := json.Marshal(out)
	if err != nil {
		s.t.Fatal(err)
	}
	s.stored = b
}

func (s *sim) restart() {
	var in storedKnown
	if err := json.Unmarshal(s.stored, &in); err != nil {
		s.t.Fatal(err)
	}
	s.k = in.Known
	for name, r := range in.Records {
		var id task.ResourceID
		if _, err := fmt.Sscan(name, &id.Kind, &id.Name); err != nil {
			s.t.Fatal(err)
		}
		*s.k.Resource(id) = *r
	}
	Recover(s.k, false)
	// What was in flight either took effect or did not.
	for _, a := range s.flying {
		if s.r.IntN(2) == 0 {
			s.perform(a)
		}
	}
	s.flying, s.pending = nil, nil
	s.crashes++
	lost := networks(s.task) // in their order, for a seed to do the same always
	for _, b := range bases(s.task) {
		if b.where != onHost {
			*s.thing(b.id) = thing{}
			continue
		}
		lost = append(lost, b.id)
	}
	for _, id := range lost {
		if s.r.Float64() < s.spec.lose {
			*s.thing(id) = thing{}
		}
	}
}

// step decides once and starts what was decided.
func (s *sim) step() Step {
	st := Next(s.task, s.k, simSettings, s.now)
	if again := Next(s.task, s.k, simSettings, s.now); again.Known || len(again.Changed)+len(again.Report)+len(again.Do) > 0 {
		s.t.Fatalf("deciding twice decided more: %+v", again)
	}
	if s.k.Status < s.highest {
		s.t.Fatalf("status fell from %v to %v", s.highest, s.k.Status)
	}
	s.highest = s.k.Status
	s.commit()
	s.sent = append(s.sent, st.Report...)
	for _, a := range st.Do {
		s.stands(a)
		for _, f := range s.flying {
			if f.Resource == a.Resource && f.Verb != task.VerbProbe && a.Verb != task.VerbProbe {
				s.t.Fatalf("%v of %v while %v is in flight", a.Verb, a.Resource, f.Verb)
			}
		}
		s.flying = append(s.flying, a)
	}
	s.done = st.Done
	return st
}

// stands checks that what an action builds on is there as far as plan knows.
func (s *sim) stands(a Action) {
	if b := baseOf(s.task, a.Resource); b != nil {
		s.standsOn(a, b.after)
		return
	}
	c := s.task.Container(a.Resource.Name)
	if c == nil || a.Verb != task.VerbEnsure && a.Verb != task.VerbStart {
		return
	}
	var on []task.ResourceID
	switch a.Resource.Kind {
	case task.KindContainer:
		on = append(on, Cgroup, Image(c.Name), Network(s.task, c.Name))
		for _, b := range bases(s.task) {
			if b.uses(c.Name) && a.Verb == task.VerbEnsure {
				on = append(on, b.id)
			}
		}
	case task.KindNetwork:
		for _, name := range linked(c) {
			on = append(on, Network(s.task, name))
		}
	}
	s.standsOn(a, on)
}

func (s *sim) standsOn(a Action, on []task.ResourceID) {
	if a.Verb != task.VerbEnsure && a.Verb != task.VerbStart {
		return
	}
	for _, id := range on {
		if r := s.k.Resource(id); r.Phase != task.Present || r.Unconfirmed {
			s.t.Fatalf("%v of %v, while %v is %v (unconfirmed %t)", a.Verb, a.Resource, id, r.Phase, r.Unconfirmed)
		}
	}
}

func (s *sim) thing(id task.ResourceID) *thing {
	if s.world[id] == nil {
		s.world[id] = &thing{}
	}
	return s.world[id]
}

// perform carries out the effect of one action and returns the fact.
func (s *sim) perform(a Action) task.Fact {
	f := task.Fact{Resource: a.Resource, Verb: a.Verb, At: s.now}
	th := s.thing(a.Resource)
	switch a.Verb {
	case task.VerbEnsure:
		th.exists = true
		if a.Resource.Kind == task.KindContainer && th.process == task.ProcessNone {
			th.process = task.ProcessCreated
		}
		f.Result = task.Result{Handle: task.Handle(`{}`), RuntimeID: "id", Digest: "sha256:0"}
	case task.VerbStart:
		if th.process != task.ProcessCreated {
			s.t.Fatalf("start of %v whose process is %q", a.Resource, th.process)
		}
		s.starts[a.Resource.Name]++
		th.process = task.ProcessRunning
		if code, ends := s.spec.exits[a.Resource.Name]; ends {
			s.end(a.Resource, code)
		}
	case task.VerbStop:
		if th.process == task.ProcessRunning && !s.spec.ignore[a.Resource.Name] {
			s.end(a.Resource, 143)
		}
	case task.VerbKill:
		if th.process == task.ProcessRunning {
			s.end(a.Resource, 137)
		}
	case task.VerbRetire:
		if th.process == task.ProcessRunning {
			s.t.Fatalf("retired %v while it ran", a.Resource)
		}
		th.process = task.ProcessNone
	case task.VerbRemove:
		if th.process == task.ProcessRunning {
			s.t.Fatalf("removed %v while it ran", a.Resource)
		}
		*th = thing{}
	case task.VerbProbe:
		f.Observed = &task.Observed{Exists: th.exists, Process: th.process, Exit: th.exit}
	}
	return f
}

func (s *sim) end(id task.ResourceID, code int) {
	th := s.thing(id)
	th.process = task.ProcessExited
	th.exit = &task.Exit{Code: code, At: s.now}
	s.pending = append(s.pending, task.Fact{
		Resource: id, At: s.now,
		Observed: &task.Observed{Exists: true, Process: task.ProcessExited, Exit: th.exit},
	})
}

// advance settles one thing drawn at random, or lets time pass when nothing is open.
func (s *sim) advance(st Step) {
	if s.spec.crash > 0 && s.crashes < 20 && s.r.Float64() < s.spec.crash {
		s.restart()
		return
	}
	open := len(s.flying) + len(s.pending)
	if open == 0 {
		if st.Wake.IsZero() {
			s.t.Fatalf("stuck: nothing in flight, no wake time; status %v desired %v records %s", s.k.Status, s.k.Desired, s.stored)
		}
		s.now = st.Wake
		return
	}
	s.now = s.now.Add(time.Millisecond)
	if i := s.r.IntN(open); i < len(s.flying) {
		a := s.flying[i]
		s.flying = append(s.flying[:i:i], s.flying[i+1:]...)
		s.settle(a)
	} else {
		i -= len(s.flying)
		f := s.pending[i]
		s.pending = append(s.pending[:i:i], s.pending[i+1:]...)
		Fold(s.task, s.k, f)
	}
}

func (s *sim) settle(a Action) {
	f := task.Fact{Resource: a.Resource, Verb: a.Verb, At: s.now}
	class, broken := s.spec.fail[a.Resource]
	switch {
	case broken && (a.Verb == task.VerbEnsure || a.Verb == task.VerbStart):
		f.Class, f.Failure = class, &task.Reason{Code: task.CannotCreateContainer, Detail: "made to fail"}
	case a.Attempt < 3 && s.r.Float64() < s.spec.flaky:
		if s.r.IntN(2) == 0 {
			s.perform(a) // it happened, but the answer was lost
		}
		f.Class, f.Failure = task.Unavailable, &task.Reason{Code: task.CannotInspectContainer, Detail: "could not ask"}
	default:
		f = s.perform(a)
	}
	Fold(s.task, s.k, f)
}

// run goes on until the task is done or until is true.
func (s *sim) run(until func() bool) {
	for range 20_000 {
		st := s.step()
		if s.done || until != nil && until() {
			return
		}
		s.advance(st)
	}
	s.t.Fatalf("not settled after 20,000 steps: status %v desired %v\n%s", s.k.Status, s.k.Desired, s.stored)
}

func (s *sim) stop() {
	if s.k.Desired != task.StatusStopped {
		s.k.Desired, s.k.StopRequested = task.StatusStopped, s.now
	}
}

// check verifies what must hold at the end of every task.
func (s *sim) check() {
	for id, th := range s.world {
		if th.exists || th.process != task.ProcessNone {
			s.t.Errorf("%v is left on the host: %+v", id, *th)
		}
	}
	for name, n := range s.starts {
		if n > 1 {
			s.t.Errorf("container %s was started %d times", name, n)
		}
	}
	s.checkReports()
}

func (s *sim) checkReports() {
	last := task.StatusNone
	exits := map[string]int{}
	for _, ch := range s.sent {
		if ch.Status < last {
			s.t.Errorf("reported %v after %v", ch.Status, last)
		}
		last = ch.Status
		for _, c := range ch.Containers {
			if c.Status == task.ContainerStopped {
				exits[c.Name]++
			}
		}
	}
	if last != task.StatusStopped {
		s.t.Errorf("the last report is %v, not STOPPED", last)
	}
	for i := range s.task.Containers {
		if name := s.task.Containers[i].Name; exits[name] != 1 {
			s.t.Errorf("the end of container %s was reported %d times", name, exits[name])
		}
	}
}
