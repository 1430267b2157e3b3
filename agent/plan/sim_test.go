package plan

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
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
	pending []task.Fact    // observations that have not been delivered
	alarms  []alarm        // ends of processes that are still to come
	starts  map[string]int // by container and incarnation
	sent    []task.Change
	highest task.Status
	crashes int
	done    bool
	spec    simSpec
	set     Settings
	tries   map[task.ResourceID]int // of Ensure
}

// simSpec says what the world does to a task.
type simSpec struct {
	exits  map[string]int           // containers that end by themselves, with this code
	runs   map[string]time.Duration // how long those run first
	sick   map[string]float64       // share of health checks that fail
	fail   map[task.ResourceID]task.Class
	flaky  float64 // share of actions that fail once with Unavailable
	crash  float64 // share of steps after which the agent crashes
	lose   float64 // share of networks that are gone after a crash
	ignore map[string]bool
}

type thing struct {
	exists      bool
	process     task.ProcessState
	exit        *task.Exit
	incarnation int
}

// alarm is the end of a process that is still to come.
type alarm struct {
	at          time.Time
	id          task.ResourceID
	incarnation int
}

type storedKnown struct {
	Known   *task.Known
	Records map[string]*task.Record
}

func newSim(t *testing.T, seed uint64, tk *task.Task, spec simSpec) *sim {
	s := &sim{
		t: t, r: rand.New(rand.NewPCG(seed, 1)), task: tk, now: time.Unix(1_700_000_000, 0).UTC(),
		k:     &task.Known{Desired: task.StatusRunning, Received: time.Unix(1_700_000_000, 0)},
		world: map[task.ResourceID]*thing{}, starts: map[string]int{}, spec: spec, set: simSettings, tries: map[task.ResourceID]int{},
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
	st := Next(s.task, s.k, s.set, s.now)
	if again := Next(s.task, s.k, s.set, s.now); again.Known || len(again.Changed)+len(again.Report)+len(again.Do) > 0 {
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
		s.inOrder(a)
		for _, f := range s.flying {
			if f.Resource == a.Resource && (f.Verb == a.Verb || !aside(f.Verb) && !aside(a.Verb)) {
				s.t.Fatalf("%v of %v while %v is in flight", a.Verb, a.Resource, f.Verb)
			}
		}
		s.flying = append(s.flying, a)
	}
	s.done = st.Done
	return st
}

// aside reports whether a verb only asks, and may do so beside another one.
func aside(v task.Verb) bool { return v == task.VerbProbe || v == task.VerbCheck }

// inOrder checks that a container is made when what it waits for has come about, and
// stopped when those that wait for it have ended.
func (s *sim) inOrder(a Action) {
	c := s.task.Container(a.Resource.Name)
	if c == nil || a.Resource.Kind != task.KindContainer {
		return
	}
	switch {
	case a.Verb == task.VerbEnsure && a.Incarnation == 0 && !s.thing(a.Resource).exists:
		for _, dep := range conditions(c) {
			on, started := s.thing(Container(dep.Container)), s.starts[dep.Container+"#0"] > 0
			met := started
			switch dep.Condition {
			case conditionCreate:
				met = on.exists
			case task.ConditionComplete:
				met = started && on.process != task.ProcessRunning
			case task.ConditionSuccess:
				met = started && on.process != task.ProcessRunning && on.exit != nil && on.exit.Code == 0
			case task.ConditionHealthy:
				h, _ := ContainerHealth(s.task, s.k, dep.Container)
				met = h.Status == task.HealthHealthy
			}
			if !met {
				s.t.Fatalf("%v is made before %s of %s: %+v", a.Resource, dep.Condition, dep.Container, *on)
			}
		}
	case a.Verb == task.VerbStop && s.k.Resource(Network(s.task, c.Name)).Phase != task.Failed:
		for i := range s.task.Containers {
			other := &s.task.Containers[i]
			if slices.Contains(needs(other), c.Name) && s.thing(Container(other.Name)).process == task.ProcessRunning {
				s.t.Fatalf("%v is stopped while %s runs, which depends on it", a.Resource, other.Name)
			}
		}
	}
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
	f := task.Fact{Resource: a.Resource, Verb: a.Verb, At: s.now, Incarnation: a.Incarnation}
	th := s.thing(a.Resource)
	switch a.Verb {
	case task.VerbEnsure:
		if a.Incarnation != th.incarnation {
			if a.Incarnation != th.incarnation+1 || th.process == task.ProcessRunning || th.process == task.ProcessCreated {
				s.t.Fatalf("incarnation %d of %v after %+v", a.Incarnation, a.Resource, *th)
			}
			*th = thing{incarnation: a.Incarnation}
		}
		th.exists = true
		if a.Resource.Kind == task.KindContainer && th.process == task.ProcessNone {
			th.process = task.ProcessCreated
		}
		f.Result = task.Result{Handle: task.Handle(`{}`), RuntimeID: "id", Digest: "sha256:0"}
	case task.VerbStart:
		if th.process != task.ProcessCreated {
			s.t.Fatalf("start of %v whose process is %q", a.Resource, th.process)
		}
		s.starts[fmt.Sprintf("%s#%d", a.Resource.Name, th.incarnation)]++
		th.process = task.ProcessRunning
		if code, ends := s.spec.exits[a.Resource.Name]; ends && s.spec.runs[a.Resource.Name] == 0 {
			s.end(a.Resource, code)
		} else if ends {
			s.alarms = append(s.alarms, alarm{s.now.Add(s.spec.runs[a.Resource.Name]), a.Resource, th.incarnation})
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
		f.Observed = &task.Observed{Exists: th.exists, Process: th.process, Exit: th.exit, Incarnation: th.incarnation}
	case task.VerbCheck:
		if th.process != task.ProcessRunning || th.incarnation != a.Incarnation {
			f.Class, f.Failure = task.Unavailable, &task.Reason{Detail: "no process"}
			break
		}
		f.Result.Check = &task.Check{Start: s.now}
		if s.r.Float64() < s.spec.sick[a.Resource.Name] {
			f.Result.Check.ExitCode = 1
		}
	}
	return f
}

func (s *sim) end(id task.ResourceID, code int) {
	th := s.thing(id)
	th.process = task.ProcessExited
	th.exit = &task.Exit{Code: code, At: s.now}
	s.pending = append(s.pending, task.Fact{
		Resource: id, At: s.now,
		Observed: &task.Observed{Exists: true, Process: task.ProcessExited, Exit: th.exit, Incarnation: th.incarnation},
	})
}

// ring ends the processes whose time has come.
func (s *sim) ring() {
	s.alarms = slices.DeleteFunc(s.alarms, func(a alarm) bool {
		if s.now.Before(a.at) {
			return false
		}
		if th := s.thing(a.id); th.process == task.ProcessRunning && th.incarnation == a.incarnation {
			s.end(a.id, s.spec.exits[a.id.Name])
		}
		return true
	})
}

// advance settles one thing drawn at random, or lets time pass when nothing is open.
func (s *sim) advance(st Step) {
	if s.spec.crash > 0 && s.crashes < 20 && s.r.Float64() < s.spec.crash {
		s.restart()
		return
	}
	s.ring()
	open := len(s.flying) + len(s.pending)
	if open == 0 {
		for _, a := range s.alarms {
			if st.Wake.IsZero() || a.at.Before(st.Wake) {
				st.Wake = a.at
			}
		}
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
	f := task.Fact{Resource: a.Resource, Verb: a.Verb, At: s.now, Incarnation: a.Incarnation}
	class, broken := s.spec.fail[a.Resource]
	if a.Verb == task.VerbEnsure {
		s.tries[a.Resource]++
	}
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
	restarts := 0
	if a.Resource.Kind == task.KindContainer {
		restarts = s.k.Resource(a.Resource).Restarts
	}
	Fold(s.task, s.k, f)
	if got := s.k.Resource(a.Resource).Restarts; got < restarts {
		s.t.Fatalf("restarts of %v fell from %d to %d", a.Resource, restarts, got)
	}
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
	for i := range s.task.Containers {
		c := &s.task.Containers[i]
		if r := s.k.Resource(Container(c.Name)); r.Restarts != r.Incarnation || c.Restart == nil && r.Restarts > 0 || s.starts[fmt.Sprintf("%s#%d", c.Name, r.Restarts+1)] > 0 {
			s.t.Errorf("container %s: %d restarts, incarnation %d, starts %v", c.Name, r.Restarts, r.Incarnation, s.starts)
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
