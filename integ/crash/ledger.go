// Package crash kills parts of a running system and checks what must hold all the same
// (reliability plan, invariants I1 to I5). A ledger records what can be seen from
// outside: processes say themselves that they were started, the cluster what was
// reported to it, the kernel whether a cgroup was empty at that moment. Validators are
// pure functions over the ledger.
package crash

import (
	"fmt"
	"maps"
	"slices"
	"sync"
)

// Container names one container of one task.
type Container struct{ Task, Name string }

// Report is one state change that the cluster has accepted.
type Report struct {
	Task       string
	Status     string // PENDING, RUNNING or STOPPED
	Containers []ContainerReport
	// Alive lists processes of containers that the report calls STOPPED.
	Alive []int
}

// ContainerReport is one container's part of a report.
type ContainerReport struct {
	Name, Status string
	Exit         int // noExit when there is none
}

const noExit = -1

// History is what was seen.
type History struct {
	Starts  map[Container]int // how often a process has said that it was started
	Reports []Report          // in the order in which the cluster took them
}

// Ledger collects a history from several goroutines.
type Ledger struct {
	mu sync.Mutex
	h  History
}

// Started records that a process was started.
func (l *Ledger) Started(c Container) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.h.Starts == nil {
		l.h.Starts = map[Container]int{}
	}
	l.h.Starts[c]++
}

// Reported records a report.
func (l *Ledger) Reported(r Report) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.h.Reports = append(l.h.Reports, r)
}

// History is what was seen so far.
func (l *Ledger) History() History {
	l.mu.Lock()
	defer l.mu.Unlock()
	return History{Starts: maps.Clone(l.h.Starts), Reports: slices.Clone(l.h.Reports)}
}

// of is the part of a history that is about one task.
func (h History) of(task string) History {
	part := History{Starts: map[Container]int{}}
	for c, n := range h.Starts {
		if c.Task == task {
			part.Starts[c] = n
		}
	}
	for _, r := range h.Reports {
		if r.Task == task {
			part.Reports = append(part.Reports, r)
		}
	}
	return part
}

// Expected is what a task's history has to come to: the exit code of every container.
type Expected map[string]int

// Violations checks the history of one stopped task against all invariants.
func Violations(task string, want Expected, h History) []string {
	h = h.of(task)
	var all []string
	for _, check := range []func(string, Expected, History) []string{startedOnce, emptyWhenStopped, monotone, oneEnd} {
		all = append(all, check(task, want, h)...)
	}
	return all
}

// startedOnce is I2: no process is started twice.
func startedOnce(task string, want Expected, h History) []string {
	var bad []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if n := h.Starts[Container{task, name}]; n != 1 {
			bad = append(bad, fmt.Sprintf("I2: %s of task %s was started %d times", name, task, n))
		}
	}
	return bad
}

// emptyWhenStopped is I4: what is reported STOPPED has no process left.
func emptyWhenStopped(task string, _ Expected, h History) []string {
	var bad []string
	for i, r := range h.Reports {
		if len(r.Alive) > 0 {
			bad = append(bad, fmt.Sprintf("I4: report %d of task %s says STOPPED while processes %v are there", i, task, r.Alive))
		}
	}
	return bad
}

var rank = map[string]int{"PENDING": 1, "RUNNING": 2, "STOPPED": 3}

// monotone is I5: no status goes back.
func monotone(task string, _ Expected, h History) []string {
	var bad []string
	highest := map[string]int{} // by container, "" for the task
	step := func(i int, name, status string) {
		if rank[status] < highest[name] {
			bad = append(bad, fmt.Sprintf("I5: report %d of task %s: %q goes back to %s", i, task, name, status))
		}
		highest[name] = max(highest[name], rank[status])
	}
	for i, r := range h.Reports {
		step(i, "", r.Status)
		for _, c := range r.Containers {
			step(i, c.Name, c.Status)
		}
	}
	return bad
}

// oneEnd is I1 and I5: the task's end is reported, with one exit code for each
// container, which is the kernel's. A report may come twice, because the agent repeats
// what it is not sure of, and must say the same then.
func oneEnd(task string, want Expected, h History) []string {
	var bad []string
	exits := map[string][]int{}
	stopped := false
	for _, r := range h.Reports {
		stopped = stopped || r.Status == "STOPPED"
		for _, c := range r.Containers {
			if c.Status == "STOPPED" && !slices.Contains(exits[c.Name], c.Exit) {
				exits[c.Name] = append(exits[c.Name], c.Exit)
			}
		}
	}
	if !stopped {
		bad = append(bad, fmt.Sprintf("I1: the end of task %s was not reported", task))
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !slices.Equal(exits[name], []int{want[name]}) {
			bad = append(bad, fmt.Sprintf("I5: exit codes %v were reported for %s of task %s, want %d once", exits[name], name, task, want[name]))
		}
	}
	return bad
}
