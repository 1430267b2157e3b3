package volumes

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
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
		err := leaveKey(filepath.Dir(filepath.Dir(u)), filepath.Base(u), func(point string) error {
			return errors.Join(unmount(point), endProxy(proxyFile(point)))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Tidy removes directories of shared mounts that a crash left without a user: there is
// nothing in them, since what is mounted has a user.
func (d Dirs) Tidy() error {
	dirs, err := filepath.Glob(filepath.Join(d.Run, "shared", "*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		// A user that comes meanwhile keeps its directory from being removed.
		if err := os.Remove(filepath.Join(dir, "users")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			if isNotEmpty(err) {
				continue
			}
			return err
		}
		for _, left := range []string{"proxy.json", "proxy.json.new", "client.json", "client.json.new", "client.pem", "client.pem.new", "mount", ""} {
			if err := removeEmpty(filepath.Join(dir, left)); err != nil && !errors.Is(err, unix.EBUSY) {
				return err
			}
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
	proxies, globErr := filepath.Glob(filepath.Join(d.Run, "shared", "*", "proxy.json"))
	err = errors.Join(err, globErr)
	for _, file := range proxies {
		err = errors.Join(err, endProxy(file))
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(d.Run)
}
