package health

import (
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func newRegistry(t *testing.T) *Registry {
	t.Helper()
	r, err := New(
		Definition{Code: "low", Severity: Low, Hint: "wait"},
		Definition{Code: "disk", Severity: High, Hint: "make space"},
		Definition{Code: "db", Severity: High, Hint: "repair", DependsOn: []Code{"disk"}},
		Definition{Code: "late", Severity: Medium, DependsOn: []Code{"db", "low"}},
	)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSnapshotIsSortedAndNamesCauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t)
		start := time.Now()
		r.Report("low", errors.New("l"))
		r.Report("late", errors.New("x"))
		<-time.After(time.Second)
		r.Report("db", errors.New("d"))
		r.Report("late", errors.New("y")) // keeps its time
		r.Report("odd", errors.New("o"))
		want := []State{
			{Code: "db", Severity: High, Text: "d", Hint: "repair", Since: start.Add(time.Second)},
			{Code: "late", Severity: Medium, Text: "y", Since: start, Because: []Code{"db", "low"}},
			{Code: "odd", Severity: Medium, Text: "o", Hint: undefinedHint, Since: start.Add(time.Second)},
			{Code: "low", Severity: Low, Text: "l", Hint: "wait", Since: start},
		}
		if diff := cmp.Diff(want, r.Snapshot()); diff != "" {
			t.Error(diff)
		}
		for _, c := range []Code{"db", "late", "odd", "low", "never"} {
			r.Clear(c)
		}
		if b, err := json.Marshal(r.Snapshot()); err != nil || string(b) != "[]" {
			t.Errorf("all clear is %s, %v", b, err)
		}
	})
}

func TestReadyNamesTheRoots(t *testing.T) {
	r := newRegistry(t)
	r.Report("late", errors.New("x"))
	if err := r.Ready(); err != nil {
		t.Errorf("not ready for a condition of medium severity: %v", err)
	}
	r.Report("db", errors.New("cannot write"))
	if err := r.Ready(); err == nil || err.Error() != "db: cannot write: repair" {
		t.Errorf("ready: %v", err)
	}
	r.Report("disk", errors.New("full"))
	if err := r.Ready(); err == nil || err.Error() != "disk: full: make space" {
		t.Errorf("ready: %v", err)
	}
	r.Clear("disk")
	r.Clear("db")
	if err := r.Ready(); err != nil {
		t.Errorf("ready: %v", err)
	}
}

func TestSubscribersHearOfChangesOnly(t *testing.T) {
	r := newRegistry(t)
	changed, cancel := r.Subscribe()
	told := func() bool {
		select {
		case <-changed:
			return true
		default:
			return false
		}
	}
	steps := []struct {
		do   func()
		want bool
	}{
		{func() {}, false},
		{func() { r.Clear("db") }, false},
		{func() { r.Report("db", errors.New("a")) }, true},
		{func() { r.Report("db", errors.New("a")) }, false},
		{func() { r.Report("db", errors.New("b")); r.Report("disk", errors.New("c")) }, true},
		{func() { r.Clear("db") }, true},
		{func() { cancel(); cancel(); r.Clear("disk") }, false},
	}
	for i, s := range steps {
		s.do()
		if got := told(); got != s.want {
			t.Errorf("step %d: told %v, want %v", i, got, s.want)
		}
	}
}

func TestNewRefusesContradictions(t *testing.T) {
	for text, definitions := range map[string][]Definition{
		"twice":       {{Code: "a", Severity: Low}, {Code: "a", Severity: Low}},
		"no code":     {{Severity: Low}},
		"no severity": {{Code: "a"}},
		"not defined": {{Code: "a", Severity: Low, DependsOn: []Code{"b"}}},
		"itself":      {{Code: "a", Severity: Low, DependsOn: []Code{"b"}}, {Code: "b", Severity: Low, DependsOn: []Code{"a"}}},
	} {
		if _, err := New(definitions...); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want %q", err, text)
		}
	}
}

func TestConditionsOfTheAgentAreWhole(t *testing.T) {
	if _, err := New(Agent()...); err != nil {
		t.Fatal(err)
	}
	for _, d := range Agent() {
		if d.Hint == "" {
			t.Errorf("%s has no hint", d.Code)
		}
	}
}

func TestRegistryIsSafeForManyGoroutines(t *testing.T) {
	r := newRegistry(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, cancel := r.Subscribe()
			defer cancel()
			for range 100 {
				r.Report("db", errors.New("x"))
				r.Snapshot()
				r.Clear("db")
			}
		})
	}
	wg.Wait()
}
