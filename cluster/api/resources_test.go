package api_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/cluster"
	"berth.dev/berth/cluster/awsjson"
)

// serve starts a cluster for a test and returns the operator's client.
func serve(t testing.TB) *ecs.Client {
	t.Helper()
	s, err := cluster.Open(t.Context(), cluster.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return clientOf(s, s.OperatorKey())
}

func clientOf(s *cluster.Server, k cluster.Key) *ecs.Client {
	return ecs.New(ecs.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(s.URL()), RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(k.AccessKeyID, k.SecretAccessKey, ""),
	})
}

// wantError checks the code of an API error and a part of its message.
func wantError(t *testing.T, what string, err error, code, text string) {
	t.Helper()
	var e smithy.APIError
	if !errors.As(err, &e) {
		t.Errorf("%s: got %v, want %s", what, err, code)
		return
	}
	if e.ErrorCode() != code || !strings.Contains(e.ErrorMessage(), text) {
		t.Errorf("%s: got %s %q, want %s %q", what, e.ErrorCode(), e.ErrorMessage(), code, text)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func tag(k, v string) types.Tag { return types.Tag{Key: &k, Value: &v} }

const arnOf = "arn:aws:ecs:us-east-1:000000000000:"

func TestClusters(t *testing.T) {
	c, ctx := serve(t), t.Context()
	made := must(c.CreateCluster(ctx, &ecs.CreateClusterInput{ClusterName: aws.String("one"), Tags: []types.Tag{tag("k", "v")}}))(t).Cluster
	if aws.ToString(made.ClusterArn) != arnOf+"cluster/one" || aws.ToString(made.Status) != "ACTIVE" || len(made.Settings) != 1 {
		t.Errorf("created %+v", made)
	}
	again := must(c.CreateCluster(ctx, &ecs.CreateClusterInput{ClusterName: aws.String("one")}))(t).Cluster
	if len(again.Tags) != 1 {
		t.Error("creating an existing cluster did not answer it as it is")
	}
	if def := must(c.CreateCluster(ctx, &ecs.CreateClusterInput{}))(t).Cluster; aws.ToString(def.ClusterName) != "default" {
		t.Errorf("a cluster without a name is %s", *def.ClusterName)
	}

	d := must(c.DescribeClusters(ctx, &ecs.DescribeClustersInput{}))(t)
	if len(d.Clusters) != 1 || *d.Clusters[0].ClusterName != "default" {
		t.Errorf("describing nothing gives %+v", d)
	}
	d = must(c.DescribeClusters(ctx, &ecs.DescribeClustersInput{Clusters: []string{"one", arnOf + "cluster/one", "two"}}))(t)
	if len(d.Clusters) != 1 || len(d.Clusters[0].Tags) != 0 || len(d.Clusters[0].Statistics) != 0 ||
		len(d.Failures) != 1 || *d.Failures[0].Reason != "MISSING" || *d.Failures[0].Arn != arnOf+"cluster/two" {
		t.Errorf("describe %+v %+v", d.Clusters, d.Failures)
	}
	d = must(c.DescribeClusters(ctx, &ecs.DescribeClustersInput{Clusters: []string{"one"}, Include: types.ClusterField("").Values()}))(t)
	if len(d.Clusters[0].Tags) != 1 || len(d.Clusters[0].Statistics) != 12 || len(d.Clusters[0].Settings) != 1 {
		t.Errorf("describe with everything %+v", d.Clusters[0])
	}

	put := must(c.PutClusterCapacityProviders(ctx, &ecs.PutClusterCapacityProvidersInput{Cluster: aws.String("one"), CapacityProviders: []string{"FARGATE"},
		DefaultCapacityProviderStrategy: []types.CapacityProviderStrategyItem{{CapacityProvider: aws.String("FARGATE"), Weight: 1}}}))(t)
	if len(put.Cluster.CapacityProviders) != 1 || put.Cluster.DefaultCapacityProviderStrategy[0].Weight != 1 {
		t.Errorf("providers %+v", put.Cluster)
	}
	up := must(c.UpdateClusterSettings(ctx, &ecs.UpdateClusterSettingsInput{Cluster: aws.String("one"),
		Settings: []types.ClusterSetting{{Name: "containerInsights", Value: aws.String("enhanced")}}}))(t)
	if *up.Cluster.Settings[0].Value != "enhanced" {
		t.Errorf("settings %+v", up.Cluster.Settings)
	}
	cfg := must(c.UpdateCluster(ctx, &ecs.UpdateClusterInput{Cluster: aws.String("one"), Configuration: &types.ClusterConfiguration{
		ExecuteCommandConfiguration: &types.ExecuteCommandConfiguration{Logging: types.ExecuteCommandLoggingNone}},
		ServiceConnectDefaults: &types.ClusterServiceConnectDefaultsRequest{Namespace: aws.String("ns")}}))(t)
	if cfg.Cluster.Configuration.ExecuteCommandConfiguration.Logging != "NONE" || *cfg.Cluster.ServiceConnectDefaults.Namespace != "ns" || *cfg.Cluster.Settings[0].Value != "enhanced" {
		t.Errorf("configuration %+v", cfg.Cluster)
	}

	del := must(c.DeleteCluster(ctx, &ecs.DeleteClusterInput{Cluster: aws.String(arnOf + "cluster/one")}))(t)
	if *del.Cluster.Status != "INACTIVE" {
		t.Errorf("deleted %+v", del.Cluster)
	}
	if d := must(c.DescribeClusters(ctx, &ecs.DescribeClustersInput{Clusters: []string{"one"}}))(t); len(d.Clusters) != 1 || *d.Clusters[0].Status != "INACTIVE" {
		t.Errorf("a deleted cluster is described as %+v", d)
	}
	if l := must(c.ListClusters(ctx, &ecs.ListClustersInput{}))(t); !slices.Equal(l.ClusterArns, []string{arnOf + "cluster/default"}) {
		t.Errorf("clusters %v", l.ClusterArns)
	}
	_, err := c.DeleteCluster(ctx, &ecs.DeleteClusterInput{Cluster: aws.String("one")})
	wantError(t, "delete twice", err, "ClusterNotFoundException", "Cluster not found.")
	if re := must(c.CreateCluster(ctx, &ecs.CreateClusterInput{ClusterName: aws.String("one")}))(t).Cluster; len(re.Tags) != 0 || *re.Status != "ACTIVE" {
		t.Errorf("made again %+v", re)
	}
}

func TestClusterErrors(t *testing.T) {
	c, ctx := serve(t), t.Context()
	create := func(in *ecs.CreateClusterInput) error { _, err := c.CreateCluster(ctx, in); return err }
	strategy := func(items ...types.CapacityProviderStrategyItem) *ecs.CreateClusterInput {
		return &ecs.CreateClusterInput{CapacityProviders: []string{"FARGATE"}, DefaultCapacityProviderStrategy: items}
	}
	many := make([]types.Tag, 51)
	for i := range many {
		many[i] = tag(fmt.Sprint(i), "")
	}
	const invalid = "InvalidParameterException"
	for name, tc := range map[string]struct {
		err  error
		text string
	}{
		"name":           {create(&ecs.CreateClusterInput{ClusterName: aws.String("a b")}), "Invalid cluster name"},
		"long name":      {create(&ecs.CreateClusterInput{ClusterName: aws.String(strings.Repeat("a", 256))}), "Invalid cluster name"},
		"setting":        {create(&ecs.CreateClusterInput{Settings: []types.ClusterSetting{{Name: "containerInsights", Value: aws.String("maybe")}}}), "containerInsights"},
		"setting name":   {create(&ecs.CreateClusterInput{Settings: []types.ClusterSetting{{Name: "other"}}}), "'settings.1.member.name'"},
		"provider":       {create(&ecs.CreateClusterInput{CapacityProviders: []string{"mine"}}), "was not found"},
		"strategy":       {create(strategy(types.CapacityProviderStrategyItem{CapacityProvider: aws.String("FARGATE_SPOT"), Weight: 1})), "not associated"},
		"weights":        {create(strategy(types.CapacityProviderStrategyItem{CapacityProvider: aws.String("FARGATE")})), "weight greater than 0"},
		"aws tag":        {create(&ecs.CreateClusterInput{Tags: []types.Tag{tag("AWS:x", "")}}), "aws:"},
		"duplicate tags": {create(&ecs.CreateClusterInput{Tags: []types.Tag{tag("a", ""), tag("a", "")}}), "Duplicate"},
		"many tags":      {create(&ecs.CreateClusterInput{Tags: many}), "less than or equal to 50"},
	} {
		wantError(t, name, tc.err, invalid, tc.text)
	}
	_, err := c.DescribeClusters(ctx, &ecs.DescribeClustersInput{Clusters: make([]string, 101)})
	wantError(t, "many refs", err, invalid, "at most 100")
	_, err = c.DescribeClusters(ctx, &ecs.DescribeClustersInput{Clusters: []string{arnOf + "task/a/b"}})
	wantError(t, "ARN of a task", err, invalid, "not the ARN of a cluster")
	_, err = c.UpdateCluster(ctx, &ecs.UpdateClusterInput{Cluster: aws.String("none")})
	wantError(t, "update", err, "ClusterNotFoundException", "")
	_, err = c.ListClusters(ctx, &ecs.ListClustersInput{MaxResults: aws.Int32(101)})
	wantError(t, "page size", err, invalid, "maxResults")
	_, err = c.ListClusters(ctx, &ecs.ListClustersInput{NextToken: aws.String("abc")})
	wantError(t, "token", err, invalid, "Invalid token")
}

func TestPages(t *testing.T) {
	c, ctx := serve(t), t.Context()
	var want []string
	for i := range 7 {
		name := fmt.Sprintf("c%d", i)
		must(c.CreateCluster(ctx, &ecs.CreateClusterInput{ClusterName: &name}))(t)
		want = append(want, arnOf+"cluster/"+name)
	}
	var got []string
	pages := ecs.NewListClustersPaginator(c, &ecs.ListClustersInput{MaxResults: aws.Int32(3)})
	n := 0
	var token *string
	for pages.HasMorePages() {
		p := must(pages.NextPage(ctx))(t)
		got = append(got, p.ClusterArns...)
		n++
		if n == 1 {
			token = p.NextToken
		}
	}
	if d := cmp.Diff(want, got); d != "" || n != 3 {
		t.Errorf("%d pages: %s", n, d)
	}
	_, err := c.ListTaskDefinitions(ctx, &ecs.ListTaskDefinitionsInput{NextToken: token})
	wantError(t, "token of another list", err, "InvalidParameterException", "Invalid token")
}

func TestTags(t *testing.T) {
	c, ctx := serve(t), t.Context()
	must(c.CreateCluster(ctx, &ecs.CreateClusterInput{}))(t)
	must(c.RegisterTaskDefinition(ctx, sample()))(t)
	for _, arn := range []string{arnOf + "cluster/default", arnOf + "task-definition/my-task:1"} {
		tags := func() []types.Tag {
			return must(c.ListTagsForResource(ctx, &ecs.ListTagsForResourceInput{ResourceArn: &arn}))(t).Tags
		}
		if got := tags(); len(got) != 0 {
			t.Errorf("%s begins with %v", arn, got)
		}
		must(c.TagResource(ctx, &ecs.TagResourceInput{ResourceArn: &arn, Tags: []types.Tag{tag("a", "1"), tag("b", "2")}}))(t)
		must(c.TagResource(ctx, &ecs.TagResourceInput{ResourceArn: &arn, Tags: []types.Tag{tag("b", "3")}}))(t)
		must(c.UntagResource(ctx, &ecs.UntagResourceInput{ResourceArn: &arn, TagKeys: []string{"a", "unknown"}}))(t)
		if got := tags(); len(got) != 1 || *got[0].Key != "b" || *got[0].Value != "3" {
			t.Errorf("%s ends with %v", arn, got)
		}
		more := make([]types.Tag, 50)
		for i := range more {
			more[i] = tag(fmt.Sprint(i), "")
		}
		_, err := c.TagResource(ctx, &ecs.TagResourceInput{ResourceArn: &arn, Tags: more})
		wantError(t, "51 tags", err, "LimitExceededException", "at most 50")
	}
	for arn, code := range map[string]string{
		arnOf + "cluster/none":                 "ClusterNotFoundException",
		arnOf + "task-definition/none:1":       "ResourceNotFoundException",
		arnOf + "task-definition/my-task":      "InvalidParameterException",
		arnOf + "task/default/0123":            "ResourceNotFoundException",
		arnOf + "container-instance/default/1": "ResourceNotFoundException",
		arnOf + "service/short":                "InvalidParameterException",
		"arn:aws:s3:::bucket":                  "InvalidParameterException",
		"default":                              "InvalidParameterException",
	} {
		_, err := c.ListTagsForResource(ctx, &ecs.ListTagsForResourceInput{ResourceArn: &arn})
		wantError(t, arn, err, code, "")
	}
}

func TestAccountSettings(t *testing.T) {
	c, ctx := serve(t), t.Context()
	value := func(name string) string {
		out := must(c.ListAccountSettings(ctx, &ecs.ListAccountSettingsInput{Name: types.SettingName(name), EffectiveSettings: true}))(t)
		if len(out.Settings) != 1 {
			t.Fatalf("%d settings %s", len(out.Settings), name)
		}
		return *out.Settings[0].Value
	}
	var names []string
	pages := ecs.NewListAccountSettingsPaginator(c, &ecs.ListAccountSettingsInput{EffectiveSettings: true})
	for pages.HasMorePages() {
		for _, s := range must(pages.NextPage(ctx))(t).Settings {
			names = append(names, string(s.Name))
		}
	}
	if len(names) != 11 || !slices.IsSorted(names) {
		t.Errorf("effective settings %v", names)
	}
	if got := must(c.ListAccountSettings(ctx, &ecs.ListAccountSettingsInput{}))(t).Settings; len(got) != 0 {
		t.Errorf("own settings at first %v", got)
	}
	must(c.PutAccountSettingDefault(ctx, &ecs.PutAccountSettingDefaultInput{Name: "containerInsights", Value: aws.String("enabled")}))(t)
	if v := value("containerInsights"); v != "enabled" {
		t.Errorf("with the default it is %s", v)
	}
	must(c.PutAccountSetting(ctx, &ecs.PutAccountSettingInput{Name: "containerInsights", Value: aws.String("enhanced")}))(t)
	if v := value("containerInsights"); v != "enhanced" {
		t.Errorf("with the own it is %s", v)
	}
	if d := must(c.DeleteAccountSetting(ctx, &ecs.DeleteAccountSettingInput{Name: "containerInsights"}))(t); *d.Setting.Value != "enabled" || value("containerInsights") != "enabled" {
		t.Errorf("after the deletion it is %s", *d.Setting.Value)
	}
	_, err := c.PutAccountSettingDefault(ctx, &ecs.PutAccountSettingDefaultInput{Name: "taskLongArnFormat", Value: aws.String("disabled")})
	wantError(t, "long ARNs", err, "InvalidParameterException", "You can no longer disable")
	_, err = c.PutAccountSetting(ctx, &ecs.PutAccountSettingInput{Name: "awsvpcTrunking", Value: aws.String("perhaps")})
	wantError(t, "value", err, "InvalidParameterException", "Valid values are")
	_, err = c.PutAccountSetting(ctx, &ecs.PutAccountSettingInput{Name: "nothing", Value: aws.String("on")})
	wantError(t, "name", err, "InvalidParameterException", "enum value set")
	_, err = c.PutAccountSetting(ctx, &ecs.PutAccountSettingInput{Name: "guardDutyActivate", Value: aws.String("on")})
	wantError(t, "read only", err, "InvalidParameterException", "cannot be changed")
	_, err = c.ListAccountSettings(ctx, &ecs.ListAccountSettingsInput{Value: aws.String("on")})
	wantError(t, "value without name", err, "InvalidParameterException", "name must be given")
	_, err = c.PutAccountSetting(ctx, &ecs.PutAccountSettingInput{Name: "awsvpcTrunking", Value: aws.String("enabled"), PrincipalArn: aws.String("arn:aws:iam::999999999999:user/x")})
	wantError(t, "principal", err, "InvalidParameterException", "principalArn")
}

func TestAttributes(t *testing.T) {
	s, err := cluster.Open(t.Context(), cluster.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	c, ctx := clientOf(s, s.OperatorKey()), t.Context()
	must(c.CreateCluster(ctx, &ecs.CreateClusterInput{}))(t)
	reg := must(c.RegisterContainerInstance(ctx, &ecs.RegisterContainerInstanceInput{
		TotalResources: []types.Resource{
			{Name: aws.String("CPU"), Type: aws.String("INTEGER"), IntegerValue: 1024},
			{Name: aws.String("MEMORY"), Type: aws.String("INTEGER"), IntegerValue: 1024},
			{Name: aws.String("PORTS"), Type: aws.String("STRINGSET"), StringSetValue: []string{"22"}},
			{Name: aws.String("PORTS_UDP"), Type: aws.String("STRINGSET")},
		},
		Attributes: []types.Attribute{{Name: aws.String("ecs.os-type"), Value: aws.String("linux")}},
	}))(t).ContainerInstance
	arn := *reg.ContainerInstanceArn
	id := arn[strings.LastIndex(arn, "/")+1:]
	put := must(c.PutAttributes(ctx, &ecs.PutAttributesInput{Attributes: []types.Attribute{
		{Name: aws.String("stack"), Value: aws.String("a"), TargetId: &id, TargetType: types.TargetTypeContainerInstance},
		{Name: aws.String("bare"), TargetId: &arn},
	}}))(t)
	if len(put.Attributes) != 2 || *put.Attributes[0].TargetId != arn {
		t.Errorf("put %+v", put.Attributes)
	}
	must(c.PutAttributes(ctx, &ecs.PutAttributesInput{Attributes: []types.Attribute{{Name: aws.String("stack"), Value: aws.String("b"), TargetId: &id}}}))(t)
	list := func(in *ecs.ListAttributesInput) (out []string) {
		in.TargetType, in.MaxResults = types.TargetTypeContainerInstance, aws.Int32(2)
		pages := ecs.NewListAttributesPaginator(c, in)
		for pages.HasMorePages() {
			for _, a := range must(pages.NextPage(ctx))(t).Attributes {
				out = append(out, *a.Name+"="+aws.ToString(a.Value))
			}
		}
		return out
	}
	all := list(&ecs.ListAttributesInput{})
	for _, want := range []string{"bare=", "stack=b", "ecs.os-type=linux"} {
		if !slices.Contains(all, want) {
			t.Errorf("%v lacks %s", all, want)
		}
	}
	if got := list(&ecs.ListAttributesInput{AttributeName: aws.String("stack"), AttributeValue: aws.String("b")}); len(got) != 1 {
		t.Errorf("filtered %v", got)
	}
	if got := list(&ecs.ListAttributesInput{AttributeName: aws.String("stack"), AttributeValue: aws.String("a")}); len(got) != 0 {
		t.Errorf("filtered by another value %v", got)
	}
	must(c.DeleteAttributes(ctx, &ecs.DeleteAttributesInput{Attributes: []types.Attribute{{Name: aws.String("bare"), TargetId: &id}}}))(t)
	if got := list(&ecs.ListAttributesInput{AttributeName: aws.String("bare")}); len(got) != 0 {
		t.Errorf("deleted and still %v", got)
	}

	one := func(name, value, target string) error {
		_, err := c.PutAttributes(ctx, &ecs.PutAttributesInput{Attributes: []types.Attribute{{Name: &name, Value: &value, TargetId: &target}}})
		return err
	}
	wantError(t, "name", one("a b", "", id), "InvalidParameterException", "attribute name")
	wantError(t, "value", one("a", " x", id), "InvalidParameterException", "value of attribute")
	wantError(t, "reserved", one("ecs.os-type", "x", id), "InvalidParameterException", "reserved")
	wantError(t, "no target", one("a", "x", ""), "InvalidParameterException", "TargetId")
	wantError(t, "target", one("a", "x", strings.Repeat("0", 32)), "TargetNotFoundException", "")
	for i := range 9 {
		if err := one(fmt.Sprint("n", i), "x", id); err != nil {
			t.Fatal(err)
		}
	}
	wantError(t, "limit", one("eleventh", "x", id), "AttributeLimitExceededException", "at most 10")
	_, err = c.PutAttributes(ctx, &ecs.PutAttributesInput{Attributes: make([]types.Attribute, 0)})
	wantError(t, "none", err, "InvalidParameterException", "between 1 and 10")
	_, err = c.ListAttributes(ctx, &ecs.ListAttributesInput{TargetType: types.TargetTypeContainerInstance, AttributeValue: aws.String("x")})
	wantError(t, "value without name", err, "InvalidParameterException", "attributeName")
	_, err = c.DeleteCluster(ctx, &ecs.DeleteClusterInput{Cluster: aws.String("default")})
	wantError(t, "delete a cluster with an instance", err, "ClusterContainsContainerInstancesException", "")
	must(c.TagResource(ctx, &ecs.TagResourceInput{ResourceArn: &arn, Tags: []types.Tag{tag("x", "y")}}))(t)
	must(c.DeregisterContainerInstance(ctx, &ecs.DeregisterContainerInstanceInput{ContainerInstance: &id, Force: aws.Bool(true)}))(t)
	must(c.DeleteCluster(ctx, &ecs.DeleteClusterInput{Cluster: aws.String("default")}))(t)
}

// sample is the definition that the project's documents use.
func sample() *ecs.RegisterTaskDefinitionInput {
	return &ecs.RegisterTaskDefinitionInput{
		Family: aws.String("my-task"),
		ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("web"), Image: aws.String("my-image"), Memory: aws.Int32(512), Cpu: 256,
			PortMappings: []types.PortMapping{{ContainerPort: aws.Int32(80), HostPort: aws.Int32(80)}},
		}},
	}
}

func TestTaskDefinitionIsKeptAsSent(t *testing.T) {
	c, ctx := serve(t), t.Context()
	reg := must(c.RegisterTaskDefinition(ctx, sample()))(t).TaskDefinition
	if *reg.TaskDefinitionArn != arnOf+"task-definition/my-task:1" || reg.Revision != 1 || reg.Status != types.TaskDefinitionStatusActive || reg.RegisteredAt == nil {
		t.Errorf("registered %+v", reg)
	}
	var got map[string]any
	if err := json.Unmarshal(awsjson.Marshal(reg), &got); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"registeredAt", "registeredBy", "taskDefinitionArn"} {
		delete(got, k)
	}
	var want map[string]any
	if err := json.Unmarshal([]byte(`{"family":"my-task","revision":1,"status":"ACTIVE","volumes":[],"placementConstraints":[],
		"requiresAttributes":[],"compatibilities":["EC2","EXTERNAL"],
		"containerDefinitions":[{"name":"web","image":"my-image","cpu":256,"memory":512,"essential":true,
		"portMappings":[{"containerPort":80,"hostPort":80,"protocol":"tcp"}],"environment":[],"mountPoints":[],"volumesFrom":[]}]}`), &want); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	in := sample()
	in.Cpu, in.Memory, in.NetworkMode = aws.String(".5 vCPU"), aws.String("1 GB"), types.NetworkModeAwsvpc
	in.ContainerDefinitions[0].PortMappings[0].HostPort = nil
	in.ContainerDefinitions[0].HealthCheck = &types.HealthCheck{Command: []string{"CMD", "true"}}
	in.RequiresCompatibilities = []types.Compatibility{types.CompatibilityFargate}
	in.TaskRoleArn = aws.String("arn:aws:iam::000000000000:role/r")
	in.Tags = []types.Tag{tag("k", "v")}
	out := must(c.RegisterTaskDefinition(ctx, in))(t)
	second := out.TaskDefinition
	h := second.ContainerDefinitions[0].HealthCheck
	if second.Revision != 2 || *second.Cpu != "512" || *second.Memory != "1024" || *second.ContainerDefinitions[0].PortMappings[0].HostPort != 80 ||
		*h.Interval != 30 || *h.Timeout != 5 || *h.Retries != 3 || h.StartPeriod != nil || len(out.Tags) != 1 {
		t.Errorf("second %+v", second)
	}
	if !slices.Equal(second.Compatibilities, []types.Compatibility{"EC2", "FARGATE"}) {
		t.Errorf("compatibilities %v", second.Compatibilities)
	}
	var names []string
	for _, a := range second.RequiresAttributes {
		names = append(names, *a.Name)
	}
	if d := cmp.Diff([]string{"com.amazonaws.ecs.capability.task-iam-role", "ecs.capability.container-health-check", "ecs.capability.task-cpu-mem-limit", "ecs.capability.task-eni"}, names); d != "" {
		t.Error(d)
	}
}

func TestTaskDefinitionLife(t *testing.T) {
	c, ctx := serve(t), t.Context()
	for _, family := range []string{"my-task", "my-task", "my-task2", "other"} {
		in := sample()
		in.Family = &family
		in.Tags = []types.Tag{tag("f", family)}
		must(c.RegisterTaskDefinition(ctx, in))(t)
	}
	describe := func(ref string) (*ecs.DescribeTaskDefinitionOutput, error) {
		return c.DescribeTaskDefinition(ctx, &ecs.DescribeTaskDefinitionInput{TaskDefinition: &ref, Include: []types.TaskDefinitionField{"TAGS"}})
	}
	for ref, rev := range map[string]int32{"my-task": 2, "my-task:1": 1, arnOf + "task-definition/my-task:2": 2} {
		if d := must(describe(ref))(t); d.TaskDefinition.Revision != rev || len(d.Tags) != 1 {
			t.Errorf("%s is revision %d with tags %v", ref, d.TaskDefinition.Revision, d.Tags)
		}
	}
	for _, ref := range []string{"none", "my-task:3", "my-task:0", "my-task:x", "a b", "my-task:01", arnOf + "cluster/x", "my-task:99999999999"} {
		_, err := describe(ref)
		wantError(t, ref, err, "ClientException", "Unable to describe task definition.")
	}
	list := func(in *ecs.ListTaskDefinitionsInput) (out []string) {
		in.MaxResults = aws.Int32(2)
		pages := ecs.NewListTaskDefinitionsPaginator(c, in)
		for pages.HasMorePages() {
			for _, a := range must(pages.NextPage(ctx))(t).TaskDefinitionArns {
				out = append(out, strings.TrimPrefix(a, arnOf+"task-definition/"))
			}
		}
		return out
	}
	families := func(in *ecs.ListTaskDefinitionFamiliesInput) []string {
		return must(c.ListTaskDefinitionFamilies(ctx, in))(t).Families
	}
	check := func(what string, got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	check("all", list(&ecs.ListTaskDefinitionsInput{}), "my-task:1", "my-task:2", "my-task2:1", "other:1")
	check("descending", list(&ecs.ListTaskDefinitionsInput{Sort: types.SortOrderDesc}), "other:1", "my-task2:1", "my-task:2", "my-task:1")
	check("one family", list(&ecs.ListTaskDefinitionsInput{FamilyPrefix: aws.String("my-task")}), "my-task:1", "my-task:2")
	check("families", families(&ecs.ListTaskDefinitionFamiliesInput{FamilyPrefix: aws.String("my")}), "my-task", "my-task2")

	// Deregister both revisions; the number is never used again.
	_, err := c.DeregisterTaskDefinition(ctx, &ecs.DeregisterTaskDefinitionInput{TaskDefinition: aws.String("my-task")})
	wantError(t, "deregister a family", err, "InvalidParameterException", "no revision")
	for _, ref := range []string{"my-task:2", "my-task:1", "my-task:1"} {
		d := must(c.DeregisterTaskDefinition(ctx, &ecs.DeregisterTaskDefinitionInput{TaskDefinition: &ref}))(t).TaskDefinition
		if d.Status != types.TaskDefinitionStatusInactive || d.DeregisteredAt == nil {
			t.Errorf("deregistered %+v", d)
		}
	}
	_, err = describe("my-task")
	wantError(t, "no ACTIVE revision", err, "ClientException", "Unable to describe")
	if d := must(describe("my-task:1"))(t); d.TaskDefinition.Status != types.TaskDefinitionStatusInactive {
		t.Errorf("inactive one is %s", d.TaskDefinition.Status)
	}
	check("inactive", list(&ecs.ListTaskDefinitionsInput{Status: types.TaskDefinitionStatusInactive}), "my-task:1", "my-task:2")
	check("active families", families(&ecs.ListTaskDefinitionFamiliesInput{Status: types.TaskDefinitionFamilyStatusActive}), "my-task2", "other")
	check("inactive families", families(&ecs.ListTaskDefinitionFamiliesInput{Status: types.TaskDefinitionFamilyStatusInactive}), "my-task")

	del := must(c.DeleteTaskDefinitions(ctx, &ecs.DeleteTaskDefinitionsInput{TaskDefinitions: []string{"my-task:1", "my-task:2", "other:1", "other:9", "other"}}))(t)
	if len(del.TaskDefinitions) != 2 || del.TaskDefinitions[0].Status != types.TaskDefinitionStatusDeleteInProgress || len(del.Failures) != 3 ||
		!strings.Contains(*del.Failures[0].Reason, "still in ACTIVE status") || *del.Failures[1].Arn != arnOf+"task-definition/other:9" {
		t.Errorf("deleted %+v, failures %+v", del.TaskDefinitions, del.Failures)
	}
	if got := must(c.RegisterTaskDefinition(ctx, sample()))(t); got.TaskDefinition.Revision != 3 {
		t.Errorf("next revision is %d", got.TaskDefinition.Revision)
	}
	_, err = c.DeleteTaskDefinitions(ctx, &ecs.DeleteTaskDefinitionsInput{TaskDefinitions: make([]string, 11)})
	wantError(t, "eleven", err, "InvalidParameterException", "between 1 and 10")
}

// TestAnswersHaveLists reads raw answers: a list that is empty is [].
func TestAnswersHaveLists(t *testing.T) {
	c := serve(t)
	l := must(c.ListClusters(t.Context(), &ecs.ListClustersInput{}))(t)
	d := must(c.DescribeClusters(t.Context(), &ecs.DescribeClustersInput{}))(t)
	f := must(c.ListTaskDefinitionFamilies(t.Context(), &ecs.ListTaskDefinitionFamiliesInput{}))(t)
	if l.ClusterArns == nil || d.Clusters == nil || d.Failures == nil || f.Families == nil || l.NextToken != nil {
		t.Errorf("%+v %+v %+v", l, d, f)
	}
}
