package logs

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// PlaceFile is the name of the file in a log directory in which the shipper writes down
// how far the log has been sent.
const PlaceFile = "shipped.json"

// State is what people want to know of it.
type State struct {
	Lost  uint64    `json:"lost,omitempty"`  // lines that were never sent
	Error string    `json:"error,omitempty"` // why nothing is sent at present
	Since time.Time `json:"since,omitzero"`  // since when
}

// ReadState reads the state of the log in dir. A log that is not sent on has none.
func ReadState(dir string) (State, error) {
	var s State
	f, err := os.Open(filepath.Join(dir, PlaceFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	defer f.Close()
	if err := json.NewDecoder(f).Decode(&s); err != nil && !errors.Is(err, io.EOF) {
		return s, err
	}
	return s, nil
}
