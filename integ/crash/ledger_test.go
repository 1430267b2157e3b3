package crash

import (
	"strings"
	"testing"
)

// TestValidatorsSeeBadHistories shows that each validator can fail.
func TestValidatorsSeeBadHistories(t *testing.T) {
	want := Expected{"main": 3}
	running := Report{Task: "t", Status: "RUNNING", Containers: []ContainerReport{{"main", "RUNNING", noExit}}}
	stopped := Report{Task: "t", Status: "STOPPED", Containers: []ContainerReport{{"main", "STOPPED", 3}}}
	once := map[Container]int{{"t", "main"}: 1}
	other := Report{Task: "t", Status: "STOPPED", Containers: []ContainerReport{{"main", "STOPPED", 137}}}
	alive := stopped
	alive.Alive = []int{42}
	foreign := Report{Task: "another", Status: "PENDING"}
	for _, tt := range []struct {
		name string
		h    History
		bad  string // begin of the one violation; "" for none
	}{
		{"good", History{once, []Report{running, stopped, foreign}}, ""},
		{"repeated", History{once, []Report{running, stopped, stopped}}, ""},
		{"started twice", History{map[Container]int{{"t", "main"}: 2}, []Report{running, stopped}}, "I2: main of task t was started 2 times"},
		{"never started", History{nil, []Report{running, stopped}}, "I2: main of task t was started 0 times"},
		{"no end", History{once, []Report{running}}, "I1:"},
		{"two ends", History{once, []Report{stopped, other}}, "I5: exit codes [3 137]"},
		{"wrong end", History{once, []Report{other}}, "I5: exit codes [137]"},
		{"goes back", History{once, []Report{stopped, running}}, `I5: report 1 of task t: "" goes back to RUNNING`},
		{"too early", History{once, []Report{alive}}, "I4:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad := Violations("t", want, tt.h)
			if tt.bad == "" && len(bad) > 0 {
				t.Errorf("violations of a good history: %q", bad)
			}
			if tt.bad != "" && (len(bad) == 0 || !strings.HasPrefix(bad[0], tt.bad)) {
				t.Errorf("got %q, want one that begins with %q", bad, tt.bad)
			}
		})
	}
}
