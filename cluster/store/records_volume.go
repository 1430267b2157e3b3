package store

import "time"

// States of volumes (EC2 API, DescribeVolumes: state).
const (
	VolumeInUse     = "in-use"
	VolumeAvailable = "available"
	VolumeDeleting  = "deleting"
)

// States of snapshots (EC2 API, DescribeSnapshots: status).
const (
	SnapshotPending   = "pending"
	SnapshotCompleted = "completed"
	SnapshotError     = "error"
)

// A Volume is a block volume that an instance made for a task.
type Volume struct {
	ID           string
	AttachmentID string
	Name         string // of the volume in its task
	ClusterName  string
	TaskID       string
	InstanceID   string
	Zone         string
	SizeGiB      int32
	Type         string // as in the EC2 API: gp3, …
	FileSystem   string
	IOPS         int32 // 0 means that nothing was asked for
	Throughput   int32 // MiB/s; 0 likewise
	RoleARN      string
	// Delete has it removed with its task.
	Delete     bool
	SnapshotID string // whose content it began with; "" is none
	State      string
	Tags       map[string]string
	CreatedAt  time.Time
}

// A Snapshot is what a volume held at one time. It is in the pool of the instance that has
// the volume.
type Snapshot struct {
	ID          string
	VolumeID    string
	VolumeName  string // in the task that had the volume
	TaskID      string
	ClusterName string
	InstanceID  string
	SizeGiB     int32 // of the volume
	FileSystem  string
	Description string
	State       string
	Fault       string // of state error
	Deleting    bool   // nobody sees it any more; the instance is told to remove it
	Tags        map[string]string
	CreatedAt   time.Time
	CompletedAt time.Time
}
