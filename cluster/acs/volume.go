package acs

import (
	"strconv"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/acs"
)

// deviceName is what a volume's device is called where the agent does not make it itself;
// the agent finds devices by their serial numbers.
const deviceName = "/dev/sdf"

// volumesOf are the block volumes of a task, as its agent is told of them (agent protocol,
// ConfirmAttachmentMessage). The agent makes each in a pool of its host.
func volumesOf(r store.Reader, t *store.Task) []acs.Attachment {
	if len(t.Task.Attachments) == 0 {
		return nil
	}
	var out []acs.Attachment
	store.Lookup(r, store.VolumesByTask, t.ID, func(_ string, v *store.Volume) bool {
		a := acs.Attachment{AttachmentARN: attachmentARN(t, v.AttachmentID), AttachmentType: "amazonebs"}
		for _, p := range [][2]string{
			{"volumeId", v.ID}, {"volumeSizeGib", strconv.Itoa(int(v.SizeGiB))}, {"deviceName", deviceName},
			{"sourceVolumeHostPath", t.ID + "_" + v.ID}, {"volumeName", v.Name}, {"fileSystem", v.FileSystem},
			{acs.PropertyPool, "true"}, {acs.PropertyDelete, strconv.FormatBool(v.Delete)},
		} {
			a.AttachmentProperties = append(a.AttachmentProperties, acs.AttachmentProperty{Name: p[0], Value: p[1]})
		}
		if v.SnapshotID != "" {
			a.AttachmentProperties = append(a.AttachmentProperties, acs.AttachmentProperty{Name: acs.PropertySnapshot, Value: v.SnapshotID})
		}
		out = append(out, a)
		return true
	})
	return out
}
