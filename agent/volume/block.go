package volume

import (
	"context"
	"errors"
	"time"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/volumes"
)

// blockVolume is a block volume of a task as its driver sees it.
func blockVolume(taskID string, v *task.Volume) *volumes.Volume {
	b := v.Block
	return &volumes.Volume{Task: taskID, Name: v.Name, Scope: volumes.ScopeTask, Block: &volumes.BlockDevice{
		ID: b.ID, Size: b.Size, Kind: b.FileSystem, Path: b.Path, Pooled: b.Pooled, Delete: b.Delete, Snapshot: b.Snapshot,
	}}
}

// Stage makes a block volume ready that was announced for a task: it waits for the device
// until ctx ends and mounts it where the task will find it. It may be called again.
func (s *Volumes) Stage(ctx context.Context, taskID string, v *task.Volume) error {
	_, err := s.block.Mount(ctx, blockVolume(taskID, v))
	return classify(v.Name, err)
}

// Unstage takes away what Stage made for a task that never came or is gone, as its end
// would.
func (s *Volumes) Unstage(ctx context.Context, taskID string, v *task.Volume) error {
	return classify(v.Name, s.block.Unmount(ctx, blockVolume(taskID, v)))
}

// BlockUsage is how much of a block volume is used.
type BlockUsage struct {
	VolumeID, Name string
	Used, Size     uint64 // bytes
}

// usageLimit is how long the use of one volume may take to ask (agent protocol,
// VolumeMetric: 1 s).
const usageLimit = time.Second

// BlockUsage asks for the use of the block volumes of a task that are mounted.
func (s *Volumes) BlockUsage(ctx context.Context, t *task.Task) (out []BlockUsage, err error) {
	for i := range t.Volumes {
		v := &t.Volumes[i]
		if v.Type != task.VolumeBlock || v.Block == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, usageLimit)
		used, size, askErr := s.block.Usage(ctx, blockVolume(t.ID(), v))
		cancel()
		if askErr != nil {
			if !errors.Is(askErr, volumes.ErrMissing) {
				err = errors.Join(err, classify(v.Name, askErr))
			}
			continue
		}
		out = append(out, BlockUsage{VolumeID: v.Block.ID, Name: v.Name, Used: used, Size: size})
	}
	return out, err
}
