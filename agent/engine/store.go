package engine

import (
	"context"

	"berth.dev/berth/agent/task"
)

// Store makes commits durable.
type Store interface {
	// Load returns every task that is stored.
	Load(ctx context.Context) ([]task.Stored, error)

	// Commit writes one commit. A nil error means that it is on disk: fsynced. Commits
	// that wait at the same time may share one transaction. When it fails nothing of the
	// commit was written, and the caller must not act as if it had been.
	Commit(ctx context.Context, c task.Commit) error
}
