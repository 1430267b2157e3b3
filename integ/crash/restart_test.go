package crash

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/agent/fail"
	cacs "berth.dev/berth/cluster/acs"
	"berth.dev/berth/integ/system"
	wire "berth.dev/berth/wire/acs"
)

// quick has restarts and health checks come sooner than the API lets them be asked for.
func quick(c *cacs.Config) {
	c.Faults = &cacs.Faults{Alter: func(m *wire.PayloadMessage) {
		for i := range m.Tasks {
			for j := range m.Tasks[i].Containers {
				k := &m.Tasks[i].Containers[j]
				if k.RestartPolicy != nil {
					k.RestartPolicy.RestartAttemptPeriod /= 60
				}
				var config map[string]any
				if k.DockerConfig == nil || json.Unmarshal([]byte(k.DockerConfig.Config), &config) != nil {
					continue
				}
				if check, ok := config["Healthcheck"].(map[string]any); ok {
					check["Interval"] = int64(500 * time.Millisecond)
				}
				if b, err := json.Marshal(config); err == nil {
					k.DockerConfig.Config = string(b)
				}
			}
		}
	}}
}

// TestAgentExitsWhileContainersRestart are the rows of the crash matrix for restart
// policies and health checks: the agent dies at points that the restart of a container
// passes, beside one whose health is checked.
func TestAgentExitsWhileContainersRestart(t *testing.T) {
	bin := system.Programs(t, system.Containerd2, "failpoint")
	l := start(t, system.Containerd2, bin, quick)
	for _, point := range []fail.Name{
		fail.ExitObserved, fail.ExitAfterCommit, fail.IntentAfterCommit, fail.ContainerAfterCreate, fail.ProcessAfterStart, fail.ProcessAfterStartCommit,
	} {
		t.Run(point.String(), func(t *testing.T) { l.restarts(t, point) })
	}
}

// restarts lets a container be restarted again and again while the agent dies at a point.
func (l *lab) restarts(t *testing.T, point fail.Name) {
	v := &visit{lab: l, t: t}
	main := l.container("main", "busybox", waits(3))
	main.HealthCheck = &types.HealthCheck{Command: []string{"CMD-SHELL", "test -e /bin/sh"}, Interval: aws.Int32(5), Timeout: aws.Int32(5), Retries: aws.Int32(10)}
	side := l.container("side", "busybox", "sleep 1.2; exit 5")
	side.Essential = aws.Bool(false)
	side.RestartPolicy = &types.ContainerRestartPolicy{Enabled: aws.Bool(true), RestartAttemptPeriod: aws.Int32(60)}
	arn := l.On(t).Run(l.register(t, "restarts", main, side), 1)[0]
	v.wait(arn, "RUNNING")
	l.setFailpoint(t, point.String(), "exit")
	started := func() int { return l.ledger.History().of(short(arn)).Starts[Container{short(arn), "side"}] }
	first := 0
	v.until("the agent has died and the container is restarted by the next one", func() error {
		if v.died == 0 {
			return errors.New("it lives")
		}
		if first == 0 {
			first = started()
		}
		if at := l.occupied(arn); len(at) > 2 { // main is one of them
			t.Fatalf("two processes of side at a time: %v\n%s", at, l.Events(arn))
		}
		told := started()
		if told < first+2 {
			return fmt.Errorf("started %d times, %d when the agent died", told, first)
		}
		return nil
	})
	v.until("main is healthy", func() error {
		if h := l.On(t).Describe(arn)[0].Containers[0]; h.HealthStatus != types.HealthStatusHealthy {
			return fmt.Errorf("it is %s", h.HealthStatus)
		}
		return nil
	})
	l.On(t).Stop(arn)
	tk := v.wait(arn, "STOPPED")
	if tk.StopCode != types.TaskStopCodeUserInitiated {
		t.Errorf("stop code %s: %s", tk.StopCode, system.Explain(tk))
	}
	v.until("nothing is left of the task", l.Clean)
	l.judge(t, Expected{"main": 3}, arn)
}

// occupied lists the containers of a task that have processes.
func (l *lab) occupied(arn string) (ids []string) {
	groups, err := filepath.Glob(filepath.Join("/sys/fs/cgroup/pids", l.Cgroup(), filepath.Base(arn), "*", "cgroup.procs"))
	if err != nil {
		return nil
	}
	for _, g := range groups {
		if b, err := os.ReadFile(g); err == nil && len(b) > 0 {
			ids = append(ids, filepath.Base(filepath.Dir(g)))
		}
	}
	return ids
}
