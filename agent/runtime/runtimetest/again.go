package runtimetest

import (
	"strings"
	"testing"
	"time"

	"berth.dev/berth/agent/task"
)

// check runs a health check of a running container once.
func (s *session) check(tk *task.Task, name string, h task.Handle, test ...string) task.Check {
	s.t.Helper()
	return s.checkWithin(20*time.Second, tk, name, h, test...) // more than any of them needs on a busy machine
}

func (s *session) checkWithin(limit time.Duration, tk *task.Task, name string, h task.Handle, test ...string) task.Check {
	s.t.Helper()
	tk.Container(name).Config.Healthcheck = &task.Healthcheck{Test: test, Timeout: limit}
	c, err := s.h.Runtime.Check(s.t.Context(), tk, name, h)
	if err != nil {
		s.t.Fatalf("check %q: %v", test, err)
	}
	return c
}

// testChecks has commands that every harness understands.
func testChecks(t *testing.T, s *session) {
	tk := s.task("sleep")
	r := s.ensure(tk, "c0")
	s.ok(s.h.Runtime.Start(t.Context(), tk, "c0", r.Handle))
	s.ready(tk, "c0")
	for range 2 {
		if c := s.check(tk, "c0", r.Handle, append([]string{"CMD"}, s.h.program("exit", "0")...)...); c.ExitCode != 0 || time.Since(c.Start).Abs() > time.Minute {
			t.Errorf("a check that succeeds: %+v", c)
		}
	}
	if c := s.check(tk, "c0", r.Handle, append([]string{"CMD"}, s.h.program("exit", "3")...)...); c.ExitCode != 3 {
		t.Errorf("a check that fails: %+v", c)
	}
	if c := s.check(tk, "c0", r.Handle, append([]string{"CMD"}, s.h.program("print", "3")...)...); c.ExitCode != 0 || c.Output != "line 0\nline 1\nline 2\n" {
		t.Errorf("a check that prints: %+v", c)
	}
	if c := s.check(tk, "c0", r.Handle, append([]string{"CMD"}, s.h.program("print", "100000")...)...); c.ExitCode != 0 || len(c.Output) != task.MaxHealthOutput {
		t.Errorf("a check that prints much: exit code %d, %d bytes", c.ExitCode, len(c.Output))
	}
	if c := s.check(tk, "c0", r.Handle, "CMD", "no-such-program"); c.ExitCode == 0 || !strings.Contains(c.Output, "no-such-program") {
		t.Errorf("a check that does not exist: %+v", c)
	}
	begin := time.Now()
	const limit = 3 * time.Second
	c := s.checkWithin(limit, tk, "c0", r.Handle, append([]string{"CMD"}, s.h.program("ignore-term")...)...)
	if took := time.Since(begin); c.ExitCode != -1 || !strings.HasPrefix(c.Output, "Health check exceeded timeout (3s)") || took < limit-time.Second || took > limit+wait {
		t.Errorf("a check that hangs, after %v: %+v", took, c)
	}
	if c := s.check(tk, "c0", r.Handle, append([]string{"CMD"}, s.h.program("exit", "0")...)...); c.ExitCode != 0 {
		t.Errorf("after one that hung: %+v", c)
	}
	s.probe(tk, "c0", r.Handle, true, task.ProcessRunning)
	s.ok(s.h.Runtime.Kill(t.Context(), tk, "c0", r.Handle))
	s.watch.exit(t, tk.ID(), "c0")
	if c, err := s.h.Runtime.Check(t.Context(), tk, "c0", r.Handle); err == nil {
		t.Errorf("a check of a container that has ended: %+v", c)
	}
}

func (h *Harness) program(args ...string) []string {
	if h.Program == "" {
		return args
	}
	return append([]string{h.Program}, args...)
}

func testIncarnations(t *testing.T, s *session) {
	tk := s.task("exit 3")
	var ids []string
	for n := range 3 {
		r := s.ensureAs(tk, "c0", n)
		ids = append(ids, r.RuntimeID)
		if o := s.probe(tk, "c0", r.Handle, true, task.ProcessCreated); o.Incarnation != n {
			t.Errorf("probe of incarnation %d tells of %d", n, o.Incarnation)
		}
		s.ok(s.h.Runtime.Start(t.Context(), tk, "c0", r.Handle))
		if e := s.watch.exitOf(t, tk.ID(), "c0", n); e.Code != 3 {
			t.Errorf("incarnation %d: %+v", n, e)
		}
		if o := s.probe(tk, "c0", nil, true, task.ProcessExited); o.Incarnation != n {
			t.Errorf("probe without a handle tells of incarnation %d, want %d", o.Incarnation, n)
		}
	}
	if ids[0] == ids[1] || ids[1] == ids[2] {
		t.Errorf("ids %v are not each its own", ids)
	}
	r := s.ensureAs(tk, "c0", 3) // the task is stopped before it is started
	s.ok(s.h.Runtime.Retire(t.Context(), tk, "c0", r.Handle))
	s.probe(tk, "c0", r.Handle, true, task.ProcessNone)
	s.ok(s.h.Runtime.Remove(t.Context(), tk, "c0", r.Handle))
	s.probe(tk, "c0", nil, false, task.ProcessNone)
	s.gone(tk)
}

// gone checks that nothing is left of a task.
func (s *session) gone(tk *task.Task) {
	s.t.Helper()
	all, err := s.h.Runtime.Owned(s.t.Context())
	s.ok(err)
	for _, o := range all {
		if o.TaskARN == tk.ARN {
			s.t.Errorf("still there: %s %s", o.Resource, o.Handle)
		}
	}
}

func testIncarnationOfLeader(t *testing.T, s *session) {
	tk := s.task("exit 4", "sleep", "sleep")
	first := s.ensure(tk, "c0") // alone, so it leads where containers share a shim
	others := map[string]task.Handle{}
	for _, name := range []string{"c1", "c2"} {
		r := s.ensure(tk, name)
		others[name] = r.Handle
		s.ok(s.h.Runtime.Start(t.Context(), tk, name, r.Handle))
	}
	s.ok(s.h.Runtime.Start(t.Context(), tk, "c0", first.Handle))
	s.watch.exit(t, tk.ID(), "c0")
	var last task.Result
	for n := 1; n <= 3; n++ {
		last = s.ensureAs(tk, "c0", n)
		s.ok(s.h.Runtime.Start(t.Context(), tk, "c0", last.Handle))
		if e := s.watch.exitOf(t, tk.ID(), "c0", n); e.Code != 4 {
			t.Errorf("incarnation %d: %+v", n, e)
		}
		s.probe(tk, "c1", others["c1"], true, task.ProcessRunning)
	}
	s.ok(s.h.Runtime.Retire(t.Context(), tk, "c0", last.Handle))
	for name, h := range others {
		s.probe(tk, name, h, true, task.ProcessRunning)
		s.ok(s.h.Runtime.Kill(t.Context(), tk, name, h))
		s.watch.exit(t, tk.ID(), name)
		s.ok(s.h.Runtime.Retire(t.Context(), tk, name, h))
	}
	s.ok(s.h.Runtime.Remove(t.Context(), tk, "c0", last.Handle))
	for name, h := range others {
		s.ok(s.h.Runtime.Remove(t.Context(), tk, name, h))
	}
	s.gone(tk)
}
