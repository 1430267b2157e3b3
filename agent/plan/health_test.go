package plan

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/task"
)

// TestHealthRules folds outcomes of checks, one letter each: s succeeds, f fails, p fails
// in the start period, u could not be asked.
func TestHealthRules(t *testing.T) {
	for _, tt := range []struct {
		outcomes string
		retries  int
		want     string // status after each: H, U or ? for UNKNOWN
	}{
		{"s", 3, "H"},
		{"fff", 3, "??U"},
		{"fff", 0, "??U"}, // the default
		{"f", 1, "U"},
		{"ffsff", 3, "??HHH"},
		{"sfff", 3, "HHHU"},
		{"fffs", 3, "??UH"},
		{"ppppf", 1, "????U"},
		{"psp", 1, "?HU"}, // after the first success every failure counts
		{"fuuf", 2, "???U"},
		{"suuu", 1, "HHHH"},
	} {
		c := task.Container{Name: "web", HealthCheckType: "docker", Config: task.Config{Healthcheck: &task.Healthcheck{
			Test: []string{"CMD", "true"}, Retries: tt.retries, StartPeriod: time.Minute,
		}}}
		begin := time.Unix(1_700_000_000, 0)
		r := &task.Record{Phase: task.Present, Started: begin}
		got := ""
		for i, o := range tt.outcomes {
			at := begin.Add(time.Hour).Add(time.Duration(i) * time.Minute)
			f := task.Fact{Resource: Container("web"), Verb: task.VerbCheck, At: at, Result: task.Result{Check: &task.Check{Start: at}}}
			switch o {
			case 'f':
				f.Result.Check.ExitCode = 1
			case 'p':
				f.Result.Check.ExitCode, f.Result.Check.Start = 1, begin
			case 'u':
				f.Class, f.Failure = task.Unavailable, &task.Reason{}
			}
			checked(&c, r, f)
			switch {
			case r.Health == nil || r.Health.Status == task.HealthUnknown:
				got += "?"
			default:
				got += strings.TrimPrefix(string(r.Health.Status), "UN")[:1]
				if r.Health.Status == task.HealthUnhealthy {
					got = got[:len(got)-1] + "U"
				}
			}
		}
		if got != tt.want {
			t.Errorf("%s with %d retries: %s, want %s", tt.outcomes, tt.retries, got, tt.want)
		}
	}
}

func TestTaskHealth(t *testing.T) {
	for _, tt := range []struct {
		containers string // per container: status H, U, ?, or - for none; lower case for one that is not essential
		want       task.HealthStatus
	}{
		{"-", task.HealthUnknown}, {"H", task.HealthHealthy}, {"HH-", task.HealthHealthy}, {"H?", task.HealthUnknown}, {"?H", task.HealthUnknown},
		{"HU", task.HealthUnhealthy}, {"?U", task.HealthUnhealthy}, {"-h", task.HealthUnknown}, {"Hu", task.HealthHealthy}, {"-u", task.HealthUnknown},
	} {
		tk, k := taskOf(), &task.Known{}
		for i, s := range tt.containers {
			c := task.Container{Name: string(rune('a' + i)), Essential: s < 'a'}
			status := map[string]task.HealthStatus{"H": task.HealthHealthy, "U": task.HealthUnhealthy, "?": task.HealthUnknown}[strings.ToUpper(string(s))]
			if s != '-' {
				c.HealthCheckType, c.Config.Healthcheck = "docker", &task.Healthcheck{Test: []string{"CMD", "x"}}
				k.Resource(Container(c.Name)).Health = &task.Health{Status: status}
			}
			tk.Containers = append(tk.Containers, c)
		}
		if got := TaskHealth(tk, k); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.containers, got, tt.want)
		}
	}
}

func TestWhichHealthChecksAreRun(t *testing.T) {
	for _, tt := range []struct {
		kind string
		test []string
		want []string
	}{
		{"docker", []string{"CMD", "a", "b"}, []string{"a", "b"}},
		{"docker", []string{"CMD-SHELL", "a && b"}, []string{"/bin/sh", "-c", "a && b"}},
		{"docker", []string{"NONE"}, nil},
		{"docker", nil, nil},
		{"docker", []string{"CMD"}, nil},
		{"DOCKER", []string{"CMD", "a"}, nil},
		{"", []string{"CMD", "a"}, nil},
	} {
		h := healthcheck(&task.Container{HealthCheckType: tt.kind, Config: task.Config{Healthcheck: &task.Healthcheck{Test: tt.test}}}, Settings{})
		var got []string
		if h != nil {
			got = h.Args()
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s %q (-want +got):\n%s", tt.kind, tt.test, diff)
		}
	}
}

func TestWhatIsNotStartedAgain(t *testing.T) {
	begin := time.Unix(1_700_000_000, 0)
	policy := &task.Restart{IgnoredExitCodes: []int{4}, AttemptPeriod: time.Minute}
	for _, tt := range []struct {
		record task.Record
		want   string
	}{
		{task.Record{Started: begin, Exit: &task.Exit{Code: 1, At: begin.Add(time.Minute)}}, ""},
		{task.Record{Started: begin, Exit: &task.Exit{Code: 0, At: begin.Add(time.Hour)}}, ""},
		{task.Record{Started: begin, Exit: &task.Exit{Code: 4, At: begin.Add(time.Hour)}}, "exit code 4 should be ignored"},
		{task.Record{Started: begin, Exit: &task.Exit{Code: 1, At: begin.Add(59 * time.Second)}}, "attempt reset period has not elapsed"},
		{task.Record{Started: begin}, "exit code is nil"},
		{task.Record{Started: begin, StopSent: begin, Exit: &task.Exit{Code: 1, At: begin.Add(time.Hour)}}, "container's desired status is stopped"},
	} {
		if got := whyFinal(policy, &tt.record); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.record, got, tt.want)
		}
	}
}
