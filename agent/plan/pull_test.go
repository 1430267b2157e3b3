package plan

import (
	"testing"
	"time"

	"berth.dev/berth/agent/task"
)

// TestPullThatFails is the table of the reference's pull behaviours: what the failed pull
// of a container's image does, also when the container still waits for another.
func TestPullThatFails(t *testing.T) {
	const failed = "CannotCreateContainerError: made to fail"
	for name, tt := range map[string]struct {
		orStop, upfront, essential bool
		waits                      task.Condition // of app for dep; "" has it wait for nothing
		ran                        bool           // dep was started
		pulls                      int            // of app's image
		reason                     string         // of the task
	}{
		"default, essential":                         {essential: true, pulls: 1},
		"default, essential that waits":              {essential: true, waits: task.ConditionSuccess, ran: true, pulls: 2},
		"default, what it waits for has ended":       {waits: task.ConditionComplete, ran: true, pulls: 2},
		"upfront, essential that waits":              {upfront: true, essential: true, waits: task.ConditionSuccess, pulls: 1, reason: failed},
		"upfront, waits and is not essential":        {upfront: true, waits: task.ConditionSuccess, ran: true, pulls: 1},
		"always, not essential":                      {orStop: true, pulls: 1},
		"always, not essential, waits":               {orStop: true, waits: task.ConditionSuccess, pulls: 1},
		"always and upfront, essential, waits, told": {orStop: true, upfront: true, essential: true, waits: task.ConditionSuccess, pulls: 1},
	} {
		t.Run(name, func(t *testing.T) {
			app := task.Container{Name: "app", Essential: tt.essential}
			if tt.waits != "" {
				app.DependsOn = on("dep", tt.waits)
			}
			main := task.Container{Name: "main", Essential: true}
			s := newSim(t, 31, taskOf(app, task.Container{Name: "dep"}, main), simSpec{
				exits: map[string]int{"dep": 0, "main": 0},
				runs:  map[string]time.Duration{"dep": time.Minute, "main": time.Hour},
				fail:  map[task.ResourceID]task.Class{Image("app"): task.NotFound},
			})
			s.set.PullOrStop, s.set.PullUpfront = tt.orStop, tt.upfront
			s.run(nil)
			s.check()
			if n := s.tries[Image("app")]; n != tt.pulls {
				t.Errorf("pulled %d times, want %d", n, tt.pulls)
			}
			if ran := s.starts["dep#0"] > 0; tt.ran && !ran {
				t.Error("what it waits for was never started")
			}
			final := s.sent[len(s.sent)-1]
			if final.Status != task.StatusStopped || final.Reason != tt.reason {
				t.Errorf("%v with reason %q, want %q", final.Status, final.Reason, tt.reason)
			}
			told := ""
			for _, ch := range s.sent {
				for _, c := range ch.Containers {
					if c.Name == "app" {
						told = c.Reason
					}
				}
			}
			if told != failed {
				t.Errorf("reason of the container %q, want %q", told, failed)
			}
		})
	}
}
