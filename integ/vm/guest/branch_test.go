package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"golang.org/x/sys/unix"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/vpc"
	"berth.dev/berth/eni"
	"berth.dev/berth/integ/system"
	"berth.dev/berth/wire/acs"
)

// The trunk of the machine, and the subnet whose interfaces are branches of it. The other
// end of the trunk is a switch that has the subnet's router on its VLAN.
const (
	trunkMAC     = "02:00:00:00:77:00"
	branchSubnet = "subnet-0000000000branch"
	branchRange  = "10.214.96.0/24"
	branchRouter = "10.214.96.1"
	branchVLAN   = "101"
	otherVLAN    = "102"
)

// onTrunk makes the interfaces of the subnet branch interfaces, as a control plane does
// that has plugged a trunk in.
func onTrunk(i *acs.ElasticNetworkInterface) {
	if p := i.InterfacePoolProperties; p != nil && p.SubnetID == branchSubnet {
		i.InterfacePoolProperties, i.InterfaceAssociationProtocol = nil, "vlan"
		i.InterfaceVLANProperties = &acs.InterfaceVLANProperties{VLANID: branchVLAN, TrunkInterfaceMACAddress: trunkMAC}
	}
}

// newTrunk plugs it in, with the other end in the namespace of a switch that takes what is
// tagged and nothing else. It returns the namespaces of the routers of two VLANs. Both have
// the same address, so that it is the tag that decides who is reached.
func newTrunk(t *testing.T) (router, other string) {
	t.Helper()
	for _, name := range []string{"switch", "router", "other"} {
		Run(t, "ip", "netns", "add", name)
		t.Cleanup(func() { Run(t, "ip", "netns", "delete", name) })
		Run(t, "ip", "-n", name, "link", "set", "lo", "up")
	}
	Run(t, "ip", "link", "add", "trunk0", "address", trunkMAC, "type", "veth", "peer", "name", "port0", "netns", "switch")
	Run(t, "ip", "-n", "switch", "link", "set", "port0", "up")
	for name, id := range map[string]string{"router": branchVLAN, "other": otherVLAN} {
		Run(t, "ip", "-n", "switch", "link", "add", "link", "port0", "name", "vlan"+id, "netns", name, "type", "vlan", "id", id)
		Run(t, "ip", "-n", name, "addr", "add", branchRouter+"/24", "dev", "vlan"+id)
		Run(t, "ip", "-n", name, "link", "set", "vlan"+id, "up")
	}
	return "/run/netns/router", "/run/netns/other"
}

// branch runs a task whose interface is a VLAN on a trunk.
func branch(t *testing.T, l *lab) {
	router, other := newTrunk(t)
	if !eni.HasVLAN() {
		t.Error("the agent would claim no branch interfaces here")
	}
	if err := l.Cluster.Store.Update(context.Background(), func(tx *store.Tx) error {
		if err := vpc.EnsureDefaults(tx, "us-east-1"); err != nil {
			return err
		}
		store.Put(tx, store.Subnets, branchSubnet, &store.Subnet{ID: branchSubnet, VPCID: vpc.Default(tx), CIDR: branchRange, Zone: "us-east-1b"})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	def := l.Register(&ecs.RegisterTaskDefinitionInput{
		Family: aws.String("branch"), NetworkMode: types.NetworkModeAwsvpc, ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("web"), Image: aws.String("busybox"), Memory: aws.Int32(32),
			Command: []string{"sh", "-c", "mkdir /tmp/www && httpd -p 80 -h /tmp/www && trap 'exit 0' TERM; while :; do sleep 0.5; done"},
		}},
	})
	out, err := l.ECS.RunTask(context.Background(), &ecs.RunTaskInput{TaskDefinition: &def, NetworkConfiguration: &types.NetworkConfiguration{
		AwsvpcConfiguration: &types.AwsVpcConfiguration{Subnets: []string{branchSubnet}},
	}})
	if err != nil || len(out.Tasks) != 1 {
		t.Fatalf("run: %+v, %v", out, err)
	}
	arn := *out.Tasks[0].TaskArn
	tk := l.Wait("RUNNING", Soon, arn)[0]
	address := net.JoinHostPort(aws.ToString(tk.Containers[0].NetworkInterfaces[0].PrivateIpv4Address), "80")
	Until(t, "the router reaches the task", func() error { return dialFrom(router, address) })
	// Nobody on the other VLAN answers who has the address, which the kernel says in the end.
	if err := dialFrom(other, address); !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ETIMEDOUT) {
		t.Errorf("%s from another VLAN: %v, want no route to host", address, err)
	}
	// The task reaches the router, on which nobody listens.
	ns := filepath.Join(l.Dir, "run/network/namespaces", filepath.Base(arn))
	if err := dialFrom(ns, branchRouter+":9"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the router from the task: %v, want connection refused", err)
	}
	link := Run(t, "nsenter", "--net="+ns, "ip", "-d", "-o", "link", "show", "dev", "eth0")
	if !strings.Contains(link, "vlan protocol 802.1Q id "+branchVLAN) {
		t.Errorf("the interface of the task is %s", link)
	}
	l.Stop(arn)
	ended := l.Wait("STOPPED", Soon, arn)[0]
	if code := ended.Containers[0].ExitCode; code == nil || *code != 0 {
		t.Error(system.Explain(ended))
	}
	Until(t, "the branch interface is gone and the trunk is there", func() error {
		if _, err := os.Stat(ns); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("namespace of the task: %w", err)
		}
		if links := Run(t, "ip", "-d", "-o", "link"); strings.Contains(links, "vlan protocol") || !strings.Contains(links, trunkMAC) {
			return fmt.Errorf("links:\n%s", links)
		}
		return nil
	})
}

// dialFrom connects from inside a namespace.
func dialFrom(path, address string) error {
	ns, err := eni.OpenNamespace(path)
	if err != nil {
		return err
	}
	err = ns.Do(func() error {
		c, err := net.DialTimeout("tcp4", address, Patience)
		if err != nil {
			return err
		}
		return c.Close()
	})
	return errors.Join(err, ns.Close())
}

// branchPlugin runs the tests of ecs-branch-eni, which are skipped where the kernel has no
// VLANs. They have a network namespace of their own.
func branchPlugin(t *testing.T, _ *lab) {
	out, err := exec.Command("/berth/branch.test", "-test.v", "-test.short").CombinedOutput()
	if err != nil || strings.Contains(string(out), "--- SKIP") || !strings.Contains(string(out), "--- PASS: TestConformance") {
		t.Errorf("%v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "---") {
			t.Log(strings.TrimSpace(line))
		}
	}
}
