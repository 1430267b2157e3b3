package logfile

import (
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
)

// packedSuffix is added to the name of a rotated file that was compressed. While that is
// done, and after a crash in its midst, there may be both; their heads are the same.
const packedSuffix = ".gz"

// pack compresses a rotated file and removes it. When that fails the file stays as it is,
// which readers take as well.
func pack(path string) error {
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close() // it was only read
	part := path + packedSuffix + ".part"
	if err := packTo(part, from); err != nil {
		return errors.Join(err, os.Remove(part))
	}
	if err := os.Rename(part, path+packedSuffix); err != nil {
		return err
	}
	return os.Remove(path)
}

func packTo(path string, from io.Reader) error {
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(to)
	_, err = io.Copy(z, from)
	return errors.Join(err, z.Close(), to.Close())
}

// source is an open file of a log, maybe a compressed one.
type source struct {
	f      *os.File
	packed bool
}

// openSource opens a file of a log by its name without packedSuffix.
func openSource(path string) (source, error) {
	f, err := os.Open(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return source{f: f}, err
	}
	f, err = os.Open(path + packedSuffix)
	return source{f: f, packed: true}, err
}

func (s source) close() { s.f.Close() } // it was only read

// head reads the file's head. A file that was not compressed as a whole has none.
func (s source) head() (head, error) {
	if !s.packed {
		return readHead(s.f)
	}
	if _, err := s.f.Seek(0, io.SeekStart); err != nil {
		return head{}, err
	}
	z, err := gzip.NewReader(s.f)
	if err != nil {
		return head{}, nil //nolint:nilerr // it is not a log of ours
	}
	b := make([]byte, maxHead)
	n, err := io.ReadFull(z, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && err != io.EOF {
		return head{}, err
	}
	return parseHead(b[:n]), nil
}

// plain is the file, or a nameless copy of it that is not compressed. It takes the place of
// the source.
func (s source) plain() (*os.File, error) {
	if !s.packed {
		return s.f, nil
	}
	defer s.close()
	if _, err := s.f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(s.f)
	if err != nil {
		return nil, err
	}
	to, err := os.CreateTemp("", "berth-log-")
	if err != nil {
		return nil, err
	}
	if _, err = io.Copy(to, z); err == nil {
		err = os.Remove(to.Name())
		if err == nil {
			return to, nil
		}
	}
	return nil, errors.Join(err, to.Close(), os.Remove(to.Name()))
}
