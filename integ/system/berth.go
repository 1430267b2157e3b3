package system

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"berth.dev/berth/agent/daemon"
	"berth.dev/berth/agent/runtime"
	"berth.dev/berth/cluster/acs"
	"berth.dev/berth/cluster/acs/acstest"
	"berth.dev/berth/cluster/api"
	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/testimage"
	"berth.dev/berth/integ/world"
)

// Options says what kind of system a test wants.
type Options struct {
	Containerd string            // Containerd1 or Containerd2; "" means Containerd2
	Programs   string            // folder with the programs; "" builds them
	Tags       []string          // build tags of the programs
	InMemory   bool              // what a host has in /run is in memory, as it is there
	Slow       int               // how many times longer everything may take than on a machine; 0 means 1
	AgentEnv   []string          // more settings of the agent, NAME=value
	API        func(*api.Config) // changes to the cluster's API; may be nil
	ACS        func(*acs.Config) // changes to the cluster's ACS server; may be nil
}

// System is a running Berth.
type System struct {
	t          testing.TB
	o          Options
	Dir        string
	Bin        string
	Cluster    *acstest.Lab
	Containerd *Containerd
	Agent      *Process
	ECS        *ecs.Client     // the operator's
	Runtime    *runtime.Client // the test's own connection to containerd

	bare world.Snapshot // before the agent was started
	idle world.Snapshot // with the agent, before any task
}

// Start starts containerd, cluster and agent, and waits until the agent is connected.
func Start(t testing.TB, o Options) *System {
	t.Helper()
	if o.Containerd == "" {
		o.Containerd = Containerd2
	}
	s := &System{t: t, o: o, Dir: host.ShortDir(t), Bin: o.Programs}
	if s.Bin == "" {
		s.Bin = Programs(t, o.Containerd, o.Tags...)
	}
	if o.InMemory {
		s.inMemory("run", "cd-state")
	}
	s.Containerd = StartContainerd(t, o.Containerd, s.Dir, s.Bin)
	s.Containerd.ends *= s.slow()
	s.Cluster = acstest.NewLab(t, o.API, o.ACS)
	s.ECS = s.Cluster.Operator
	s.openRuntime()
	s.agentKey()
	s.bare = s.mustWorld(t)
	s.StartAgent()
	t.Cleanup(s.end)
	s.WaitConnected(10 * time.Second * s.slow())
	s.idle = s.mustWorld(t)
	return s
}

// inMemory makes directories of the system that are in memory.
func (s *System) inMemory(names ...string) {
	s.t.Helper()
	for _, name := range names {
		dir := filepath.Join(s.Dir, name)
		err := os.Mkdir(dir, 0o711)
		if err == nil {
			err = unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0711")
		}
		if err != nil {
			s.t.Fatalf("directory in memory %s: %v", dir, err)
		}
		s.t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				s.t.Errorf("directory in memory %s: %v", dir, err)
			}
		})
	}
}

// StartCluster starts the cluster again after StopCluster, on its data and its address.
func (s *System) StartCluster() {
	s.Cluster.Start()
	s.ECS = s.Cluster.Operator
}

// StopCluster ends the cluster, as a crash of it looks to the agent.
func (s *System) StopCluster() { s.Cluster.Stop() }

// agentKey gives the agent a key of its own, as "berth up" does.
func (s *System) agentKey() {
	s.t.Helper()
	k, err := s.Cluster.InstanceKey("AKIATESTINSTANCE0001").Retrieve(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", k.AccessKeyID, k.SecretAccessKey)
	if err := os.WriteFile(filepath.Join(s.Dir, "agent.key"), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// environ is the environment of the agent. Its cgroup is the system's own, because
// other tests run on this machine at the same time.
func (s *System) environ() []string {
	return append(os.Environ(),
		"ECS_BACKEND_HOST="+s.Cluster.URL, "AWS_DEFAULT_REGION=us-east-1", "ECS_EXTERNAL=true",
		"BERTH_CONTAINERD_ADDRESS="+s.Containerd.Address,
		"BERTH_STATE_DIR="+filepath.Join(s.Dir, "agent"),
		"BERTH_RUN_DIR="+filepath.Join(s.Dir, "run"),
		"BERTH_VOLUME_DIR="+filepath.Join(s.Dir, "volumes"),
		"BERTH_LOG_DIR="+filepath.Join(s.Dir, "log"),
		"BERTH_KEY_FILE="+filepath.Join(s.Dir, "agent.key"),
		"BERTH_LOGGER_PATH="+filepath.Join(s.Bin, "berth-logger"),
		"BERTH_PAUSE_PATH="+filepath.Join(s.Bin, "berth-pause"),
		"BERTH_CGROUP="+s.Cgroup(),
	)
}

// Cgroup is the name of the cgroup that all tasks of this system are in.
func (s *System) Cgroup() string { return filepath.Base(s.Dir) }

// slow is Options.Slow as a factor.
func (s *System) slow() time.Duration { return time.Duration(max(1, s.o.Slow)) }

// StartAgent starts the agent on its state directory.
func (s *System) StartAgent(env ...string) {
	s.t.Helper()
	all := append(append(s.environ(), s.o.AgentEnv...), env...)
	s.Agent = launch(s.t, "berth-agent", all, filepath.Join(s.Bin, "berth-agent"))
	s.Agent.ends *= s.slow()
}

// end takes the agent down and everything that it put on the host.
func (s *System) end() {
	if s.t.Failed() {
		s.t.Logf("the agent printed:\n%s", last(s.Agent.Output(), 60))
	}
	s.StopTasks()
	s.Agent.Stop()
	cmd := launch(s.t, "teardown", s.environ(), filepath.Join(s.Bin, "berth-agent"), "teardown")
	<-cmd.Done()
	if code := cmd.cmd.ProcessState.ExitCode(); code != 0 {
		s.t.Errorf("berth-agent teardown: exit code %d:\n%s", code, cmd.Output())
	} else if err := s.differs(s.bare); err != nil {
		s.t.Errorf("left on the host after teardown:\n%v", err)
	}
}

// StopTasks stops every task of the cluster and waits for their end.
func (s *System) StopTasks() {
	s.t.Helper()
	ctx := context.Background()
	l, err := s.ECS.ListTasks(ctx, &ecs.ListTasksInput{})
	if err != nil {
		s.t.Errorf("list tasks: %v", err)
		return
	}
	for _, arn := range l.TaskArns {
		if _, err := s.ECS.StopTask(ctx, &ecs.StopTaskInput{Task: aws.String(arn)}); err != nil {
			s.t.Errorf("stop %s: %v", arn, err)
		}
	}
	if len(l.TaskArns) > 0 && !s.t.Failed() {
		s.Wait("STOPPED", time.Minute*s.slow(), l.TaskArns...)
	}
}

// openRuntime connects to containerd for the test itself and loads the image "busybox".
func (s *System) openRuntime() {
	s.t.Helper()
	c, err := runtime.Open(context.Background(), runtime.Config{
		Address: s.Containerd.Address, StateDir: filepath.Join(s.Dir, "run"), LogDir: filepath.Join(s.Dir, "log", "tasks"),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.Runtime = c
	s.t.Cleanup(func() { c.Close() }) //nolint:errcheck // containerd is ended next
	img, err := testimage.Busybox()
	if err != nil {
		s.t.Fatal(err)
	}
	s.Load("busybox", img)
}

// Load puts an image into containerd under a name, as "berth image load" does.
func (s *System) Load(name string, img v1.Image) {
	s.t.Helper()
	archive := filepath.Join(s.t.TempDir(), "image.tar")
	if err := testimage.WriteArchive(archive, name, img); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.Runtime.Import(context.Background(), archive); err != nil {
		s.t.Fatal(err)
	}
}

// AgentState asks the agent's debug socket.
func (s *System) AgentState() (daemon.State, error) {
	var st daemon.State
	err := s.debug("/v1/state", &st)
	return st, err
}

// Debug is a client of the agent's debug socket; the host in its URLs does not matter.
func (s *System) Debug() *http.Client {
	socket := filepath.Join(s.Dir, "run", "agent.sock")
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
}

func (s *System) debug(path string, into any) error {
	resp, err := s.Debug().Get("http://agent" + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// Ask decodes an answer of the agent's debug socket.
func (s *System) Ask(path string, into any) error { return s.debug(path, into) }

// Events returns the agent's event log of a task, as text, for the report of a failure.
func (s *System) Events(taskARN string) string {
	var events []json.RawMessage
	if err := s.debug("/v1/events?task="+url.QueryEscape(filepath.Base(taskARN)), &events); err != nil {
		return err.Error()
	}
	var out bytes.Buffer
	for _, e := range events {
		out.Write(e)
		out.WriteByte('\n')
	}
	return out.String()
}

// WaitConnected waits until the agent's ACS session is up.
func (s *System) WaitConnected(limit time.Duration) {
	s.t.Helper()
	Until(s.t, limit, "the agent is connected", func() error {
		select {
		case <-s.Agent.Done():
			return fmt.Errorf("it ended:\n%s", last(s.Agent.Output(), 30))
		default:
		}
		st, err := s.AgentState()
		if err != nil {
			return fmt.Errorf("%w; it printed:\n%s", err, last(s.Agent.Output(), 30))
		}
		if !st.Connected || !st.Ready {
			return fmt.Errorf("state %+v", st)
		}
		return nil
	})
}

// On is the system for a subtest, whose failures are its own.
func (s *System) On(t testing.TB) *System {
	on := *s
	on.t = t
	return &on
}

// Register registers a definition given as JSON, as "aws ecs register-task-definition
// --cli-input-json" would.
func (s *System) Register(in *ecs.RegisterTaskDefinitionInput) string {
	s.t.Helper()
	out, err := s.ECS.RegisterTaskDefinition(context.Background(), in)
	if err != nil {
		s.t.Fatal(err)
	}
	return *out.TaskDefinition.TaskDefinitionArn
}

// Run runs count tasks of a definition and returns their ARNs.
func (s *System) Run(definition string, count int) []string {
	s.t.Helper()
	var arns []string
	for count > 0 {
		n := min(count, 10)
		out, err := s.ECS.RunTask(context.Background(), &ecs.RunTaskInput{TaskDefinition: &definition, Count: aws.Int32(int32(n))})
		if err != nil {
			s.t.Fatal(err)
		}
		for _, f := range out.Failures {
			s.t.Fatalf("run %s: %s %s", definition, aws.ToString(f.Reason), aws.ToString(f.Detail))
		}
		for _, tk := range out.Tasks {
			arns = append(arns, *tk.TaskArn)
		}
		count -= n
	}
	return arns
}

// Stop stops tasks.
func (s *System) Stop(arns ...string) {
	s.t.Helper()
	for _, arn := range arns {
		if _, err := s.ECS.StopTask(context.Background(), &ecs.StopTaskInput{Task: aws.String(arn)}); err != nil {
			s.t.Fatal(err)
		}
	}
}

// Describe returns tasks as DescribeTasks shows them.
func (s *System) Describe(arns ...string) []types.Task {
	s.t.Helper()
	var all []types.Task
	for len(arns) > 0 {
		n := min(len(arns), 100)
		out, err := s.ECS.DescribeTasks(context.Background(), &ecs.DescribeTasksInput{Tasks: arns[:n]})
		if err != nil {
			s.t.Fatal(err)
		}
		if len(out.Failures) > 0 {
			s.t.Fatalf("describe: %s %s", aws.ToString(out.Failures[0].Arn), aws.ToString(out.Failures[0].Reason))
		}
		all = append(all, out.Tasks...)
		arns = arns[n:]
	}
	return all
}

// Wait waits until all tasks have the given lastStatus. A task that is STOPPED while
// another status is waited for fails the test at once, with its reasons.
func (s *System) Wait(status string, limit time.Duration, arns ...string) []types.Task {
	s.t.Helper()
	var tasks []types.Task
	Until(s.t, limit, fmt.Sprintf("%d tasks are %s", len(arns), status), func() error {
		tasks = s.Describe(arns...)
		for _, tk := range tasks {
			if got := aws.ToString(tk.LastStatus); got == "STOPPED" && status != "STOPPED" {
				s.t.Fatal("task stopped: ", s.Unlike(tk))
			} else if got != status {
				return s.Unlike(tk)
			}
		}
		return nil
	})
	return tasks
}

// Unlike is the error of a task that is not as it should be. Its events are asked for when
// somebody wants to read them.
func (s *System) Unlike(tk types.Task) error { return unlike{s, tk} }

type unlike struct {
	s  *System
	tk types.Task
}

func (u unlike) Error() string {
	return Explain(u.tk) + "\nevents:\n" + u.s.Events(*u.tk.TaskArn)
}

// Explain is one line about a task with everything that says why.
func Explain(tk types.Task) string {
	line := fmt.Sprintf("%s is %s (desired %s) stopCode %s reason %q", *tk.TaskArn, aws.ToString(tk.LastStatus),
		aws.ToString(tk.DesiredStatus), tk.StopCode, aws.ToString(tk.StoppedReason))
	for _, c := range tk.Containers {
		line += fmt.Sprintf("; %s %s", aws.ToString(c.Name), aws.ToString(c.LastStatus))
		if c.ExitCode != nil {
			line += fmt.Sprintf(" exit %d", *c.ExitCode)
		}
		if c.Reason != nil {
			line += fmt.Sprintf(" %q", *c.Reason)
		}
	}
	return line
}
