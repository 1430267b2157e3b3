package image_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/image"
	"berth.dev/berth/agent/runtime"
	"berth.dev/berth/agent/runtime/containerdtest"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/integ/testimage"
)

func TestMain(m *testing.M) {
	containerdtest.Main()
	os.Exit(m.Run())
}

func open(t *testing.T) *runtime.Client {
	t.Helper()
	d := containerdtest.Start(t, containerdtest.Embedded)
	c, err := runtime.Open(t.Context(), runtime.Config{
		Address: d.Address, StateDir: d.Dir + "/run", LogDir: d.Dir + "/logs", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func layered(t *testing.T, n int, content string) testimage.V1 {
	t.Helper()
	var layers []testimage.LayerV1
	for i := range n {
		l, err := testimage.Layer(map[string]testimage.File{fmt.Sprintf("f%d", i): {Data: []byte(strings.Repeat(content+fmt.Sprint(i), 1000))}})
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	img, err := testimage.Image(testimage.Config{Cmd: []string{"/f0"}}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func push(t *testing.T, r *testimage.Registry, name string, img testimage.V1) string {
	t.Helper()
	ref, err := r.Push(name, img)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func images(t *testing.T, c *runtime.Client, cfg image.Config) *image.Images {
	t.Helper()
	cfg.Runtime, cfg.Log = c, slog.New(slog.DiscardHandler)
	s, err := image.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ensure(ctx context.Context, s *image.Images, ref string) (task.Result, error) {
	return s.Ensure(ctx, &task.Task{ARN: "a/t", Containers: []task.Container{{Name: "c", Image: ref}}}, "c", engine.Deps{})
}

func blobGets(r *testimage.Registry) (n, most int) {
	for k, v := range r.Hits() {
		if strings.HasPrefix(k, "GET ") && strings.Contains(k, "/blobs/") {
			n++
			most = max(most, v)
		}
	}
	return n, most
}

func TestPullFromRegistry(t *testing.T) {
	c := open(t)
	reg := testimage.NewRegistry()
	t.Cleanup(reg.Close)
	s := images(t, c, image.Config{})

	t.Run("twenty tasks make one download", func(t *testing.T) {
		ref := push(t, reg, "team/app:1", layered(t, 4, "one"))
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				r, err := ensure(t.Context(), s, ref)
				if err != nil || !strings.HasPrefix(r.Digest, "sha256:") || r.PullStarted.IsZero() || r.PullStopped.Before(r.PullStarted) {
					t.Errorf("%+v, %v", r, err)
				}
			})
		}
		all.Wait()
		if n, most := blobGets(reg); n != 5 || most != 1 {
			t.Errorf("%d blobs, at most %d times each; want 5, once", n, most)
		}
	})
	t.Run("a moved tag is followed, and the digest names what runs", func(t *testing.T) {
		ref := push(t, reg, "team/moved:1", layered(t, 1, "old"))
		before, err := ensure(t.Context(), s, ref)
		if err != nil {
			t.Fatal(err)
		}
		push(t, reg, "team/moved:1", layered(t, 1, "new"))
		after, err := ensure(t.Context(), s, ref)
		if err != nil || after.Digest == before.Digest {
			t.Errorf("digest %s after %s: %v", after.Digest, before.Digest, err)
		}
		byDigest, err := ensure(t.Context(), s, strings.TrimSuffix(ref, ":1")+"@"+before.Digest)
		if err != nil || byDigest.Digest != before.Digest {
			t.Errorf("by digest: %s, %v", byDigest.Digest, err)
		}
	})
	t.Run("errors of the registry pass", func(t *testing.T) {
		ref := push(t, reg, "team/flaky:1", layered(t, 2, "flaky"))
		var n atomic.Int64
		reg.SetBefore(func(w http.ResponseWriter, q *http.Request) bool {
			if n.Add(1) > 5 {
				return false
			}
			w.WriteHeader(http.StatusInternalServerError)
			return true
		})
		defer reg.SetBefore(nil)
		if _, err := ensure(t.Context(), s, ref); err != nil {
			t.Error(err)
		}
	})
	t.Run("a registry that asks to wait is obeyed", func(t *testing.T) {
		ref := push(t, reg, "team/busy:1", layered(t, 1, "busy"))
		var n atomic.Int64
		reg.SetBefore(func(w http.ResponseWriter, q *http.Request) bool {
			if n.Add(1) > 1 {
				return false
			}
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		})
		defer reg.SetBefore(nil)
		start := time.Now()
		if _, err := ensure(t.Context(), s, ref); err != nil || time.Since(start) < time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
	t.Run("no such image", func(t *testing.T) {
		_, err := ensure(t.Context(), s, reg.Host+"/team/none:1")
		if r := task.ReasonOf(err, ""); r.Code != task.CannotPullImageManifest || !strings.Contains(r.Detail, "Check whether the image exists.") || !strings.Contains(r.Detail, "manifest unknown") {
			t.Errorf("got %s", r)
		}
	})
	t.Run("damaged layers are refused", func(t *testing.T) {
		ref := push(t, reg, "team/damaged:1", layered(t, 1, "damaged"))
		reg.SetBefore(func(w http.ResponseWriter, q *http.Request) bool {
			if !strings.Contains(q.URL.Path, "/blobs/") {
				return false
			}
			_, err := w.Write([]byte("not what it should be"))
			return err == nil
		})
		defer reg.SetBefore(nil)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // the attempts take longer
		defer cancel()
		if _, err := ensure(ctx, s, ref); err == nil {
			t.Error("pulled")
		}
	})
	t.Run("a stop ends the pull within a second", func(t *testing.T) {
		ref := push(t, reg, "team/slow:1", layered(t, 1, "slow"))
		reached, gone := make(chan struct{}), make(chan struct{})
		var once sync.Once
		reg.SetBefore(func(w http.ResponseWriter, q *http.Request) bool {
			if !strings.Contains(q.URL.Path, "/blobs/") {
				return false
			}
			once.Do(func() { close(reached) })
			select {
			case <-q.Context().Done():
			case <-gone:
			}
			return true
		})
		defer reg.SetBefore(nil)
		defer close(gone)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { _, err := ensure(ctx, s, ref); ended <- err }()
		<-reached
		start := time.Now()
		cancel()
		if err := <-ended; task.ClassOf(err) != task.Canceled || time.Since(start) > time.Minute {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

func TestCredentials(t *testing.T) {
	c := open(t)
	reg := testimage.NewRegistry()
	t.Cleanup(reg.Close)
	ref := push(t, reg, "private/app:1", layered(t, 1, "private"))
	reg.SetBefore(func(w http.ResponseWriter, q *http.Request) bool {
		if user, password, ok := q.BasicAuth(); ok && user == "me" && password == "hush" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	if _, err := ensure(t.Context(), images(t, c, image.Config{}), ref); !strings.Contains(task.ReasonOf(err, "").Detail, "Check whether the image exists.") {
		t.Errorf("without credentials: %v", err)
	}
	auth, err := image.StaticAuth("docker", task.NewSecret(fmt.Sprintf(`{%q:{"username":"me","password":"hush"}}`, reg.Host)))
	if err != nil {
		t.Fatal(err)
	}
	s := images(t, c, image.Config{Auth: image.NewLogins(nil, auth).Auth})
	if _, err := ensure(t.Context(), s, ref); err != nil {
		t.Errorf("with credentials: %v", err)
	}
}

// unasked is more than it takes to use an image that is here, and less than to ask for it in
// vain as often as the pull policy says.
const unasked = 20 * time.Second

func TestLocalImages(t *testing.T) {
	c := open(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "my-image.tar")
	if err := testimage.WriteArchive(file, "my-image", layered(t, 1, "local")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Import(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	s := images(t, c, image.Config{})
	start := time.Now()
	r, err := ensure(t.Context(), s, "my-image")
	if err != nil || r.Digest == "" || time.Since(start) > unasked {
		t.Errorf("imported image after %s: %v", time.Since(start), err)
	}
	// A registry that went away: what was pulled is used, at once.
	reg := testimage.NewRegistry()
	ref := push(t, reg, "app:1", layered(t, 1, "gone"))
	if _, err := ensure(t.Context(), s, ref); err != nil {
		t.Fatal(err)
	}
	reg.Close()
	start = time.Now()
	if _, err := ensure(t.Context(), s, ref); err != nil || time.Since(start) > unasked {
		t.Errorf("registry gone: after %s: %v", time.Since(start), err)
	}
}
