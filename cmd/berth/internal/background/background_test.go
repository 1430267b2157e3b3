package background

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/cmd/berth/internal/layout"
)

func program(t *testing.T) Program {
	dir := t.TempDir()
	return Program{Name: "sleeper", PIDFile: filepath.Join(dir, "sleeper.pid"), LogFile: filepath.Join(dir, "log", "sleeper.log")}
}

func start(t *testing.T, p Program, script string) *Process {
	t.Helper()
	proc, err := p.Start([]string{"/bin/sh", "-c", script}, []string{"WORD=hello"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := p.Stop(t.Context(), 0); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	return proc
}

// within waits until ok holds, for at most ten seconds.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestStartedProgramIsFoundAndStopped(t *testing.T) {
	p := program(t)
	if proc, err := p.Running(); proc != nil || err != nil {
		t.Fatalf("before start: %v, %v", proc, err)
	}
	proc := start(t, p, `echo "$WORD"; exec sleep 600`)
	within(t, "its output is in its log", func() bool { return p.Tail(5) == "hello" })
	found, err := p.Running()
	if err != nil || found == nil || found.PID != proc.PID {
		t.Fatalf("running: %v, %v; want pid %d", found, err, proc.PID)
	}
	stopped, err := p.Stop(t.Context(), 5*time.Second)
	if !stopped || err != nil {
		t.Fatalf("stop: %v, %v", stopped, err)
	}
	if proc, err := p.Running(); proc != nil || err != nil {
		t.Fatalf("after stop: %v, %v", proc, err)
	}
	if stopped, err := p.Stop(t.Context(), 0); stopped || err != nil {
		t.Fatalf("second stop: %v, %v; want nothing to do", stopped, err)
	}
}

func TestProgramThatIgnoresTheSignalIsKilled(t *testing.T) {
	p := program(t)
	start(t, p, `trap '' TERM; echo ready; while :; do read -r line < /dev/zero; done`)
	within(t, "it is ready", func() bool { return p.Tail(1) == "ready" })
	if stopped, err := p.Stop(t.Context(), 100*time.Millisecond); !stopped || err != nil {
		t.Fatalf("stop: %v, %v", stopped, err)
	}
}

func TestPidOfAnotherProcessIsNotTakenForTheProgram(t *testing.T) {
	for name, change := range map[string]func(*Process){
		"other start time": func(p *Process) { p.Ticks++ },
		"other boot":       func(p *Process) { p.Boot = "earlier" },
	} {
		t.Run(name, func(t *testing.T) {
			p := program(t)
			self, err := identify(os.Getpid())
			if err != nil {
				t.Fatal(err)
			}
			change(self)
			if err := layout.WriteJSON(p.PIDFile, self); err != nil {
				t.Fatal(err)
			}
			if proc, err := p.Running(); proc != nil || err != nil {
				t.Errorf("running: %v, %v; want nothing", proc, err)
			}
			if stopped, err := p.Stop(t.Context(), 0); stopped || err != nil { // would end this test
				t.Errorf("stop: %v, %v", stopped, err)
			}
		})
	}
}

func TestEndedProgramIsNotRunning(t *testing.T) {
	p := program(t)
	start(t, p, `echo sorry >&2; sleep 0.1; exit 3`)
	within(t, "it is seen to have ended", func() bool { proc, err := p.Running(); return proc == nil && err == nil })
	if got := p.Tail(1); got != "sorry" {
		t.Errorf("last line of its log %q", got)
	}
}

func TestTailIsBounded(t *testing.T) {
	p := program(t)
	if err := os.MkdirAll(filepath.Dir(p.LogFile), 0o700); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 100) + "\n"
	if err := os.WriteFile(p.LogFile, []byte(strings.Repeat(long, 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(p.Tail(3), "x"); got != 300 {
		t.Errorf("%d characters of the last 3 lines, want 300", got)
	}
	if got := len(p.Tail(1000)); got > 4096 {
		t.Errorf("%d bytes, want at most 4096", got)
	}
}

func TestUnreadablePidFileIsAnError(t *testing.T) {
	p := program(t)
	if err := os.WriteFile(p.PIDFile, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Running(); err == nil || !strings.Contains(err.Error(), "pid file of sleeper") {
		t.Errorf("error %v", err)
	}
}
