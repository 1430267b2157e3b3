package crash

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"berth.dev/berth/agent/fail"
	cacs "berth.dev/berth/cluster/acs"
	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/vpc"
	services "berth.dev/berth/integ/aws"
	"berth.dev/berth/integ/system"
	"berth.dev/berth/integ/testimage"
	wire "berth.dev/berth/wire/acs"
)

// unreachable are the points that no task can pass yet, with the reasons.
var unreachable = map[fail.Name]string{
	fail.CNIBetweenPlugins: "the bridge and its ports are one plugin, called in process",
	fail.MigrateMid:        "there is one version of the state's layout",
}

// elsewhere begins the names of points at which containerd plays no part. The older one,
// and a crash of it at the same time, see every third of them.
var elsewhere = []string{"intake.", "intent.", "cgroup.", "volume.", "secret.", "netns.", "cni.", "eni.", "tmds.", "creds.", "report.", "retention.", "sweep."}

// spared reports whether a leg of the matrix does without a point, the n-th of those
// elsewhere when it is one of them. Each leg has others of them.
func spared(leg int, point fail.Name, n *int) bool {
	if leg == 0 || !slices.ContainsFunc(elsewhere, func(p string) bool { return strings.HasPrefix(point.String(), p) }) {
		return false
	}
	*n++
	return *n%3 != leg-1
}

// TestAgentExitsAtEachPoint is the crash matrix, C1 and C2: at each point where a
// crash could tear something apart the agent is ended by SIGKILL, alone or with
// containerd, and started again, and the task goes its way as if nothing had been.
func TestAgentExitsAtEachPoint(t *testing.T) {
	bin := system.Programs(t, system.Containerd2, "failpoint")
	legs := 0 // the newer containerd is first, and has all points
	for _, kind := range slices.Backward(kinds()) {
		for _, both := range []bool{false, true} {
			leg := legs
			legs++
			name := kind + "/agent"
			if both {
				name += "-and-containerd"
			}
			t.Run(name, func(t *testing.T) {
				l := start(t, kind, bin, func(c *cacs.Config) { c.Credentials = issue })
				hit, n := 0, 0
				for _, point := range fail.Names() {
					if _, skip := unreachable[point]; skip {
						continue
					}
					hit++
					if spared(leg, point, &n) {
						continue
					}
					t.Run(point.String(), func(t *testing.T) { l.visit(t, point, both) })
				}
				if want := len(fail.Names()) - len(unreachable); hit != want {
					t.Errorf("%d points are visited or spared, want %d", hit, want)
				}
			})
		}
	}
}

// visit lets a task live while the agent dies at a point.
func (l *lab) visit(t *testing.T, point fail.Name, both bool) {
	v := &visit{lab: l, t: t, both: both}
	if point == fail.SweepBeforeRemove {
		v.sweep()
	} else {
		l.setFailpoint(t, point.String(), "exit")
	}
	main, side := l.container("main", l.push(t, point), waits(3)), l.container("side", "busybox", waits(4))
	want := Expected{"main": 3, "side": 4}
	if point == fail.StopAfterKill { // which only a container that does not listen gets to
		side = l.container("side", "busybox", deaf)
		side.StopTimeout = aws.Int32(2)
		want["side"] = 137
	}
	arn := l.runPast(t, point, main, side)
	tk := v.wait(arn, "RUNNING")
	v.alive(tk)
	if point != fail.ENIAfterMove {
		v.told(arn)
	} else {
		v.waiting(tk) // from its network nobody can tell the beacon
	}
	l.On(t).Stop(arn)
	tk = v.wait(arn, "STOPPED")
	if tk.StopCode != types.TaskStopCodeUserInitiated {
		t.Errorf("stop code %s: %s", tk.StopCode, system.Explain(tk))
	}
	v.until("nothing is left of the task", func() error {
		if st, err := l.AgentState(); err != nil {
			return err
		} else if st.Tasks > 0 {
			return fmt.Errorf("the agent still knows %d tasks", st.Tasks)
		}
		return l.Clean()
	})
	if v.died == 0 {
		t.Fatal("the agent was not at this point")
	}
	if point != fail.ENIAfterMove {
		l.judge(t, want, arn)
		return
	}
	for _, c := range tk.Containers {
		if name, exit := aws.ToString(c.Name), aws.ToInt32(c.ExitCode); int(exit) != want[name] {
			t.Errorf("container %s ended with %d", name, exit)
		}
	}
}

// Families of the tasks, and what those with roles refer to.
const (
	family      = "crash"
	familyRoles = "crash-roles"
	role        = "arn:aws:iam::" + services.Account + ":role/exec"
	parameter   = "/crash/value"
)

// runPast runs a task that passes a point and returns its ARN.
func (l *lab) runPast(t *testing.T, point fail.Name, main, side types.ContainerDefinition) string {
	t.Helper()
	def := &ecs.RegisterTaskDefinitionInput{Family: aws.String(family)}
	run := &ecs.RunTaskInput{}
	switch point {
	case fail.VolumeBeforeMount, fail.VolumeAfterMount, fail.VolumeAfterUmount:
		def.Volumes = []types.Volume{{Name: aws.String("data"), DockerVolumeConfiguration: &types.DockerVolumeConfiguration{Scope: types.ScopeTask}}}
		main.MountPoints = []types.MountPoint{{SourceVolume: aws.String("data"), ContainerPath: aws.String("/data")}}
	case fail.SecretAfterFetch, fail.CredsAfterSet:
		def.Family, def.ExecutionRoleArn = aws.String(familyRoles), aws.String(role)
		main.Secrets = []types.Secret{{Name: aws.String("VALUE"), ValueFrom: aws.String(parameter)}}
	case fail.ENIAfterMove:
		def.NetworkMode = types.NetworkModeAwsvpc
		run.NetworkConfiguration = &types.NetworkConfiguration{AwsvpcConfiguration: &types.AwsVpcConfiguration{Subnets: []string{l.subnet(t)}}}
		// Nothing of the host is reached from there, so these tell nobody of their start.
		main.Command, side.Command = []string{"sh", "-c", trap(waits(3)) + "; " + waits(3)}, []string{"sh", "-c", trap(waits(4)) + "; " + waits(4)}
	}
	def.ContainerDefinitions = []types.ContainerDefinition{main, side}
	run.TaskDefinition = aws.String(l.On(t).Register(def))
	out, err := l.ECS.RunTask(t.Context(), run)
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Tasks) != 1 {
		t.Fatalf("not placed: %+v", out.Failures)
	}
	return *out.Tasks[0].TaskArn
}

// subnet is the one that the cluster has by itself.
func (l *lab) subnet(t *testing.T) (id string) {
	t.Helper()
	err := l.Cluster.Store.Update(t.Context(), func(tx *store.Tx) error {
		err := vpc.EnsureDefaults(tx, "us-east-1")
		if err == nil {
			id = store.List(tx, store.Subnets, "")[0].ID
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// issue issues the credentials of the roles of tasks that have some.
func issue(_ context.Context, t *store.Task) (own, execution *wire.IAMRoleCredentials, err error) {
	if aws.ToString(t.Task.Group) != "family:"+familyRoles {
		return nil, nil, nil
	}
	return nil, &wire.IAMRoleCredentials{
		CredentialsID: "exec-" + t.ID, RoleARN: role, AccessKeyID: "ASIAEXECUTION", SecretAccessKey: "secret", SessionToken: "token",
		Expiration: time.Now().Add(time.Hour).UTC().Format(time.RFC3339),
	}, nil
}

// visit is one task's life with a crash in it.
type visit struct {
	*lab
	t    *testing.T
	both bool
	died int
}

// until waits for a condition and revives what has died meanwhile.
func (v *visit) until(what string, cond func() error) {
	v.t.Helper()
	system.Until(v.t, 30*time.Second, what, func() error {
		v.revive()
		return cond()
	})
}

func (v *visit) revive() {
	select {
	case <-v.Agent.Done():
	default:
		return
	}
	v.died++
	if v.died > 1 {
		v.t.Fatalf("the agent ended again:\n%s", v.Agent.Output())
	}
	if v.both {
		v.Containerd.Kill()
		v.Containerd.Restart()
	}
	v.StartAgent()
	v.On(v.t).WaitConnected(3 * time.Second) // reliability plan, C1
}

func (v *visit) wait(arn, status string) types.Task {
	v.t.Helper()
	var tk types.Task
	v.until("the task is "+status, func() error {
		tk = v.On(v.t).Describe(arn)[0]
		if got := aws.ToString(tk.LastStatus); got == "STOPPED" && status != "STOPPED" {
			v.t.Fatal("stopped: ", v.Unlike(tk))
		} else if got != status {
			return v.Unlike(tk)
		}
		return nil
	})
	return tk
}

// told waits until the ledger knows of both starts.
func (v *visit) told(arn string) {
	v.until("both containers have told of their start", func() error {
		h := v.ledger.History().of(short(arn))
		if len(h.Starts) != 2 {
			return fmt.Errorf("started: %v", h.Starts)
		}
		return nil
	})
}

// waiting waits until every container does nothing but wait for the stop signal.
func (v *visit) waiting(tk types.Task) {
	v.until("all containers wait", func() error {
		for _, c := range tk.Containers {
			pids := v.processes(*tk.TaskArn, aws.ToString(c.RuntimeId))
			if !slices.ContainsFunc(pids, func(pid int) bool { return program(pid) == "sleep" }) {
				return fmt.Errorf("%s has processes %v", aws.ToString(c.Name), pids)
			}
		}
		return nil
	})
}

// alive checks that what is RUNNING has processes.
func (v *visit) alive(tk types.Task) {
	v.t.Helper()
	for _, c := range tk.Containers {
		if len(v.processes(*tk.TaskArn, aws.ToString(c.RuntimeId))) == 0 {
			v.t.Errorf("%s is RUNNING and has no process", aws.ToString(c.Name))
		}
	}
}

// sweep has the agent start with something on the host that is nobody's.
func (v *visit) sweep() {
	v.Agent.Kill()
	stray := filepath.Join(v.Dir, "run", "network", "files", "0123456789abcdef0123456789abcdef")
	if err := os.MkdirAll(stray, 0o755); err != nil {
		v.t.Fatal(err)
	}
	v.StartAgent("BERTH_FAILPOINTS=" + fail.SweepBeforeRemove.String() + "=exit")
	<-v.Agent.Done()
	v.died++
	if v.both {
		v.Containerd.Kill()
		v.Containerd.Restart()
	}
	v.StartAgent()
	v.On(v.t).WaitConnected(3 * time.Second)
}

// push stores an image that no other point uses, so that it has to be pulled.
func (l *lab) push(t *testing.T, point fail.Name) string {
	t.Helper()
	base, err := testimage.BusyboxLayer()
	if err != nil {
		t.Fatal(err)
	}
	own, err := testimage.Layer(map[string]testimage.File{"point": {Data: []byte(point.String())}})
	if err != nil {
		t.Fatal(err)
	}
	img, err := testimage.Image(v1.Config{Env: []string{"PATH=/bin"}}, base, own)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := l.registry.Push("crash/"+point.String()+":v1", img)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}
