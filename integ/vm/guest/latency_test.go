package guest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/eni"
)

// latency has a task delay what it sends, which takes the kernel's netem.
func latency(t *testing.T, l *lab) {
	arn := l.inSubnet(t, l.Register(&ecs.RegisterTaskDefinitionInput{
		Family: aws.String("slow"), NetworkMode: types.NetworkModeAwsvpc, EnableFaultInjection: aws.Bool(true),
		ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("main"), Image: aws.String("busybox"), Memory: aws.Int32(32),
			Command: []string{"sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.5; done"},
		}},
	}))
	l.Wait("RUNNING", Soon, arn)
	n := inTask(t, l, arn)
	status := func(verb, body, want string) {
		t.Helper()
		var code int
		var got string
		Until(t, verb, func() error {
			if code, got = n.post(t, verb, body); code == http.StatusTooManyRequests {
				return errors.New(got) // one request in five seconds
			}
			return nil
		})
		var answer struct{ Status string }
		if err := json.Unmarshal([]byte(got), &answer); err != nil || code != http.StatusOK || answer.Status != want {
			t.Fatalf("%s: %d %s, want the status %s", verb, code, got, want)
		}
	}
	const delay = 20 * time.Second // well above what the machine itself takes
	status("status", "", "not-running")
	if took := n.connect(t); took >= delay {
		t.Fatalf("a connection takes %v before there is a fault", took)
	}
	body, err := json.Marshal(map[string]any{"DelayMilliseconds": delay.Milliseconds(), "JitterMilliseconds": 10, "Sources": []string{gateway}})
	if err != nil {
		t.Fatal(err)
	}
	status("start", string(body), "running")
	status("status", "", "running")
	if took := n.connect(t); took < delay-100*time.Millisecond {
		t.Errorf("a connection takes %v with a delay of %v", took, delay)
	}
	status("stop", "", "stopped")
	if took := n.connect(t); took >= delay {
		t.Errorf("a connection takes %v after the fault", took)
	}
	l.Stop(arn)
	l.Wait("STOPPED", Soon, arn)
}

// taskNetwork is the network of a task, from within.
type taskNetwork struct {
	ns  *eni.Namespace
	uri string // ECS_AGENT_URI
	at  string // where something listens on the host
}

func inTask(t *testing.T, l *lab, arn string) *taskNetwork {
	t.Helper()
	id := filepath.Base(arn)
	n := &taskNetwork{uri: variable(t, l, id, "ECS_AGENT_URI")}
	ns, err := eni.OpenNamespace(filepath.Join(l.Dir, "run/network/namespaces", id))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() }) //nolint:errcheck // it was only entered
	listener, err := net.Listen("tcp", net.JoinHostPort(gateway, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() }) //nolint:errcheck // the test is over
	n.ns, n.at = ns, listener.Addr().String()
	return n
}

// variable is a variable of the environment of a task's first process.
func variable(t *testing.T, l *lab, id, name string) string {
	t.Helper()
	groups, err := filepath.Glob(filepath.Join("/sys/fs/cgroup", l.Cgroup()+".slice", l.Cgroup()+"-"+id+".slice", "*", "cgroup.procs"))
	if err != nil || len(groups) == 0 {
		t.Fatalf("the task's groups are %v (%v)", groups, err)
	}
	for _, group := range groups {
		pids, err := os.ReadFile(group)
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range strings.Fields(string(pids)) {
			environ, err := os.ReadFile(filepath.Join("/proc", pid, "environ"))
			if err != nil {
				continue // it has ended
			}
			for _, v := range strings.Split(string(environ), "\x00") {
				if value, ok := strings.CutPrefix(v, name+"="); ok {
					return value
				}
			}
		}
	}
	t.Fatalf("no process of the task has %s", name)
	return ""
}

// connect is how long it takes to reach the host.
func (n *taskNetwork) connect(t *testing.T) time.Duration {
	t.Helper()
	start := time.Now()
	if err := n.ns.Do(func() error {
		c, err := net.DialTimeout("tcp", n.at, Patience)
		if err != nil {
			return err
		}
		return c.Close()
	}); err != nil {
		t.Fatal(err)
	}
	return time.Since(start)
}

// post asks for something of the latency fault.
func (n *taskNetwork) post(t *testing.T, verb, body string) (status int, answer string) {
	t.Helper()
	client := http.Client{Timeout: Patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, address string) (c net.Conn, err error) {
			err = n.ns.Do(func() (err error) {
				c, err = net.DialTimeout(network, address, Patience)
				return err
			})
			return c, err
		},
	}}
	resp, err := client.Post(n.uri+"/fault/v1/network-latency/"+verb, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was only read
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
