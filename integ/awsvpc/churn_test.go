package awsvpc

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
)

// churned is how many tasks are started and stopped; BERTH_CHURN says another number.
func churned(t *testing.T) int {
	t.Helper()
	s := os.Getenv("BERTH_CHURN")
	if s == "" {
		return 20
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("BERTH_CHURN: %v", err)
	}
	return n
}

// curlRefused is curl's exit code for a connection that was refused.
const curlRefused = 7

// TestChurnOnABridge starts and stops tasks on a host that is its subnet's router, with
// the agent killed in between, and looks for what is left.
func TestChurnOnABridge(t *testing.T) {
	l := newLab(t, system.Options{AgentEnv: []string{"ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION=2s", "ECS_CONTAINER_STOP_TIMEOUT=5s"}})
	here := l.instances(1)[0]
	web := l.start(here, nil, serve("web"))
	peer := l.start(here, nil, idle)
	l.reaches(peer, l.Dir, detail(web, "privateIPv4Address"), "web")
	ns := filepath.Join(l.Dir, "run", "network", "namespaces", filepath.Base(*peer.TaskArn))
	// Nobody listens there; that this is said at once says that the world is reached.
	out, err := exec.Command("nsenter", "--net="+ns, "curl", "-sS", "--max-time", "3", "http://"+host.Outside+":9/").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != curlRefused {
		t.Errorf("the task does not reach the world: %v: %s", err, out)
	}
	if out, err := exec.Command("nsenter", "--net="+ns, "curl", "-sS", "--max-time", "3", "http://169.254.170.2/v2/metadata").CombinedOutput(); err != nil {
		t.Errorf("the task does not reach its metadata: %v: %s", err, out)
	}
	l.Stop(*web.TaskArn, *peer.TaskArn)
	def := l.Register(&ecs.RegisterTaskDefinitionInput{
		Family: aws.String("churn"), NetworkMode: types.NetworkModeAwsvpc,
		ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("c"), Image: aws.String("busybox"), Memory: aws.Int32(16), Command: []string{"sh", "-c", idle},
		}},
	})
	start := time.Now()
	total := churned(t)
	for round := 0; round*10 < total; round++ {
		out, err := l.ECS.RunTask(context.Background(), &ecs.RunTaskInput{
			TaskDefinition: &def, Count: aws.Int32(10),
			NetworkConfiguration: &types.NetworkConfiguration{AwsvpcConfiguration: &types.AwsVpcConfiguration{Subnets: []string{l.subnet}}},
		})
		if err != nil || len(out.Failures) > 0 {
			t.Fatalf("run: %v, %+v", err, out.Failures)
		}
		var arns []string
		for _, tk := range out.Tasks {
			arns = append(arns, *tk.TaskArn)
		}
		switch round % 3 {
		case 0: // killed while they start
			l.Agent.Kill()
			l.StartAgent()
			l.Wait("RUNNING", time.Minute, arns...)
			l.Stop(arns...)
		case 1: // killed while they stop
			l.Wait("RUNNING", time.Minute, arns...)
			l.Stop(arns...)
			l.Agent.Kill()
			l.StartAgent()
		default:
			l.Stop(arns...) // some of them before they have an interface
		}
		l.Wait("STOPPED", time.Minute, arns...)
	}
	t.Logf("%d tasks in %v", total, time.Since(start))
	l.WaitClean(40 * time.Second)
}
