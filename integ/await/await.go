// Package await has the waits of tests for what other processes do.
package await

import (
	"testing"
	"time"
)

// patience is how many times longer than on a machine that has nothing else to do a wait
// may take. Tests are no measurements: the limit of a wait is there so that a test ends
// which would wait for ever, and a slow disk or a busy processor is no defect of ours.
// Figures are the matter of the benchmarks.
const patience = 8

// A condition is looked at often at first, and the longer it has taken the less often: to
// look is work as well, for which what is waited for has to wait.
const (
	firstInterval = 5 * time.Millisecond
	maxInterval   = 250 * time.Millisecond
	share         = 20 // the next interval is this part of the time that has passed
)

// Until waits for a condition, and fails the test with what the condition said last when
// it does not come true. limit is what that takes at most on a machine with nothing else
// to do.
func Until(t testing.TB, limit time.Duration, what string, condition func() error) {
	t.Helper()
	limit *= patience
	begin := time.Now()
	end := time.NewTimer(limit)
	defer end.Stop()
	next := time.NewTimer(firstInterval)
	defer next.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-end.C:
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		case <-next.C:
			next.Reset(min(max(time.Since(begin)/share, firstInterval), maxInterval))
		}
	}
}
