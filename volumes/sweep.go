package volumes

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Tasks lists the IDs of the tasks that have something of a volume on this host.
func (d Dirs) Tasks() ([]string, error) {
	var ids []string
	for _, dir := range []string{filepath.Join(d.Run, "tasks"), filepath.Join(d.State, "tasks")} {
		entries, err := os.ReadDir(dir)
		if err := ignoreMissing(err); err != nil {
			return nil, err
		}
		for _, e := range entries {
			ids = append(ids, e.Name())
		}
	}
	users, err := filepath.Glob(filepath.Join(d.Run, "shared", "*", "users", "*"))
	if err != nil {
		return nil, err
	}
	for _, u := range users {
		id, _, _ := strings.Cut(filepath.Base(u), ".")
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// Sweep removes all that a task that nobody knows any more has of volumes: its mounts,
// its use of shared mounts, its data. What external drivers mounted is unmounted like
// everything else; they are not asked, because what they were asked for is not known.
func (d Dirs) Sweep(taskID string) error {
	if !SafeName(taskID) {
		return failf(ErrInvalid, "task %.64q", taskID)
	}
	points, err := filepath.Glob(filepath.Join(d.Run, "tasks", taskID, "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range points {
		errs = append(errs, unmount(p))
	}
	errs = append(errs, ignoreMissing(os.Remove(filepath.Join(d.Run, "tasks", taskID))), d.unshare(taskID))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(d.State, "tasks", taskID))
}

// unshare takes a task off the users of all shared mounts.
func (d Dirs) unshare(taskID string) error {
	users, err := filepath.Glob(filepath.Join(d.Run, "shared", "*", "users", taskID+".*"))
	if err != nil {
		return err
	}
	for _, u := range users {
		if err := ignoreMissing(os.Remove(u)); err != nil {
			return err
		}
		dir := filepath.Dir(filepath.Dir(u))
		err := os.Remove(filepath.Dir(u)) // succeeds when the last one is gone
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || isNotEmpty(err) {
				continue
			}
			return err
		}
		if err := errors.Join(unmount(filepath.Join(dir, "mount")), os.RemoveAll(dir)); err != nil {
			return err
		}
	}
	return nil
}

// Teardown takes away every mount and leaves the data of named volumes.
func (d Dirs) Teardown() error {
	var points []string
	err := eachMount(func(at string) {
		if within(at, d.Run) {
			points = append(points, at)
		}
	})
	slices.Sort(points)
	for _, p := range slices.Backward(points) {
		err = errors.Join(err, unmount(p))
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(d.Run)
}
