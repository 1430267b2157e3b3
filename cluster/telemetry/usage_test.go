package telemetry

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/tcs"
)

func TestUsage(t *testing.T) {
	ctx := context.Background()
	s, err := store.Open(ctx, store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	err = s.Update(ctx, func(tx *store.Tx) error {
		store.Put(tx, store.Clusters, "lab", &store.Cluster{Cluster: types.Cluster{ClusterName: aws.String("lab")}})
		store.Put(tx, store.Instances, store.Key("lab", "i"), &store.Instance{ClusterName: "lab", ID: "i", Instance: types.ContainerInstance{
			ContainerInstanceArn: aws.String("i"), Status: aws.String("ACTIVE"),
			RegisteredResources: []types.Resource{{Name: aws.String("CPU"), IntegerValue: 4096}, {Name: aws.String("MEMORY"), IntegerValue: 8192}, {Name: aws.String("GPU"), StringSetValue: []string{"GPU-a", "GPU-b", "GPU-c", "GPU-d"}}},
		}})
		for n, group := range []string{"service:web", "service:web", "family:f"} {
			id := fmt.Sprint(n)
			store.Put(tx, store.Tasks, store.Key("lab", id), &store.Task{ClusterName: "lab", ID: id, Held: store.Held{CPU: 512, Memory: 1024, GPUs: []string{"GPU-a"}[:n%2]}, Task: types.Task{
				TaskArn: aws.String("arn:aws:ecs:r:1:task/lab/" + id), LastStatus: aws.String("RUNNING"), Group: aws.String(group),
			}})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	k := New(nil)
	for n := range 3 {
		// A sixteenth of four processors is 256 CPU units.
		k.Take("i", &tcs.PublishMetricsRequest{Timestamp: tcs.Time{Time: time.Now()}, TaskMetrics: []tcs.TaskMetric{{
			TaskARN: fmt.Sprintf("arn:aws:ecs:r:1:task/lab/%d", n), ContainerMetrics: []tcs.ContainerMetric{
				{ContainerName: "web", CPU: &tcs.Set{Sum: 6.25, SampleCount: 1}, Memory: &tcs.Set{Sum: 512, SampleCount: 1}},
			},
		}}})
	}
	got := map[string]*Usage{}
	for _, u := range k.Usage(s) {
		got[u.Cluster+"/"+u.Service] = u
	}
	cluster, service := got["lab/"], got["lab/web"]
	if len(got) != 2 || cluster == nil || service == nil {
		t.Fatalf("%v", got)
	}
	for what, v := range map[string][2]float64{
		"cluster CPU reservation":    {cluster.CPUReservation, 37.5},
		"cluster memory reservation": {cluster.MemoryReservation, 37.5},
		"cluster GPU reservation":    {cluster.GPUReservation, 25},
		"cluster CPU utilization":    {cluster.CPUUtilization, 18.75},
		"cluster memory utilization": {cluster.MemoryUtilization, 18.75},
		"service CPU utilization":    {service.CPUUtilization, 50},
		"service memory utilization": {service.MemoryUtilization, 50},
		"running tasks of cluster":   {float64(cluster.RunningTasks), 3},
		"running tasks of service":   {float64(service.RunningTasks), 2},
		"instances of the cluster":   {float64(cluster.Instances), 1},
	} {
		if v[0] != v[1] {
			t.Errorf("%s: %v, want %v", what, v[0], v[1])
		}
	}
	problems, err := testutil.CollectAndLint(NewCollector(k, s))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
