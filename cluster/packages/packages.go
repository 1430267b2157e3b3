// Package packages is the folder of packages that a cluster offers its agents: the
// operator puts files there, and agents are brought to the newest of them.
package packages

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"regexp"
	"slices"
	"sync"
	"time"

	"berth.dev/berth/wire/update"
)

// File is a package of the agent's.
type File struct {
	Name    string
	Kind    string // deb or rpm
	Arch    string // as Debian calls it: amd64, arm64
	Version update.Version
	SHA256  string // in hexadecimal
}

// Shelf is a folder of packages. Files that are none are passed over.
type Shelf struct {
	dir string

	mu   sync.Mutex
	sums map[string]sum // by file name
}

// sum is of a file as it was.
type sum struct {
	size   int64
	at     time.Time
	sha256 string
}

// New makes a shelf of a folder, which need not exist.
func New(dir string) *Shelf { return &Shelf{dir: dir, sums: make(map[string]sum)} }

// The names that packages are given by those who make them.
var names = map[string]*regexp.Regexp{
	update.Deb: regexp.MustCompile(`^` + update.Package + `_([0-9.]+)(?:-[0-9A-Za-z.]+)?_(amd64|arm64)\.deb$`),
	update.RPM: regexp.MustCompile(`^` + update.Package + `-([0-9.]+)-[0-9A-Za-z.]+\.(x86_64|aarch64)\.rpm$`),
}

var architectures = map[string]string{"amd64": "amd64", "x86_64": "amd64", "arm64": "arm64", "aarch64": "arm64"}

// parse reads what the name of a file says.
func parse(name string) (File, bool) {
	for kind, rule := range names {
		if m := rule.FindStringSubmatch(name); m != nil {
			v, err := update.Parse(m[1])
			return File{Name: name, Kind: kind, Arch: architectures[m[2]], Version: v}, err == nil
		}
	}
	return File{}, false
}

// For lists the packages for a host, the newest first. arch is as Debian or as the
// kernel calls it.
func (s *Shelf) For(kind, arch string) ([]File, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the folder of packages: %w", err)
	}
	var out []File
	for _, e := range entries {
		if f, ok := parse(e.Name()); ok && e.Type().IsRegular() && f.Kind == kind && f.Arch == architectures[arch] {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b File) int { return b.Version.Compare(a.Version) })
	return out, nil
}

// Sum fills in the sum of a file's contents, which is remembered while the file's size
// and time stay the same.
func (s *Shelf) Sum(f File) (File, error) {
	file, info, err := s.open(f.Name)
	if err != nil {
		return f, err
	}
	defer file.Close()
	s.mu.Lock()
	known, ok := s.sums[f.Name]
	s.mu.Unlock()
	if ok && known.size == info.Size() && known.at.Equal(info.ModTime()) {
		f.SHA256 = known.sha256
		return f, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, file); err != nil {
		return f, fmt.Errorf("read the package %s: %w", f.Name, err)
	}
	f.SHA256 = hex.EncodeToString(h.Sum(nil))
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sums) > 1000 { // names that are gone
		clear(s.sums)
	}
	s.sums[f.Name] = sum{info.Size(), info.ModTime(), f.SHA256}
	return f, nil
}

func (s *Shelf) open(name string) (*os.File, os.FileInfo, error) {
	file, err := os.OpenInRoot(s.dir, name)
	if err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() > update.MaxSize) {
		err = fmt.Errorf("the package %s is no file of at most %d MiB", name, update.MaxSize>>20)
	}
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	return file, info, nil
}

// Serve answers a request for a package.
func (s *Shelf) Serve(w http.ResponseWriter, r *http.Request, name string) {
	if _, ok := parse(name); !ok {
		http.NotFound(w, r)
		return
	}
	file, info, err := s.open(name)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer file.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", info.ModTime(), file)
}
