package api

import (
	"context"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/lab"
)

const infrastructureRole = "arn:aws:iam::000000000000:role/ecsInfrastructureRole"

// launch runs a task whose volume is kept, and returns the ids of both.
func (c cli) launch(m types.TaskManagedEBSVolumeConfiguration) (task, id string) {
	c.t.Helper()
	m.RoleArn, m.TerminationPolicy = aws.String(infrastructureRole), &types.TaskManagedEBSVolumeTerminationPolicy{DeleteOnTermination: aws.Bool(false)}
	out, err := c.l.ECS.RunTask(context.Background(), &ecs.RunTaskInput{
		TaskDefinition: aws.String("data"), VolumeConfigurations: []types.TaskVolumeConfiguration{{Name: aws.String("data"), ManagedEBSVolume: &m}},
	})
	if err != nil || len(out.Tasks) != 1 || len(out.Tasks[0].Attachments) != 1 {
		c.t.Fatalf("run task: %+v, %v", out, err)
	}
	for _, d := range out.Tasks[0].Attachments[0].Details {
		if *d.Name == "volumeId" {
			id = *d.Value
		}
	}
	c.comes(*out.Tasks[0].TaskArn, "RUNNING")
	return *out.Tasks[0].TaskArn, id
}

func (c cli) comes(task, status string) {
	c.t.Helper()
	c.until("the task is "+status, func() bool {
		out, err := c.l.ECS.DescribeTasks(context.Background(), &ecs.DescribeTasksInput{Tasks: []string{task}})
		return err == nil && len(out.Tasks) == 1 && aws.ToString(out.Tasks[0].LastStatus) == status
	})
}

func (c cli) end(task string) {
	c.t.Helper()
	if _, err := c.l.ECS.StopTask(context.Background(), &ecs.StopTaskInput{Task: &task}); err != nil {
		c.t.Fatal(err)
	}
	c.comes(task, "STOPPED")
}

// until waits for something that takes the time of a command or two.
func (c cli) until(what string, cond func() bool) {
	c.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(2 * time.Minute); !cond(); <-tick.C {
		if time.Now().After(end) {
			c.t.Fatalf("it never was so: %s", what)
		}
	}
}

// TestVolumesByTheCLI is the life of a volume that outlives its task, of a snapshot, and
// of what is made from it, as people type it.
func TestVolumesByTheCLI(t *testing.T) {
	t.Parallel()
	l := lab.Start(t)
	l.Agent(lab.Shape{Attributes: map[string]string{"berth.capability.volume-pool": "", "ecs.capability.storage.ebs-task-volume-attach": ""}})
	c := cli{t, l, cliEnv(l, l.Key)}
	_, err := l.ECS.RegisterTaskDefinition(context.Background(), &ecs.RegisterTaskDefinitionInput{
		Family: aws.String("data"), Volumes: []types.Volume{{Name: aws.String("data"), ConfiguredAtLaunch: aws.Bool(true)}},
		ContainerDefinitions: []types.ContainerDefinition{{Name: aws.String("main"), Image: aws.String("busybox:1"), Memory: aws.Int32(64)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	task, id := c.launch(types.TaskManagedEBSVolumeConfiguration{
		SizeInGiB: aws.Int32(10), FilesystemType: types.TaskFilesystemTypeExt4, Iops: aws.Int32(4000),
		TagSpecifications: []types.EBSTagSpecification{{ResourceType: types.EBSResourceTypeVolume, Tags: []types.Tag{{Key: aws.String("team"), Value: aws.String("shop")}}}},
	})
	v := at(t, c.ec2("describe-volumes", "--volume-ids", id), "Volumes", 0)
	if at(t, v, "State") != "in-use" || at(t, v, "Size") != 10.0 || at(t, v, "VolumeType") != "gp3" || at(t, v, "Iops") != 4000.0 || at(t, v, "Throughput") != 125.0 ||
		at(t, v, "Attachments", 0, "DeleteOnTermination") != false || at(t, v, "Attachments", 0, "State") != "attached" || at(t, v, "Encrypted") != false {
		t.Errorf("volume in use: %v", v)
	}
	c.ec2Fails("VolumeInUse", "delete-volume", "--volume-id", id)
	c.end(task)
	v = at(t, c.ec2("describe-volumes", "--filters", "Name=status,Values=available", "Name=tag:team,Values=shop", "Name=volume-type,Values=gp3"), "Volumes", 0)
	if list, _ := at(t, v, "Attachments").([]any); at(t, v, "VolumeId") != id || len(list) > 0 {
		t.Errorf("kept volume: %v", v)
	}

	snap := at(t, c.ec2("create-snapshot", "--volume-id", id, "--description", "before", "--tag-specifications", "ResourceType=snapshot,Tags=[{Key=a,Value=b}]"), "SnapshotId").(string)
	var s any
	c.until("the snapshot is complete", func() bool {
		s = at(t, c.ec2("describe-snapshots", "--owner-ids", "self", "--filters", "Name=volume-id,Values="+id), "Snapshots", 0)
		return at(t, s, "State") == "completed"
	})
	if at(t, s, "SnapshotId") != snap || at(t, s, "Progress") != "100%" || at(t, s, "VolumeSize") != 10.0 || at(t, s, "Description") != "before" || at(t, s, "Tags", 0, "Value") != "b" {
		t.Errorf("snapshot: %v", s)
	}

	again, copied := c.launch(types.TaskManagedEBSVolumeConfiguration{SnapshotId: &snap, VolumeInitializationRate: aws.Int32(200)})
	v = at(t, c.ec2("describe-volumes", "--filters", "Name=snapshot-id,Values="+snap), "Volumes", 0)
	if at(t, v, "VolumeId") != copied || at(t, v, "Size") != 10.0 {
		t.Errorf("volume of a snapshot: %v", v)
	}
	c.end(again)

	c.ec2("delete-snapshot", "--snapshot-id", snap)
	c.ec2Fails("InvalidSnapshot.NotFound", "describe-snapshots", "--snapshot-ids", snap)
	for _, id := range []string{id, copied} {
		c.ec2("delete-volume", "--volume-id", id)
	}
	c.until("the volumes are gone", func() bool {
		left, _ := at(t, c.ec2("describe-volumes"), "Volumes").([]any)
		return len(left) == 0
	})
	c.ec2Fails("InvalidVolume.NotFound", "create-snapshot", "--volume-id", id)
}
