package api

import (
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/sched"
	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/vpc"
)

// attributeVolumePool is registered by agents that make block volumes themselves. This
// cluster plugs no devices in, so tasks with a volume configured at launch need one.
const attributeVolumePool = "berth.capability.volume-pool"

// volumeAttachment is how a block volume is called in the answers of the API.
const volumeAttachment = "AmazonElasticBlockStorage"

// attachmentDetached is of a volume that outlives its task.
const attachmentDetached = "DETACHED"

func volumePoolAttribute() sched.Attribute { return sched.Attribute{Name: attributeVolumePool} }

// volumeTypes are the smallest and largest sizes in GiB (EC2 API, CreateVolume).
var volumeTypes = map[string][2]int32{
	"gp2": {1, 16384}, "gp3": {1, 65536}, "io1": {4, 16384}, "io2": {4, 65536}, "sc1": {125, 16384}, "st1": {125, 16384}, "standard": {1, 1024},
}

const defaultVolumeType = "gp3"

// volumeIOPS are the fewest and most input and output operations a second that can be
// asked for, of the types that take a number (EC2 API, CreateVolume: Iops).
var volumeIOPS = map[string][2]int32{"gp3": {3000, 80000}, "io1": {100, 64000}, "io2": {100, 256000}}

// Limits of the throughput of type gp3, in MiB/s (EC2 API, CreateVolume: Throughput).
const minThroughput, maxThroughput = 125, 2000

var roleARN = regexp.MustCompile(`^arn:[^:\s]+:iam::[0-9]*:role/\S+$`)

// volumeOf checks the volume configurations of RunTask or StartTask; nil means that the
// definition has no volume that is configured at launch.
func volumeOf(r store.Reader, def *types.TaskDefinition, inherited []types.Tag, given []types.TaskVolumeConfiguration) (*store.Volume, error) {
	at := slices.IndexFunc(def.Volumes, func(v types.Volume) bool { return aws.ToBool(v.ConfiguredAtLaunch) })
	switch {
	case at < 0 && len(given) == 0:
		return nil, nil
	case at < 0:
		return nil, invalidParameter("volumeConfigurations: the task definition has no volume that is configuredAtLaunch.")
	case len(given) == 0:
		return nil, invalidParameter("The volume '%s' of the task definition is configuredAtLaunch: a volume configuration must be provided.", str(def.Volumes[at].Name))
	case len(given) > 1:
		return nil, invalidParameter("volumeConfigurations can have at most 1 item.")
	case str(given[0].Name) != str(def.Volumes[at].Name):
		return nil, invalidParameter("volumeConfigurations: no volume of the task definition that is configuredAtLaunch is named '%s'.", clip(str(given[0].Name)))
	case given[0].ManagedEBSVolume == nil:
		return nil, invalidParameter("volumeConfigurations: managedEBSVolume of volume '%s' is missing.", str(given[0].Name))
	}
	m := given[0].ManagedEBSVolume
	v := &store.Volume{
		Name: str(given[0].Name), RoleARN: str(m.RoleArn), SizeGiB: aws.ToInt32(m.SizeInGiB), Type: orElse(str(m.VolumeType), defaultVolumeType),
		FileSystem: string(m.FilesystemType), IOPS: aws.ToInt32(m.Iops), Throughput: aws.ToInt32(m.Throughput),
		Delete: m.TerminationPolicy == nil || aws.ToBool(m.TerminationPolicy.DeleteOnTermination), State: store.VolumeInUse, SnapshotID: str(m.SnapshotId),
	}
	if err := fromSnapshot(r, m, v); err != nil {
		return nil, err
	}
	v.FileSystem = orElse(v.FileSystem, string(types.TaskFilesystemTypeXfs))
	if err := checkVolumeConfiguration(m, v); err != nil {
		return nil, err
	}
	return v, tagVolume(v, m.TagSpecifications, inherited)
}

// tagVolume gives a volume the tags of its configuration, and those of the task definition
// where that asks for them.
func tagVolume(v *store.Volume, specs []types.EBSTagSpecification, inherited []types.Tag) error {
	v.Tags = make(map[string]string)
	for _, s := range specs {
		if err := validateTags(s.Tags); err != nil {
			return err
		}
		switch s.PropagateTags {
		case types.PropagateTagsTaskDefinition:
			for _, t := range inherited {
				v.Tags[str(t.Key)] = str(t.Value)
			}
		case types.PropagateTagsService:
			return invalidParameter("volumeConfigurations: volume '%s': propagateTags SERVICE is only for tasks of a service.", v.Name)
		}
	}
	for _, s := range specs {
		for _, t := range s.Tags {
			v.Tags[str(t.Key)] = str(t.Value)
		}
	}
	if len(v.Tags) > maxTags {
		return invalidParameter("volumeConfigurations: volume '%s' may have at most %d tags, those of the task definition included.", v.Name, maxTags)
	}
	return nil
}

// Limits of volumeInitializationRate, in MiB/s (ECS API model,
// TaskManagedEBSVolumeConfiguration).
const minInitializationRate, maxInitializationRate = 100, 300

// fromSnapshot finds the snapshot that a volume begins with, which says its size and file
// system where nothing else does.
func fromSnapshot(r store.Reader, m *types.TaskManagedEBSVolumeConfiguration, v *store.Volume) error {
	bad := func(format string, args ...any) error {
		return invalidParameter("volumeConfigurations: volume '"+v.Name+"': "+format, args...)
	}
	rate := aws.ToInt32(m.VolumeInitializationRate)
	if v.SnapshotID == "" {
		if m.VolumeInitializationRate != nil {
			return bad("volumeInitializationRate is for volumes with a snapshotId only.")
		}
		return nil
	}
	s, ok := store.Get(r, store.Snapshots, v.SnapshotID)
	switch {
	case !ok || s.Deleting:
		return bad("the snapshot '%s' does not exist.", clip(v.SnapshotID))
	case s.State != store.SnapshotCompleted:
		return bad("the snapshot '%s' is %s; it must be completed.", v.SnapshotID, s.State)
	case m.VolumeInitializationRate != nil && (rate < minInitializationRate || rate > maxInitializationRate):
		return bad("volumeInitializationRate must be between %d and %d MiB/s, %d given.", minInitializationRate, maxInitializationRate, rate)
	case m.SizeInGiB != nil && v.SizeGiB < s.SizeGiB:
		return bad("sizeInGiB must be at least that of the snapshot '%s', %d; %d given.", v.SnapshotID, s.SizeGiB, v.SizeGiB)
	case v.FileSystem != "" && v.FileSystem != s.FileSystem:
		return bad("the snapshot '%s' has the file system %s, and filesystemType %s is given; leave it out.", v.SnapshotID, s.FileSystem, v.FileSystem)
	}
	v.FileSystem = s.FileSystem
	if m.SizeInGiB == nil {
		v.SizeGiB = s.SizeGiB
	}
	return nil
}

// snapshotPlace narrows where a task can be placed to the instance whose pool has the
// snapshot that its volume begins with.
func snapshotPlace(r store.Reader, v *store.Volume) (sched.Constraint, error) {
	s, ok := store.Get(r, store.Snapshots, v.SnapshotID)
	var home *store.Instance
	if ok {
		home, ok = store.Get(r, store.Instances, store.Key(s.ClusterName, s.InstanceID))
	}
	if !ok || str(home.Instance.Ec2InstanceId) == "" {
		return sched.Constraint{}, invalidParameter("volumeConfigurations: volume '%s': the container instance that has the snapshot '%s' is not registered any more.", v.Name, v.SnapshotID)
	}
	expression := "ec2InstanceId == " + str(home.Instance.Ec2InstanceId)
	list, err := sched.Constraints(nil, []types.PlacementConstraint{{Type: types.PlacementConstraintTypeMemberOf, Expression: &expression}})
	if err != nil {
		return sched.Constraint{}, err
	}
	return list[0], nil
}

func checkVolumeConfiguration(m *types.TaskManagedEBSVolumeConfiguration, v *store.Volume) error {
	bad := func(format string, args ...any) error {
		return invalidParameter("volumeConfigurations: volume '"+v.Name+"': "+format, args...)
	}
	sizes, known := volumeTypes[v.Type]
	switch {
	case !roleARN.MatchString(v.RoleARN):
		return bad("roleArn must be the ARN of a role.")
	case !known:
		return bad("volumeType '%s' is none of gp2, gp3, io1, io2, sc1, st1 and standard.", clip(v.Type))
	case m.SizeInGiB == nil && v.SnapshotID == "":
		return bad("either sizeInGiB or snapshotId must be given.")
	case v.SizeGiB < sizes[0] || v.SizeGiB > sizes[1]:
		return bad("sizeInGiB of type %s must be between %d and %d, %d given.", v.Type, sizes[0], sizes[1], v.SizeGiB)
	case aws.ToBool(m.Encrypted) || str(m.KmsKeyId) != "":
		return unsupportedFeature("volumeConfigurations: encrypted and kmsKeyId: the pools of this cluster's instances are not encrypted; leave them out, and encrypt the disk below BERTH_VOLUME_DIR on the hosts.")
	case (v.Type == "io1" || v.Type == "io2") && m.Iops == nil:
		return bad("iops must be given for type %s.", v.Type)
	case m.Iops != nil && volumeIOPS[v.Type] == [2]int32{}:
		return bad("iops is for the types gp3, io1 and io2 only.")
	case m.Iops != nil && (v.IOPS < volumeIOPS[v.Type][0] || v.IOPS > volumeIOPS[v.Type][1]):
		return bad("iops of type %s must be between %d and %d, %d given.", v.Type, volumeIOPS[v.Type][0], volumeIOPS[v.Type][1], v.IOPS)
	case m.Throughput != nil && v.Type != "gp3":
		return bad("throughput is for type gp3 only.")
	case m.Throughput != nil && (v.Throughput < minThroughput || v.Throughput > maxThroughput):
		return bad("throughput must be between %d and %d MiB/s, %d given.", minThroughput, maxThroughput, v.Throughput)
	case v.FileSystem == string(types.TaskFilesystemTypeNtfs):
		return bad("filesystemType ntfs is for Windows only.")
	case !slices.Contains([]string{"xfs", "ext3", "ext4"}, v.FileSystem):
		return bad("filesystemType must be ext3, ext4 or xfs.")
	}
	for _, s := range m.TagSpecifications {
		if s.ResourceType != types.EBSResourceTypeVolume {
			return bad("tagSpecifications: resourceType must be volume.")
		}
	}
	return nil
}

// provisionVolume gives a task a volume of its own and puts it into the task's record.
// The agent makes it when it is told.
func (a *API) provisionVolume(tx *store.Tx, l *launch, t *store.Task) {
	if l.volume == nil {
		return
	}
	v := *l.volume
	v.ID, v.AttachmentID, v.CreatedAt = vpc.NewID("vol"), uuid(), l.now
	v.ClusterName, v.TaskID, v.InstanceID, v.Zone = t.ClusterName, t.ID, t.InstanceID, str(t.Task.AvailabilityZone)
	store.Put(tx, store.Volumes, v.ID, &v)
	t.Task.LastStatus = aws.String(statusProvisioning)
	t.Task.Attachments = append(t.Task.Attachments, volumeAttachmentOf(&v))
}

// volumeAttachmentOf is a volume as clients read it in DescribeTasks (ECS API model,
// Attachment: details).
func volumeAttachmentOf(v *store.Volume) types.Attachment {
	deleted := "false"
	if v.Delete {
		deleted = "true"
	}
	at := types.Attachment{Id: aws.String(v.AttachmentID), Type: aws.String(volumeAttachment), Status: aws.String(attachmentAttaching)}
	for _, d := range [][2]string{{"roleArn", v.RoleARN}, {"volumeName", v.Name}, {"volumeId", v.ID}, {"deleteOnTermination", deleted}} {
		at.Details = append(at.Details, types.KeyValuePair{Name: aws.String(d[0]), Value: aws.String(d[1])})
	}
	return at
}

// releaseVolumes ends the use of a task's volumes. One that is to be kept is, if the task
// ever had it.
func releaseVolumes(tx *store.Tx, t *store.Task) {
	var volumes []*store.Volume
	store.Lookup(tx, store.VolumesByTask, t.ID, func(_ string, v *store.Volume) bool {
		volumes = append(volumes, v)
		return true
	})
	for _, v := range volumes {
		at := slices.IndexFunc(t.Task.Attachments, func(a types.Attachment) bool { return str(a.Id) == v.AttachmentID })
		if v.Delete || at < 0 || str(t.Task.Attachments[at].Status) != attachmentAttached {
			store.Delete(tx, store.Volumes, v.ID)
			if at >= 0 {
				t.Task.Attachments[at].Status = aws.String(attachmentDeleted)
			}
			continue
		}
		kept := *v
		kept.State = store.VolumeAvailable
		store.Put(tx, store.Volumes, v.ID, &kept)
		t.Task.Attachments[at].Status = aws.String(attachmentDetached)
	}
}

// taskOfAttachment finds the task on an instance whose volume an attachment is of.
func taskOfAttachment(r store.Reader, cluster, instanceID, attachmentARN string) (task string) {
	id := attachmentARN[strings.LastIndexByte(attachmentARN, '/')+1:]
	store.Lookup(r, store.TasksByInstance, instanceID, func(_ string, t *store.Task) bool {
		if t.ClusterName != cluster || str(t.Task.LastStatus) == statusStopped {
			return true
		}
		if slices.ContainsFunc(t.Task.Attachments, func(a types.Attachment) bool { return str(a.Id) == id && str(a.Type) == volumeAttachment }) {
			task = t.ID
		}
		return task == ""
	})
	return task
}

// volumeChanges sorts the attachments that an instance tells of by the task whose volumes
// they are.
func (a *API) volumeChanges(cluster string, instanceID string, in *ecs.SubmitAttachmentStateChangesInput) map[string][]types.AttachmentStateChange {
	out := make(map[string][]types.AttachmentStateChange)
	a.Store.View(func(r store.Reader) {
		for _, c := range in.Attachments {
			if id := taskOfAttachment(r, cluster, instanceID, str(c.AttachmentArn)); id != "" {
				out[id] = append(out[id], c)
			}
		}
	})
	return out
}
