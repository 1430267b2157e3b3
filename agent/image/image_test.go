package image

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/runtime"
	"berth.dev/berth/agent/task"
)

// fakeRuntime is a struct of functions; nil ones find nothing.
type fakeRuntime struct {
	local   func(ref string) (runtime.Image, error)
	resolve func(ctx context.Context, n int64) (runtime.Remote, error)
	pull    func(ctx context.Context, n int64, progress func(runtime.Progress)) (runtime.Image, error)

	resolves, pulls atomic.Int64
}

var errAbsent = task.Failf(task.NotFound, "", "no such image")

func (f *fakeRuntime) LocalImage(_ context.Context, ref string) (runtime.Image, error) {
	if f.local == nil {
		return runtime.Image{}, errAbsent
	}
	return f.local(ref)
}

func (f *fakeRuntime) Resolve(ctx context.Context, ref string, _ runtime.Auth, _ time.Duration) (runtime.Remote, error) {
	r, err := f.resolve(ctx, f.resolves.Add(1))
	r.Name = ref
	return r, err
}

func (f *fakeRuntime) Pull(ctx context.Context, r runtime.Remote, progress func(runtime.Progress)) (runtime.Image, error) {
	if f.pull == nil {
		f.pulls.Add(1)
		return runtime.Image{Name: r.Name, Digest: r.Digest, Pulled: true}, nil
	}
	return f.pull(ctx, f.pulls.Add(1), progress)
}

func (f *fakeRuntime) TouchImage(context.Context, string, time.Time) error { return nil }

func have(i runtime.Image) func(string) (runtime.Image, error) {
	return func(ref string) (runtime.Image, error) { i.Name = ref; return i, nil }
}

func found(digest string) func(context.Context, int64) (runtime.Remote, error) {
	return func(context.Context, int64) (runtime.Remote, error) { return runtime.Remote{Digest: digest}, nil }
}

func failing(err error) func(context.Context, int64) (runtime.Remote, error) {
	return func(context.Context, int64) (runtime.Remote, error) { return runtime.Remote{}, err }
}

func oneTask(image string) *task.Task {
	return &task.Task{ARN: "a/t", Containers: []task.Container{{Name: "c", Image: image}}}
}

func images(t *testing.T, c Config) *Images {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var (
	errRefused = task.Failf(task.Unavailable, "", "dial tcp: connection refused")
	errDenied  = task.Failf(task.Permission, "", "denied: requested access to the resource is denied")
)

func TestPolicies(t *testing.T) {
	local := func(edit func(*runtime.Image)) func(string) (runtime.Image, error) {
		i := runtime.Image{Digest: "sha256:old"}
		if edit != nil {
			edit(&i)
		}
		return have(i)
	}
	pulled := func(i *runtime.Image) { i.Pulled = true }
	for _, tc := range []struct {
		name     string
		policy   Policy
		image    string
		rt       *fakeRuntime
		digest   string
		code     task.Code
		resolves int64
		pulls    int64
	}{
		{name: "default pulls what is absent", policy: Default, rt: &fakeRuntime{resolve: found("sha256:new")}, digest: "sha256:new", resolves: 1, pulls: 1},
		{name: "default pulls what has changed", policy: Default, rt: &fakeRuntime{local: local(nil), resolve: found("sha256:new")}, digest: "sha256:new", resolves: 1, pulls: 1},
		{name: "default keeps what has not changed", policy: Default, rt: &fakeRuntime{local: local(nil), resolve: found("sha256:old")}, digest: "sha256:old", resolves: 1},
		{name: "default falls back at once", policy: Default, rt: &fakeRuntime{local: local(nil), resolve: failing(errRefused)}, digest: "sha256:old", resolves: 1},
		{name: "default falls back when denied", policy: Default, rt: &fakeRuntime{local: local(nil), resolve: failing(errDenied)}, digest: "sha256:old", resolves: 1},
		{name: "default uses an imported image without asking", policy: Default, rt: &fakeRuntime{local: local(func(i *runtime.Image) { i.Imported = true })}, digest: "sha256:old"},
		{name: "default does not ask for a digest again", policy: Default, image: "x@sha256:" + strings.Repeat("a", 64), rt: &fakeRuntime{local: local(nil)}, digest: "sha256:old"},
		{name: "default fails without an image", policy: Default, rt: &fakeRuntime{resolve: failing(errDenied)}, code: task.CannotPullImageManifest, resolves: 1},
		{name: "always fails although the image is here", policy: Always, rt: &fakeRuntime{local: local(nil), resolve: failing(errDenied)}, code: task.CannotPullImageManifest, resolves: 1},
		{name: "once does not pull again", policy: Once, rt: &fakeRuntime{local: local(pulled)}, digest: "sha256:old"},
		{name: "once pulls what others brought", policy: Once, rt: &fakeRuntime{local: local(nil), resolve: found("sha256:old")}, digest: "sha256:old", resolves: 1, pulls: 1},
		{name: "prefer-cached uses what is here", policy: PreferCached, rt: &fakeRuntime{local: local(nil)}, digest: "sha256:old"},
		{name: "prefer-cached pulls what is not", policy: PreferCached, rt: &fakeRuntime{resolve: found("sha256:new")}, digest: "sha256:new", resolves: 1, pulls: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				image := tc.image
				if image == "" {
					image = "web"
				}
				s := images(t, Config{Runtime: tc.rt, Policy: tc.policy})
				start := time.Now()
				r, err := s.Ensure(t.Context(), oneTask(image), "c", engine.Deps{})
				if took := time.Since(start); took > time.Second {
					t.Errorf("took %s", took)
				}
				if r.Digest != tc.digest || task.ReasonOf(orNil(err), "").Code != tc.code {
					t.Errorf("digest %q, err %v", r.Digest, err)
				}
				if err == nil && (r.PullStarted.IsZero() || r.PullStopped.Before(r.PullStarted)) {
					t.Errorf("pulled from %v to %v; every image has both times", r.PullStarted, r.PullStopped)
				}
				if task.ClassOf(err).Retriable() {
					t.Error("the engine would try again what was tried here")
				}
				if tc.rt.resolves.Load() != tc.resolves || tc.rt.pulls.Load() != tc.pulls {
					t.Errorf("%d resolves and %d pulls, want %d and %d", tc.rt.resolves.Load(), tc.rt.pulls.Load(), tc.resolves, tc.pulls)
				}
			})
		})
	}
}

func orNil(err error) error {
	if err == nil {
		return errors.New("")
	}
	return err
}

func TestAttemptsFollowTheProtocol(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := &fakeRuntime{resolve: failing(errRefused)}
		start := time.Now()
		_, err := images(t, Config{Runtime: rt}).Ensure(t.Context(), oneTask("web"), "c", engine.Deps{})
		// 10, 30, 90, 270, 810, 2430 ms, then twice 5 s.
		if took := time.Since(start); rt.resolves.Load() != 9 || took != 13640*time.Millisecond {
			t.Errorf("%d attempts in %s", rt.resolves.Load(), took)
		}
		if err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Error(err)
		}
	})
	// Where each attempt takes long itself, the last one ends soon after that time.
	synctest.Test(t, func(t *testing.T) {
		rt := &fakeRuntime{resolve: func(context.Context, int64) (runtime.Remote, error) {
			<-time.After(10 * time.Second)
			return runtime.Remote{}, errRefused
		}}
		start := time.Now()
		_, err := images(t, Config{Runtime: rt}).Ensure(t.Context(), oneTask("web"), "c", engine.Deps{})
		if took := time.Since(start); err == nil || rt.resolves.Load() != 2 || took > 21*time.Second {
			t.Errorf("%d attempts in %s: %v", rt.resolves.Load(), took, err)
		}
	})
}

func TestManifestTimeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := &fakeRuntime{resolve: func(ctx context.Context, _ int64) (runtime.Remote, error) {
			<-ctx.Done()
			return runtime.Remote{}, ctx.Err()
		}}
		start := time.Now()
		_, err := images(t, Config{Runtime: rt}).Ensure(t.Context(), oneTask("web"), "c", engine.Deps{})
		r := task.ReasonOf(orNil(err), "")
		if time.Since(start) != time.Minute || r.String() != "DockerTimeoutError: Could not transition to MANIFEST_PULLED; timed out after waiting 1m0s" {
			t.Errorf("after %s: %s", time.Since(start), r)
		}
	})
}

func TestUnreachableRegistryIsNotAskedAgainForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := &fakeRuntime{local: have(runtime.Image{Digest: "d"}), resolve: failing(errRefused)}
		s := images(t, Config{Runtime: rt})
		for range 10 {
			if _, err := s.Ensure(t.Context(), oneTask("web"), "c", engine.Deps{}); err != nil {
				t.Fatal(err)
			}
		}
		if n := rt.resolves.Load(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		<-time.After(unreachableFor + time.Second) // virtual time
		if _, err := s.Ensure(t.Context(), oneTask("web"), "c", engine.Deps{}); err != nil || rt.resolves.Load() != 2 {
			t.Errorf("asked %d times, %v", rt.resolves.Load(), err)
		}
	})
}

func TestStalledPullIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := &fakeRuntime{resolve: found("d"), pull: func(ctx context.Context, n int64, progress func(runtime.Progress)) (runtime.Image, error) {
			progress(runtime.Progress{Bytes: 100, Open: 1})
			if n == 1 {
				<-ctx.Done()
				return runtime.Image{}, ctx.Err()
			}
			return runtime.Image{Digest: "d"}, nil
		}}
		start := time.Now()
		r, err := images(t, Config{Runtime: rt}).Ensure(t.Context(), oneTask("web"), "c", engine.Deps{})
		if err != nil || r.Digest != "d" || rt.pulls.Load() != 2 || time.Since(start) > 75*time.Second {
			t.Errorf("%+v, %v, %d pulls in %s", r, err, rt.pulls.Load(), time.Since(start))
		}
	})
}

func TestPullsAreSharedAndEndWithTheLastWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var cancelled atomic.Bool
		release := make(chan struct{})
		rt := &fakeRuntime{resolve: found("d"), pull: func(ctx context.Context, _ int64, _ func(runtime.Progress)) (runtime.Image, error) {
			select {
			case <-release:
				return runtime.Image{Digest: "d"}, nil
			case <-ctx.Done():
				cancelled.Store(true)
				return runtime.Image{}, ctx.Err()
			}
		}}
		s := images(t, Config{Runtime: rt})
		var all sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 20 {
			c := t.Context()
			if i == 0 {
				c = ctx // stopped while the others wait
			}
			all.Go(func() {
				_, err := s.Ensure(c, oneTask("web"), "c", engine.Deps{})
				if (i == 0) != (task.ClassOf(err) == task.Canceled) {
					t.Errorf("waiter %d: %v", i, err)
				}
			})
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(release)
		all.Wait()
		if rt.pulls.Load() != 1 || cancelled.Load() {
			t.Errorf("%d pulls, cancelled %v", rt.pulls.Load(), cancelled.Load())
		}
		// Alone, a waiter that leaves takes the pull with it.
		release = make(chan struct{})
		ctx, cancel = context.WithCancel(t.Context())
		all.Go(func() {
			if _, err := s.Ensure(ctx, oneTask("web"), "c", engine.Deps{}); task.ClassOf(err) != task.Canceled {
				t.Error(err)
			}
		})
		synctest.Wait()
		cancel()
		all.Wait()
		synctest.Wait()
		if !cancelled.Load() {
			t.Error("the pull goes on although nobody wants it")
		}
	})
}

func TestErrorTexts(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"requested access to the resource is denied", "CannotPullContainerError: The task can’t pull the image. Check whether the image exists. requested"},
		{"request canceled while waiting for connection", "CannotPullContainerError: The task can’t pull the image. Check your network configuration. request"},
		{"x is not authorized to perform: ecr:BatchGetImage", "CannotPullContainerError: The task can’t pull the image. Check that the role has the permissions"},
		{"manifest unknown", "CannotPullContainerError: The task can’t pull the image. Check whether the image exists. manifest unknown"},
		{"unexpected status: 429 Too Many Requests", "CannotPullContainerError: unexpected status: 429 Too Many Requests; the registry limits"},
		{"odd", "CannotPullContainerError: odd"},
	} {
		if got := task.ReasonOf(final(errors.New(tc.in), task.CannotPullContainer), "").String(); !strings.HasPrefix(got, tc.want) {
			t.Errorf("got %q, want %q…", got, tc.want)
		}
	}
}

func TestStaticAuth(t *testing.T) {
	data := fmt.Sprintf(`{"https://index.docker.io/v1/":{"auth":%q},"registry.example.com":{"auth":%q},"registry.example.com/team":{"auth":%q}}`,
		b64("hub:a"), b64("reg:b:c"), b64("team:d"))
	auth, err := StaticAuth("dockercfg", task.NewSecret(data))
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{
		"docker.io": "hub:a", "registry-1.docker.io": "hub:a", "registry.example.com": "reg:b:c", "other.example.com": ":",
		"registry.example.com.evil.org": ":",
	} {
		user, secret, err := auth(host)
		if got := user + ":" + secret.Reveal(); got != want || err != nil {
			t.Errorf("%s: got %q, %v", host, got, err)
		}
	}
	for _, bad := range [][2]string{{"docker", `{"x":`}, {"dockercfg", `{"x":{"auth":"SECRET!"}}`}, {"other", "{}"}} {
		if _, err := StaticAuth(bad[0], task.NewSecret(bad[1])); err == nil || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
