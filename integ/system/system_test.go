package system

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/host"
)

func TestMain(m *testing.M) { host.Main(m) }

// TestTaskRunsOnBothContainerds is the whole way of one task, on Debian's containerd
// and on the one that Berth brings.
func TestTaskRunsOnBothContainerds(t *testing.T) {
	bin := Programs(t, Containerd2) // they serve the other kind as well
	for _, kind := range []string{Containerd1, Containerd2} {
		t.Run(kind, func(t *testing.T) {
			s := Start(t, Options{Containerd: kind, Programs: bin})
			def := s.Register(&ecs.RegisterTaskDefinitionInput{Family: aws.String("web"), ContainerDefinitions: []types.ContainerDefinition{{
				Name: aws.String("web"), Image: aws.String("busybox"), Memory: aws.Int32(64), Cpu: 128,
				Command:      []string{"sh", "-c", "echo hello; trap 'exit 7' TERM; while :; do sleep 0.1; done"},
				PortMappings: []types.PortMapping{{ContainerPort: aws.Int32(80), HostPort: aws.Int32(8080)}},
			}}})
			arns := s.Run(def, 1)
			s.Wait("RUNNING", 10*time.Second, arns...)
			s.Stop(arns...)
			tk := s.Wait("STOPPED", 10*time.Second, arns...)[0]
			if got := aws.ToInt32(tk.Containers[0].ExitCode); got != 7 {
				t.Errorf("exit code %d, want 7", got)
			}
		})
	}
}
