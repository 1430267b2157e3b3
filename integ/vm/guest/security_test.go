package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/system"
)

// profile is of a program that may do everything but write below /etc.
const profile = `profile berth-guest flags=(attach_disconnected,mediate_deleted) {
  file,
  network,
  capability,
  signal,
  unix,
  ptrace,
  deny /etc/** wl,
}
`

// TestSecurity runs containers under AppArmor and under another OCI runtime, which the
// machine that runs the other tests has not.
func TestSecurity(t *testing.T) {
	file := filepath.Join(t.TempDir(), "berth-guest")
	if err := os.WriteFile(file, []byte(profile), 0o600); err != nil {
		t.Fatal(err)
	}
	Run(t, "apparmor_parser", "--replace", "--skip-cache", file)
	s := system.Start(t, system.Options{Containerd: system.Containerd2, Programs: "/berth/bin", Slow: slow, AgentEnv: []string{"ECS_APPARMOR_CAPABLE=true"}})
	container := func(family string, edit func(*types.ContainerDefinition), script string) string {
		c := types.ContainerDefinition{Name: aws.String("main"), Image: aws.String("busybox"), Memory: aws.Int32(32), Command: []string{"sh", "-c", script}}
		edit(&c)
		return s.Run(s.Register(&ecs.RegisterTaskDefinitionInput{Family: &family, ContainerDefinitions: []types.ContainerDefinition{c}}), 1)[0]
	}
	confined := container("confined", func(c *types.ContainerDefinition) { c.DockerSecurityOptions = []string{"apparmor:berth-guest"} },
		`grep -q '^berth-guest (enforce)$' /proc/self/attr/current || exit 3; touch /etc/x && exit 4; touch /tmp/x || exit 5; exit 42`)
	absent := container("absent", func(c *types.ContainerDefinition) { c.DockerSecurityOptions = []string{"apparmor:not-loaded"} }, "exit 0")
	free := container("free", func(c *types.ContainerDefinition) { c.DockerSecurityOptions = []string{"apparmor:unconfined"} },
		`grep -q '^unconfined' /proc/self/attr/current || exit 3; touch /etc/x || exit 4; exit 43`)
	crun := container("crun", func(c *types.ContainerDefinition) {
		c.DockerLabels = map[string]string{"berth.runtime": "crun"}
		c.Essential = aws.Bool(true)
		c.Cpu = 256
		c.HealthCheck = &types.HealthCheck{Command: []string{"CMD-SHELL", "test -e /tmp/up"}, Interval: aws.Int32(5), Timeout: aws.Int32(30), Retries: aws.Int32(5)}
	}, `touch /tmp/up; trap 'exit 44' TERM; while :; do sleep 0.5; done`)
	for arn, want := range map[string]int32{confined: 42, free: 43} {
		tk := s.Wait("STOPPED", Soon, arn)[0]
		if got := aws.ToInt32(tk.Containers[0].ExitCode); got != want {
			t.Errorf("exit code %d, want %d: %s", got, want, system.Explain(tk))
		}
	}
	tk := s.Wait("STOPPED", Soon, absent)[0]
	if reason := aws.ToString(tk.Containers[0].Reason); !strings.Contains(reason, `the AppArmor profile "not-loaded" is not loaded on this host: load it with apparmor_parser`) {
		t.Errorf("a profile that is not loaded: %s", system.Explain(tk))
	}
	tk = s.Wait("RUNNING", Soon, crun)[0]
	id := aws.ToString(tk.Containers[0].RuntimeId)
	// crun keeps a file "status" where runc keeps "state.json".
	var states []string
	for _, name := range []string{"status", "state.json"} {
		err := filepath.WalkDir(s.Dir, func(path string, e os.DirEntry, err error) error {
			if err == nil && e.Name() == name && filepath.Base(filepath.Dir(path)) == id {
				states = append(states, name)
			}
			return nil //nolint:nilerr // files come and go
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(states, []string{"status"}) {
		t.Errorf("the container's runtime keeps %v, want the status of crun", states)
	}
	system.Until(t, Soon, "a health check by crun", func() error {
		if tk := s.Describe(crun)[0]; tk.HealthStatus != types.HealthStatusHealthy {
			return fmt.Errorf("it is %s", tk.HealthStatus)
		}
		return nil
	})
	s.Stop(crun)
	if tk = s.Wait("STOPPED", Soon, crun)[0]; aws.ToInt32(tk.Containers[0].ExitCode) != 44 {
		t.Errorf("exit code of the stop signal: %s", system.Explain(tk))
	}
}
