// Package awsvpc runs tasks of network mode awsvpc on two hosts, which are network
// namespaces joined by a network segment, and looks at who reaches whom.
package awsvpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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
)

func TestMain(m *testing.M) { host.Main(m) }

// patience is how long a test waits for what takes a second at most on a host that has
// nothing else to do.
const patience = time.Minute

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
	between, other := base+"n", base+"h"
	for _, n := range []string{between, other} {
		s.run("ip", "netns", "add", n)
		t.Cleanup(func() { s.run("ip", "netns", "delete", n) })
		s.run("ip", "-n", n, "link", "set", "lo", "up")
	}
	s.run("ip", "-n", between, "link", "add", "br0", "type", "bridge")
	s.run("ip", "-n", between, "addr", "add", gateway, "dev", "br0")
	s.run("ip", "-n", between, "link", "set", "br0", "up")
	s.run("ip", "link", "add", "seg0", "type", "veth", "peer", "name", "p0", "netns", between)
	t.Cleanup(func() { s.run("sh", "-c", "ip link delete seg0 2>/dev/null || true") })
	s.run("ip", "-n", other, "link", "add", "seg0", "type", "veth", "peer", "name", "p1", "netns", between)
	s.run("ip", "link", "set", "seg0", "up")
	s.run("ip", "-n", other, "link", "set", "seg0", "up")
	for _, p := range []string{"p0", "p1"} {
		s.run("ip", "-n", between, "link", "set", p, "master", "br0", "up")
	}
	return "/run/netns/" + other
}

// subnet6 gives the default subnet IPv6 beside its IPv4.
const subnet6 = "fd7b:8a31:45::/64"

// onlySubnet6 is a subnet that has nothing else.
const onlySubnet6 = "fd7b:8a31:46::/64"

// lab is a system with the default VPC.
type lab struct {
	*system.System
	t      *testing.T
	vpc    string
	subnet string
	only6  string // a subnet without IPv4
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
		l.only6 = vpc.NewID("subnet")
		store.Put(tx, store.Subnets, l.only6, &store.Subnet{ID: l.only6, VPCID: l.vpc, IPv6CIDR: onlySubnet6, Zone: subnet.Zone})
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
	return l.startIn(l.subnet, at, groups, scripts...)
}

// startIn is start in a subnet.
func (l *lab) startIn(subnet, at string, groups []string, scripts ...string) types.Task {
	l.t.Helper()
	in := &ecs.RegisterTaskDefinitionInput{Family: aws.String("awsvpc"), NetworkMode: types.NetworkModeAwsvpc}
	for i, s := range scripts {
		in.ContainerDefinitions = append(in.ContainerDefinitions, types.ContainerDefinition{
			Name: aws.String(fmt.Sprintf("c%d", i)), Image: aws.String("busybox"), Memory: aws.Int32(32), Command: []string{"sh", "-c", s},
		})
	}
	def := l.Register(in)
	network := &types.NetworkConfiguration{AwsvpcConfiguration: &types.AwsVpcConfiguration{Subnets: []string{subnet}, SecurityGroups: groups}}
	out, err := l.ECS.StartTask(context.Background(), &ecs.StartTaskInput{
		TaskDefinition: &def, ContainerInstances: []string{at}, NetworkConfiguration: network,
	})
	if err != nil {
		l.t.Fatal(err)
	}
	if len(out.Failures) > 0 {
		l.t.Fatalf("start: %s on %s", aws.ToString(out.Failures[0].Reason), aws.ToString(out.Failures[0].Arn))
	}
	return l.Wait("RUNNING", patience, *out.Tasks[0].TaskArn)[0]
}

func (l *lab) instances(n int) []string {
	l.t.Helper()
	var arns []string
	system.Until(l.t, patience, fmt.Sprintf("%d instances are connected", n), func() error {
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
func address6(t *testing.T, tk types.Task, subnet string) string {
	t.Helper()
	a := aws.ToString(tk.Containers[0].NetworkInterfaces[0].Ipv6Address)
	if !netip.MustParsePrefix(subnet).Contains(netip.MustParseAddr(a)) {
		t.Fatalf("IPv6 address %q", a)
	}
	return "[" + a + "]"
}

// serve is a script that serves a page.
func serve(page string) string {
	return fmt.Sprintf("mkdir /tmp/www && echo %s > /tmp/www/index.html && httpd -p 80 -h /tmp/www && trap 'exit 0' TERM; while :; do sleep 60 & wait; done", page)
}

const idle = "trap 'exit 0' TERM; while :; do sleep 60 & wait; done"

// get fetches the page of an address from inside the network of a task.
func (l *lab) get(tk types.Task, from, address string) (string, error) {
	out, err := exec.Command("nsenter", "--net="+namespaceOf(tk, from), "curl", "-sS", "--max-time", "1", "http://"+address+"/").CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func namespaceOf(tk types.Task, dir string) string {
	return filepath.Join(dir, "run", "network", "namespaces", filepath.Base(*tk.TaskArn))
}

func (l *lab) reaches(tk types.Task, from, address, page string) {
	l.t.Helper()
	system.Until(l.t, patience, "page of "+address, func() error {
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

// flow is an established connection between two tasks, which both ends are asked about.
type flow struct {
	t    *testing.T
	ends [2]net.Conn
}

// establish connects from the network of one task to a port of another.
func establish(t *testing.T, client, server, address string) *flow {
	t.Helper()
	f := &flow{t: t}
	l := within(t, server, func() (net.Listener, error) { return net.Listen("tcp", address) })
	defer l.Close() //nolint:errcheck // it has taken the one connection
	f.ends[0] = within(t, client, func() (net.Conn, error) { return net.DialTimeout("tcp", address, patience) })
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	var err error
	if f.ends[1], err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(f.ends[0].Close(), f.ends[1].Close()); err != nil {
			t.Error(err)
		}
	})
	return f
}

// works sends a byte in each direction.
func (f *flow) works(when string) {
	f.t.Helper()
	for i, from := range f.ends {
		to, b := f.ends[1-i], []byte{byte('a' + i)}
		_, err := from.Write(b)
		if err == nil {
			err = to.SetReadDeadline(time.Now().Add(patience))
		}
		if err == nil {
			_, err = io.ReadFull(to, b)
		}
		if err != nil || b[0] != byte('a'+i) {
			f.t.Fatalf("an established connection %s: %q, %v", when, b, err)
		}
	}
}

// within does something in a network namespace.
func within[T any](t *testing.T, path string, fn func() (T, error)) (out T) {
	t.Helper()
	ns, err := eni.OpenNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	err = ns.Do(func() (err error) { out, err = fn(); return err })
	if err := errors.Join(err, ns.Close()); err != nil {
		t.Fatal(err)
	}
	return out
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
	t.Logf("a rule that lets pass is in force after %v", time.Since(changed))
	l.reaches(c, two, addrB, "b")
	l.reaches(d, one, addrA, "a")
	l.reaches(d, one, addrB, "b")
	l.blocked(a, one, addrB)
	l.blocked(b, two, addrA)
	a6, b6 := address6(t, a, subnet6), address6(t, b, subnet6)
	l.reaches(c, two, a6, "a")
	l.reaches(d, one, b6, "b")
	l.blocked(a, one, b6)
	l.blocked(b, two, a6)

	l.onlyIPv6(t, here, one, web, client)

	// The agents go and come back; the tasks and their rules stay.
	l.Agent.Kill()
	other.Kill()
	l.reaches(c, two, addrA, "a")
	l.StartAgent()
	other.Restart()
	l.WaitConnected(patience)
	l.instances(2)
	for _, tk := range l.Describe(*a.TaskArn, *b.TaskArn, *c.TaskArn, *d.TaskArn) {
		if aws.ToString(tk.LastStatus) != "RUNNING" || aws.ToString(tk.DesiredStatus) != "RUNNING" {
			t.Fatalf("after a restart of the agents: %s\n%s", system.Explain(tk), l.Events(*tk.TaskArn))
		}
	}
	l.reaches(d, one, addrB, "b")
	l.blocked(a, one, addrB)
	l.change(a, b, d, one, two, web, client, rule)
	arns := []string{*a.TaskArn, *b.TaskArn, *c.TaskArn, *d.TaskArn}
	l.Stop(arns...)
	l.Wait("STOPPED", patience, arns...)
	l.WaitClean(patience)
}

// onlyIPv6 runs two tasks without IPv4, of which one lets the other in. They have their
// metadata at the address of IPv4 all the same.
func (l *lab) onlyIPv6(t *testing.T, at, dir, web, client string) {
	t.Helper()
	e := l.startIn(l.only6, at, []string{web}, serve("e"))
	f := l.startIn(l.only6, at, []string{client}, idle)
	for _, tk := range []types.Task{e, f} {
		if v4 := tk.Containers[0].NetworkInterfaces[0].PrivateIpv4Address; v4 != nil || detail(tk, "privateIPv4Address") != "" {
			t.Errorf("a task without IPv4 has the address %s", aws.ToString(v4))
		}
	}
	l.reaches(f, dir, address6(t, e, onlySubnet6), "e")
	l.blocked(e, dir, address6(t, f, onlySubnet6))
	if out, err := exec.Command("nsenter", "--net="+namespaceOf(e, dir), "curl", "-fsS", "--max-time", "60", "http://169.254.170.2/v2/metadata").CombinedOutput(); err != nil {
		t.Errorf("metadata of a task without IPv4: %v: %s", err, out)
	}
	l.Stop(*e.TaskArn, *f.TaskArn)
	l.Wait("STOPPED", patience, *e.TaskArn, *f.TaskArn)
}

// change adds a rule for another port and takes both away. What is established from d to a,
// on its own host, and to b, on the other one, goes on.
func (l *lab) change(a, b, d types.Task, one, two, web, client string, rule *store.SecurityGroupRule) {
	l.t.Helper()
	const port = 8080
	second := &store.SecurityGroupRule{GroupID: web, Protocol: "tcp", From: port, To: port, PeerGroup: client}
	l.update(func(tx *store.Tx) error { vpc.AddRule(tx, second); return nil })
	var flows []*flow
	for _, to := range []struct {
		tk  types.Task
		dir string
	}{{a, one}, {b, two}} {
		address := net.JoinHostPort(detail(to.tk, "privateIPv4Address"), strconv.Itoa(port))
		flows = append(flows, establish(l.t, namespaceOf(d, one), namespaceOf(to.tk, to.dir), address))
	}
	works := func(when string) {
		l.t.Helper()
		for _, f := range flows {
			f.works(when)
		}
	}
	works("under its rule")
	l.update(func(tx *store.Tx) error {
		for _, r := range []*store.SecurityGroupRule{rule, second} {
			store.Delete(tx, store.SecurityGroupRules, store.Key(web, r.ID))
		}
		return nil
	})
	changed := time.Now()
	for _, to := range []types.Task{a, b} {
		system.Until(l.t, patience, "the rules are gone", func() error {
			if got, err := l.get(d, one, detail(to, "privateIPv4Address")); err == nil {
				return fmt.Errorf("got %q", got)
			}
			return nil
		})
	}
	l.t.Logf("rules that are gone are out of force after %v, of which two requests wait a second each", time.Since(changed))
	works("whose rule is gone")
}
