package ec2

import (
	"context"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/vpc"
)

func noSnapshot(id string) error {
	return failure("InvalidSnapshot.NotFound", "The snapshot '%s' does not exist.", clip(id))
}

// maxSnapshots bounds those of one container instance.
const maxSnapshots = 1000

// createSnapshot has the instance that has a volume keep what is in it now.
func (s *Server) createSnapshot(ctx context.Context, f form) ([]node, error) {
	tags, err := f.tagsOf("snapshot")
	if err != nil {
		return nil, err
	}
	if where := f.get("Location"); where != "" && where != "regional" {
		return nil, failure("InvalidParameterValue", "Location '%s': snapshots are kept with their volumes; leave it out", clip(where))
	}
	description := f.get("Description")
	if !utf8.ValidString(description) || len(description) > maxText {
		return nil, failure("InvalidParameterValue", "Description must be of at most %d characters", maxText)
	}
	id := f.get("VolumeId")
	var made store.Snapshot
	err = s.Store.Update(ctx, func(tx *store.Tx) error {
		v, ok := store.Get(tx, store.Volumes, id)
		if !ok {
			return noVolume(id)
		}
		if v.State == store.VolumeDeleting {
			return failure("IncorrectState", "The volume '%s' is being deleted", id)
		}
		if _, ok := hostOf(tx, v.ClusterName, v.InstanceID); !ok {
			return failure("IncorrectState", "The container instance that has the volume '%s' is not registered any more", id)
		}
		count := 0
		store.Lookup(tx, store.SnapshotsByInstance, v.InstanceID, func(string, *store.Snapshot) bool { count++; return true })
		if count >= maxSnapshots {
			return failure("SnapshotLimitExceeded", "The container instance has %d snapshots; delete some", count)
		}
		made = store.Snapshot{
			ID: vpc.NewID("snap"), VolumeID: v.ID, VolumeName: v.Name, TaskID: v.TaskID, ClusterName: v.ClusterName, InstanceID: v.InstanceID,
			SizeGiB: v.SizeGiB, FileSystem: v.FileSystem, Description: description, State: store.SnapshotPending, Tags: tags, CreatedAt: time.Now(),
		}
		store.Put(tx, store.Snapshots, made.ID, &made)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.snapshotMembers(nil, &made), nil
}

func (s *Server) describeSnapshots(_ context.Context, f form) ([]node, error) {
	owners, err := f.list("Owner")
	if err != nil {
		return nil, err
	}
	items, err := describe(s.Store, f, "SnapshotId", store.Snapshots, noSnapshot, func(_ store.Reader, v *store.Snapshot) (string, map[string]string, func(string) ([]string, bool)) {
		id := v.ID
		if v.Deleting {
			id = "" // nobody can name it any more
		}
		return id, v.Tags, func(name string) ([]string, bool) { return s.snapshotField(v, name) }
	}, s.snapshotMembers)
	if err != nil {
		return nil, err
	}
	mine := len(owners) == 0 || slices.Contains(owners, "self") || slices.Contains(owners, s.Account)
	items = slices.DeleteFunc(items, func(n node) bool { return !mine || len(n.members) == 0 })
	items, next, err := f.page(items, "SnapshotId", "snapshotId")
	return append([]node{list("snapshotSet", items...)}, next...), err
}

// snapshotField is what a filter of DescribeSnapshots compares with.
func (s *Server) snapshotField(v *store.Snapshot, name string) ([]string, bool) {
	one := func(text string) ([]string, bool) { return []string{text}, true }
	switch name {
	case "snapshot-id":
		return one(v.ID)
	case "volume-id":
		return one(v.VolumeID)
	case "volume-size":
		return one(strconv.Itoa(int(v.SizeGiB)))
	case "status":
		return one(v.State)
	case "progress":
		return one(progress(v))
	case "description":
		return one(v.Description)
	case "start-time":
		return one(instant(v.CreatedAt))
	case "owner-id":
		return one(s.Account)
	case "encrypted":
		return one("false")
	case "storage-tier":
		return one("standard")
	case "owner-alias", "transfer-type":
		return nil, true
	}
	return nil, false
}

func progress(v *store.Snapshot) string {
	if v.State == store.SnapshotCompleted {
		return "100%"
	}
	return "0%"
}

func (s *Server) snapshotMembers(_ store.Reader, v *store.Snapshot) []node {
	if v.Deleting {
		return nil
	}
	out := []node{
		text("snapshotId", v.ID), text("volumeId", v.VolumeID), text("status", v.State), text("startTime", instant(v.CreatedAt)),
		text("progress", progress(v)), text("ownerId", s.Account), number("volumeSize", int(v.SizeGiB)), text("description", v.Description),
		boolean("encrypted", false), text("storageTier", "standard"), tagSet(v.Tags),
	}
	if v.Fault != "" {
		out = append(out, text("statusMessage", v.Fault))
	}
	if v.State == store.SnapshotCompleted {
		out = append(out, text("completionTime", instant(v.CompletedAt)))
	}
	return out
}

// deleteSnapshot has the instance that has a snapshot remove it. Nobody sees it any more.
func (s *Server) deleteSnapshot(ctx context.Context, f form) ([]node, error) {
	id := f.get("SnapshotId")
	err := s.Store.Update(ctx, func(tx *store.Tx) error {
		v, ok := store.Get(tx, store.Snapshots, id)
		if !ok || v.Deleting {
			return noSnapshot(id)
		}
		if _, ok := hostOf(tx, v.ClusterName, v.InstanceID); !ok {
			store.Delete(tx, store.Snapshots, id)
			return nil
		}
		gone := *v
		gone.Deleting = true
		store.Put(tx, store.Snapshots, id, &gone)
		return nil
	})
	return done(), err
}
