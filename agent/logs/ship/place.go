package ship

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"berth.dev/berth/agent/logs"
	"berth.dev/berth/agent/runtime/logfile"
)

// Place says how far a log has been sent. It is the content of logs.PlaceFile.
type Place struct {
	logfile.Position
	logs.State
	Done bool `json:"done,omitempty"` // the container has ended and all was sent
}

// placeSize is the size of the file. It is written over in place and never grows, so
// that a full disk does not keep it from being written.
const placeSize = 2048

// maxError is how much of an error is kept.
const maxError = 1000

// ReadPlace reads how far the log in dir has been sent. Where that was never written
// down, it is the start.
func ReadPlace(dir string) (Place, error) {
	var p Place
	b, err := os.ReadFile(filepath.Join(dir, logs.PlaceFile))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(b)) == 0 {
		return p, nil
	}
	if err != nil {
		return p, err
	}
	if err := json.NewDecoder(io.LimitReader(bytes.NewReader(b), placeSize)).Decode(&p); err != nil {
		return Place{}, fmt.Errorf("%s: %w", filepath.Join(dir, logs.PlaceFile), err)
	}
	return p, nil
}

func writePlace(dir string, p Place) error {
	for {
		b, err := json.Marshal(p)
		if err != nil {
			return err
		}
		if len(b) >= placeSize {
			p.Error = p.Error[:len(p.Error)/2]
			continue
		}
		b = append(b, bytes.Repeat([]byte(" "), placeSize-1-len(b))...)
		f, err := os.OpenFile(filepath.Join(dir, logs.PlaceFile), os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(append(b, '\n'), 0)
		return errors.Join(err, f.Close())
	}
}
