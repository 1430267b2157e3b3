package screen

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTableAlignsByWhatIsShown(t *testing.T) {
	var table Table
	table.Row("TASK", "STATE", "REASON")
	table.Row("a", "\x1b[32mRUNNING\x1b[0m", "-")
	table.Row("日本語", "é", "")
	table.Row("a-longer-one", "STOPPED", "x")
	var b bytes.Buffer
	if _, err := table.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	want := "TASK           STATE     REASON\n" +
		"a              \x1b[32mRUNNING\x1b[0m   -\n" +
		"日本語         é\n" +
		"a-longer-one   STOPPED   x\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestWidth(t *testing.T) {
	for s, want := range map[string]int{"": 0, "abc": 3, "é": 1, "e\u0301": 1, "日本": 4, "\x1b[1;31mred\x1b[0m": 3, "a\x00b": 2} {
		if got := Width(s); got != want {
			t.Errorf("Width(%q) = %d, want %d", s, got, want)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0.0s", 1500 * time.Millisecond: "1.5s", 42 * time.Second: "42s",
		3*time.Minute + 5*time.Second: "3m05s", 25 * time.Hour: "1d01h", 2*time.Hour + 30*time.Minute: "2h30m",
	} {
		if got := Span(d); got != want {
			t.Errorf("Span(%v) = %s, want %s", d, got, want)
		}
	}
	if got := Age(time.Time{}, time.Now()); got != "-" {
		t.Errorf("age of no time %q", got)
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 3 << 29: "1.5 GiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestPlainStepIsOneLineAndJSONStepIsSilent(t *testing.T) {
	var out, err bytes.Buffer
	s := &Screen{Out: &out, Err: &err}
	step := s.Begin("agent", "starting")
	step.Say("registering")
	step.Done("ready in %s", "1s")
	s.Begin("image", "loading").Fail()
	if diff := cmp.Diff("agent       ready in 1s\n", err.String()); diff != "" {
		t.Error(diff)
	}
	err.Reset()
	s.JSON = true
	s.Begin("agent", "starting").Done("ready")
	if err.Len() > 0 || out.Len() > 0 {
		t.Errorf("JSON step wrote %q %q", out.String(), err.String())
	}
	if got := s.Colour(Bad, "x"); got != "x" {
		t.Errorf("colour without a terminal: %q", got)
	}
}
