package api_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/vpc"
)

// placed runs a task until an instance takes it: what placement knows of instances follows
// their records within moments.
func placed(t *testing.T, run func() *ecs.RunTaskOutput) *ecs.RunTaskOutput {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; <-time.After(5 * time.Millisecond) {
		out := run()
		if len(out.Tasks) == 1 {
			return out
		}
		if time.Now().After(end) {
			t.Fatalf("not placed: %s", aws.ToString(out.Failures[0].Reason))
		}
	}
}

// Tasks are placed where the interfaces of their subnets can be made: those of each kind
// of subnet need a capability more than those of the one before.
func TestSubnetsNeedCapabilities(t *testing.T) {
	l := newLab(t, nil)
	instances(t, l, 1, 1000, 1000)
	d := small("vpc")
	d.NetworkMode = types.NetworkModeAwsvpc
	define(t, l, d)
	ctx := context.Background()
	if err := l.Store.Update(ctx, func(tx *store.Tx) error {
		if err := vpc.EnsureDefaults(tx, "us-east-1"); err != nil {
			return err
		}
		for _, s := range []store.Subnet{
			{ID: "v4", CIDR: "10.214.32.0/24"}, {ID: "dual", CIDR: "10.214.33.0/24", IPv6CIDR: "fd00:33::/64"}, {ID: "v6", IPv6CIDR: "fd00:34::/64"},
		} {
			s.VPCID = vpc.Default(tx)
			store.Put(tx, store.Subnets, s.ID, &s)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	run := func(subnet string) *ecs.RunTaskOutput {
		t.Helper()
		out, err := l.Operator.RunTask(ctx, &ecs.RunTaskInput{TaskDefinition: aws.String("vpc"), NetworkConfiguration: &types.NetworkConfiguration{
			AwsvpcConfiguration: &types.AwsVpcConfiguration{Subnets: []string{subnet}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	claim := func(name string) {
		t.Helper()
		if err := l.Store.Update(ctx, func(tx *store.Tx) error {
			i := *store.List(tx, store.Instances, "")[0]
			i.Instance.Attributes = append([]types.Attribute{{Name: &name}}, i.Instance.Attributes...)
			store.Put(tx, store.Instances, store.Key("default", i.ID), &i)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	claim("ecs.capability.task-eni")
	for _, c := range []struct{ subnet, capability string }{
		{"v4", "berth.capability.interface-pool"}, {"dual", "ecs.capability.task-eni.ipv6"}, {"v6", "ecs.capability.ipv6-only"},
	} {
		if out := run(c.subnet); len(out.Failures) != 1 || !strings.Contains(aws.ToString(out.Failures[0].Reason), "ATTRIBUTE") {
			t.Fatalf("%s without %s: %+v", c.subnet, c.capability, out)
		}
		claim(c.capability)
		out := placed(t, func() *ecs.RunTaskOutput { return run(c.subnet) })
		ni := out.Tasks[0].Containers[0].NetworkInterfaces[0]
		if (ni.PrivateIpv4Address == nil) != (c.subnet == "v6") || (ni.Ipv6Address == nil) != (c.subnet == "v4") {
			t.Errorf("%s: the container has the interface %+v", c.subnet, ni)
		}
		for _, d := range out.Tasks[0].Attachments[0].Details {
			if *d.Value == "" || c.subnet == "v6" && *d.Name == "privateIPv4Address" {
				t.Errorf("%s: %s is %q", c.subnet, *d.Name, *d.Value)
			}
		}
	}
	// What was leased is given back.
	l.Store.View(func(r store.Reader) {
		if n := len(store.List(r, store.Addresses, "")); n != 3 {
			t.Errorf("%d addresses are leased", n)
		}
	})
	var ended []string
	l.Store.View(func(r store.Reader) {
		for _, i := range store.List(r, store.Interfaces, "") {
			ended = append(ended, i.TaskID)
		}
	})
	for _, id := range ended {
		if err := l.API.FailTask(ctx, "default", id, "ResourceInitializationError: none"); err != nil {
			t.Fatal(err)
		}
	}
	l.Store.View(func(r store.Reader) {
		if left := store.List(r, store.Addresses, ""); len(left) != 0 {
			t.Errorf("%d addresses are left", len(left))
		}
	})
}
