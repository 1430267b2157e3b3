//go:build failpoint

package fail

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
)

// Enabled reports whether this program was built with failpoints.
const Enabled = true

// board is the one piece of shared state of this package. A crash test sets points
// from outside, at places deep in the program, so there is nobody to hand it down.
type board struct {
	mu     sync.Mutex
	terms  [count]Terms
	passed [count]int
}

// points is read from the environment at its first use. A setting that cannot be read
// ends the program: a crash test that silently does nothing would pass.
var points = sync.OnceValue(func() *board {
	set, err := ParseSettings(os.Getenv(EnvSettings))
	if err != nil {
		panic(EnvSettings + ": " + err.Error())
	}
	b := &board{}
	for n, ts := range set {
		b.terms[n] = ts
	}
	return b
})

// Point does what is set for n. Its error, if any, is to be returned by the caller as
// if the operation that follows had failed.
func Point(n Name) error {
	t := points().next(n)
	switch t.Action {
	case ActionError:
		text := t.Text
		if text == "" {
			text = "failed"
		}
		return fmt.Errorf("failpoint %s: %s", n, text)
	case ActionDelay:
		time.Sleep(t.Delay)
	case ActionPanic:
		panic("failpoint " + n.String() + ": " + t.Text)
	case ActionExit:
		crash()
	}
	return nil
}

// crash ends the process as a power cut would: no deferred calls, no buffers flushed.
func crash() {
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGKILL); err != nil {
		panic("failpoint exit: " + err.Error())
	}
	select {} // nothing after this point may run before the signal arrives
}

// next counts one passing of n and takes one use of its first term.
func (b *board) next(n Name) Term {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.passed[n]++
	ts := b.terms[n]
	if len(ts) == 0 {
		return Term{Action: ActionOff}
	}
	t := ts[0]
	if t.Count > 0 {
		left := append(Terms(nil), ts...)
		if left[0].Count--; left[0].Count == 0 {
			left = left[1:]
		}
		b.terms[n] = left
	}
	return t
}

// Set replaces what happens at n; no terms turn it off.
func Set(n Name, ts Terms) error {
	if n >= count {
		return fmt.Errorf("no failpoint has the number %d", n)
	}
	b := points()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.terms[n] = ts
	return nil
}

// Status lists every failpoint with the terms that are left and how often it was passed.
func Status() []State {
	b := points()
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make([]State, 0, count)
	for _, n := range Names() {
		all = append(all, State{Name: n, Terms: b.terms[n], Passed: b.passed[n]})
	}
	return all
}
