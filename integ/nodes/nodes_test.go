// Package nodes has several processes of a cluster on one etcd, and ends some.
package nodes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"go.etcd.io/etcd/server/v3/embed"

	"berth.dev/berth/cluster/acs/acstest"
	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
)

const region = "us-east-1"

// What an instance has and a task takes.
const (
	instanceCPU = 1024
	taskCPU     = 64
	room        = instanceCPU / taskCPU // tasks
)

// TestTwoProcessesOnOneEtcd: both place tasks, without placing one where it does not
// fit; an agent gets its tasks whichever has its session; and when the first of them is
// killed the other has everything, and knows which agents are gone.
func TestTwoProcessesOnOneEtcd(t *testing.T) {
	bin := host.Program(t, t.TempDir(), "berth.dev/berth/cmd/berth")
	etcd := startEtcd(t)
	one := start(t, bin, etcd, t.TempDir())
	foreign := launch(t, bin, etcd, t.TempDir())
	if err := foreign.cmd.Wait(); err == nil || !strings.Contains(foreign.out.String(), "root.key") {
		t.Fatalf("a process with a root key of its own: %v\n%s", err, foreign.out.String())
	}
	two := start(t, bin, etcd, shareKey(t, one.dir))

	define(t, one)
	oneAnswers(t, one, two)
	near, far := door(t, one.addr, two.addr), door(t, two.addr, one.addr)
	a1, a2, a3 := agent(t, one, far), agent(t, one, near), agent(t, one, near)
	for _, p := range []*process{one, two} {
		p.connected(t, 10*time.Second, map[string]bool{a1.ARN(): true, a2.ARN(): true, a3.ARN(): true})
	}

	// Each starts tasks on agents that the other has, too.
	var first []string
	for _, p := range []*process{one, two} {
		out, err := p.ecs.StartTask(t.Context(), &ecs.StartTaskInput{TaskDefinition: aws.String("sample"), ContainerInstances: []string{a1.ARN(), a2.ARN(), a3.ARN()}})
		if err != nil || len(out.Failures) > 0 {
			t.Fatalf("start tasks: %v %+v", err, out)
		}
		for _, tk := range out.Tasks {
			first = append(first, *tk.TaskArn)
		}
	}
	one.reach(t, "RUNNING", first...)
	all := append(fill(t, one, two, 3*room-len(first)), first...)
	two.reach(t, "RUNNING", all...)

	one.kill()
	killed := time.Now()
	a3.Close()
	two.connected(t, 15*time.Second, map[string]bool{a1.ARN(): true, a2.ARN(): true, a3.ARN(): false})
	t.Logf("one agent came over and one was given up within %v", time.Since(killed))
	var mine []string
	for _, tk := range two.reach(t, "RUNNING", all...) {
		if *tk.ContainerInstanceArn == a2.ARN() {
			mine = append(mine, *tk.TaskArn)
		}
	}
	for _, arn := range mine {
		if _, err := two.ecs.StopTask(t.Context(), &ecs.StopTaskInput{Task: &arn}); err != nil {
			t.Fatal(err)
		}
	}
	two.reach(t, "STOPPED", mine...)

	again := start(t, bin, etcd, one.dir, "--listen", one.addr)
	again.reach(t, "RUNNING", fill(t, again, two, len(mine))...)
}

// oneAnswers checks that what one process has answered, the other knows.
func oneAnswers(t *testing.T, one, two *process) {
	t.Helper()
	for i := range 50 {
		if i%2 == 1 {
			one, two = two, one
		}
		out, err := one.ecs.RegisterTaskDefinition(t.Context(), &ecs.RegisterTaskDefinitionInput{
			Family: aws.String("known"), ContainerDefinitions: []types.ContainerDefinition{{Name: aws.String("a"), Image: aws.String("my-image"), Memory: aws.Int32(6)}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := two.ecs.DescribeTaskDefinition(t.Context(), &ecs.DescribeTaskDefinitionInput{TaskDefinition: out.TaskDefinition.TaskDefinitionArn}); err != nil {
			t.Fatalf("another process, at once: %v", err)
		}
	}
}

// fill has both processes place tasks at the same time until there is no room, and
// checks that the right number was placed.
func fill(t *testing.T, one, two *process, want int) []string {
	t.Helper()
	var mu sync.Mutex
	var arns []string
	var work sync.WaitGroup
	for _, p := range []*process{one, two} {
		for range 2 {
			work.Go(func() {
				for full := false; !full; {
					out, err := p.ecs.RunTask(t.Context(), &ecs.RunTaskInput{TaskDefinition: aws.String("sample"), Count: aws.Int32(4)})
					if err != nil {
						t.Errorf("run tasks: %v", err)
						return
					}
					full = len(out.Failures) > 0
					mu.Lock()
					for _, tk := range out.Tasks {
						arns = append(arns, *tk.TaskArn)
					}
					mu.Unlock()
				}
			})
		}
	}
	work.Wait()
	if len(arns) != want {
		t.Fatalf("%d tasks were placed where %d fit", len(arns), want)
	}
	return arns
}

// startEtcd starts an etcd that listens.
func startEtcd(t *testing.T) string {
	t.Helper()
	c := embed.NewConfig()
	c.Dir, c.LogLevel = t.TempDir(), "fatal"
	client, peer := url.URL{Scheme: "http", Host: freeAddress(t)}, url.URL{Scheme: "http", Host: freeAddress(t)}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(2 * time.Minute):
		t.Fatal("etcd is not ready")
	}
	return client.String()
}

// freeAddress is one that nothing listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// process is one "berth cluster".
type process struct {
	dir, addr string
	cmd       *exec.Cmd
	out       *output
	ecs       *ecs.Client
	key       aws.CredentialsProvider
}

// output is what a process prints.
type output struct {
	mu   sync.Mutex
	text strings.Builder
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func launch(t *testing.T, bin, etcd, dir string, args ...string) *process {
	t.Helper()
	p := &process{dir: dir, addr: freeAddress(t), out: &output{}}
	if len(args) == 0 {
		args = []string{"--listen", p.addr}
	} else {
		p.addr = args[1]
	}
	p.cmd = exec.Command(bin, append([]string{"cluster", "--dir", dir, "--etcd-endpoints", etcd}, args...)...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// start starts a process and waits until it serves.
func start(t *testing.T, bin, etcd, dir string, args ...string) *process {
	t.Helper()
	p := launch(t, bin, etcd, dir, args...)
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("process on %s printed:\n%s", p.addr, p.out)
		}
	})
	system.Until(t, 20*time.Second, "the process serves", func() error {
		resp, err := http.Get("http://" + p.addr + "/health")
		if err != nil {
			return fmt.Errorf("%w\n%s", err, p.out)
		}
		resp.Body.Close() //nolint:errcheck // the status is all that is asked for
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
	b, err := os.ReadFile(filepath.Join(dir, "operator.json"))
	if err != nil {
		t.Fatal(err)
	}
	var k struct{ AccessKeyID, SecretAccessKey string }
	if err := json.Unmarshal(b, &k); err != nil {
		t.Fatal(err)
	}
	p.key = credentials.NewStaticCredentialsProvider(k.AccessKeyID, k.SecretAccessKey, "")
	p.ecs = ecs.New(ecs.Options{Region: region, BaseEndpoint: aws.String("http://" + p.addr), Credentials: p.key})
	return p
}

func (p *process) kill() {
	p.cmd.Process.Kill() //nolint:errcheck // it may have ended
	p.cmd.Wait()         //nolint:errcheck // it was killed
}

// shareKey is a new directory with the root key of another.
func shareKey(t *testing.T, from string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(from, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "root.key"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func define(t *testing.T, p *process) {
	t.Helper()
	if _, err := p.ecs.CreateCluster(t.Context(), &ecs.CreateClusterInput{}); err != nil {
		t.Fatal(err)
	}
	_, err := p.ecs.RegisterTaskDefinition(t.Context(), &ecs.RegisterTaskDefinitionInput{
		Family: aws.String("sample"), ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("web"), Image: aws.String("my-image"), Cpu: taskCPU, Memory: aws.Int32(64),
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// agent starts an instance that knows the cluster by one address.
func agent(t *testing.T, p *process, endpoint string) *acstest.Agent {
	t.Helper()
	a, err := acstest.Start(t.Context(), acstest.Config{Endpoint: endpoint, Region: region, CPU: instanceCPU, Credentials: instanceKey(t, p)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func instanceKey(t *testing.T, p *process) aws.CredentialsProvider {
	t.Helper()
	ctx := t.Context()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+p.addr+"/berth/v1/instance-keys", nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := p.key.Retrieve(ctx)
	if err != nil {
		t.Fatal(err)
	}
	none := sha256.Sum256(nil)
	if err := v4.NewSigner().SignHTTP(ctx, k, req, hex.EncodeToString(none[:]), "ecs", region, time.Now()); err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var own struct{ AccessKeyID, SecretAccessKey string }
	if err := json.NewDecoder(resp.Body).Decode(&own); err != nil || own.AccessKeyID == "" {
		t.Fatalf("instance key: %s, %v", resp.Status, err)
	}
	return credentials.NewStaticCredentialsProvider(own.AccessKeyID, own.SecretAccessKey, "")
}

// connected waits until the instances are connected, or not, as wanted.
func (p *process) connected(t *testing.T, limit time.Duration, want map[string]bool) {
	t.Helper()
	var arns []string
	for arn := range want {
		arns = append(arns, arn)
	}
	system.Until(t, limit, "agents are connected as they should be", func() error {
		out, err := p.ecs.DescribeContainerInstances(t.Context(), &ecs.DescribeContainerInstancesInput{ContainerInstances: arns})
		if err != nil {
			return err
		}
		for _, i := range out.ContainerInstances {
			if i.AgentConnected != want[*i.ContainerInstanceArn] {
				return fmt.Errorf("agentConnected of %s is %t", *i.ContainerInstanceArn, i.AgentConnected)
			}
		}
		return nil
	})
}

func (p *process) reach(t *testing.T, status string, arns ...string) []types.Task {
	t.Helper()
	var tasks []types.Task
	system.Until(t, 20*time.Second, "tasks are "+status, func() error {
		out, err := p.ecs.DescribeTasks(t.Context(), &ecs.DescribeTasksInput{Tasks: arns})
		if err != nil {
			return err
		}
		for _, tk := range out.Tasks {
			if aws.ToString(tk.LastStatus) != status {
				return fmt.Errorf("%s is %s", *tk.TaskArn, aws.ToString(tk.LastStatus))
			}
		}
		tasks = out.Tasks
		return nil
	})
	return tasks
}

// door is an address that leads to the first of several that takes connections, as the
// load balancer in front of a cluster does.
func door(t *testing.T, addrs ...string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var ending atomic.Bool
	t.Cleanup(func() { ending.Store(true); l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				if !ending.Load() {
					t.Errorf("door: %v", err)
				}
				return
			}
			go pass(t.Context(), in, addrs)
		}
	}()
	return "http://" + l.Addr().String()
}

func pass(ctx context.Context, in net.Conn, addrs []string) {
	defer in.Close()
	for _, addr := range addrs {
		out, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			continue
		}
		go func() {
			io.Copy(out, in) //nolint:errcheck // ends with the connection
			out.Close()
		}()
		io.Copy(in, out) //nolint:errcheck // ends with the connection
		return
	}
}
