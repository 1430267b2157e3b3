package cni

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Key names an attachment.
type Key struct {
	ID     string // CNI container id
	IfName string // interface inside the namespace
}

// record is an attachment as it is on the disk, complete before its first plugin runs.
type record struct {
	ID           string          `json:"id"`
	IfName       string          `json:"ifName"`
	Network      string          `json:"network"`
	Namespace    string          `json:"namespace"`
	List         json.RawMessage `json:"list"` // the configuration list
	Capabilities map[string]any  `json:"capabilities,omitempty"`
}

func (r *record) key() Key { return Key{ID: r.ID, IfName: r.IfName} }

const (
	temporary  = ".new-"
	lockSuffix = ".lock"
	// lockPoll is how often a lock that somebody holds is asked for again. Only plugins
	// that have outlived their agent make anybody wait.
	lockPoll = 20 * time.Millisecond
)

func recordName(k Key) string {
	sum := sha256.Sum256([]byte(k.ID + "\x00" + k.IfName))
	return hex.EncodeToString(sum[:16])
}

// records is the directory of records.
type records struct{ dir string }

// write makes a record appear complete and fsynced.
func (r records) write(rec *record) (err error) {
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(r.dir, temporary+"*")
	if err != nil {
		return fmt.Errorf("record of the attachment: %w", err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(r.dir, recordName(rec.key())))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("record of the attachment: %w", err), os.Remove(f.Name()))
	}
	return syncDir(r.dir)
}

// read returns the record of a key, nil when there is none. One that does not decode,
// as a power cut may leave it, counts as none: no plugin ran before it was complete.
func (r records) read(k Key) (*record, error) {
	rec, err := r.decode(recordName(k))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNobody) {
		return nil, nil
	}
	return rec, err
}

// errNobody says that a record does not tell whose it is.
var errNobody = errors.New("the record does not say whose it is")

func (r records) decode(name string) (*record, error) {
	data, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil {
		return nil, fmt.Errorf("record of an attachment: %w", err)
	}
	rec := &record{}
	if err := json.Unmarshal(data, rec); err != nil || recordName(rec.key()) != name {
		return nil, errNobody
	}
	return rec, nil
}

// remove takes a record away with its lock, which the caller holds.
func (r records) remove(k Key) error {
	path := filepath.Join(r.dir, recordName(k))
	for _, p := range []string{path, path + lockSuffix} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove record of an attachment: %w", err)
		}
	}
	return syncDir(r.dir)
}

// list returns all records.
func (r records) list() ([]*record, error) {
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list records of attachments: %w", err)
	}
	var out []*record
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || strings.HasSuffix(e.Name(), lockSuffix) {
			continue
		}
		rec, err := r.decode(e.Name())
		switch {
		case errors.Is(err, errNobody), errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		default:
			out = append(out, rec)
		}
	}
	return out, nil
}

// clean removes what unfinished writes left, and locks without a record.
func (r records) clean() error {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return fmt.Errorf("list records of attachments: %w", err)
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(r.dir, e.Name())
		name, lock := strings.CutSuffix(e.Name(), lockSuffix)
		_, err := r.decode(name)
		gone := errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNobody)
		if strings.HasPrefix(e.Name(), temporary) || gone && lock || errors.Is(err, errNobody) {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}

// lock takes the lock of an attachment. Plugins inherit the descriptor, so that it is free
// when the last of them has ended, whoever started them.
func (r records) lock(ctx context.Context, k Key) (*os.File, error) {
	path := filepath.Join(r.dir, recordName(k)+lockSuffix)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock of the attachment: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock of the attachment: %w", err), f.Close())
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("a plugin from before still works on the attachment: %w", ctx.Err()), f.Close())
		}
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
