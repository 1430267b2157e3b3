package api

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/lab"
)

func TestTaskDefinitionLife(t *testing.T) {
	l := lab.Start(t)
	in := web("my-task")
	in.Tags = []types.Tag{{Key: s("k"), Value: s("v")}}
	out := must[*ecs.RegisterTaskDefinitionOutput](t, "register")(l.ECS.RegisterTaskDefinition(ctx, in))
	d := out.TaskDefinition
	if *d.TaskDefinitionArn != "arn:aws:ecs:us-east-1:123456789012:task-definition/my-task:1" || d.Revision != 1 || d.Status != types.TaskDefinitionStatusActive {
		t.Errorf("registered %s revision %d %s", *d.TaskDefinitionArn, d.Revision, d.Status)
	}
	if d.RegisteredAt == nil || aws.ToString(d.RegisteredBy) == "" || len(d.Compatibilities) == 0 || len(out.Tags) != 1 {
		t.Errorf("registered without registeredAt, registeredBy, compatibilities or tags: %+v", d)
	}
	c := d.ContainerDefinitions[0]
	if !aws.ToBool(c.Essential) || c.Cpu != 256 || *c.Memory != 512 || *c.PortMappings[0].HostPort != 80 || c.PortMappings[0].Protocol != types.TransportProtocolTcp {
		t.Errorf("container came back as %+v", c)
	}
	register(t, l, web("my-task"))
	for ref, revision := range map[string]int32{"my-task": 2, "my-task:1": 1, *d.TaskDefinitionArn: 1} {
		got := must[*ecs.DescribeTaskDefinitionOutput](t, ref)(l.ECS.DescribeTaskDefinition(ctx, &ecs.DescribeTaskDefinitionInput{
			TaskDefinition: &ref, Include: []types.TaskDefinitionField{types.TaskDefinitionFieldTags},
		}))
		if got.TaskDefinition.Revision != revision || (revision == 1) != (len(got.Tags) == 1) {
			t.Errorf("%s is revision %d with %d tags", ref, got.TaskDefinition.Revision, len(got.Tags))
		}
	}
	for _, ref := range []string{"none", "my-task:9", "arn:aws:ecs:us-east-1:123456789012:task-definition/none:1"} {
		_, err := l.ECS.DescribeTaskDefinition(ctx, &ecs.DescribeTaskDefinitionInput{TaskDefinition: &ref})
		wantCode(t, "describe "+ref, err, "ClientException")
	}

	res := must[*ecs.DeleteTaskDefinitionsOutput](t, "delete active")(l.ECS.DeleteTaskDefinitions(ctx, &ecs.DeleteTaskDefinitionsInput{TaskDefinitions: []string{"my-task:2"}}))
	if len(res.Failures) != 1 || len(res.TaskDefinitions) != 0 {
		t.Errorf("an ACTIVE definition was deleted: %+v", res)
	}
	gone := must[*ecs.DeregisterTaskDefinitionOutput](t, "deregister")(l.ECS.DeregisterTaskDefinition(ctx, &ecs.DeregisterTaskDefinitionInput{TaskDefinition: s("my-task:2")}))
	if gone.TaskDefinition.Status != types.TaskDefinitionStatusInactive || gone.TaskDefinition.DeregisteredAt == nil {
		t.Errorf("deregistered: %s", gone.TaskDefinition.Status)
	}
	_, err := l.ECS.DeregisterTaskDefinition(ctx, &ecs.DeregisterTaskDefinitionInput{TaskDefinition: s("my-task")})
	if code(err) == "" {
		t.Error("deregistered without a revision")
	}
	deleted := must[*ecs.DeleteTaskDefinitionsOutput](t, "delete")(l.ECS.DeleteTaskDefinitions(ctx, &ecs.DeleteTaskDefinitionsInput{TaskDefinitions: []string{"my-task:2"}}))
	if len(deleted.TaskDefinitions) != 1 || deleted.TaskDefinitions[0].Status != types.TaskDefinitionStatusDeleteInProgress {
		t.Errorf("delete: %+v %v", deleted.TaskDefinitions, failures(deleted.Failures))
	}
	if next := register(t, l, web("my-task")); next.Revision != 3 {
		t.Errorf("a revision was used again: %d", next.Revision)
	}
}

func TestListTaskDefinitions(t *testing.T) {
	l := lab.Start(t)
	for _, f := range []string{"app", "app-extra", "zoo"} {
		for range 12 {
			register(t, l, batch(f))
		}
	}
	must[*ecs.DeregisterTaskDefinitionOutput](t, "deregister")(l.ECS.DeregisterTaskDefinition(ctx, &ecs.DeregisterTaskDefinitionInput{TaskDefinition: s("app:3")}))
	all := func(in *ecs.ListTaskDefinitionsInput) []string {
		var out []string
		for p := ecs.NewListTaskDefinitionsPaginator(l.ECS, in); p.HasMorePages(); {
			page := must[*ecs.ListTaskDefinitionsOutput](t, "page")(p.NextPage(ctx))
			for _, arn := range page.TaskDefinitionArns {
				out = append(out, arn[strings.LastIndexByte(arn, '/')+1:])
			}
		}
		return out
	}
	app := all(&ecs.ListTaskDefinitionsInput{FamilyPrefix: s("app"), MaxResults: aws.Int32(5)})
	want := []string{}
	for i := 1; i <= 12; i++ {
		if i != 3 {
			want = append(want, fmt.Sprint("app:", i))
		}
	}
	if !slices.Equal(app, want) {
		t.Errorf("app by revision: %v", app)
	}
	desc := all(&ecs.ListTaskDefinitionsInput{FamilyPrefix: s("app"), Sort: types.SortOrderDesc, MaxResults: aws.Int32(4)})
	slices.Reverse(want)
	if !slices.Equal(desc, want) {
		t.Errorf("app descending: %v", desc)
	}
	if got := all(&ecs.ListTaskDefinitionsInput{Status: types.TaskDefinitionStatusInactive}); !slices.Equal(got, []string{"app:3"}) {
		t.Errorf("INACTIVE: %v", got)
	}
	if got := all(&ecs.ListTaskDefinitionsInput{MaxResults: aws.Int32(7)}); len(got) != 35 {
		t.Errorf("all ACTIVE: %d", len(got))
	}

	families := func(in *ecs.ListTaskDefinitionFamiliesInput) []string {
		var out []string
		for p := ecs.NewListTaskDefinitionFamiliesPaginator(l.ECS, in); p.HasMorePages(); {
			out = append(out, must[*ecs.ListTaskDefinitionFamiliesOutput](t, "page")(p.NextPage(ctx)).Families...)
		}
		return out
	}
	for in, want := range map[*ecs.ListTaskDefinitionFamiliesInput][]string{
		{MaxResults: aws.Int32(1)}:                         {"app", "app-extra", "zoo"},
		{FamilyPrefix: s("app")}:                           {"app", "app-extra"},
		{Status: types.TaskDefinitionFamilyStatusActive}:   {"app", "app-extra", "zoo"},
		{Status: types.TaskDefinitionFamilyStatusInactive}: nil,
		{FamilyPrefix: s("q")}:                             nil,
	} {
		if got := families(in); !slices.Equal(got, want) {
			t.Errorf("families %+v: %v, want %v", *in, got, want)
		}
	}
}

func TestRegisterTaskDefinitionRefuses(t *testing.T) {
	l := lab.Start(t)
	change := func(fn func(*ecs.RegisterTaskDefinitionInput, *types.ContainerDefinition)) *ecs.RegisterTaskDefinitionInput {
		in := web("bad")
		fn(in, &in.ContainerDefinitions[0])
		return in
	}
	type def = types.ContainerDefinition
	type in = ecs.RegisterTaskDefinitionInput
	for name, bad := range map[string]*in{
		"no name":           change(func(_ *in, c *def) { c.Name = nil }),
		"no image":          change(func(_ *in, c *def) { c.Image = nil }),
		"no memory":         change(func(_ *in, c *def) { c.Memory = nil }),
		"tiny memory":       change(func(_ *in, c *def) { c.Memory = aws.Int32(3) }),
		"no essential":      change(func(_ *in, c *def) { c.Essential = aws.Bool(false) }),
		"bad family":        change(func(i *in, _ *def) { i.Family = s("a b") }),
		"bad cpu":           change(func(i *in, _ *def) { i.Cpu = s("lots") }),
		"too small for it":  change(func(i *in, _ *def) { i.Memory = s("256") }),
		"host port differs": change(func(i *in, c *def) { i.NetworkMode = types.NetworkModeHost; c.PortMappings[0].HostPort = aws.Int32(81) }),
		"ports without net": change(func(i *in, _ *def) { i.NetworkMode = types.NetworkModeNone }),
		"unknown dependency": change(func(_ *in, c *def) {
			c.DependsOn = []types.ContainerDependency{{ContainerName: s("ghost"), Condition: types.ContainerConditionStart}}
		}),
		"unknown volume": change(func(_ *in, c *def) {
			c.MountPoints = []types.MountPoint{{SourceVolume: s("v"), ContainerPath: s("/v")}}
		}),
		"name twice": change(func(i *in, c *def) { i.ContainerDefinitions = append(i.ContainerDefinitions, *c) }),
		"eleven containers": change(func(i *in, c *def) {
			for n := range 10 {
				k := *c
				k.Name = s(fmt.Sprint("c", n))
				k.PortMappings = nil
				i.ContainerDefinitions = append(i.ContainerDefinitions, k)
			}
		}),
		"distinctInstance": change(func(i *in, _ *def) {
			i.PlacementConstraints = []types.TaskDefinitionPlacementConstraint{{Type: "distinctInstance"}}
		}),
		"reserved tag": change(func(i *in, _ *def) { i.Tags = []types.Tag{{Key: s("aws:x"), Value: s("y")}} }),
	} {
		_, err := l.ECS.RegisterTaskDefinition(ctx, bad)
		if c := code(err); c != "ClientException" && c != "InvalidParameterException" {
			t.Errorf("%s: got %q (%v)", name, c, err)
		}
	}
	out := must[*ecs.ListTaskDefinitionsOutput](t, "list")(l.ECS.ListTaskDefinitions(ctx, &ecs.ListTaskDefinitionsInput{}))
	if len(out.TaskDefinitionArns) != 0 {
		t.Errorf("something was registered: %v", out.TaskDefinitionArns)
	}
}
