package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
)

// sidecar is the content of state.id. It says which database belongs into the
// directory, so that one that was emptied, swapped or put back from an old copy is not
// taken for it, and under which ARN the instance was registered, for when it is lost.
type sidecar struct {
	Database    string `json:"database"`
	Generation  uint64 `json:"generation"`
	InstanceARN string `json:"instanceArn,omitempty"`
	Cluster     string `json:"cluster,omitempty"`
	CRC         uint32 `json:"crc32c"` // of this structure as JSON with a CRC of 0
}

func (s sidecar) checksum() (uint32, error) {
	s.CRC = 0
	b, err := json.Marshal(s)
	return crc32.Checksum(b, castagnoli), err
}

// readSidecar returns nil without an error when there is no file or no sense in it: a
// database cannot be compared with it then, and is judged by the check alone.
func readSidecar(path string) (*sidecar, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var s sidecar
	if json.Unmarshal(b, &s) != nil {
		return nil, nil
	}
	if crc, err := s.checksum(); err != nil || crc != s.CRC {
		return nil, nil
	}
	return &s, nil
}

// Instance is the container instance that a state directory belongs to, without opening
// it; empty where there is none yet.
func Instance(dir string) (string, error) {
	s, err := readSidecar(filepath.Join(dir, fileSidecar))
	if err != nil || s == nil {
		return "", err
	}
	return s.InstanceARN, nil
}

func writeSidecar(path string, s sidecar) error {
	var err error
	if s.CRC, err = s.checksum(); err != nil {
		return err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return writeFile(path, append(b, '\n'))
}

// writeFile replaces a file so that after a crash it has its old content or the new.
func writeFile(path string, b []byte) (err error) {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes creations, renames and removals in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
