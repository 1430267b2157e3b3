// Package journal writes records to a file, one in a line, with bounded space: a full
// file is renamed to FILE.1, that one to FILE.2 and so on, and the last is removed.
//
// What was written survives the end of the process, but is not forced to the disk. A line
// that a crash has cut short is removed when the file is opened again.
package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// tailChunk is how much is read at once when looking for the end of the last whole line.
const tailChunk = 64 << 10

// Config says where the file is and how much of it is kept. Limits must be positive.
type Config struct {
	Path string
	// Size is how many bytes a file has at most, unless one line is larger.
	Size int64
	// Files is how many there are at most, the one being written included.
	Files int
}

// A File is an open journal. It is for one goroutine.
type File struct {
	config Config
	file   *os.File
	size   int64
}

// Open opens or makes the file, and its directory, for nobody but its owner.
func Open(c Config) (*File, error) {
	if c.Size <= 0 || c.Files <= 0 {
		return nil, fmt.Errorf("journal %s: size %d and number of files %d must be positive", c.Path, c.Size, c.Files)
	}
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o700); err != nil {
		return nil, fmt.Errorf("make the journal's directory: %w", err)
	}
	f := &File{config: c}
	if err := f.open(); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *File) open() error {
	file, err := os.OpenFile(f.config.Path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open journal: %w", err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	var size int64
	if err == nil {
		size, err = wholeLines(file, info.Size())
	}
	if err == nil && size < info.Size() {
		err = file.Truncate(size)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("open journal %s: %w", f.config.Path, err), file.Close())
	}
	f.file, f.size = file, size
	return nil
}

// wholeLines is where the last whole line of a file with size bytes ends.
func wholeLines(r io.ReaderAt, size int64) (int64, error) {
	buf := make([]byte, tailChunk)
	for size > 0 {
		n := min(size, tailChunk)
		if _, err := r.ReadAt(buf[:n], size-n); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return size - n + int64(i) + 1, nil
		}
		size -= n
	}
	return 0, nil
}

// Write appends whole lines, in one file. After an error nothing of them is there, as far
// as the disk lets that be said.
func (f *File) Write(lines []byte) error {
	if f.file == nil { // an earlier rotation failed half way
		if err := f.open(); err != nil {
			return err
		}
	}
	if f.size > 0 && f.size+int64(len(lines)) > f.config.Size {
		if err := f.rotate(); err != nil {
			return err
		}
	}
	n, err := f.file.Write(lines)
	if err != nil {
		if n > 0 {
			err = errors.Join(err, f.file.Truncate(f.size))
		}
		return fmt.Errorf("write journal: %w", err)
	}
	f.size += int64(n)
	return nil
}

func (f *File) rotate() error {
	err := f.file.Close()
	f.file = nil
	if err != nil {
		return fmt.Errorf("close full journal: %w", err)
	}
	name := func(i int) string {
		if i == 0 {
			return f.config.Path
		}
		return fmt.Sprintf("%s.%d", f.config.Path, i)
	}
	if err := os.Remove(name(f.config.Files - 1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove oldest journal: %w", err)
	}
	for i := f.config.Files - 2; i >= 0; i-- {
		if err := os.Rename(name(i), name(i+1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("rotate journal: %w", err)
		}
	}
	return f.open()
}

// Close closes the file.
func (f *File) Close() error {
	if f.file == nil {
		return nil
	}
	return f.file.Close()
}
