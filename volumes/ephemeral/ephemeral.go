// Package ephemeral limits what a task writes: its containers' layers and its empty
// volumes lie in one directory that cannot hold more than the task was given.
//
// There are three mechanisms, and Open finds by trying which one the file system of its
// directory allows, in this order:
//
//	project   a project quota (ext4 and xfs, mounted with prjquota)
//	btrfs     a subvolume with a quota group
//	loop      a file with a file system of its own, everywhere else
//
// Nothing is kept in memory: the directory says which tasks there are.
package ephemeral

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// Usage is what a task has written, in bytes.
type Usage struct{ Used, Limit uint64 }

// mechanism limits directories. All methods may be repeated after a crash inside them.
type mechanism interface {
	name() string
	// create makes the directory with its limit, or finds it.
	create(ctx context.Context, dir string, bytes uint64) error
	// remove takes the directory away with what is in it.
	remove(dir string) error
	// there reports whether the directory is there, limited.
	there(dir string) (bool, error)
	usage(dir string) (Usage, error)
}

// Store holds the directories of all tasks.
type Store struct {
	dir string
	m   mechanism
}

// Open makes the store's directory and finds the mechanism. The names of mechanisms to
// choose from can be given; none means all.
func Open(ctx context.Context, dir string, among ...string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var errs []error
	for _, m := range []mechanism{&project{}, &btrfs{}, &loop{}} {
		if len(among) > 0 && !strings.Contains(" "+strings.Join(among, " ")+" ", " "+m.name()+" ") {
			continue
		}
		s := &Store{dir: dir, m: m}
		if err := s.try(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.name(), err))
			continue
		}
		return s, nil
	}
	return nil, fmt.Errorf("no way to limit the storage of tasks in %s: %w", dir, errors.Join(errs...))
}

// Mechanism is the name of the one in use.
func (s *Store) Mechanism() string { return s.m.name() }

const (
	trial     = ".trial"
	trialSize = 64 << 20 // the smallest that every mechanism can make
)

// try makes a directory with a limit and writes more than that into it.
func (s *Store) try(ctx context.Context) (err error) {
	dir := filepath.Join(s.dir, trial)
	if err := s.m.remove(dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.m.remove(dir)) }()
	if err := s.m.create(ctx, dir, trialSize); err != nil {
		return err
	}
	return overflows(filepath.Join(dir, "x"))
}

// overflows checks that a file cannot grow over the trial's size. Root may exceed some
// quotas with CAP_SYS_RESOURCE, which overlay file systems and tasks do not have, so it
// is written without it.
func overflows(file string) error {
	failed := make(chan error, 1)
	go func() {
		done, err := dropResource()
		if err == nil {
			err = fallocate(file)
		}
		failed <- errors.Join(err, done())
	}()
	return <-failed
}

func fallocate(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), 0, 0, trialSize+(1<<20))
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return nil
	}
	if err == nil {
		err = errors.New("a directory can hold more than its limit")
	}
	return err
}

var taskName = regexp.MustCompile(`^[0-9A-Za-z_-]{1,128}$`)

func (s *Store) path(taskID string) (string, error) {
	if !taskName.MatchString(taskID) {
		return "", fmt.Errorf("storage of task %.64q: bad name", taskID)
	}
	return filepath.Join(s.dir, taskID), nil
}

// Path is where the directory of a task is, made or not.
func (s *Store) Path(taskID string) string { return filepath.Join(s.dir, taskID) }

// Create makes the directory of a task, which cannot hold more than bytes, and returns
// its path.
func (s *Store) Create(ctx context.Context, taskID string, bytes uint64) (string, error) {
	dir, err := s.path(taskID)
	if err != nil {
		return "", err
	}
	return dir, s.m.create(ctx, dir, bytes)
}

// Remove takes the directory of a task away with everything in it.
func (s *Store) Remove(taskID string) error {
	dir, err := s.path(taskID)
	if err != nil {
		return err
	}
	return s.m.remove(dir)
}

// Check reports whether the directory of a task is there.
func (s *Store) Check(taskID string) (bool, error) {
	dir, err := s.path(taskID)
	if err != nil {
		return false, err
	}
	return s.m.there(dir)
}

// Usage says how much a task has written.
func (s *Store) Usage(taskID string) (Usage, error) {
	dir, err := s.path(taskID)
	if err != nil {
		return Usage{}, err
	}
	return s.m.usage(dir)
}

// Tasks lists the tasks that have storage.
func (s *Store) Tasks() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	var ids []string
	for _, e := range entries {
		id, _, _ := strings.Cut(e.Name(), ".") // the file system of one is NAME.img
		if taskName.MatchString(id) && (len(ids) == 0 || ids[len(ids)-1] != id) {
			ids = append(ids, id)
		}
	}
	return ids, err
}

// Teardown removes the storage of all tasks.
func (s *Store) Teardown() error {
	ids, err := s.Tasks()
	for _, id := range ids {
		err = errors.Join(err, s.Remove(id))
	}
	return err
}

// exists reports whether something is at a path.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
