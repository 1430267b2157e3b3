//go:build failpoint

package fail

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func mustTerms(t *testing.T, s string) Terms {
	t.Helper()
	ts, err := ParseTerms(s)
	if err != nil {
		t.Fatal(err)
	}
	return ts
}

func set(t *testing.T, n Name, s string) {
	t.Helper()
	if err := Set(n, mustTerms(t, s)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Set(n, nil); err != nil {
			t.Error(err)
		}
	})
}

func TestPointUsesUpItsTerms(t *testing.T) {
	set(t, StopAfterTerm, "2*off->1*error(no disk)")
	before := Status()[StopAfterTerm].Passed
	for i, want := range []string{"", "", "failpoint stop.after-term: no disk", "", ""} {
		got := ""
		if err := Point(StopAfterTerm); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("passing %d: %q, want %q", i, got, want)
		}
	}
	if n := Status()[StopAfterTerm].Passed - before; n != 5 {
		t.Errorf("%d passings counted, want 5", n)
	}
}

func TestPointDelays(t *testing.T) {
	set(t, StopAfterKill, "delay(1500)")
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if err := Point(StopAfterKill); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 1500*time.Millisecond {
			t.Errorf("waited %v", d)
		}
	})
}

func TestPointPanics(t *testing.T) {
	set(t, ExitObserved, "panic(boom)")
	defer func() {
		if r := recover(); r != "failpoint exit.observed: boom" {
			t.Errorf("recovered %v", r)
		}
	}()
	_ = Point(ExitObserved)
	t.Error("no panic")
}

// The child is this test again, with the point set to exit by the environment.
func TestPointExitRunsNothingDeferred(t *testing.T) {
	if os.Getenv(EnvSettings) != "" {
		defer os.Stdout.WriteString("deferred")
		_ = Point(MigrateMid)
		os.Stdout.WriteString("after")
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestPointExitRunsNothingDeferred$")
	cmd.Env = append(os.Environ(), EnvSettings+"=migrate.mid=exit")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("child ended with %v, want SIGKILL", err)
	}
	if len(out) > 0 {
		t.Errorf("child went on after exit: %s", out)
	}
}
