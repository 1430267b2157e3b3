package telemetry

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/system"
)

// withGPU has the agent find a GPU, and a program in the place of nvidia-smi that says what
// it does.
func withGPU(t *testing.T) []string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"gpu.json": `{"cdiVersion":"0.5.0","kind":"example.com/gpu","devices":[{"name":"GPU-a","containerEdits":{"env":["DRIVER=example"]}}]}`,
		"smi":      "#!/bin/sh\nwhile :; do echo 'GPU-a, 42, 7, 1024, 4096, 51, 33.25'; sleep 1; done\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return []string{"ECS_ENABLE_GPU_SUPPORT=true", "BERTH_GPU_KIND=example.com/gpu", "BERTH_CDI_DIRS=" + dir, "BERTH_NVIDIA_SMI=" + filepath.Join(dir, "smi")}
}

// gpuOfTask has the agent's metrics show what the GPU of a container does.
func gpuOfTask(t *testing.T, s *system.System) {
	definition := sleeper("trains")
	definition.ContainerDefinitions[0].ResourceRequirements = []types.ResourceRequirement{{Type: types.ResourceTypeGpu, Value: aws.String("1")}}
	arn := s.On(t).Run(s.On(t).Register(definition), 1)[0]
	want := fmt.Sprintf(`berth_container_gpu_utilization_ratio{cluster="default",container_name="main",gpu="GPU-a",task_definition_family="trains",task_id="%s"} 0.42`, filepath.Base(arn))
	system.Until(t, time.Minute, "the use of the GPU is shown", func() error {
		resp, err := s.Debug().Get("http://agent/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if !strings.Contains(string(b), want+"\n") {
			return fmt.Errorf("it is not there: %s", want)
		}
		return nil
	})
	s.On(t).Stop(arn)
}
