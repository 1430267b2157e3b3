package metadata

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/vpc"
	"berth.dev/berth/eni"
	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
	"berth.dev/berth/wire/tmds"
)

// elastic is a guest in mode awsvpc, which the test reaches from inside its network.
func (l *lab) elastic(t *testing.T) *guest {
	t.Helper()
	var subnet, group string
	if err := l.Cluster.Store.Update(t.Context(), func(tx *store.Tx) error {
		if err := vpc.EnsureDefaults(tx, "us-east-1"); err != nil {
			return err
		}
		subnet = store.List(tx, store.Subnets, "")[0].ID
		group = vpc.GroupByName(tx, vpc.Default(tx), vpc.DefaultGroup).ID
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	d := l.On(t)
	def := d.Register(&ecs.RegisterTaskDefinitionInput{
		Family: aws.String("guest-awsvpc"), NetworkMode: types.NetworkModeAwsvpc, ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("guest0"), Image: aws.String("guest"), Memory: aws.Int32(64), Command: []string{fmt.Sprintf(":%d", guestPort)},
		}},
	})
	out, err := l.ECS.RunTask(t.Context(), &ecs.RunTaskInput{TaskDefinition: &def, NetworkConfiguration: &types.NetworkConfiguration{
		AwsvpcConfiguration: &types.AwsVpcConfiguration{Subnets: []string{subnet}, SecurityGroups: []string{group}},
	}})
	if err != nil || len(out.Failures) > 0 {
		t.Fatalf("%v %+v", err, out)
	}
	arn := *out.Tasks[0].TaskArn
	t.Cleanup(func() { d.Stop(arn) })
	g := &guest{t: t, task: d.Wait("RUNNING", time.Minute, arn)[0], url: fmt.Sprintf("http://127.0.0.1:%d", guestPort), env: map[string]string{}}
	g.dial = l.inside(t, arn)
	g.wait()
	return g
}

// inside dials inside the network of a task, and keeps that network until the test ends.
func (l *lab) inside(t *testing.T, arn string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(l.Dir, "run", "network", "namespaces", arn[strings.LastIndexByte(arn, '/')+1:]+"*"))
	if err != nil || len(paths) != 1 {
		t.Fatalf("networks of %s: %q, %v", arn, paths, err)
	}
	ns, err := eni.OpenNamespace(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() }) //nolint:errcheck // it was only looked at
	return func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		var d net.Dialer
		return c, ns.Do(func() error { c, err = d.DialContext(ctx, network, addr); return err })
	}
}

// instanceMetadata has tasks of every network mode look for the metadata service of the
// host, by its addresses and by detours.
func instanceMetadata(t *testing.T, l *lab) {
	hostService(t, "169.254.169.254")
	hostService(t, "fd00:ec2::254")
	detour, err := net.Listen("tcp", host.Address+":0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.RedirectHandler("http://169.254.169.254/", http.StatusFound)}
	go s.Serve(detour)              //nolint:errcheck // ends with Close
	t.Cleanup(func() { s.Close() }) //nolint:errcheck // nobody uses it
	named := func(in *ecs.RegisterTaskDefinitionInput) {
		in.ContainerDefinitions[0].ExtraHosts = []types.HostEntry{{Hostname: aws.String("rebound.example"), IpAddress: aws.String("169.254.169.254")}}
	}
	urls := []string{"http://169.254.169.254", "http://[::ffff:169.254.169.254]", "http://[fd00:ec2::254]", "http://rebound.example", "http://" + detour.Addr().String()}
	inHost := l.guests(t, types.NetworkModeHost, 1, named)[0]
	blocked := func(t *testing.T, g *guest) {
		t.Helper()
		var wg sync.WaitGroup
		for _, url := range urls {
			wg.Go(func() {
				var got answer
				if err := g.ask("/fetch", fetch{URL: url, Follow: true}, &got); err != nil || got.Status != 0 {
					t.Errorf("%s answers: %+v, %v", url, got, err)
				}
			})
		}
		wg.Wait()
	}
	inBridge, inVPC := l.guests(t, types.NetworkModeBridge, 1, named)[0], l.elastic(t)
	t.Run("bridge", func(t *testing.T) { blocked(t, inBridge) })
	t.Run("awsvpc", func(t *testing.T) { blocked(t, inVPC) })
	t.Run("host", func(t *testing.T) {
		inHost := *inHost
		inHost.t = t
		blocked(t, &inHost)
		if got := inHost.do(fetch{URL: l.forward}); got.Status == 0 {
			t.Errorf("the task reaches nothing else either: %+v", got)
		}
		// The operator may want it otherwise.
		l.Agent.Kill()
		l.StartAgent("BERTH_HOST_IMDS=true")
		l.WaitConnected(30 * time.Second)
		for _, url := range urls {
			if got := inHost.do(fetch{URL: url, Follow: true, Patience: 60}); got.Body != "host" {
				t.Errorf("with BERTH_HOST_IMDS=true %s answers: %+v", url, got)
			}
		}
		l.Agent.Kill()
		l.StartAgent()
		l.WaitConnected(30 * time.Second)
		blocked(t, &inHost)
	})
}

// afterTheEnd looks, from inside the network of a task that has ended, for what it had.
func afterTheEnd(t *testing.T, l *lab) {
	a := l.guests(t, types.NetworkModeBridge, 1, withRole(l.role(t, "stays", "ecs:List*")))[0]
	b := l.guests(t, types.NetworkModeBridge, 1, withRole(l.role(t, "ends", "ecs:List*")))[0]
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: l.inside(t, *b.task.TaskArn)}}
	ask := func() (int, error) {
		resp, err := client.Get(b.credentialsURL())
		if err != nil {
			return 0, err
		}
		return resp.StatusCode, resp.Body.Close()
	}
	if status, err := ask(); status != http.StatusOK || err != nil {
		t.Fatalf("while it runs: %d, %v", status, err)
	}
	d := l.On(t)
	d.Stop(*b.task.TaskArn)
	d.Wait("STOPPED", time.Minute, *b.task.TaskArn)
	stopped := time.Now()
	// Nothing is given from then on, and soon nobody listens.
	if status, _ := ask(); status == http.StatusOK { //nolint:errcheck // no answer is as good
		t.Error("credentials of a task that has ended are served")
	}
	system.Until(t, time.Minute, "the listener to go", func() error {
		if status, err := ask(); err == nil {
			return fmt.Errorf("answered with status %d", status)
		}
		return nil
	})
	t.Logf("the listener was gone %v after STOPPED", time.Since(stopped).Round(time.Millisecond))
	theirs := b.env["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"]
	if got := a.do(fetch{URL: "http://169.254.170.2" + theirs}); got.Status != http.StatusBadRequest || !strings.Contains(got.Body, "Credentials not found") {
		t.Errorf("another task asks by the id of the one that has ended: %+v", got)
	}
}

// whileNoAgentRuns has a task try to take the place of another's endpoint between two
// agents.
func whileNoAgentRuns(t *testing.T, l *lab) {
	a, b := l.guests(t, types.NetworkModeBridge, 1, nil)[0], l.guests(t, types.NetworkModeBridge, 1, nil)[0]
	l.Agent.Kill()
	var got answer
	for _, at := range []string{b.link().addr.String() + ":80", "127.0.0.1:80", "169.254.170.2:51679", "0.0.0.0:51679", ":80"} {
		// What it gets is its own network's alone.
		if err := a.ask("/listen?at="+at, nil, &got); err != nil {
			t.Fatal(err)
		}
		if got.Err == "" {
			t.Logf("a task listens at %s of its own", at)
		}
	}
	if got := b.do(fetch{URL: b.v4()}); got.Status != 0 {
		t.Errorf("while there is no agent, a task's endpoint answers: %+v", got)
	}
	l.StartAgent()
	l.WaitConnected(30 * time.Second)
	for _, g := range []*guest{a, b} {
		var tk tmds.Task
		system.Until(t, time.Minute, "the endpoint answers again", func() error {
			if got := g.do(fetch{URL: g.v4()}); got.Status != http.StatusOK {
				return fmt.Errorf("%+v", got)
			}
			return nil
		})
		g.get(g.v4()+"/task", &tk)
		if tk.TaskARN != *g.task.TaskArn {
			t.Errorf("a task is told of %s", tk.TaskARN)
		}
	}
}
