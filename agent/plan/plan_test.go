package plan

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"berth.dev/berth/agent/task"
)

func taskOf(containers ...task.Container) *task.Task {
	return &task.Task{ARN: "arn:aws:ecs:us-east-1:1:task/default/0123", ClusterARN: "c", NetworkMode: task.NetworkBridge, Containers: containers}
}

func on(name string, c task.Condition) []task.Dependency {
	return []task.Dependency{{Container: name, Condition: c}}
}

func TestRunThenStop(t *testing.T) {
	s := newSim(t, 1, taskOf(task.Container{Name: "web", Essential: true}), simSpec{})
	s.run(func() bool { return s.k.Status == task.StatusRunning })
	if len(s.sent) != 1 || s.sent[0].Status != task.StatusRunning {
		t.Fatalf("reports so far: %+v", s.sent)
	}
	s.stop()
	s.run(nil)
	s.check()
	final := s.sent[len(s.sent)-1]
	if got := *final.Containers[0].Exit; got != 143 {
		t.Errorf("exit code %d, want 143", got)
	}
}

func TestEssentialExitStopsTheTask(t *testing.T) {
	s := newSim(t, 2, taskOf(
		task.Container{Name: "main", Essential: true},
		task.Container{Name: "side"},
	), simSpec{exits: map[string]int{"main": 3}})
	s.run(nil)
	s.check()
	codes := map[string]int{}
	for _, ch := range s.sent {
		for _, c := range ch.Containers {
			if c.Exit != nil {
				codes[c.Name] = *c.Exit
			}
		}
	}
	if codes["main"] != 3 || codes["side"] != 143 && codes["side"] != 0 {
		t.Errorf("exit codes %v", codes)
	}
	if s.k.ExecutionStopped.IsZero() {
		t.Error("ExecutionStopped is not set")
	}
}

func TestNonEssentialExitLeavesTheTaskRunning(t *testing.T) {
	s := newSim(t, 3, taskOf(
		task.Container{Name: "main", Essential: true},
		task.Container{Name: "once"},
	), simSpec{exits: map[string]int{"once": 0}})
	s.run(func() bool {
		return s.k.Status == task.StatusRunning && s.k.SentContainers["once"] == task.ContainerStopped
	})
	if s.k.Desired != task.StatusRunning {
		t.Fatalf("desired %v", s.k.Desired)
	}
	s.stop()
	s.run(nil)
	s.check()
}

func TestStopIsForcedAfterItsTimeout(t *testing.T) {
	s := newSim(t, 4, taskOf(task.Container{Name: "deaf", Essential: true, StopTimeout: 7 * time.Second}), simSpec{ignore: map[string]bool{"deaf": true}})
	s.run(func() bool { return s.k.Status == task.StatusRunning })
	begin := s.now
	s.stop()
	s.run(func() bool { return s.k.Status == task.StatusStopped })
	if took := s.now.Sub(begin); took < 7*time.Second || took > 8*time.Second {
		t.Errorf("killed after %v, want the stop timeout of 7s", took)
	}
	s.run(nil)
	s.check()
}

func TestDependencies(t *testing.T) {
	tests := []struct {
		name   string
		cond   task.Condition
		exits  map[string]int
		reason string // of the dependent; empty means that it runs
	}{
		{"start", task.ConditionStart, nil, ""},
		{"complete", task.ConditionComplete, map[string]int{"dep": 4}, ""},
		{"success", task.ConditionSuccess, map[string]int{"dep": 0}, ""},
		{"success that fails", task.ConditionSuccess, map[string]int{"dep": 4}, "CannotStartContainerError: dependency graph: container app: dependency on dep with condition SUCCESS not resolved: container exited with code 4"},
		{"healthy without a health check", task.ConditionHealthy, nil, "CannotStartContainerError: dependency graph: container app: dependency on dep with condition HEALTHY not resolved: container has no health check"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSim(t, 5, taskOf(
				task.Container{Name: "app", Essential: true, DependsOn: on("dep", tt.cond)},
				task.Container{Name: "dep"},
			), simSpec{exits: tt.exits})
			s.run(func() bool { return s.k.Status >= task.StatusRunning })
			if tt.reason == "" && s.starts["app#0"] != 1 {
				t.Fatalf("app was not started; status %v", s.k.Status)
			}
			s.stop()
			s.run(nil)
			s.check()
			got := ""
			for _, ch := range s.sent {
				for _, c := range ch.Containers {
					if c.Name == "app" {
						got = c.Reason
					}
				}
			}
			if got != tt.reason {
				t.Errorf("reason %q, want %q", got, tt.reason)
			}
		})
	}
}

func TestStopOrderIsTheReverseOfTheStartOrder(t *testing.T) {
	s := newSim(t, 6, taskOf(
		task.Container{Name: "a", Essential: true},
		task.Container{Name: "b", Essential: true, DependsOn: on("a", task.ConditionStart)},
		task.Container{Name: "c", Essential: true, DependsOn: on("b", task.ConditionStart)},
	), simSpec{})
	s.run(func() bool { return s.k.Status == task.StatusRunning })
	s.stop()
	s.run(nil)
	s.check()
	at := func(n string) time.Time { return s.k.Resource(Container(n)).Exit.At }
	if !at("c").Before(at("b")) || !at("b").Before(at("a")) {
		t.Errorf("ended at a %v, b %v, c %v", at("a"), at("b"), at("c"))
	}
}

func TestBrokenResourcesStopTheTaskWithTheirReason(t *testing.T) {
	for _, id := range []task.ResourceID{
		Admission, Cgroup, sharedNetwork, {Kind: task.KindNetwork, Name: "web"}, Image("web"), Container("web"),
		{Kind: task.KindVolume, Name: "data"},
	} {
		t.Run(id.String(), func(t *testing.T) {
			tk := taskOf(task.Container{Name: "web", Essential: true, Mounts: []task.Mount{{Volume: "data", Path: "/data"}}})
			tk.Volumes = []task.Volume{{Name: "data", Type: "docker"}}
			if id == sharedNetwork {
				tk.NetworkMode = task.NetworkHost
			}
			s := newSim(t, 7, tk, simSpec{fail: map[task.ResourceID]task.Class{id: task.Invalid}})
			s.run(nil)
			s.check()
			final := s.sent[len(s.sent)-1]
			told := final.Reason
			if told == "" {
				told = final.Containers[0].Reason
			}
			if want := "CannotCreateContainerError: made to fail"; told != want {
				t.Errorf("reason %q, want %q", told, want)
			}
			if s.starts["web#0"] != 0 {
				t.Error("the container was started")
			}
		})
	}
}

func TestUnavailableIsTriedAgainAndThenFinal(t *testing.T) {
	id := Container("web")
	s := newSim(t, 8, taskOf(task.Container{Name: "web", Essential: true}), simSpec{fail: map[task.ResourceID]task.Class{id: task.Unavailable}})
	begin := s.now
	s.run(func() bool { return s.k.Status == task.StatusStopped })
	if took := s.now.Sub(begin); took < time.Minute {
		t.Errorf("gave up after %v", took)
	}
	s.run(nil)
	s.check()
}

func TestStopOfATaskThatWasNeverKnown(t *testing.T) {
	s := newSim(t, 9, taskOf(task.Container{Name: "web", Essential: true}), simSpec{})
	s.stop()
	st := s.step()
	if len(st.Do) != 0 || len(st.Report) != 1 || st.Report[0].Status != task.StatusStopped || st.Report[0].Containers[0].Exit != nil {
		t.Fatalf("step %+v", st)
	}
	s.run(nil)
	s.check()
}

func TestUndeliveredTaskIsKept(t *testing.T) {
	s := newSim(t, 10, taskOf(task.Container{Name: "web", Essential: true}), simSpec{exits: map[string]int{"web": 0}})
	s.k.Undelivered = true
	s.run(func() bool { return s.now.After(time.Unix(1_700_000_000, 0).Add(24 * time.Hour)) })
	if s.done {
		t.Fatal("forgotten before the cluster heard of its end")
	}
	s.k.Undelivered = false
	s.run(nil)
	s.check()
}

func TestProcessThatLeftNoTraceIsNotStartedTwice(t *testing.T) {
	for _, started := range []bool{true, false} {
		s := newSim(t, 11, taskOf(task.Container{Name: "web", Essential: true}), simSpec{})
		s.run(func() bool { return s.k.Resource(Container("web")).Phase == task.Present })
		r := s.k.Resource(Container("web"))
		r.StartIntent, r.Verb = started, task.VerbNone
		s.flying = nil
		s.thing(Container("web")).process = task.ProcessNone
		s.commit()
		s.restart()
		s.run(func() bool { return s.k.Status >= task.StatusRunning })
		if started {
			if got := s.k.Resource(Container("web")).Reason; got == nil || got.Code != task.RuntimeLost {
				t.Errorf("started and lost: reason %v", got)
			}
		} else if s.starts["web#0"] != 1 {
			t.Errorf("never started: started %d times after the restart", s.starts["web#0"])
		}
		s.stop()
		s.run(nil)
		s.check()
	}
}

// A process whose start was cut short so that nothing of it ran is made anew, although
// its start was intended.
func TestProcessThatNeverRanIsMadeAnew(t *testing.T) {
	for _, unstarted := range []bool{true, false} {
		tk := taskOf(task.Container{Name: "web", Essential: true})
		id := Container("web")
		k := &task.Known{Desired: task.StatusRunning}
		*k.Resource(id) = task.Record{Phase: task.Present, StartIntent: true, Verb: task.VerbStart}
		o := task.Observed{Exists: true, Process: task.ProcessExited, Exit: &task.Exit{Code: 1}, Unstarted: unstarted}
		Fold(tk, k, task.Fact{Resource: id, At: time.Unix(1, 0), Observed: &o})
		if r := k.Resource(id); unstarted && (r.Phase != task.Ensuring || r.StartIntent || r.Exit != nil) {
			t.Errorf("never ran: %+v", r)
		} else if !unstarted && (r.Phase != task.Ended || r.Exit == nil) {
			t.Errorf("ran: %+v", r)
		}
	}
}

func TestRebuild(t *testing.T) {
	tk := taskOf(task.Container{Name: "web", Essential: true}, task.Container{Name: "late"})
	created := time.Unix(100, 0)
	k := Rebuild(task.Found{Task: tk, Containers: []task.FoundContainer{{Name: "web", RuntimeID: "id", Created: created}}}, time.Unix(200, 0))
	if k.Desired != task.StatusRunning || !k.Received.Equal(created) {
		t.Errorf("known %+v", k)
	}
	if r := k.Resource(Container("web")); r.Phase != task.Present || !r.StartIntent || !r.Unconfirmed || r.RuntimeID != "id" {
		t.Errorf("the container that is there: %+v", r)
	}
	if r := k.Resource(Container("late")); r.Phase != task.Absent {
		t.Errorf("the container that is not: %+v", r)
	}
	if r := k.Resource(Image("web")); r.Phase != task.Present {
		t.Errorf("an image in use would be pulled again: %+v", r)
	}
	for _, a := range Next(tk, k, Settings{}, time.Unix(200, 0)).Do {
		if a.Verb == task.VerbStart || a.Resource.Kind == task.KindContainer && a.Verb != task.VerbProbe {
			t.Errorf("before anything was asked: %v of %v", a.Verb, a.Resource)
		}
	}
}

func TestValidate(t *testing.T) {
	tests := []struct {
		name string
		task *task.Task
		ok   bool
	}{
		{"chain", taskOf(task.Container{Name: "a", DependsOn: on("b", task.ConditionStart)}, task.Container{Name: "b"}), true},
		{"self", taskOf(task.Container{Name: "a", DependsOn: on("a", task.ConditionStart)}), false},
		{"circle", taskOf(task.Container{Name: "a", DependsOn: on("b", task.ConditionStart)}, task.Container{Name: "b", DependsOn: on("a", task.ConditionStart)}), false},
		{"unknown", taskOf(task.Container{Name: "a", DependsOn: on("x", task.ConditionStart)}), false},
		{"twice", taskOf(task.Container{Name: "a"}, task.Container{Name: "a"}), false},
		{"link", taskOf(task.Container{Name: "a", Links: []string{"b:x"}}, task.Container{Name: "b"}), true},
		{"link to itself", taskOf(task.Container{Name: "a", Links: []string{"a"}}), false},
		{"circle of a link and a dependency", taskOf(task.Container{Name: "a", Links: []string{"b"}}, task.Container{Name: "b", DependsOn: on("a", task.ConditionStart)}), false},
		{"unknown link", taskOf(task.Container{Name: "a", Links: []string{"x"}}), false},
		{"none", taskOf(), false},
		{"no name", taskOf(task.Container{}), false},
	}
	for _, tt := range tests {
		if err := Validate(tt.task); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// randomTask draws a task with up to six containers, and dependencies and links without
// circles.
func randomTask(r *rand.Rand) (*task.Task, simSpec) {
	spec := simSpec{exits: map[string]int{}, runs: map[string]time.Duration{}, sick: map[string]float64{}, fail: map[task.ResourceID]task.Class{}, ignore: map[string]bool{}, flaky: r.Float64() * 0.3}
	conditions := []task.Condition{task.ConditionStart, task.ConditionComplete, task.ConditionSuccess, task.ConditionHealthy}
	tk := taskOf()
	tk.NetworkMode = []string{task.NetworkBridge, task.NetworkBridge, task.NetworkNone, task.NetworkHost}[r.IntN(4)]
	if r.IntN(32) == 0 {
		spec.fail[sharedNetwork] = task.Invalid
	}
	for i := range r.IntN(3) {
		v := task.Volume{Name: fmt.Sprintf("v%d", i), Type: "docker"}
		tk.Volumes = append(tk.Volumes, v)
		if r.IntN(16) == 0 {
			spec.fail[task.ResourceID{Kind: task.KindVolume, Name: v.Name}] = task.Invalid
		}
	}
	for i := range 1 + r.IntN(6) {
		c := task.Container{Name: fmt.Sprintf("c%d", i), Essential: r.IntN(2) == 0, StopTimeout: time.Duration(r.IntN(20)) * time.Second}
		for j := range i {
			if r.IntN(4) == 0 {
				c.DependsOn = append(c.DependsOn, task.Dependency{Container: fmt.Sprintf("c%d", j), Condition: conditions[r.IntN(len(conditions))]})
			}
		}
		for j := range i {
			if r.IntN(6) == 0 {
				c.Links = append(c.Links, fmt.Sprintf("c%d:other", j))
			}
			if r.IntN(8) == 0 {
				c.VolumesFrom = append(c.VolumesFrom, task.VolumesFrom{Container: fmt.Sprintf("c%d", j)})
			}
		}
		if r.IntN(3) == 0 {
			c.StartTimeout = time.Duration(1+r.IntN(300)) * time.Second
		}
		if r.IntN(2) == 0 {
			c.HealthCheckType = "docker"
			c.Config.Healthcheck = &task.Healthcheck{
				Test: []string{"CMD", "true"}, Interval: time.Duration(r.IntN(60)) * time.Second,
				StartPeriod: time.Duration(r.IntN(60)) * time.Second, Retries: r.IntN(4),
			}
			spec.sick[c.Name] = r.Float64()
		}
		if r.IntN(3) == 0 {
			c.Restart = &task.Restart{IgnoredExitCodes: []int{r.IntN(3)}, AttemptPeriod: time.Duration(r.IntN(120)) * time.Second}
		}
		for _, v := range tk.Volumes {
			if r.IntN(2) == 0 {
				c.Mounts = append(c.Mounts, task.Mount{Volume: v.Name, Path: "/" + v.Name})
			}
		}
		if r.IntN(16) == 0 {
			spec.fail[Network(tk, c.Name)] = task.Invalid
		}
		if r.IntN(3) == 0 {
			spec.exits[c.Name] = r.IntN(3)
			spec.runs[c.Name] = time.Duration(r.IntN(3)*r.IntN(100)) * time.Second
		}
		spec.ignore[c.Name] = r.IntN(5) == 0
		if r.IntN(12) == 0 {
			spec.fail[Container(c.Name)] = task.Invalid
		}
		if r.IntN(16) == 0 {
			spec.fail[Image(c.Name)] = task.Invalid
		}
		tk.Containers = append(tk.Containers, c)
	}
	r.Shuffle(len(tk.Containers), func(i, j int) { tk.Containers[i], tk.Containers[j] = tk.Containers[j], tk.Containers[i] })
	return tk, spec
}

// FuzzPlan runs random tasks to their end in random orders of events.
func FuzzPlan(f *testing.F) { fuzzPlan(f, 0) }

// FuzzPlanCrash does so while the agent crashes at random and starts again from what
// was committed, and finds that networks have gone.
func FuzzPlanCrash(f *testing.F) { fuzzPlan(f, 0.1) }

func fuzzPlan(f *testing.F, crash float64) {
	for seed := range uint64(300) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 2))
		tk, spec := randomTask(r)
		spec.crash, spec.lose = crash, crash
		s := newSim(t, seed, tk, spec)
		steps := r.IntN(200)
		s.run(func() bool { steps--; return steps < 0 })
		s.stop()
		s.run(nil)
		s.check()
	})
}

// TestEndpointOfAStoppingTaskComesBack restarts the agent while a container takes its time
// to end.
func TestEndpointOfAStoppingTaskComesBack(t *testing.T) {
	s := newSim(t, 41, taskOf(task.Container{Name: "web", Essential: true, StopTimeout: time.Minute}), simSpec{ignore: map[string]bool{"web": true}})
	s.run(func() bool { return s.k.Status == task.StatusRunning })
	s.stop()
	s.run(func() bool { return !s.k.Resource(Container("web")).StopSent.IsZero() })
	endpoint := task.ResourceID{Kind: task.KindEndpoint, Name: "web"}
	s.restart()
	if s.thing(endpoint).exists {
		t.Fatal("the endpoint outlived the agent")
	}
	s.run(func() bool { return s.thing(endpoint).exists })
	if s.thing(Container("web")).process != task.ProcessRunning {
		t.Error("it came back only when nobody needed it")
	}
	s.run(nil)
	s.check()
}

// TestRestartAfterACrashAtTheStart has the agent end between the start of a process and
// its record, and come back when the process has ended: it ran long enough all the same.
func TestRestartAfterACrashAtTheStart(t *testing.T) {
	for name, away := range map[string]time.Duration{"it ran long enough": 2 * time.Minute, "it ran too shortly": 30 * time.Second} {
		t.Run(name, func(t *testing.T) {
			k := &task.Known{Desired: task.StatusRunning}
			tk := taskOf(task.Container{Name: "web", Essential: true, Restart: &task.Restart{AttemptPeriod: time.Minute}})
			made := time.Unix(1_700_000_000, 0)
			r := k.Resource(Container("web"))
			r.Phase, r.Created, r.StartIntent, r.Unconfirmed = task.Present, made, true, true
			end := made.Add(away)
			Fold(tk, k, task.Fact{Resource: Container("web"), Verb: task.VerbProbe, At: end.Add(time.Hour), Observed: &task.Observed{
				Exists: true, Process: task.ProcessExited, Exit: &task.Exit{Code: 5, At: end},
			}})
			if again := whyFinal(tk.Containers[0].Restart, r) == ""; again != (away >= time.Minute) {
				t.Errorf("restarted: %t; started %v, ended %v", again, r.Started, r.Exit)
			}
		})
	}
}
