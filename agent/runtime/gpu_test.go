package runtime

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"berth.dev/berth/agent/task"

	"github.com/opencontainers/runtime-spec/specs-go"
)

const twoGPUs = `{"cdiVersion":"0.5.0","kind":"example.com/gpu",
"containerEdits":{"env":["DRIVER=1"]},
"devices":[
 {"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/zero"}]}},
 {"name":"GPU-a","containerEdits":{"deviceNodes":[{"path":"/dev/gpu0","hostPath":"/dev/zero"}],"env":["HAS_A=1"]}},
 {"name":"GPU-b","containerEdits":{"deviceNodes":[{"path":"/dev/gpu1","hostPath":"/dev/zero"}]}},
 {"name":"all","containerEdits":{"deviceNodes":[{"path":"/dev/zero"}]}}]}`

func TestGPUs(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "example.json"), []byte(twoGPUs), 0o600); err != nil {
		t.Fatal(err)
	}
	g, err := FindGPUs("example.com/gpu", []string{dir})
	if err != nil {
		t.Fatal(err)
	}
	if ids := g.IDs(); !slices.Equal(ids, []string{"GPU-a", "GPU-b"}) {
		t.Errorf("ids %q", ids)
	}
	s := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}
	if err := g.inject(s, []string{"GPU-a"}); err != nil {
		t.Fatal(err)
	}
	if len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Path != "/dev/gpu0" || !slices.Equal(s.Process.Env, []string{"HAS_A=1", "DRIVER=1"}) && !slices.Equal(s.Process.Env, []string{"DRIVER=1", "HAS_A=1"}) {
		t.Errorf("devices %v, environment %q", s.Linux.Devices, s.Process.Env)
	}
	for _, err := range []error{g.inject(s, []string{"GPU-c"}), (*GPUs)(nil).inject(s, []string{"GPU-a"})} {
		if task.ClassOf(err) != task.Invalid || !strings.Contains(err.Error(), "resourceRequirements") {
			t.Errorf("got %v", err)
		}
	}
	if _, err := FindGPUs("gpu", nil); err == nil {
		t.Error("a kind without a vendor is taken")
	}
}
