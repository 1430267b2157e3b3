package api_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
)

const infrastructureRole = "arn:aws:iam::000000000000:role/ecsInfrastructureRole"

// atLaunch is a definition with a volume that is configured at launch.
func atLaunch(family string) *ecs.RegisterTaskDefinitionInput {
	in := small(family)
	in.Volumes = []types.Volume{{Name: aws.String("data"), ConfiguredAtLaunch: aws.Bool(true)}}
	return in
}

func managed(change func(*types.TaskManagedEBSVolumeConfiguration)) []types.TaskVolumeConfiguration {
	m := &types.TaskManagedEBSVolumeConfiguration{RoleArn: aws.String(infrastructureRole), SizeInGiB: aws.Int32(10)}
	if change != nil {
		change(m)
	}
	return []types.TaskVolumeConfiguration{{Name: aws.String("data"), ManagedEBSVolume: m}}
}

func TestVolumeConfigurationsThatAreRefused(t *testing.T) {
	l := newLab(t, nil)
	define(t, l, small("plain"))
	define(t, l, atLaunch("data"))
	type config = types.TaskManagedEBSVolumeConfiguration
	const invalid, unsupported = "InvalidParameterException", "UnsupportedFeatureException"
	for text, c := range map[string]struct {
		family, code string
		volumes      []types.TaskVolumeConfiguration
	}{
		"no volume that is configuredAtLaunch": {"plain", invalid, managed(nil)},
		"must be provided":                     {"data", invalid, nil},
		"at most 1 item":                       {"data", invalid, append(managed(nil), managed(nil)...)},
		"is named 'other'":                     {"data", invalid, []types.TaskVolumeConfiguration{{Name: aws.String("other")}}},
		"managedEBSVolume of volume 'data'":    {"data", invalid, []types.TaskVolumeConfiguration{{Name: aws.String("data")}}},
		"ARN of a role":                        {"data", invalid, managed(func(m *config) { m.RoleArn = aws.String("me") })},
		"volumeType 'fast'":                    {"data", invalid, managed(func(m *config) { m.VolumeType = aws.String("fast") })},
		"either sizeInGiB or snapshotId":       {"data", invalid, managed(func(m *config) { m.SizeInGiB = nil })},
		"between 125 and 16384, 10 given":      {"data", invalid, managed(func(m *config) { m.VolumeType = aws.String("st1") })},
		"iops must be given":                   {"data", invalid, managed(func(m *config) { m.VolumeType = aws.String("io2") })},
		"throughput is for type gp3":           {"data", invalid, managed(func(m *config) { m.VolumeType, m.Throughput = aws.String("gp2"), aws.Int32(200) })},
		"gp3, io1 and io2 only":                {"data", invalid, managed(func(m *config) { m.VolumeType, m.Iops = aws.String("gp2"), aws.Int32(3000) })},
		"between 3000 and 80000":               {"data", invalid, managed(func(m *config) { m.Iops = aws.Int32(2999) })},
		"between 125 and 2000":                 {"data", invalid, managed(func(m *config) { m.Throughput = aws.Int32(2001) })},
		"SERVICE is only": {"data", invalid, managed(func(m *config) {
			m.TagSpecifications = []types.EBSTagSpecification{{ResourceType: "volume", PropagateTags: "SERVICE"}}
		})},
		"Windows only":                   {"data", invalid, managed(func(m *config) { m.FilesystemType = types.TaskFilesystemTypeNtfs })},
		"'snap-01234567' does not exist": {"data", invalid, managed(func(m *config) { m.SnapshotId = aws.String("snap-01234567") })},
		"with a snapshotId only":         {"data", invalid, managed(func(m *config) { m.VolumeInitializationRate = aws.Int32(200) })},
		"not encrypted":                  {"data", unsupported, managed(func(m *config) { m.Encrypted = aws.Bool(true) })},
		"encrypted and kmsKeyId":         {"data", unsupported, managed(func(m *config) { m.KmsKeyId = aws.String("alias/x") })},
	} {
		_, err := l.Operator.RunTask(context.Background(), &ecs.RunTaskInput{TaskDefinition: &c.family, VolumeConfigurations: c.volumes})
		if code(err) != c.code || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %s with %q", err, c.code, text)
		}
	}
}

// withPool has the instances make block volumes.
func withPool(t *testing.T, s *store.Store) {
	t.Helper()
	err := s.Update(context.Background(), func(tx *store.Tx) error {
		for _, i := range store.List(tx, store.Instances, "") {
			fresh := *i
			fresh.Instance.Attributes = append([]types.Attribute{
				{Name: aws.String("berth.capability.volume-pool")}, {Name: aws.String("ecs.capability.storage.ebs-task-volume-attach")},
			}, i.Instance.Attributes...)
			store.Put(tx, store.Instances, store.Key("default", i.ID), &fresh)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestVolumeOfATask(t *testing.T) {
	l := newLab(t, nil)
	instances(t, l, 1, 1000, 1000)
	tagged := atLaunch("data")
	tagged.Tags = []types.Tag{{Key: aws.String("of"), Value: aws.String("definition")}, {Key: aws.String("k"), Value: aws.String("definition")}}
	define(t, l, tagged)
	ctx := context.Background()
	run := func() *ecs.RunTaskOutput {
		t.Helper()
		out, err := l.Operator.RunTask(ctx, &ecs.RunTaskInput{TaskDefinition: aws.String("data"), VolumeConfigurations: managed(func(m *types.TaskManagedEBSVolumeConfiguration) {
			m.TagSpecifications = []types.EBSTagSpecification{{
				ResourceType: types.EBSResourceTypeVolume, PropagateTags: types.PropagateTagsTaskDefinition, Tags: []types.Tag{{Key: aws.String("k"), Value: aws.String("v")}},
			}}
		})})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := run(); len(out.Tasks) != 0 || len(out.Failures) != 1 || !strings.Contains(aws.ToString(out.Failures[0].Reason), "ATTRIBUTE") {
		t.Fatalf("placed where no volumes are made: %+v", out)
	}
	withPool(t, l.Store)
	out := placed(t, run)
	if aws.ToString(out.Tasks[0].LastStatus) != "PROVISIONING" || len(out.Tasks[0].Attachments) != 1 {
		t.Fatalf("%+v", out)
	}
	at := out.Tasks[0].Attachments[0]
	details := map[string]string{}
	for _, d := range at.Details {
		details[*d.Name] = *d.Value
	}
	if aws.ToString(at.Type) != "AmazonElasticBlockStorage" || aws.ToString(at.Status) != "ATTACHING" || details["deleteOnTermination"] != "true" || details["volumeName"] != "data" || details["roleArn"] != infrastructureRole {
		t.Errorf("attachment %+v", at)
	}
	var v *store.Volume
	l.Store.View(func(r store.Reader) { v, _ = store.Get(r, store.Volumes, details["volumeId"]) })
	if v == nil || v.FileSystem != "xfs" || v.Type != "gp3" || v.SizeGiB != 10 || v.Tags["k"] != "v" || v.Tags["of"] != "definition" || v.State != "in-use" {
		t.Errorf("volume %+v", v)
	}
	if err := l.API.FailTask(ctx, "default", v.TaskID, "ResourceInitializationError: none"); err != nil {
		t.Fatal(err)
	}
	l.Store.View(func(r store.Reader) { v, _ = store.Get(r, store.Volumes, details["volumeId"]) })
	if v != nil {
		t.Errorf("the volume of a task that never had it is kept: %+v", v)
	}
}

// A volume of a snapshot has its size and file system, and its task goes where it is.
func TestVolumeOfASnapshot(t *testing.T) {
	l := newLab(t, nil)
	instances(t, l, 3, 1000, 1000)
	withPool(t, l.Store)
	define(t, l, atLaunch("data"))
	ctx := context.Background()
	var home string
	snapshot := func(id, state string) *store.Snapshot {
		return &store.Snapshot{ID: id, ClusterName: "default", InstanceID: home, SizeGiB: 20, FileSystem: "ext4", State: state}
	}
	err := l.Store.Update(ctx, func(tx *store.Tx) error {
		for n, i := range store.List(tx, store.Instances, "") {
			fresh := *i
			fresh.Instance.Ec2InstanceId = aws.String(fmt.Sprintf("mi-%d", n))
			store.Put(tx, store.Instances, store.Key("default", i.ID), &fresh)
			if n == 1 {
				home = i.ID
			}
		}
		store.Put(tx, store.Snapshots, "snap-00000001", snapshot("snap-00000001", store.SnapshotCompleted))
		store.Put(tx, store.Snapshots, "snap-00000002", snapshot("snap-00000002", store.SnapshotPending))
		lost := snapshot("snap-00000003", store.SnapshotCompleted)
		lost.InstanceID = "gone"
		store.Put(tx, store.Snapshots, lost.ID, lost)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	type config = types.TaskManagedEBSVolumeConfiguration
	run := func(id string, change func(*config)) (*ecs.RunTaskOutput, error) {
		return l.Operator.RunTask(ctx, &ecs.RunTaskInput{TaskDefinition: aws.String("data"), VolumeConfigurations: managed(func(m *config) {
			m.SnapshotId, m.SizeInGiB = &id, nil
			if change != nil {
				change(m)
			}
		})})
	}
	for range 3 {
		out, err := run("snap-00000001", func(m *config) { m.VolumeInitializationRate = aws.Int32(300) })
		if err != nil || len(out.Tasks) != 1 || !strings.HasSuffix(aws.ToString(out.Tasks[0].ContainerInstanceArn), home) {
			t.Fatalf("%+v, %v; want it on %s", out, err, home)
		}
	}
	l.Store.View(func(r store.Reader) {
		for _, v := range store.List(r, store.Volumes, "") {
			if v.SizeGiB != 20 || v.FileSystem != "ext4" || v.SnapshotID != "snap-00000001" || v.InstanceID != home {
				t.Errorf("volume %+v", v)
			}
		}
	})
	for text, c := range map[string]struct {
		id     string
		change func(*config)
	}{
		"is pending":               {"snap-00000002", nil},
		"not registered any more":  {"snap-00000003", nil},
		"at least that of the":     {"snap-00000001", func(m *config) { m.SizeInGiB = aws.Int32(19) }},
		"has the file system ext4": {"snap-00000001", func(m *config) { m.FilesystemType = types.TaskFilesystemTypeXfs }},
		"between 100 and 300":      {"snap-00000001", func(m *config) { m.VolumeInitializationRate = aws.Int32(99) }},
	} {
		if _, err := run(c.id, c.change); code(err) != "InvalidParameterException" || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %q", err, text)
		}
	}
}
