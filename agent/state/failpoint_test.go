//go:build failpoint

package state

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"berth.dev/berth/agent/fail"
)

func TestCrashInTheMiddleOfAMigrationIsNoLoss(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "state-churn", dir)
	cmd.Env = append(os.Environ(), fail.EnvSettings+"=migrate.mid=exit")
	if err := cmd.Run(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child ended with %v, want a crash at the failpoint", err)
	}
	db := openDir(t, dir)
	if o := db.Opening(); !o.Fresh || o.Lost != nil {
		t.Errorf("opening %+v", o)
	}
	mustCommit(t, db, commit(accept("a")))
}
