package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Records is a directory of durable records, one file for each.
type Records struct {
	Dir string
	// Temporary begins the names of files that are being written. A crash may leave one.
	Temporary string
}

// Create writes a record that must not exist: the file appears complete and fsynced, or
// fs.ErrExist is returned.
func (r Records) Create(name string, v any) (err error) {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(r.Dir, r.Temporary+"*")
	if err != nil {
		return err
	}
	defer func() {
		if removeErr := os.Remove(f.Name()); err == nil {
			err = removeErr
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Link(f.Name(), filepath.Join(r.Dir, name))
	}
	if err == nil {
		err = r.sync()
	}
	return err
}

// Remove takes a record away; one that is not there is success.
func (r Records) Remove(name string) error {
	if err := os.Remove(filepath.Join(r.Dir, name)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return r.sync()
}

func (r Records) sync() error {
	d, err := os.Open(r.Dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Lock takes the directory's lock, against other processes and other users of it in this
// one: shared for work on one record, exclusive for work on all.
func (r Records) Lock(exclusive bool) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(r.Dir, ".lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock records: %w", err)
	}
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	for {
		err := unix.Flock(int(f.Fd()), how)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock records: %w", err), f.Close())
		}
		// Closing drops the lock; a descriptor opened for reading has no error to report.
		return func() { _ = f.Close() }, nil
	}
}
