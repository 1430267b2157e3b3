// Package testimage builds container images in memory, writes them as archives, and
// serves them from a registry in this process. Tests and the sample image need no
// network and no image tool.
package testimage

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// File is one entry of a layer. Link makes it a symbolic link; Dir a directory.
type File struct {
	Data []byte
	Mode int64
	Link string
	Dir  bool
}

// Layer makes one layer with the given entries by path. It is the same for the same
// files.
func Layer(files map[string]File) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		f := files[n]
		h := &tar.Header{Name: n, Mode: f.Mode, Size: int64(len(f.Data)), Typeflag: tar.TypeReg}
		switch {
		case f.Dir:
			h.Typeflag, h.Name, h.Size = tar.TypeDir, n+"/", 0
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, f.Link, 0
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(f.Data); err != nil {
				return nil, err
			}
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
}

// Image makes an image for this machine's architecture of the given layers.
func Image(c v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	f, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	f = f.DeepCopy()
	f.OS, f.Architecture, f.Config = "linux", runtime.GOARCH, c
	return mutate.ConfigFile(img, f)
}

// applets are the names under which busybox is in the test image.
var applets = []string{
	"sh", "echo", "cat", "sleep", "true", "false", "ls", "id", "env", "kill", "dd", "head", "seq", "wget", "ip",
	"ping", "mkdir", "touch", "rm", "ps", "nc", "httpd", "nslookup", "hostname", "test", "yes", "tail", "mount", "pwd",
	"df", "wc", "readlink", "stat", "mv",
}

// BusyboxLayer is a root file system of the host's static busybox, with users root
// (groups root, wheel) and app (1000:1001, group extra).
func BusyboxLayer() (v1.Layer, error) {
	bin, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("busybox for the test image: %w; install the package busybox-static", err)
	}
	data, err := os.ReadFile(bin)
	if err != nil {
		return nil, err
	}
	files := map[string]File{
		"bin": {Dir: true}, "etc": {Dir: true}, "tmp": {Dir: true, Mode: 0o1777},
		"bin/busybox": {Data: data},
		"etc/passwd":  {Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n")},
		"etc/group":   {Mode: 0o644, Data: []byte("root:x:0:\nwheel:x:10:root\napp:x:1001:\nextra:x:2000:app\n")},
	}
	for _, a := range applets {
		files["bin/"+a] = File{Link: "/bin/busybox"}
	}
	return Layer(files)
}

// Busybox is the general test image; with no command it runs sh.
func Busybox() (v1.Image, error) {
	l, err := BusyboxLayer()
	if err != nil {
		return nil, err
	}
	return Image(v1.Config{Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/bin", "IMAGE=busybox"}}, l)
}

// Program makes an image of one static program of this module, which go build makes
// from the package at importPath; entry is its path in the image and entry point.
func Program(ctx context.Context, importPath, entry string, c v1.Config) (v1.Image, error) {
	dir, err := os.MkdirTemp("", "testimage")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "program")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, importPath)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build %s: %w: %s", importPath, err, msg)
	}
	return FromBinary(out, entry, c)
}

// FromBinary makes an image of one static program file.
func FromBinary(file, entry string, c v1.Config) (v1.Image, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	l, err := Layer(map[string]File{strings.TrimPrefix(path.Clean(entry), "/"): {Data: data}})
	if err != nil {
		return nil, err
	}
	c.Entrypoint = []string{entry}
	return Image(c, l)
}

// Probe is an image of the probe program, without a shell or any other file.
func Probe(ctx context.Context) (v1.Image, error) {
	return Program(ctx, "berth.dev/berth/integ/testimage/probe", "/probe", v1.Config{})
}

// MyImage is the sample image "my-image".
func MyImage(ctx context.Context) (v1.Image, error) {
	return Program(ctx, "berth.dev/berth/cmd/my-image", "/my-image", v1.Config{ExposedPorts: map[string]struct{}{"80/tcp": {}}})
}

// WriteArchive writes img under the name ref as an archive that "docker load" and
// "ctr images import" read.
func WriteArchive(file, ref string, img v1.Image) error {
	tag, err := name.NewTag(ref)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(file, tag, img)
}

// Registry is a registry in this process that counts what is asked of it.
type Registry struct {
	// Host is its address, "127.0.0.1:port".
	Host string
	// Before, when set, sees every request first; true means that it has answered.
	Before func(http.ResponseWriter, *http.Request) bool

	srv  *httptest.Server
	mu   sync.Mutex
	hits map[string]int
}

// NewRegistry starts a registry on a free port of the loopback address.
func NewRegistry() *Registry {
	r := &Registry{hits: map[string]int{}}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		r.hits[q.Method+" "+q.URL.Path]++
		before := r.Before
		r.mu.Unlock()
		if before != nil && before(w, q) {
			return
		}
		inner.ServeHTTP(w, q)
	}))
	r.Host = strings.TrimPrefix(r.srv.URL, "http://")
	return r
}

// SetBefore replaces Before while requests are served.
func (r *Registry) SetBefore(f func(http.ResponseWriter, *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Before = f
}

// Hits is how often each "METHOD /path" was asked for.
func (r *Registry) Hits() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string]int, len(r.hits))
	for k, v := range r.hits {
		out[k] = v
	}
	return out
}

// Push stores img under "repository:tag" and returns its full reference.
func (r *Registry) Push(repoTag string, img v1.Image) (string, error) {
	ref, err := name.NewTag(r.Host+"/"+repoTag, name.Insecure)
	if err != nil {
		return "", err
	}
	return ref.String(), remote.Write(ref, img)
}

// PushIndex stores an index under "repository:tag" and returns its full reference.
func (r *Registry) PushIndex(repoTag string, index v1.ImageIndex) (string, error) {
	ref, err := name.NewTag(r.Host+"/"+repoTag, name.Insecure)
	if err != nil {
		return "", err
	}
	return ref.String(), remote.WriteIndex(ref, index)
}

// Close stops the registry.
func (r *Registry) Close() { r.srv.Close() }

// V1 is an image.
type V1 = v1.Image

// Names for callers that build images of their own.
type (
	LayerV1 = v1.Layer
	Config  = v1.Config
)
