package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/system"
)

// TestTasks runs tasks by the ECS API on cgroup version 2 alone.
func TestTasks(t *testing.T) {
	s := system.Start(t, system.Options{Containerd: system.Containerd2, Programs: "/berth/bin", Slow: 6})
	limited := s.Run(s.Register(&ecs.RegisterTaskDefinitionInput{
		Family: aws.String("limited"), Cpu: aws.String("512"), Memory: aws.String("128"),
		ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("main"), Image: aws.String("busybox"), Memory: aws.Int32(64), Cpu: 256,
			Command: []string{"sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.5; done"},
		}},
	}), 1)[0]
	oom := s.Run(s.Register(&ecs.RegisterTaskDefinitionInput{
		Family: aws.String("oom"), ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("main"), Image: aws.String("busybox"), Memory: aws.Int32(16), Command: []string{"tail", "/dev/zero"},
		}},
	}), 1)[0]
	tk := s.Wait("RUNNING", 90*time.Second, limited)[0]
	dir := filepath.Join("/sys/fs/cgroup", s.Cgroup()+".slice", s.Cgroup()+"-"+filepath.Base(limited)+".slice")
	for file, want := range map[string]string{
		"memory.max": "134217728", "cpu.max": "50000 100000",
		*tk.Containers[0].RuntimeId + "/memory.max": "67108864",
	} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if got := strings.TrimSpace(string(b)); err != nil || got != want {
			t.Errorf("%s is %q, want %q (%v)", file, got, want, err)
		}
	}
	ended := s.Wait("STOPPED", 90*time.Second, oom)[0]
	if c := ended.Containers[0]; aws.ToInt32(c.ExitCode) != 137 || !strings.HasPrefix(aws.ToString(c.Reason), "OutOfMemoryError") {
		t.Error(system.Explain(ended))
	}
}
