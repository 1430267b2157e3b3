package logs

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"berth.dev/berth/agent/task"
)

// room is what the files of one container's log may take.
type room struct {
	bytes    int64 // of one file
	files    int
	compress bool // rotated files are
}

const (
	// storageShare is the part of a task's limited storage that the logs of all its
	// containers may take at most: 1/4. It is taken off what else the task may write.
	storageShare = 4
	// maxEntry is more than one entry takes, also where a file is to be smaller than that:
	// a piece of a line, each byte escaped, and what goes around it.
	maxEntry = 128 << 10
	// blockSize is what a file may take more than its size.
	blockSize = 4 << 10
	// besides is for the files that are not the log: where it is sent, and how far it was.
	besides = 128 << 10
)

func sent(driver string) bool { return driver != JSONFile && driver != None }

// room is that of a container's log with a driver and its options.
func (s *Settings) room(t *task.Task, driver string, options map[string]string) room {
	r := room{bytes: cmp.Or(s.MaxBytes, defaultBytes), files: cmp.Or(s.Files, defaultFiles)}
	if !sent(driver) {
		if n, err := Size(options["max-size"]); err == nil && n > 0 {
			r.bytes = n
		}
		if n, err := strconv.Atoi(options["max-file"]); err == nil && n > 0 {
			r.files = n
		}
		yes, err := strconv.ParseBool(options["compress"])
		r.compress = err == nil && yes
	} else {
		r.bytes, r.files = max(r.bytes, shippedBytes), max(r.files, shippedFiles)
		for _, o := range []string{"max-buffer-size", "fluentd-buffer-limit"} {
			if size, err := Size(options[o]); err == nil {
				r.files = max(r.files, int(min(1000, 2+size/r.bytes)))
			}
		}
	}
	if t.Storage > 0 {
		r.shrink(t.Storage / storageShare / int64(len(t.Containers)))
	}
	return r
}

// all is the most that the log takes on disk.
func (r *room) all() int64 { return int64(r.count())*(max(r.bytes, maxEntry)+blockSize) + besides }

// count is how many files there may be: one that is being compressed is there twice.
func (r *room) count() int {
	if r.compress {
		return r.files + 1
	}
	return r.files
}

// shrink makes the files smaller, and fewer where they would be too small to be useful,
// so that all of them fit into a share.
func (r *room) shrink(share int64) {
	if float64(r.count())*(float64(max(r.bytes, maxEntry))+blockSize)+besides <= float64(share) {
		return
	}
	useful := max(min(r.bytes, shippedBytes), maxEntry) + blockSize
	fit := int((share - besides) / useful)
	if r.compress {
		fit--
	}
	if fit < 2 {
		r.compress = false
	}
	r.files = max(1, min(r.files, fit))
	r.bytes = max(1, min(r.bytes, (share-besides)/int64(r.count())-blockSize))
}

// Reserve is the part of a task's limited storage that is for the logs of its containers,
// in bytes.
func (s *Settings) Reserve(t *task.Task) int64 {
	var sum int64
	for i := range t.Containers {
		driver, options := s.destination(t, &t.Containers[i])
		if driver == None && s.DropNone {
			continue
		}
		r := s.room(t, driver, options)
		sum += r.all()
	}
	return sum
}

// Used is what the logs of a task's containers take on disk, in bytes; dir is the task's
// log directory.
func Used(dir string) (uint64, error) {
	var sum uint64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // rotated away meanwhile, or there are none
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		st, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			sum += uint64(sys.Blocks) * 512 // stat(2): st_blocks
		}
		return nil
	})
	return sum, err
}
