package ec2

import (
	"context"
	"encoding/base64"
	"slices"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"

	"berth.dev/berth/cluster/store"
)

// volumeDevice is what the device of every volume is called; tasks have one each.
const volumeDevice = "/dev/sdf"

func noVolume(id string) error {
	return failure("InvalidVolume.NotFound", "The volume '%s' does not exist.", clip(id))
}

// hostOf is the container instance in whose pool something is.
func hostOf(r store.Reader, cluster, instance string) (*store.Instance, bool) {
	i, ok := store.Get(r, store.Instances, store.Key(cluster, instance))
	if !ok || aws.ToString(i.Instance.Status) == "INACTIVE" {
		return nil, false
	}
	return i, true
}

func (s *Server) describeVolumes(_ context.Context, f form) ([]node, error) {
	items, err := describe(s.Store, f, "VolumeId", store.Volumes, noVolume, func(r store.Reader, v *store.Volume) (string, map[string]string, func(string) ([]string, bool)) {
		return v.ID, v.Tags, func(name string) ([]string, bool) { return s.volumeField(r, v, name) }
	}, s.volumeMembers)
	if err != nil {
		return nil, err
	}
	items, next, err := f.page(items, "VolumeId", "volumeId")
	return append([]node{list("volumeSet", items...)}, next...), err
}

// volumeField is what a filter of DescribeVolumes compares with.
func (s *Server) volumeField(r store.Reader, v *store.Volume, name string) ([]string, bool) {
	one := func(text string) ([]string, bool) { return []string{text}, true }
	ifInUse := func(text string) ([]string, bool) {
		if v.State != store.VolumeInUse {
			return nil, true
		}
		return one(text)
	}
	switch name {
	case "volume-id":
		return one(v.ID)
	case "status":
		return one(v.State)
	case "size":
		return one(strconv.Itoa(int(v.SizeGiB)))
	case "volume-type":
		return one(v.Type)
	case "availability-zone":
		return one(v.Zone)
	case "snapshot-id":
		return one(v.SnapshotID)
	case "create-time":
		return one(instant(v.CreatedAt))
	case "encrypted", "multi-attach-enabled", "fast-restored":
		return one("false")
	case "attachment.instance-id":
		return ifInUse(machineName(r, v))
	case "attachment.device":
		return ifInUse(volumeDevice)
	case "attachment.status":
		return ifInUse("attached")
	case "attachment.delete-on-termination":
		return ifInUse(strconv.FormatBool(v.Delete))
	case "attachment.attach-time":
		return ifInUse(instant(v.CreatedAt))
	case "operator.managed", "operator.principal", "availability-zone-id":
		return nil, true
	}
	return nil, false
}

// machineName is the instance that has a volume, as EC2 calls it.
func machineName(r store.Reader, v *store.Volume) string {
	i, ok := hostOf(r, v.ClusterName, v.InstanceID)
	if !ok {
		return ""
	}
	return machineOf(i).id
}

// What a volume of type gp3 has where nothing else is asked for (EC2 API, CreateVolume).
const gp3IOPS, gp3Throughput = 3000, 125

func (s *Server) volumeMembers(r store.Reader, v *store.Volume) []node {
	attached := node{name: "attachmentSet"}
	if v.State == store.VolumeInUse {
		attached.members = append(attached.members, item(
			text("volumeId", v.ID), text("instanceId", machineName(r, v)), text("device", volumeDevice), text("status", "attached"),
			text("attachTime", instant(v.CreatedAt)), boolean("deleteOnTermination", v.Delete),
		))
	}
	out := []node{
		text("volumeId", v.ID), number("size", int(v.SizeGiB)), text("snapshotId", v.SnapshotID), text("availabilityZone", v.Zone),
		text("status", v.State), text("createTime", instant(v.CreatedAt)), attached, tagSet(v.Tags), text("volumeType", v.Type),
		boolean("encrypted", false), boolean("multiAttachEnabled", false),
	}
	iops, throughput := int(v.IOPS), int(v.Throughput)
	if v.Type == "gp3" {
		if iops == 0 {
			iops = gp3IOPS
		}
		if throughput == 0 {
			throughput = gp3Throughput
		}
		out = append(out, number("throughput", throughput))
	}
	if iops > 0 {
		out = append(out, number("iops", iops))
	}
	return out
}

// deleteVolume has the instance that has a volume remove it. The record goes when it has
// done so; that of a volume whose host is deregistered goes at once.
func (s *Server) deleteVolume(ctx context.Context, f form) ([]node, error) {
	id := f.get("VolumeId")
	err := s.Store.Update(ctx, func(tx *store.Tx) error {
		v, ok := store.Get(tx, store.Volumes, id)
		if !ok {
			return noVolume(id)
		}
		if v.State == store.VolumeInUse {
			return failure("VolumeInUse", "Volume %s is currently attached to %s", id, machineName(tx, v))
		}
		if snap := pendingOf(tx, v); snap != "" {
			return failure("IncorrectState", "The volume '%s' cannot be deleted while its snapshot '%s' is pending.", id, snap)
		}
		if _, ok := hostOf(tx, v.ClusterName, v.InstanceID); !ok {
			store.Delete(tx, store.Volumes, id)
			return nil
		}
		gone := *v
		gone.State = store.VolumeDeleting
		store.Put(tx, store.Volumes, id, &gone)
		return nil
	})
	return done(), err
}

// pendingOf is a snapshot of a volume that is being made.
func pendingOf(r store.Reader, v *store.Volume) (id string) {
	store.Lookup(r, store.SnapshotsByInstance, v.InstanceID, func(_ string, s *store.Snapshot) bool {
		if s.VolumeID == v.ID && s.State == store.SnapshotPending && !s.Deleting {
			id = s.ID
		}
		return id == ""
	})
	return id
}

// Limits of MaxResults (EC2 API, DescribeVolumes, DescribeSnapshots).
const minResults, maxResults = 5, 1000

// page cuts what is described down to the page that is asked for. Items are in the order
// of their ids, and a token is the last id of the page before.
func (f form) page(items []node, idMember, idName string) ([]node, []node, error) {
	var after string
	if token := f.get("NextToken"); token != "" {
		b, err := base64.RawURLEncoding.DecodeString(token)
		if err != nil {
			return nil, nil, failure("InvalidParameterValue", "The token '%s' is invalid", clip(token))
		}
		after = string(b)
	}
	most := len(items)
	if text := f.get("MaxResults"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < minResults {
			return nil, nil, failure("InvalidParameterValue", "Value ( %s ) for parameter maxResults is invalid. Expecting a value of at least %d.", clip(text), minResults)
		}
		if f.has(idMember + ".1") {
			return nil, nil, failure("InvalidParameterCombination", "The parameter %s cannot be used with the parameter maxResults", idMember)
		}
		most = min(n, maxResults)
	}
	start := 0
	if after != "" {
		start = slices.IndexFunc(items, func(i node) bool { return i.member(idName) > after })
		if start < 0 {
			return nil, nil, nil
		}
	}
	items = items[start:]
	if len(items) <= most {
		return items, nil, nil
	}
	items = items[:most]
	last := items[most-1].member(idName)
	return items, []node{text("nextToken", base64.RawURLEncoding.EncodeToString([]byte(last)))}, nil
}
