// Package churn starts and stops tasks of every network mode while the agent, containerd
// and CNI plugins are killed, on a host that other software uses as well, and looks for
// what is left of them and whether anything of the others' was touched.
package churn

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/vpc"
	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
)

func TestMain(m *testing.M) { host.Main(m) }

const (
	// each is how many tasks of each mode come and go; BERTH_CHURN says another number.
	each = 9
	// batch is how many of each mode there are at once.
	batch = 3

	idle    = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
	subnet6 = "fd7b:8a31:44::/64"
	gateway = "fd7b:8a31:44::1"
)

// rounds is how many batches make the wanted number of tasks.
func rounds(t *testing.T) int {
	t.Helper()
	n := each
	if s := os.Getenv("BERTH_CHURN"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil || n < 1 {
			t.Fatalf("BERTH_CHURN=%s: must be a number of tasks", s)
		}
	}
	return (n + batch - 1) / batch
}

// lab is a system with a VPC and a network of the operator's.
type lab struct {
	*system.System
	t         *testing.T
	subnet    string
	addresses string // that host-local has given out
}

// plugins are Debian's, by the names of their programs.
var plugins = []string{"ptp", "host-local"}

func newLab(t *testing.T) *lab {
	t.Helper()
	for _, p := range plugins {
		if _, err := os.Stat(filepath.Join("/usr/lib/cni", p)); err != nil {
			t.Fatalf("needs Debian's containernetworking-plugins: %v", err)
		}
	}
	conf := t.TempDir()
	l := &lab{t: t, addresses: filepath.Join(t.TempDir(), "addresses")}
	list := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"lan","plugins":[{"type":"ptp","ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.93.0.0/16"}]]}}]}`, l.addresses)
	if err := os.WriteFile(filepath.Join(conf, "lan.conflist"), []byte(list), 0o644); err != nil {
		t.Fatal(err)
	}
	l.System = system.Start(t, system.Options{AgentEnv: []string{
		"ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION=1s", "ECS_CONTAINER_STOP_TIMEOUT=5s", "ECS_EXCLUDE_IPV6_PORTBINDING=false",
		"BERTH_BRIDGE_SUBNET_IPV6=" + subnet6, "BERTH_CNI_CONFIG_DIR=" + conf,
	}})
	if err := l.Cluster.Store.Update(context.Background(), func(tx *store.Tx) error {
		err := vpc.EnsureDefaults(tx, "us-east-1")
		if err == nil {
			l.subnet = store.List(tx, store.Subnets, "")[0].ID
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return l
}

// kind is one sort of tasks.
type kind struct {
	name    string
	def     string
	network *types.NetworkConfiguration
}

// kinds registers a definition for each network mode.
func (l *lab) kinds() []kind {
	container := types.ContainerDefinition{Name: aws.String("c"), Image: aws.String("busybox"), Memory: aws.Int32(16), Command: []string{"sh", "-c", idle}}
	joined, published := container, container
	joined.DockerLabels = map[string]string{"berth.networks": "lan"}
	published.PortMappings = []types.PortMapping{{ContainerPort: aws.Int32(80), Protocol: types.TransportProtocolTcp}, {ContainerPort: aws.Int32(53), Protocol: types.TransportProtocolUdp}}
	var out []kind
	for _, k := range []struct {
		name string
		mode types.NetworkMode
		c    types.ContainerDefinition
	}{
		{"bridge", types.NetworkModeBridge, published}, {"host", types.NetworkModeHost, container},
		{"none", types.NetworkModeNone, joined}, {"awsvpc", types.NetworkModeAwsvpc, container},
	} {
		n := kind{name: k.name, def: l.Register(&ecs.RegisterTaskDefinitionInput{Family: &k.name, NetworkMode: k.mode, ContainerDefinitions: []types.ContainerDefinition{k.c}})}
		if k.mode == types.NetworkModeAwsvpc {
			n.network = &types.NetworkConfiguration{AwsvpcConfiguration: &types.AwsVpcConfiguration{Subnets: []string{l.subnet}}}
		}
		out = append(out, n)
	}
	return out
}

// begin starts a batch of each kind. After a kill the agent has to come back first.
func (l *lab) begin(kinds []kind) (arns []string) {
	l.t.Helper()
	for _, k := range kinds {
		system.Until(l.t, time.Minute, "tasks of mode "+k.name+" are placed", func() error {
			out, err := l.ECS.RunTask(context.Background(), &ecs.RunTaskInput{TaskDefinition: &k.def, Count: aws.Int32(batch), NetworkConfiguration: k.network})
			if err != nil {
				return err
			}
			for _, tk := range out.Tasks {
				arns = append(arns, *tk.TaskArn)
			}
			if len(out.Tasks) == 0 {
				return fmt.Errorf("%s", aws.ToString(out.Failures[0].Reason))
			}
			return nil
		})
	}
	return arns
}

// settled waits until every task runs or has ended, and says how many run.
func (l *lab) settled(arns []string) (running int) {
	l.t.Helper()
	system.Until(l.t, 2*time.Minute, "tasks run or have ended", func() error {
		running = 0
		for _, tk := range l.describe(arns) {
			switch aws.ToString(tk.LastStatus) {
			case "RUNNING":
				running++
			case "STOPPED":
			default:
				return errors.New(system.Explain(tk))
			}
		}
		return nil
	})
	return running
}

// describe asks for any number of tasks.
func (l *lab) describe(arns []string) (out []types.Task) {
	l.t.Helper()
	const most = 100 // of DescribeTasks
	for len(arns) > 0 {
		n := min(len(arns), most)
		out = append(out, l.Describe(arns[:n]...)...)
		arns = arns[n:]
	}
	return out
}

// victims are killed one after the other.
var victims = []string{"agent", "plugin", "containerd"}

// kill kills one of them at a random moment from now.
func (l *lab) kill(victim string, after time.Duration) {
	l.t.Helper()
	<-time.After(after)
	switch victim {
	case "agent":
		l.Agent.Kill()
		l.StartAgent()
	case "containerd":
		l.Containerd.Kill()
		l.Containerd.Restart()
	default:
		l.killPlugin()
	}
}

// killPlugin kills the first plugin that it sees, if there is one within a second.
func (l *lab) killPlugin() {
	l.t.Helper()
	deadline := time.Now().Add(time.Second)
	for time.Now().Before(deadline) {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			l.t.Fatal(err)
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			// Only those of this system: the configuration is on standard input, the namespace in
			// the environment.
			env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
			if err != nil || !strings.Contains(string(env), "CNI_NETNS="+l.Dir) {
				continue
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err == nil {
				l.t.Logf("killed a plugin at its work")
				return
			}
		}
	}
}

// TestNothingIsLeft is the churn. With BERTH_CHURN=500 it is the whole of it.
func TestNothingIsLeft(t *testing.T) {
	others := newOthers(t)
	l := newLab(t)
	others.inContainerd(l)
	l.Settle()
	before := others.hash()
	l.dualStack(t)
	l.elastic(t)
	kinds := l.kinds()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	start, total, ran := time.Now(), 0, 0
	for round := range rounds(t) {
		victim := victims[round%len(victims)]
		arns := l.begin(kinds)
		total += len(arns)
		starting := random.IntN(2) == 0
		if starting {
			l.kill(victim, time.Duration(random.IntN(400))*time.Millisecond)
		}
		ran += l.settled(arns)
		l.Stop(arns...)
		if !starting {
			l.kill(victim, time.Duration(random.IntN(200))*time.Millisecond)
		}
		l.Wait("STOPPED", 2*time.Minute, arns...)
	}
	t.Logf("%d tasks, of which %d ran, in %v", total, ran, time.Since(start))
	if ran < total/2 {
		t.Errorf("only %d of %d tasks ran: this proves little", ran, total)
	}
	l.WaitClean(time.Minute)
	if err := filepath.WalkDir(l.addresses, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), "10.") {
			err = fmt.Errorf("address %s is still given out", path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	others.unchanged(before)
}

// refused is curl's exit code for a connection that was refused.
const refused = 7

// elastic reaches, from a task with an interface of its own on a host that is its subnet's
// router, the world and the task's metadata.
func (l *lab) elastic(t *testing.T) {
	t.Helper()
	k := l.kinds()[3]
	out, err := l.ECS.RunTask(context.Background(), &ecs.RunTaskInput{TaskDefinition: &k.def, NetworkConfiguration: k.network})
	if err != nil || len(out.Tasks) != 1 {
		t.Fatalf("%v, %+v", err, out)
	}
	arn := *out.Tasks[0].TaskArn
	l.Wait("RUNNING", 30*time.Second, arn)
	curl := func(url string) error {
		ns := filepath.Join(l.Dir, "run", "network", "namespaces", filepath.Base(arn))
		out, err := exec.Command("nsenter", "--net="+ns, "curl", "-sS", "--max-time", "3", url).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	}
	// Nobody listens there; that this is said at once says that the world is reached.
	var exit *exec.ExitError
	if err := curl("http://" + host.Outside + ":9/"); !errors.As(err, &exit) || exit.ExitCode() != refused {
		t.Errorf("the task does not reach the world: %v", err)
	}
	if err := curl("http://169.254.170.2/v2/metadata"); err != nil {
		t.Errorf("the task does not reach its metadata: %v", err)
	}
	l.Stop(arn)
	l.Wait("STOPPED", 30*time.Second, arn)
}

// dualStack reaches a task by the published port that is reported for IPv6.
func (l *lab) dualStack(t *testing.T) {
	t.Helper()
	page := "mkdir /tmp/www && echo page > /tmp/www/index.html && httpd -p 80 -h /tmp/www && " + idle
	c := types.ContainerDefinition{
		Name: aws.String("web"), Image: aws.String("busybox"), Memory: aws.Int32(16), Command: []string{"sh", "-c", page},
		PortMappings: []types.PortMapping{{ContainerPort: aws.Int32(80), Protocol: types.TransportProtocolTcp}},
		DockerLabels: map[string]string{"berth.networks": "lan"},
	}
	arn := l.Run(l.Register(&ecs.RegisterTaskDefinitionInput{Family: aws.String("dual"), ContainerDefinitions: []types.ContainerDefinition{c}}), 1)[0]
	tk := l.Wait("RUNNING", 30*time.Second, arn)[0]
	bindings := tk.Containers[0].NetworkBindings
	if len(bindings) != 2 || aws.ToString(bindings[0].BindIP) != "0.0.0.0" || aws.ToString(bindings[1].BindIP) != "::" ||
		aws.ToInt32(bindings[0].HostPort) != aws.ToInt32(bindings[1].HostPort) {
		t.Fatalf("bindings %+v", bindings)
	}
	for _, address := range []string{"127.0.0.1", host.Address, "[" + gateway + "]"} {
		fetches(t, fmt.Sprintf("http://%s:%d/", address, aws.ToInt32(bindings[0].HostPort)))
	}
	l.Stop(arn)
	l.Wait("STOPPED", 30*time.Second, arn)
}
