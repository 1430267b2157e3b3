// Package health keeps what is wrong with the agent at the moment, as a set of named
// conditions. Whoever notices sets a condition and clears it again; the command line,
// the readiness of the service and the watchdog read them.
//
// The list of conditions is closed: each is defined once, with its severity, a hint what
// to do about it, and the conditions that it follows from. While one of those is set, it
// is listed with it as its cause and does not count by itself.
package health

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Code names a condition, for people and for tools that match it.
type Code string

// Severity says what a condition takes away.
type Severity string

// Severities.
const (
	Low    Severity = "low"    // worth knowing; everything works
	Medium Severity = "medium" // something works less well, or will not work soon
	High   Severity = "high"   // tasks cannot be run or reported: the agent is not ready
)

// Definition describes one condition.
type Definition struct {
	Code      Code
	Severity  Severity
	Hint      string // what to do about it
	DependsOn []Code // conditions that bring it about
}

// State is one condition that is set.
type State struct {
	Code     Code      `json:"code"`
	Severity Severity  `json:"severity"`
	Text     string    `json:"text"` // what is wrong, as told by who noticed
	Hint     string    `json:"hint,omitempty"`
	Since    time.Time `json:"since"`
	// Because lists the conditions that this one follows from and that are set.
	Because []Code `json:"because,omitempty"`
}

// Registry holds the conditions of one agent. It is safe for use by many goroutines.
type Registry struct {
	definitions map[Code]Definition
	order       []Code // as they were defined

	mu    sync.Mutex
	set   map[Code]condition
	watch map[chan struct{}]struct{}
}

type condition struct {
	text  string
	since time.Time
}

// New returns a registry of the given conditions. It fails when they contradict each
// other: a code twice, a dependency that is not defined, or one that leads back to
// itself.
func New(definitions ...Definition) (*Registry, error) {
	r := &Registry{
		definitions: make(map[Code]Definition, len(definitions)),
		set:         make(map[Code]condition),
		watch:       make(map[chan struct{}]struct{}),
	}
	for _, d := range definitions {
		if _, ok := r.definitions[d.Code]; ok || d.Code == "" {
			return nil, fmt.Errorf("health: the condition %q is defined twice or has no code", d.Code)
		}
		if !slices.Contains([]Severity{Low, Medium, High}, d.Severity) {
			return nil, fmt.Errorf("health: the condition %q has no severity", d.Code)
		}
		r.definitions[d.Code] = d
		r.order = append(r.order, d.Code)
	}
	for _, d := range definitions {
		for _, on := range d.DependsOn {
			if _, ok := r.definitions[on]; !ok {
				return nil, fmt.Errorf("health: the condition %q depends on %q, which is not defined", d.Code, on)
			}
			if r.leads(on, d.Code, len(definitions)) {
				return nil, fmt.Errorf("health: the condition %q depends on itself by way of %q", d.Code, on)
			}
		}
	}
	return r, nil
}

// leads reports whether the dependencies of from, followed for some steps, contain to.
func (r *Registry) leads(from, to Code, steps int) bool {
	if from == to {
		return true
	}
	return steps > 0 && slices.ContainsFunc(r.definitions[from].DependsOn, func(c Code) bool { return r.leads(c, to, steps-1) })
}

// undefinedHint goes with a condition that somebody set without defining it. It is
// shown and not lost, because what it says is still wrong.
const undefinedHint = "this condition is unknown to this version of the agent; please report it"

// Report sets the condition when err says that something is wrong, and clears it when
// err is nil. Setting it again changes its text and not since when it is set.
func (r *Registry) Report(code Code, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	have, ok := r.set[code]
	switch {
	case err == nil && !ok:
		return
	case err == nil:
		delete(r.set, code)
	case ok && have.text == err.Error():
		return
	default:
		if !ok {
			have.since = time.Now()
		}
		have.text = err.Error()
		r.set[code] = have
	}
	for ch := range r.watch {
		select {
		case ch <- struct{}{}:
		default: // it has not looked since the last change
		}
	}
}

// Clear clears a condition; it is Report without an error.
func (r *Registry) Clear(code Code) { r.Report(code, nil) }

// Snapshot lists the conditions that are set: by severity, and then as defined. It is
// never nil, so that as JSON it is a list.
func (r *Registry) Snapshot() []State {
	r.mu.Lock()
	defer r.mu.Unlock()
	states := make([]State, 0, len(r.set))
	for _, code := range r.order {
		if c, ok := r.set[code]; ok {
			d := r.definitions[code]
			states = append(states, State{code, d.Severity, c.text, d.Hint, c.since, r.causes(d)})
		}
	}
	for code, c := range r.set {
		if _, ok := r.definitions[code]; !ok {
			states = append(states, State{Code: code, Severity: Medium, Text: c.text, Hint: undefinedHint, Since: c.since})
		}
	}
	rank := []Severity{High, Medium, Low}
	slices.SortStableFunc(states, func(a, b State) int {
		return slices.Index(rank, a.Severity) - slices.Index(rank, b.Severity)
	})
	return states
}

// causes lists which of a condition's dependencies are set.
func (r *Registry) causes(d Definition) (set []Code) {
	for _, on := range d.DependsOn {
		if _, ok := r.set[on]; ok {
			set = append(set, on)
		}
	}
	return set
}

// Ready returns nil when no condition of high severity is set, and else an error that
// names those that do not follow from another of them.
func (r *Registry) Ready() error {
	states := r.Snapshot()
	isHigh := func(code Code) bool {
		return slices.ContainsFunc(states, func(s State) bool { return s.Code == code && s.Severity == High })
	}
	var wrong []error
	for _, s := range states {
		if s.Severity == High && !slices.ContainsFunc(s.Because, isHigh) {
			wrong = append(wrong, fmt.Errorf("%s: %s: %s", s.Code, s.Text, s.Hint))
		}
	}
	return errors.Join(wrong...)
}

// Subscribe returns a channel that has a value after conditions have changed, and a
// function that ends the subscription. The subscriber then looks at the Snapshot;
// changes that follow each other closely may be told as one.
func (r *Registry) Subscribe() (changed <-chan struct{}, cancel func()) {
	ch := make(chan struct{}, 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watch[ch] = struct{}{}
	return ch, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.watch, ch)
	}
}
