// Package awsvpc runs tasks of network mode awsvpc on two hosts, which are network
// namespaces joined by a network segment, and looks at who reaches whom.
package awsvpc

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
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

// segment is the network between two hosts: a namespace with a bridge that is the
// subnet's gateway, and an interface seg0 on each host.
type segment struct{ t *testing.T }

func (s *segment) run(args ...string) {
	s.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// newSegment makes it, and the second host, whose namespace it returns.
func newSegment(t *testing.T, gateway string) (second string) {
	t.Helper()
	s := &segment{t}
	base := fmt.Sprintf("bv%d", time.Now().UnixNano()%1e9)
	net, other := base+"n", base+"h"
	for _, n := range []string{net, other} {
		s.run("ip", "netns", "add", n)
		t.Cleanup(func() { s.run("ip", "netns", "delete", n) })
		s.run("ip", "-n", n, "link", "set", "lo", "up")
	}
	s.run("ip", "-n", net, "link", "add", "br0", "type", "bridge")
	s.run("ip", "-n", net, "addr", "add", gateway, "dev", "br0")
	s.run("ip", "-n", net, "link", "set", "br0", "up")
	s.run("ip", "link", "add", "seg0", "type", "veth", "peer", "name", "p0", "netns", net)
	t.Cleanup(func() { s.run("sh", "-c", "ip link delete seg0 2>/dev/null || true") })
	s.run("ip", "-n", other, "link", "add", "seg0", "type", "veth", "peer", "name", "p1", "netns", net)
	s.run("ip", "link", "set", "seg0", "up")
	s.run("ip", "-n", other, "link", "set", "seg0", "up")
	for _, p := range []string{"p0", "p1"} {
		s.run("ip", "-n", net, "link", "set", p, "master", "br0", "up")
	}
	return "/run/netns/" + other
}

// subnet6 gives the default subnet IPv6 beside its IPv4.
const subnet6 = "fd7b:8a31:45::/64"

// lab is a system with the default VPC.
type lab struct {
	*system.System
	t      *testing.T
	vpc    string
	subnet string
	group  string
}

func (l *lab) update(fn func(tx *store.Tx) error) {
	l.t.Helper()
	if err := l.Cluster.Store.Update(context.Background(), fn); err != nil {
		l.t.Fatal(err)
	}
}

func newLab(t *testing.T, o system.Options) *lab {
	t.Helper()
	l := &lab{System: system.Start(t, o), t: t}
	l.update(func(tx *store.Tx) error {
		if err := vpc.EnsureDefaults(tx, "us-east-1"); err != nil {
			return err
		}
		l.vpc = vpc.Default(tx)
		subnet := *store.List(tx, store.Subnets, "")[0]
		l.subnet, subnet.IPv6CIDR = subnet.ID, subnet6
		store.Put(tx, store.Subnets, subnet.ID, &subnet)
		l.group = vpc.GroupByName(tx, l.vpc, vpc.DefaultGroup).ID
		return nil
	})
	return l
}

// newGroup makes a security group that lets nothing in.
func (l *lab) newGroup(name string) string {
	l.t.Helper()
	g := &store.SecurityGroup{ID: vpc.NewID("sg"), VPCID: l.vpc, Name: name}
	l.update(func(tx *store.Tx) error { vpc.AddGroup(tx, g, true); return nil })
	return g.ID
}

// start runs a task of one or more scripts with security groups, on one of the hosts
// where at is the ARN of its instance.
func (l *lab) start(at string, groups []string, scripts ...string) types.Task {
	l.t.Helper()
	in := &ecs.RegisterTaskDefinitionInput{Family: aws.String("awsvpc"), NetworkMode: types.NetworkModeAwsvpc}
	for i, s := range scripts {
		in.ContainerDefinitions = append(in.ContainerDefinitions, types.ContainerDefinition{
			Name: aws.String(fmt.Sprintf("c%d", i)), Image: aws.String("busybox"), Memory: aws.Int32(32), Command: []string{"sh", "-c", s},
		})
	}
	def := l.Register(in)
	network := &types.NetworkConfiguration{AwsvpcConfiguration: &types.AwsVpcConfiguration{Subnets: []string{l.subnet}, SecurityGroups: groups}}
	out, err := l.ECS.StartTask(context.Background(), &ecs.StartTaskInput{
		TaskDefinition: &def, ContainerInstances: []string{at}, NetworkConfiguration: network,
	})
	if err != nil {
		l.t.Fatal(err)
	}
	if len(out.Failures) > 0 {
		l.t.Fatalf("start: %s on %s", aws.ToString(out.Failures[0].Reason), aws.ToString(out.Failures[0].Arn))
	}
	return l.Wait("RUNNING", 30*time.Second, *out.Tasks[0].TaskArn)[0]
}

func (l *lab) instances(n int) []string {
	l.t.Helper()
	var arns []string
	system.Until(l.t, 20*time.Second, fmt.Sprintf("%d instances are connected", n), func() error {
		list, err := l.ECS.ListContainerInstances(context.Background(), &ecs.ListContainerInstancesInput{})
		if err != nil {
			return err
		}
		d, err := l.ECS.DescribeContainerInstances(context.Background(), &ecs.DescribeContainerInstancesInput{ContainerInstances: list.ContainerInstanceArns})
		if err != nil {
			return err
		}
		arns = nil
		for _, c := range d.ContainerInstances {
			if c.AgentConnected {
				arns = append(arns, *c.ContainerInstanceArn)
			}
		}
		if len(arns) != n {
			return fmt.Errorf("%d are", len(arns))
		}
		return nil
	})
	return arns
}

// detail is a value of a task's attachment.
func detail(tk types.Task, name string) string {
	for _, d := range tk.Attachments[0].Details {
		if *d.Name == name {
			return *d.Value
		}
	}
	return ""
}

// address6 is a task's IPv6 address, as a URL has it.
func address6(t *testing.T, tk types.Task) string {
	t.Helper()
	a := aws.ToString(tk.Containers[0].NetworkInterfaces[0].Ipv6Address)
	if !netip.MustParsePrefix(subnet6).Contains(netip.MustParseAddr(a)) {
		t.Fatalf("IPv6 address %q", a)
	}
	return "[" + a + "]"
}

// serve is a script that serves a page.
func serve(page string) string {
	return fmt.Sprintf("mkdir /tmp/www && echo %s > /tmp/www/index.html && httpd -p 80 -h /tmp/www && trap 'exit 0' TERM; while :; do sleep 0.05; done", page)
}

const idle = "trap 'exit 0' TERM; while :; do sleep 0.05; done"

// get fetches the page of an address from inside the network of a task.
func (l *lab) get(tk types.Task, from, address string) (string, error) {
	ns := filepath.Join(from, "run", "network", "namespaces", filepath.Base(*tk.TaskArn))
	out, err := exec.Command("nsenter", "--net="+ns, "curl", "-sS", "--max-time", "1", "http://"+address+"/").CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (l *lab) reaches(tk types.Task, from, address, page string) {
	l.t.Helper()
	system.Until(l.t, 5*time.Second, "page of "+address, func() error {
		got, err := l.get(tk, from, address)
		if err == nil && got != page {
			return fmt.Errorf("got %q", got)
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, got)
		}
		return nil
	})
}

func (l *lab) blocked(tk types.Task, from, address string) {
	l.t.Helper()
	if got, err := l.get(tk, from, address); err == nil {
		l.t.Errorf("%s is reached from %s: %q", address, from, got)
	}
}

func TestTwoHosts(t *testing.T) {
	second := newSegment(t, "10.214.0.1/20")
	l := newLab(t, system.Options{AgentEnv: []string{"ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION=2s", "ECS_CONTAINER_STOP_TIMEOUT=5s", "BERTH_ENI_POOL=macvlan:seg0"}})
	here := l.instances(1)[0]
	other := l.StartSecond(t, "two", second, "BERTH_ENI_POOL=bridge:seg0")
	one, two := l.Dir, other.Dir
	there := ""
	for _, arn := range l.instances(2) {
		if arn != here {
			there = arn
		}
	}
	web, client := l.newGroup("web"), l.newGroup("client")
	a := l.start(here, []string{web}, serve("a"), idle)
	b := l.start(there, []string{web}, serve("b"))
	c := l.start(there, []string{client}, idle)
	d := l.start(here, []string{client}, idle)
	for _, tk := range []types.Task{a, b, c, d} {
		if len(tk.Attachments) != 1 || *tk.Attachments[0].Type != "ElasticNetworkInterface" || *tk.Attachments[0].Status != "ATTACHED" {
			t.Fatalf("attachments %+v", tk.Attachments)
		}
		for _, name := range []string{"subnetId", "networkInterfaceId", "macAddress", "privateDnsName", "privateIPv4Address"} {
			if detail(tk, name) == "" {
				t.Errorf("the attachment has no %s", name)
			}
		}
		if got := aws.ToString(tk.Containers[0].NetworkInterfaces[0].PrivateIpv4Address); got != detail(tk, "privateIPv4Address") {
			t.Errorf("network interface of the container: %s", got)
		}
	}
	addrA, addrB := detail(a, "privateIPv4Address"), detail(b, "privateIPv4Address")
	l.reaches(a, one, "127.0.0.1", "a")
	for _, from := range []struct {
		tk   types.Task
		host string
	}{{c, two}, {d, one}, {a, one}} {
		l.blocked(from.tk, from.host, addrB)
	}
	l.blocked(b, two, addrA)

	rule := &store.SecurityGroupRule{GroupID: web, Protocol: "tcp", From: 80, To: 80, PeerGroup: client}
	l.update(func(tx *store.Tx) error { vpc.AddRule(tx, rule); return nil })
	changed := time.Now()
	l.reaches(c, two, addrA, "a")
	if took := time.Since(changed); took > 2*time.Second {
		t.Errorf("a rule took %v to come into force", took)
	}
	l.reaches(c, two, addrB, "b")
	l.reaches(d, one, addrA, "a")
	l.reaches(d, one, addrB, "b")
	l.blocked(a, one, addrB)
	l.blocked(b, two, addrA)
	a6, b6 := address6(t, a), address6(t, b)
	l.reaches(c, two, a6, "a")
	l.reaches(d, one, b6, "b")
	l.blocked(a, one, b6)
	l.blocked(b, two, a6)

	// The agents go and come back; the tasks and their rules stay.
	l.Agent.Kill()
	other.Kill()
	l.reaches(c, two, addrA, "a")
	l.StartAgent()
	other.Restart()
	l.WaitConnected(10 * time.Second)
	l.instances(2)
	for _, tk := range l.Describe(*a.TaskArn, *b.TaskArn, *c.TaskArn, *d.TaskArn) {
		if aws.ToString(tk.LastStatus) != "RUNNING" || aws.ToString(tk.DesiredStatus) != "RUNNING" {
			t.Fatalf("after a restart of the agents: %s\n%s", system.Explain(tk), l.Events(*tk.TaskArn))
		}
	}
	l.reaches(d, one, addrB, "b")
	l.blocked(a, one, addrB)
	l.update(func(tx *store.Tx) error {
		store.Delete(tx, store.SecurityGroupRules, store.Key(web, rule.ID))
		return nil
	})
	system.Until(t, time.Second, "the rule is gone", func() error {
		if got, err := l.get(d, one, addrB); err == nil {
			return fmt.Errorf("got %q", got)
		}
		return nil
	})
	arns := []string{*a.TaskArn, *b.TaskArn, *c.TaskArn, *d.TaskArn}
	l.Stop(arns...)
	l.Wait("STOPPED", 20*time.Second, arns...)
	l.WaitClean(20 * time.Second)
}
