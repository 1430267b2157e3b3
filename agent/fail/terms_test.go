package fail

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseTerms(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want Terms
	}{
		{"off", Terms{{Action: ActionOff}}},
		{"exit", Terms{{Action: ActionExit}}},
		{"2*off->1*panic", Terms{{Count: 2, Action: ActionOff}, {Count: 1, Action: ActionPanic}}},
		{"error(a->b * c)", Terms{{Action: ActionError, Text: "a->b * c"}}},
		{"3*delay(20)->exit", Terms{{Count: 3, Action: ActionDelay, Delay: 20 * time.Millisecond}, {Action: ActionExit}}},
	} {
		got, err := ParseTerms(tc.in)
		if err != nil {
			t.Errorf("%s: %v", tc.in, err)
			continue
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %s", tc.in, diff)
		}
		if got.String() != tc.in {
			t.Errorf("%s: printed as %s", tc.in, got)
		}
	}
}

func TestParseTermsRefuses(t *testing.T) {
	for _, in := range []string{"", "->", "of", "0*off", "-1*off", "x*off", "off(1)", "exit()", "delay", "delay(x)",
		"delay(-1)", "delay(99999999999)", "error(a", "error a)", "error((a))", "off->exit", "1*off->", "1*off->off->off"} {
		if ts, err := ParseTerms(in); err == nil {
			t.Errorf("%q was read as %v", in, ts)
		}
	}
}

func TestParseSettings(t *testing.T) {
	got, err := ParseSettings(" report.before-submit=1*off->error(x); exit.observed=exit;")
	if err != nil {
		t.Fatal(err)
	}
	want := map[Name]Terms{
		ReportBeforeSubmit: {{Count: 1, Action: ActionOff}, {Action: ActionError, Text: "x"}},
		ExitObserved:       {{Action: ActionExit}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, in := range []string{"exit.observed", "nowhere=off", "exit.observed=no"} {
		if _, err := ParseSettings(in); err == nil {
			t.Errorf("%q was accepted", in)
		}
	}
}

func TestNamesAreCompleteAndDistinct(t *testing.T) {
	all := Names()
	if len(all) != 40 {
		t.Fatalf("%d failpoints, want the 40 of the crash matrix", len(all))
	}
	for _, n := range all {
		back, err := Parse(n.String())
		if err != nil || back != n {
			t.Errorf("%d is called %q, which reads as %d, %v", n, n, back, err)
		}
	}
}

func FuzzFailpointTerms(f *testing.F) {
	for _, s := range []string{"2*off->1*panic", "error(x)", "delay(10)", "exit", "1*error(->)->off", "*", "()", "1*1*off"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ts, err := ParseTerms(s)
		if err != nil {
			return
		}
		again, err := ParseTerms(ts.String())
		if err != nil {
			t.Fatalf("%q prints as %q, which is refused: %v", s, ts, err)
		}
		if diff := cmp.Diff(ts, again); diff != "" {
			t.Fatalf("%q changes when printed: %s", s, diff)
		}
	})
}
