package machine

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/system"
)

// asks is a program that asks its metadata endpoint all the time, each time with a new
// connection, and prints what comes of it.
const asks = `trap 'exit 0' TERM
path=${ECS_CONTAINER_METADATA_URI_V4#http://169.254.170.2}
while :; do
  out=$(printf 'GET %s HTTP/1.0\r\nHost: 169.254.170.2\r\n\r\n' "$path" | nc 169.254.170.2 80 2>&1 | head -n 1)
  case $out in *' 200 '*) echo answered ;; *) echo "failed: $out" ;; esac
  sleep 0.1 & wait $!
done`

// kept restarts and kills the agent under a task that asks for its metadata: whoever asks
// meanwhile is answered by the next agent.
func (s *two) kept() {
	def, err := s.ecs.RegisterTaskDefinition(s.Context(), &ecs.RegisterTaskDefinitionInput{
		Family: aws.String("asks"), ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("main"), Image: aws.String("busybox"), Memory: aws.Int32(16), Command: []string{"sh", "-c", asks},
		}},
	})
	if err != nil {
		s.Fatal(err)
	}
	one, err := s.ecs.StartTask(s.Context(), &ecs.StartTaskInput{TaskDefinition: def.TaskDefinition.TaskDefinitionArn, ContainerInstances: []string{s.instance(s.first)}})
	if err != nil || len(one.Failures) > 0 {
		s.Fatalf("start a task: %v %+v", err, one)
	}
	arn := *one.Tasks[0].TaskArn
	s.wait("RUNNING", arn)
	s.answered(arn, 3)
	s.stored("2") // of the introspection API and of the task
	s.first.Run("systemctl", "restart", unit)
	s.active(s.first)
	n, failed := s.answered(arn, s.answers(arn)+3)
	if len(failed) > 0 {
		s.Errorf("while the agent was restarted: %q", failed)
	}
	starts := s.first.Show(unit, "NRestarts")
	s.first.Run("systemctl", "kill", "--signal=KILL", unit)
	system.Until(s, 60*time.Second, "a new start", func() error {
		if now := s.first.Show(unit, "NRestarts"); now == starts {
			return fmt.Errorf("%s starts", now)
		}
		return nil
	})
	s.active(s.first)
	n, failed = s.answered(arn, n+3)
	// A request that the agent had taken when it was killed is lost, and only that.
	if len(failed) > 1 || strings.Contains(strings.Join(failed, ""), "refused") {
		s.Errorf("while the agent was killed: %q", failed)
	}
	s.stored("2")
	s.Logf("%d answers, failed: %q", n, failed)
	if _, err := s.ecs.StopTask(s.Context(), &ecs.StopTaskInput{Task: &arn}); err != nil {
		s.Fatal(err)
	}
	s.wait("STOPPED", arn)
	s.stored("1")
}

// stored waits until that many descriptors are in the agent's store.
func (s *two) stored(want string) {
	s.Helper()
	system.Until(s, 60*time.Second, "descriptors in the store", func() error {
		if n := s.first.Show(unit, "NFileDescriptorStore"); n != want {
			return fmt.Errorf("%s, not %s", n, want)
		}
		return nil
	})
}

// answered waits until a task has had that many answers, and returns how many they are and
// what else came.
func (s *two) answered(arn string, least int) (n int, failed []string) {
	s.Helper()
	system.Until(s, 120*time.Second, "answers", func() error {
		n, failed = 0, nil
		text := s.first.Run("cat", "/var/log/berth/tasks/"+arn[strings.LastIndexByte(arn, '/')+1:]+"/main/log.json")
		for line := range strings.Lines(text) {
			var entry struct{ Log *string }
			if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Log == nil {
				continue // the head of the file, or a line that is being written
			}
			if said := strings.TrimSpace(*entry.Log); said == "answered" {
				n++
			} else {
				failed = append(failed, said)
			}
		}
		if n < least {
			return fmt.Errorf("%d of %d; failed %d times: %.200q", n, least, len(failed), failed)
		}
		return nil
	})
	return n, failed
}

// answers is how many answers a task has had.
func (s *two) answers(arn string) int {
	s.Helper()
	n, _ := s.answered(arn, 0)
	return n
}
