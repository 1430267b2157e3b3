package api

import (
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/lab"
)

func TestClusters(t *testing.T) {
	l := lab.Start(t)
	out := must[*ecs.CreateClusterOutput](t, "create")(l.ECS.CreateCluster(ctx, &ecs.CreateClusterInput{
		ClusterName: s("blue"), Tags: []types.Tag{{Key: s("team"), Value: s("a")}},
		Settings: []types.ClusterSetting{{Name: types.ClusterSettingNameContainerInsights, Value: s("enabled")}},
	}))
	c := out.Cluster
	if *c.ClusterName != "blue" || *c.ClusterArn != "arn:aws:ecs:us-east-1:123456789012:cluster/blue" || *c.Status != "ACTIVE" {
		t.Errorf("created %s %s %s", *c.ClusterName, *c.ClusterArn, *c.Status)
	}
	again := must[*ecs.CreateClusterOutput](t, "create again")(l.ECS.CreateCluster(ctx, &ecs.CreateClusterInput{ClusterName: s("blue")}))
	if *again.Cluster.ClusterArn != *c.ClusterArn {
		t.Errorf("created again as %s", *again.Cluster.ClusterArn)
	}
	for _, bad := range []string{"has space", "sl/ash", strings.Repeat("x", 256)} {
		_, err := l.ECS.CreateCluster(ctx, &ecs.CreateClusterInput{ClusterName: &bad})
		wantCode(t, fmt.Sprintf("create %.9q", bad), err, "InvalidParameterException")
	}

	d := must[*ecs.DescribeClustersOutput](t, "describe")(l.ECS.DescribeClusters(ctx, &ecs.DescribeClustersInput{
		Clusters: []string{"blue", *c.ClusterArn, "red"}, Include: []types.ClusterField{types.ClusterFieldTags, types.ClusterFieldSettings, types.ClusterFieldStatistics},
	}))
	if len(d.Clusters) == 0 || len(d.Clusters[0].Tags) != 1 || len(d.Clusters[0].Settings) == 0 {
		t.Errorf("described with include: %+v", d.Clusters)
	}
	sameSet(t, "failures", failures(d.Failures), []string{"MISSING arn:aws:ecs:us-east-1:123456789012:cluster/red"})
	plain := must[*ecs.DescribeClustersOutput](t, "describe")(l.ECS.DescribeClusters(ctx, &ecs.DescribeClustersInput{Clusters: []string{"blue"}}))
	if len(plain.Clusters) != 1 || len(plain.Clusters[0].Tags) != 0 {
		t.Errorf("described without include: %+v", plain.Clusters)
	}

	createCluster(t, l, "green")
	del := must[*ecs.DeleteClusterOutput](t, "delete")(l.ECS.DeleteCluster(ctx, &ecs.DeleteClusterInput{Cluster: s("green")}))
	if *del.Cluster.Status != "INACTIVE" {
		t.Errorf("deleted cluster has status %s", *del.Cluster.Status)
	}
	_, err := l.ECS.DeleteCluster(ctx, &ecs.DeleteClusterInput{Cluster: s("never")})
	wantCode(t, "delete unknown", err, "ClusterNotFoundException")
	list := must[*ecs.ListClustersOutput](t, "list")(l.ECS.ListClusters(ctx, &ecs.ListClustersInput{}))
	for _, arn := range list.ClusterArns {
		if strings.HasSuffix(arn, "/green") {
			t.Errorf("a deleted cluster is listed: %v", list.ClusterArns)
		}
	}
}

func TestClusterWithContentIsNotDeleted(t *testing.T) {
	l := lab.Start(t)
	a := l.Agent(lab.Shape{Cluster: "full"})
	_, err := l.ECS.DeleteCluster(ctx, &ecs.DeleteClusterInput{Cluster: s("full")})
	wantCode(t, "delete with an instance", err, "ClusterContainsContainerInstancesException")
	d := must[*ecs.DescribeClustersOutput](t, "describe")(l.ECS.DescribeClusters(ctx, &ecs.DescribeClustersInput{Clusters: []string{"full"}}))
	if n := d.Clusters[0].RegisteredContainerInstancesCount; n != 1 {
		t.Errorf("registeredContainerInstancesCount %d, want 1", n)
	}
	register(t, l, batch("b"))
	r := run(t, l, &ecs.RunTaskInput{Cluster: s("full"), TaskDefinition: s("b"), Count: aws.Int32(2)})
	waitStatus(t, l, "full", "RUNNING", arnsOf(r.Tasks)...)
	d = must[*ecs.DescribeClustersOutput](t, "describe")(l.ECS.DescribeClusters(ctx, &ecs.DescribeClustersInput{Clusters: []string{"full"}}))
	if n := d.Clusters[0].RunningTasksCount; n != 2 {
		t.Errorf("runningTasksCount %d, want 2", n)
	}
	if err := a.Err(); err != nil {
		t.Error(err)
	}
}

func TestListClustersPages(t *testing.T) {
	l := lab.Start(t)
	want := map[string]bool{}
	for i := range 25 {
		name := fmt.Sprintf("c%02d", i)
		createCluster(t, l, name)
		want["arn:aws:ecs:us-east-1:123456789012:cluster/"+name] = true
	}
	seen := map[string]int{}
	pages := 0
	p := ecs.NewListClustersPaginator(l.ECS, &ecs.ListClustersInput{MaxResults: aws.Int32(10)})
	for p.HasMorePages() {
		out := must[*ecs.ListClustersOutput](t, "page")(p.NextPage(ctx))
		if len(out.ClusterArns) > 10 {
			t.Fatalf("a page of %d", len(out.ClusterArns))
		}
		for _, arn := range out.ClusterArns {
			seen[arn]++
		}
		pages++
	}
	for arn := range want {
		if seen[arn] != 1 {
			t.Errorf("%s was seen %d times", arn, seen[arn])
		}
	}
	if pages < 3 {
		t.Errorf("%d pages", pages)
	}
	first := must[*ecs.ListClustersOutput](t, "list")(l.ECS.ListClusters(ctx, &ecs.ListClustersInput{MaxResults: aws.Int32(5)}))
	_, err := l.ECS.ListTaskDefinitions(ctx, &ecs.ListTaskDefinitionsInput{NextToken: first.NextToken})
	wantCode(t, "a token of another list", err, "InvalidParameterException")
	_, err = l.ECS.ListClusters(ctx, &ecs.ListClustersInput{NextToken: s("bogus")})
	wantCode(t, "a made-up token", err, "InvalidParameterException")
	for _, n := range []int32{0, -1, 101} {
		_, err = l.ECS.ListClusters(ctx, &ecs.ListClustersInput{MaxResults: aws.Int32(n)})
		wantCode(t, fmt.Sprintf("maxResults %d", n), err, "InvalidParameterException")
	}
}
