package intake

import (
	"strings"
	"testing"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/acs"
)

func TestGiveGPUs(t *testing.T) {
	tk := &task.Task{Containers: []task.Container{{Name: "a"}, {Name: "b"}}}
	gpu := func(id string, to ...string) acs.Association {
		return acs.Association{Type: "gpu", Name: id, Containers: to}
	}
	if err := giveGPUs(tk, []acs.Association{gpu("GPU-1", "a"), gpu("GPU-2", "b"), gpu("GPU-3", "a")}); err != nil {
		t.Fatal(err)
	}
	if got := tk.Containers[0].Environment[visibleDevices]; got != "GPU-1,GPU-3" {
		t.Errorf("a sees %q", got)
	}
	if got := strings.Join(tk.Containers[1].GPUs, " "); got != "GPU-2" {
		t.Errorf("b has %q", got)
	}
	for _, bad := range []acs.Association{gpu("GPU-1", "a", "b"), gpu("GPU-1", "x"), gpu("GPU-1"), gpu("", "a")} {
		if err := giveGPUs(tk, []acs.Association{bad}); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}
