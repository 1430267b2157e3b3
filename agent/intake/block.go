package intake

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/acs"
)

// Types of attachments (agent protocol, "Attachment").
const (
	attachmentEBS     = "amazonebs"
	attachmentS3Files = "s3files"
)

const (
	// blockWait is how long a volume is waited for where the message does not say (agent
	// protocol, ConfirmAttachmentMessage).
	blockWait = 5 * time.Minute
	// maxVolumeGiB is the size of the largest block volume there is.
	maxVolumeGiB = 65536
	// maxProperties bounds those of an attachment.
	maxProperties = 64
)

var (
	blockID    = regexp.MustCompile(`^vol-[0-9a-f]{8,40}$`)
	snapshotID = regexp.MustCompile(`^snap-[0-9a-f]{8,40}$`)
	// hostPathName is the name of a mount, which was a path below a directory.
	hostPathName = regexp.MustCompile(`^[0-9A-Za-z_./-]{1,512}$`)
	arnForm      = regexp.MustCompile(`^arn:[^:\s]+:[^:\s]+:[^:\s]*:[^:\s]*:[^\s]+$`)
)

// properties are those of an attachment, each of which has to have a name and a value.
func properties(w *acs.Attachment) (map[string]string, error) {
	if len(w.AttachmentProperties) > maxProperties {
		return nil, fmt.Errorf("more than %d properties", maxProperties)
	}
	out := make(map[string]string, len(w.AttachmentProperties))
	for _, p := range w.AttachmentProperties {
		if p.Name == "" || p.Value == "" {
			return nil, errors.New("a property without a name or a value")
		}
		out[p.Name] = p.Value
	}
	return out, nil
}

// translateBlock makes a volume of an attachment of type amazonebs.
func translateBlock(w *acs.Attachment) (task.Volume, error) {
	p, err := properties(w)
	if err != nil {
		return task.Volume{}, err
	}
	for _, name := range []string{"volumeId", "volumeSizeGib", "deviceName", "sourceVolumeHostPath", "volumeName"} {
		if p[name] == "" {
			return task.Volume{}, fmt.Errorf("the property %s is missing", name)
		}
	}
	size, err := strconv.ParseInt(p["volumeSizeGib"], 10, 32)
	switch {
	case err != nil || size < 1 || size > maxVolumeGiB:
		return task.Volume{}, fmt.Errorf("volumeSizeGib %.16q: must be from 1 to %d", p["volumeSizeGib"], maxVolumeGiB)
	case !blockID.MatchString(p["volumeId"]):
		return task.Volume{}, fmt.Errorf("volumeId %.64q is not that of a block volume", p["volumeId"])
	case !volumeName.MatchString(p["volumeName"]):
		return task.Volume{}, errors.New("volumeName must be of letters, digits, - and _")
	case !hostPathName.MatchString(p["sourceVolumeHostPath"]):
		return task.Volume{}, errors.New("sourceVolumeHostPath is not a name")
	case p[acs.PropertySnapshot] != "" && !snapshotID.MatchString(p[acs.PropertySnapshot]):
		return task.Volume{}, fmt.Errorf("%s is not that of a snapshot", acs.PropertySnapshot)
	case !slices.Contains([]string{"", "xfs", "ext2", "ext3", "ext4"}, p["fileSystem"]):
		return task.Volume{}, fmt.Errorf("fileSystem %.16q: xfs, ext2, ext3 and ext4 are supported", p["fileSystem"])
	}
	return task.Volume{Name: p["volumeName"], Type: task.VolumeBlock, Block: &task.BlockVolume{
		ID: p["volumeId"], Size: size << 30, FileSystem: p["fileSystem"], Path: p["sourceVolumeHostPath"],
		Pooled: p[acs.PropertyPool] != "", Delete: p[acs.PropertyDelete] == "true", Snapshot: p[acs.PropertySnapshot],
	}}, nil
}

// attached takes the volumes that come as attachments of the task, by their names.
func attached(w *acs.Task) (map[string]task.Volume, error) {
	out := make(map[string]task.Volume)
	for i := range w.Attachments {
		a := &w.Attachments[i]
		switch a.AttachmentType {
		case attachmentEBS:
			v, err := translateBlock(a)
			if err != nil {
				return nil, unloadablef("attachment of type %s: %w", a.AttachmentType, err)
			}
			if _, twice := out[v.Name]; twice {
				return nil, unloadablef("two attachments are for the volume %q", v.Name)
			}
			out[v.Name] = v
		case attachmentS3Files:
			return nil, &Rejection{Reason: string(task.ResourceInitialization) + ": s3files volumes are not supported: they need mount.s3files of the package amazon-efs-utils"}
		default:
			return nil, &Rejection{Reason: fmt.Sprintf("%s: attachments of type %.64q are not supported by this agent", task.ResourceInitialization, a.AttachmentType)}
		}
	}
	return out, nil
}

// confirm takes over the announcement of a block volume. It answers once the announcement
// is durable; that the volume is there is reported to the ECS API.
func (in *Intake) confirm(ctx context.Context, m *acs.ConfirmAttachmentMessage, r acs.Responder) error {
	wait := blockWait
	if m.WaitTimeoutMs != nil {
		wait = time.Duration(*m.WaitTimeoutMs) * time.Millisecond
	}
	a := m.Attachment
	switch {
	case in.c.Attachments == nil:
		return errors.New("block volumes are not supported by this agent")
	case m.MessageID == "" || a == nil:
		return errors.New("attach message without messageId or attachment")
	case !arnForm.MatchString(m.ClusterARN) || !arnForm.MatchString(m.ContainerInstanceARN) || !arnForm.MatchString(a.AttachmentARN):
		return errors.New("attach message whose clusterArn, containerInstanceArn or attachmentArn is not an ARN")
	case !taskARN.MatchString(m.TaskARN):
		return errors.New("attach message without a usable taskArn")
	case wait <= 0 || wait > maxWaitTimeout:
		return fmt.Errorf("attach message with a waitTimeoutMs of %d: must be above 0 and at most a day", wait.Milliseconds())
	case !strings.EqualFold(a.AttachmentType, attachmentEBS):
		return fmt.Errorf("attachments of type %.64q are not supported by this agent", a.AttachmentType)
	}
	v, err := translateBlock(a)
	if err != nil {
		return fmt.Errorf("attachment %.128q: %w", a.AttachmentARN, err)
	}
	err = in.c.Attachments.Accept(ctx, []task.Attachment{{
		ARN: a.AttachmentARN, TaskARN: m.TaskARN, ClusterARN: m.ClusterARN, Volume: &v, Expires: time.Now().Add(wait),
	}})
	if err != nil {
		return err
	}
	return r.Send(ctx, &acs.AckRequest{Cluster: m.ClusterARN, ContainerInstance: m.ContainerInstanceARN, MessageID: m.MessageID})
}
