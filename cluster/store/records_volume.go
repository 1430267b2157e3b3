package store

import "time"

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
	Delete bool
	// State is in-use or available, as in the EC2 API.
	State     string
	Tags      map[string]string
	CreatedAt time.Time
}
