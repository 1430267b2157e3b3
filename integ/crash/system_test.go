package crash

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	cacs "berth.dev/berth/cluster/acs"
	"berth.dev/berth/cluster/api"
	services "berth.dev/berth/integ/aws"
	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
	"berth.dev/berth/integ/testimage"
)

func TestMain(m *testing.M) { host.Main(m) }

// lab is a system with a ledger of what happens in it.
type lab struct {
	*system.System
	ledger   *Ledger
	beacon   net.Addr // where processes say that they were started
	registry *testimage.Registry
}

// kinds are the containerds to test with; a short test has the one that Berth brings.
func kinds() []string {
	if testing.Short() {
		return []string{system.Containerd2}
	}
	return []string{system.Containerd1, system.Containerd2}
}

// backInStep is how soon a part that was killed must be back (reliability plan, C7).
const backInStep = 2 * time.Second

func start(t *testing.T, kind, bin string, acs ...func(*cacs.Config)) *lab {
	t.Helper()
	l := &lab{ledger: &Ledger{}, registry: testimage.NewRegistry()}
	t.Cleanup(l.registry.Close)
	l.listen(t)
	aws := services.Start(t)
	aws.Allow(services.Key{ID: "ASIAEXECUTION", Secret: "secret", Token: "token", Role: "exec"})
	aws.SetParameter("us-east-1", parameter, "value")
	l.System = system.Start(t, system.Options{
		Containerd: kind, Programs: bin,
		API: func(c *api.Config) { c.Submitted = l.submitted },
		ACS: func(c *cacs.Config) {
			for _, change := range acs {
				change(c)
			}
		},
		AgentEnv: append(aws.Environ(), "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
			"ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION=1s", "ECS_CONTAINER_STOP_TIMEOUT=20s",
			"ECS_DYNAMIC_HOST_PORT_RANGE=40000-40199",
		),
	})
	return l
}

// listen opens the beacon.
func (l *lab) listen(t *testing.T) {
	t.Helper()
	ln, err := net.Listen("tcp", host.Address+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	l.beacon = ln.Addr()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return // the test is over
			}
			go l.hear(conn)
		}
	}()
}

// hear reads "<hostname> <container>" from a process that was started.
func (l *lab) hear(conn net.Conn) {
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	task, name, ok := strings.Cut(strings.TrimSpace(line), " ")
	if err == nil && ok {
		l.ledger.Started(Container{task, name})
	}
}

// short is a task as its processes know it: their host name is the first part of its ID.
func short(arn string) string { return filepath.Base(arn)[:12] }

// submitted records a report, with what the kernel says at this moment.
func (l *lab) submitted(_ api.Caller, in *ecs.SubmitTaskStateChangeInput, err error) {
	if err != nil || in.Task == nil {
		return
	}
	r := Report{Task: short(*in.Task), Status: aws.ToString(in.Status)}
	for _, c := range in.Containers {
		cr := ContainerReport{aws.ToString(c.ContainerName), aws.ToString(c.Status), noExit}
		if c.ExitCode != nil {
			cr.Exit = int(*c.ExitCode)
		}
		r.Containers = append(r.Containers, cr)
		if cr.Status == "STOPPED" && c.RuntimeId != nil {
			r.Alive = append(r.Alive, l.processes(*in.Task, *c.RuntimeId)...)
		}
	}
	l.ledger.Reported(r)
}

// processes lists the processes in a container's cgroup.
func (l *lab) processes(arn, runtimeID string) []int {
	b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/pids", l.Cgroup(), filepath.Base(arn), runtimeID, "cgroup.procs"))
	if err != nil {
		return nil // no cgroup, no processes
	}
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(f); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

// container is one that tells the beacon of its start and then does what the script says.
func (l *lab) container(name, image, script string) types.ContainerDefinition {
	ip, port, _ := strings.Cut(l.beacon.String(), ":")
	return types.ContainerDefinition{
		Name: aws.String(name), Image: aws.String(image), Memory: aws.Int32(16),
		Command: []string{"sh", "-c", fmt.Sprintf("%s; echo \"$(hostname) %s\" | nc -w 5 %s %s; %s", trap(script), name, ip, port, script)},
	}
}

// waits is a script that ends with a code when it is asked to, and does nothing until then.
func waits(code int) string {
	return fmt.Sprintf("while :; do sleep 1000 & wait $!; done # %d", code)
}

// deaf is a script that ignores the stop signal.
const deaf = "while :; do sleep 1000; done"

// trap has a waiting script end with its code, also while it still begins.
func trap(script string) string {
	if _, code, ok := strings.Cut(script, "# "); ok {
		return "trap 'exit " + code + "' TERM"
	}
	return ":"
}

// register registers a definition of containers.
func (l *lab) register(t *testing.T, family string, cs ...types.ContainerDefinition) string {
	t.Helper()
	return l.On(t).Register(&ecs.RegisterTaskDefinitionInput{Family: aws.String(family), ContainerDefinitions: cs})
}

// judge fails the test for every violation. The ledger hears of a report a moment after
// the API shows it.
func (l *lab) judge(t *testing.T, want Expected, arns ...string) {
	t.Helper()
	system.Until(t, 3*time.Second, "no invariant is violated", func() error {
		h := l.ledger.History()
		var errs []error
		for _, arn := range arns {
			for _, v := range Violations(short(arn), want, h) {
				errs = append(errs, fmt.Errorf("%s\n%s\nevents:\n%s", v, system.Explain(l.On(t).Describe(arn)[0]), l.Events(arn)))
			}
		}
		return errors.Join(errs...)
	})
}

// setFailpoint has the agent that runs do something at a point.
func (l *lab) setFailpoint(t *testing.T, point, terms string) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPut, "http://agent/v1/failpoints/"+point, strings.NewReader(terms))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := l.Debug().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Fatalf("failpoint %s: %s", point, resp.Status)
	}
}
