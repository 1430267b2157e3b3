package api

import (
	"fmt"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/lab"
)

func TestTags(t *testing.T) {
	l := lab.Start(t)
	a := l.Agent(lab.Shape{})
	d := register(t, l, batch("b"))
	out := run(t, l, &ecs.RunTaskInput{TaskDefinition: s("b"), EnableECSManagedTags: true, Tags: []types.Tag{{Key: s("own"), Value: s("1")}}})
	for name, arn := range map[string]string{
		"cluster": "arn:aws:ecs:us-east-1:123456789012:cluster/default", "container instance": a.ARN,
		"task definition": *d.TaskDefinitionArn, "task": *out.Tasks[0].TaskArn,
	} {
		before := tagsOf(t, l, arn)
		must[*ecs.TagResourceOutput](t, name)(l.ECS.TagResource(ctx, &ecs.TagResourceInput{ResourceArn: &arn, Tags: []types.Tag{{Key: s("k"), Value: s("1")}, {Key: s("m"), Value: s("1")}}}))
		must[*ecs.TagResourceOutput](t, name)(l.ECS.TagResource(ctx, &ecs.TagResourceInput{ResourceArn: &arn, Tags: []types.Tag{{Key: s("k"), Value: s("2")}}}))
		sameSet(t, name+" tagged", tagsOf(t, l, arn), append(before, "k=2", "m=1"))
		must[*ecs.UntagResourceOutput](t, name)(l.ECS.UntagResource(ctx, &ecs.UntagResourceInput{ResourceArn: &arn, TagKeys: []string{"k", "m", "unknown"}}))
		sameSet(t, name+" untagged", tagsOf(t, l, arn), before)
	}
	sameSet(t, "tags of the task", tagsOf(t, l, *out.Tasks[0].TaskArn), []string{"own=1", "aws:ecs:clusterName=default"})

	arn := a.ARN
	var many []types.Tag
	for i := range 51 {
		many = append(many, types.Tag{Key: s(fmt.Sprint("t", i)), Value: s("")})
	}
	for name, tags := range map[string][]types.Tag{
		"51 tags": many, "reserved": {{Key: s("AWS:x"), Value: s("")}}, "bad characters": {{Key: s("a\x00b"), Value: s("")}}, "no key": {{Value: s("v")}},
	} {
		_, err := l.ECS.TagResource(ctx, &ecs.TagResourceInput{ResourceArn: &arn, Tags: tags})
		if c := code(err); c != "InvalidParameterException" && c != "LimitExceededException" {
			t.Errorf("%s: %q", name, c)
		}
	}
	for _, bad := range []string{"nonsense", "arn:aws:ecs:us-east-1:123456789012:cluster/none", "arn:aws:s3:::bucket"} {
		_, err := l.ECS.ListTagsForResource(ctx, &ecs.ListTagsForResourceInput{ResourceArn: &bad})
		if c := code(err); c != "InvalidParameterException" && c != "ResourceNotFoundException" && c != "ClusterNotFoundException" && c != "ClientException" {
			t.Errorf("tags of %s: %q", bad, c)
		}
	}
}

func tagsOf(t *testing.T, l *lab.Lab, arn string) []string {
	t.Helper()
	var out []string
	for _, tag := range must[*ecs.ListTagsForResourceOutput](t, "tags of "+arn)(l.ECS.ListTagsForResource(ctx, &ecs.ListTagsForResourceInput{ResourceArn: &arn})).Tags {
		out = append(out, *tag.Key+"="+aws.ToString(tag.Value))
	}
	return out
}

func TestAccountSettings(t *testing.T) {
	l := lab.Start(t)
	effective := func(name types.SettingName) string {
		out := must[*ecs.ListAccountSettingsOutput](t, "list")(l.ECS.ListAccountSettings(ctx, &ecs.ListAccountSettingsInput{Name: name, EffectiveSettings: true}))
		if len(out.Settings) != 1 {
			t.Fatalf("%s has %d effective values", name, len(out.Settings))
		}
		return *out.Settings[0].Value
	}
	insights := types.SettingNameContainerInsights
	if v := effective(insights); v != "disabled" {
		t.Errorf("default containerInsights %q", v)
	}
	must[*ecs.PutAccountSettingDefaultOutput](t, "default")(l.ECS.PutAccountSettingDefault(ctx, &ecs.PutAccountSettingDefaultInput{Name: insights, Value: s("enabled")}))
	if v := effective(insights); v != "enabled" {
		t.Errorf("after PutAccountSettingDefault %q", v)
	}
	must[*ecs.PutAccountSettingOutput](t, "own")(l.ECS.PutAccountSetting(ctx, &ecs.PutAccountSettingInput{Name: insights, Value: s("enhanced")}))
	if v := effective(insights); v != "enhanced" {
		t.Errorf("after PutAccountSetting %q", v)
	}
	must[*ecs.DeleteAccountSettingOutput](t, "delete")(l.ECS.DeleteAccountSetting(ctx, &ecs.DeleteAccountSettingInput{Name: insights}))
	if v := effective(insights); v != "enabled" {
		t.Errorf("after DeleteAccountSetting %q", v)
	}
	names := map[types.SettingName]bool{}
	for p := ecs.NewListAccountSettingsPaginator(l.ECS, &ecs.ListAccountSettingsInput{EffectiveSettings: true, MaxResults: 3}); p.HasMorePages(); {
		for _, set := range must[*ecs.ListAccountSettingsOutput](t, "page")(p.NextPage(ctx)).Settings {
			if names[set.Name] {
				t.Errorf("%s was listed twice", set.Name)
			}
			names[set.Name] = true
		}
	}
	for _, name := range []types.SettingName{types.SettingNameTaskLongArnFormat, types.SettingNameServiceLongArnFormat, types.SettingNameContainerInstanceLongArnFormat, types.SettingNameAwsvpcTrunking, insights} {
		if !names[name] {
			t.Errorf("%s is not among the effective settings", name)
		}
	}
	_, err := l.ECS.PutAccountSetting(ctx, &ecs.PutAccountSettingInput{Name: types.SettingNameTaskLongArnFormat, Value: s("disabled")})
	wantCode(t, "disable long ARNs", err, "InvalidParameterException")
	_, err = l.ECS.PutAccountSetting(ctx, &ecs.PutAccountSettingInput{Name: "nonsense", Value: s("enabled")})
	wantCode(t, "an unknown setting", err, "InvalidParameterException")
	_, err = l.ECS.ListAccountSettings(ctx, &ecs.ListAccountSettingsInput{Value: s("enabled")})
	wantCode(t, "a value without a name", err, "InvalidParameterException")
}
