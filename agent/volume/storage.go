package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/volumes"
	"berth.dev/berth/volumes/ephemeral"
)

// Storage limits what tasks write. It serves task.KindStorage.
type Storage struct {
	c   StorageConfig
	dir string
	log *slog.Logger

	mu    sync.Mutex
	store *ephemeral.Store // nil until the first task needs it
}

var (
	_ engine.Resource = (*Storage)(nil)
	_ engine.Sweeper  = (*Storage)(nil)
)

// StorageConfig is what a Storage is made of.
type StorageConfig struct {
	Dir string
	// Reserve is what the logs of a task take at most, and Logged what they take, in
	// bytes. They are written elsewhere, and count. nil: there are no logs.
	Reserve func(t *task.Task) int64
	Logged  func(taskID string) (uint64, error)
	Log     *slog.Logger // nil discards
}

// NewStorage makes the adapter on a directory. What the file system below can do is
// tried when the first task asks for a limit.
func NewStorage(c StorageConfig) *Storage {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Storage{c: c, dir: c.Dir, log: c.Log}
}

// open finds the mechanism, once.
func (s *Storage) open(ctx context.Context) (*ephemeral.Store, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.store != nil {
		return s.store, nil
	}
	store, err := ephemeral.Open(ctx, s.dir)
	if err != nil {
		return nil, err
	}
	s.log.Info("the storage of tasks can be limited", "kind", task.KindStorage, "mechanism", store.Mechanism())
	s.store = store
	return store, nil
}

// volumes is the directory for the volumes of a task with a limit.
func (s *Storage) volumes(taskID string) string { return filepath.Join(s.dir, taskID, "volumes") }

// Kind is task.KindStorage.
func (s *Storage) Kind() string { return task.KindStorage }

// Ensure makes the task's storage.
func (s *Storage) Ensure(ctx context.Context, t *task.Task, _ string, _ engine.Deps) (task.Result, error) {
	store, err := s.open(ctx)
	if err != nil {
		return task.Result{}, storageFailed(err)
	}
	size := t.Storage
	if s.c.Reserve != nil {
		size -= s.c.Reserve(t)
	}
	path, err := store.Create(ctx, t.ID(), uint64(max(0, size)))
	if err != nil {
		return task.Result{}, storageFailed(err)
	}
	h, err := json.Marshal(volumes.Mounted{Path: path})
	return task.Result{Handle: h}, err
}

// Remove takes the task's storage away.
func (s *Storage) Remove(ctx context.Context, t *task.Task, _ string, _ task.Handle) error {
	return s.remove(ctx, t.ID())
}

func (s *Storage) remove(ctx context.Context, taskID string) error {
	if _, err := os.Lstat(s.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	store, err := s.open(ctx)
	if err == nil {
		err = store.Remove(taskID)
	}
	return storageFailed(err)
}

// Probe looks for the task's storage.
func (s *Storage) Probe(ctx context.Context, t *task.Task, _ string, _ task.Handle) (task.Observed, error) {
	store, err := s.open(ctx)
	if err != nil {
		return task.Observed{}, storageFailed(err)
	}
	there, err := store.Check(t.ID())
	return task.Observed{Exists: there}, storageFailed(err)
}

// Usage says how much a task has written, its logs included, of how much it may. ok is
// false for a task without a limit.
func (s *Storage) Usage(ctx context.Context, t *task.Task) (u ephemeral.Usage, ok bool, err error) {
	if t.Storage <= 0 {
		return u, false, nil
	}
	store, err := s.open(ctx)
	if err != nil {
		return u, false, err
	}
	u, err = store.Usage(t.ID())
	if err == nil && s.c.Logged != nil {
		var logs uint64
		logs, err = s.c.Logged(t.ID())
		u.Used += logs
	}
	u.Limit = uint64(t.Storage)
	return u, err == nil, err
}

// Owned lists the tasks that have storage here.
func (s *Storage) Owned(ctx context.Context) ([]task.Owned, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	store, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	ids, err := store.Tasks()
	out := make([]task.Owned, 0, len(ids))
	for _, id := range ids {
		out = append(out, task.Owned{Resource: task.ResourceID{Kind: task.KindStorage, Name: "task"}, TaskID: id})
	}
	return out, err
}

// Sweep removes the storage of one of them.
func (s *Storage) Sweep(ctx context.Context, o task.Owned) error { return s.remove(ctx, o.TaskID) }

// Teardown removes the storage of all tasks.
func (s *Storage) Teardown() error {
	ctx := context.Background()
	owned, err := s.Owned(ctx)
	for _, o := range owned {
		err = errors.Join(err, s.Sweep(ctx, o))
	}
	return err
}

func storageFailed(err error) error {
	if err == nil {
		return nil
	}
	return task.Fail(task.Unclassified, task.ResourceInitialization, fmt.Errorf("ephemeralStorage: %w", err))
}
