package engine

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"berth.dev/berth/agent/task"
)

func TestTaskRunsAndStopsWhenTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h := &memoryStore{}, newHost()
		e, _ := startEngine(t, h, s)
		defer e.Close()
		tk := newTask("a", "web", "side")
		accept(t, e, s, tk)
		synctest.Wait()
		wantStatus(t, e, tk, task.StatusRunning)

		if err := e.SetDesired(t.Context(), tk.ARN, task.StatusStopped, 7); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		wantStatus(t, e, tk, task.StatusStopped)
		reports := s.reported()
		if n := len(reports); n != 2 || reports[0].Status != task.StatusRunning || reports[1].Status != task.StatusStopped {
			t.Fatalf("reports %+v", reports)
		}
		time.Sleep(2 * time.Hour) // virtual: past the retention time
		synctest.Wait()
		if len(h.things) != 0 || len(s.tasks) != 0 {
			t.Errorf("left on the host: %v, in the database: %v", h.things, s.tasks)
		}
		if _, known := e.Known(tk.ARN); known {
			t.Error("still known")
		}
	})
}

func TestStopIsForced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h := &memoryStore{}, newHost()
		h.ignore = true
		e, _ := startEngine(t, h, s)
		defer e.Close()
		tk := newTask("a", "web")
		accept(t, e, s, tk)
		synctest.Wait()
		if err := e.SetDesired(t.Context(), tk.ARN, task.StatusStopped, 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(29 * time.Second)
		synctest.Wait()
		wantStatus(t, e, tk, task.StatusRunning)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		wantStatus(t, e, tk, task.StatusStopped)
	})
}

func TestNothingIsBegunThatIsNotStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h := &memoryStore{}, newHost()
		e, _ := startEngine(t, h, s)
		defer e.Close()
		tk := newTask("a", "web")
		k := &task.Known{Desired: task.StatusRunning}
		if err := s.Commit(t.Context(), task.Commit{Batches: []task.Batch{{TaskID: tk.ID(), Task: tk, Known: k}}}); err != nil {
			t.Fatal(err)
		}
		s.setFail(errors.New("disk full"))
		e.Accept(task.Stored{Task: tk, Known: k})
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(h.things) != 0 {
			t.Fatalf("made without a stored intent: %v", h.things)
		}
		s.setFail(nil)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		wantStatus(t, e, tk, task.StatusRunning)
	})
}

func TestRestartAdoptsWhatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h := &memoryStore{}, newHost()
		e, _ := startEngine(t, h, s)
		stays, ended, gone := newTask("stays", "web"), newTask("ended", "web"), newTask("gone", "web")
		accept(t, e, s, stays, ended, gone)
		synctest.Wait()
		e.Close()
		h.seen = nil

		(&fakeContainers{fakeResource{task.KindContainer, h}}).end("ended", "web", 5)
		delete(h.things, "container/gone/web")
		e, c := startEngine(t, h, s)
		defer e.Close()
		synctest.Wait()
		wantStatus(t, e, stays, task.StatusRunning)
		wantStatus(t, e, ended, task.StatusStopped)
		wantStatus(t, e, gone, task.StatusStopped)
		for key, n := range h.starts {
			if n != 1 {
				t.Errorf("%s was started %d times", key, n)
			}
		}
		v, _ := e.View(ended.ARN)
		if got := v.Known.Resources[task.ResourceID{Kind: task.KindContainer, Name: "web"}].Exit.Code; got != 5 {
			t.Errorf("exit code %d, want 5", got)
		}
		v, _ = e.View(gone.ARN)
		if got := v.Known.Resources[task.ResourceID{Kind: task.KindContainer, Name: "web"}].Reason; got == nil || got.Code != task.ContainerVanished {
			t.Errorf("reason %v, want %s", got, task.ContainerVanished)
		}
		c.end("stays", "web", 0)
		synctest.Wait()
		wantStatus(t, e, stays, task.StatusStopped)
	})
}

func TestMissedExitIsFoundByRelisting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h := &memoryStore{}, newHost()
		e, c := startEngine(t, h, s)
		defer e.Close()
		tk := newTask("a", "web")
		accept(t, e, s, tk)
		synctest.Wait()
		h.mu.Lock()
		h.seen = nil
		h.mu.Unlock()
		c.end("a", "web", 9)
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		wantStatus(t, e, tk, task.StatusStopped)
	})
}

func TestContainersAreMadeAFewAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h := &memoryStore{}, newHost()
		h.slow = time.Second
		e, _ := startEngine(t, h, s)
		defer e.Close()
		tasks := many(10)
		accept(t, e, s, tasks...)
		time.Sleep(time.Minute)
		synctest.Wait()
		for _, tk := range tasks {
			wantStatus(t, e, tk, task.StatusRunning)
		}
		if h.most > 2 {
			t.Errorf("%d containers were made at once, want at most 2", h.most)
		}
	})
}

func TestStopCancelsWhatIsBeingMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h := &memoryStore{}, newHost()
		h.slow = 50 * time.Second
		e, _ := startEngine(t, h, s)
		defer e.Close()
		tk := newTask("a", "web")
		accept(t, e, s, tk)
		time.Sleep(time.Second)
		if err := e.SetDesired(t.Context(), tk.ARN, task.StatusStopped, 1); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		wantStatus(t, e, tk, task.StatusStopped)
		if h.starts["container/a/web"] != 0 {
			t.Error("started although it was stopped before")
		}
	})
}

func TestPanickingAdapterFailsOneTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h := &memoryStore{}, newHost()
		h.panics = true
		e, _ := startEngine(t, h, s)
		defer e.Close()
		bad := newTask("bad", "web")
		accept(t, e, s, bad)
		synctest.Wait()
		wantStatus(t, e, bad, task.StatusStopped)
		h.mu.Lock()
		h.panics = false
		h.mu.Unlock()
		good := newTask("good", "web")
		accept(t, e, s, good)
		synctest.Wait()
		wantStatus(t, e, good, task.StatusRunning)
	})
}

func TestSetDesiredNeverLowers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h := &memoryStore{}, newHost()
		e, _ := startEngine(t, h, s)
		defer e.Close()
		tk := newTask("a", "web")
		accept(t, e, s, tk)
		for _, st := range []task.Status{task.StatusStopped, task.StatusRunning} {
			if err := e.SetDesired(t.Context(), tk.ARN, st, 1); err != nil {
				t.Fatal(err)
			}
		}
		if d, _ := e.Known(tk.ARN); d != task.StatusStopped {
			t.Errorf("desired %v", d)
		}
		if err := e.SetDesired(t.Context(), "arn:aws:ecs:us-east-1:1:task/default/none", task.StatusStopped, 1); task.ClassOf(err) != task.NotFound {
			t.Errorf("unknown task: %v", err)
		}
	})
}

func TestAdmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h := &memoryStore{}, newHost()
		e, _ := startEngine(t, h, s)
		defer e.Close()
		big, late, small := newTask("big", "web"), newTask("late", "web"), newTask("small", "web")
		big.CPU, late.CPU = 3, 2
		accept(t, e, s, big)
		synctest.Wait()
		accept(t, e, s, late)
		synctest.Wait()
		accept(t, e, s, small)
		synctest.Wait()
		wantStatus(t, e, big, task.StatusRunning)
		wantStatus(t, e, late, task.StatusNone)
		wantStatus(t, e, small, task.StatusRunning) // not held back by the one that waits
		if w := e.Waiting(); len(w) != 1 || w[0].TaskARN != late.ARN {
			t.Errorf("waiting: %+v", w)
		}
		time.Sleep(2 * time.Second) // virtual: the event log is written with some delay
		synctest.Wait()
		s.mu.Lock()
		if !slices.ContainsFunc(s.tasks["late"].events, func(ev task.Event) bool {
			return ev.Kind == task.EventWaiting && ev.Text == "waits for 2048 CPU units, of which 1024 are free"
		}) {
			t.Errorf("no event says what it waits for: %+v", s.tasks["late"].events)
		}
		s.mu.Unlock()
		if err := e.SetDesired(t.Context(), big.ARN, task.StatusStopped, 1); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		wantStatus(t, e, late, task.StatusRunning)

		huge := newTask("huge", "web")
		huge.Memory = 1 << 20
		accept(t, e, s, huge)
		synctest.Wait()
		v, _ := e.View(huge.ARN)
		if v.Known.Status != task.StatusStopped || v.Known.Reason == nil || v.Known.Reason.Code != task.HostResourcesExhausted {
			t.Errorf("a task larger than the host: %v, %v", v.Known.Status, v.Known.Reason)
		}
	})
}
