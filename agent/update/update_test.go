package update

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/wire/acs"
	"berth.dev/berth/wire/update"
)

// replies is a session that takes answers.
type replies chan acs.Message

func (r replies) Send(_ context.Context, m acs.Message) error { r <- m; return nil }

func (r replies) next() string {
	switch m := (<-r).(type) {
	case *acs.AckRequest:
		return "ack " + m.MessageID
	case *acs.NackRequest:
		return "nack " + m.MessageID + ": " + m.Reason
	default:
		return fmt.Sprintf("%T", m)
	}
}

// pack makes a Debian package that has a name and a version and nothing else.
func pack(t *testing.T, name, version, arch string) []byte {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "DEBIAN"), 0o755); err != nil {
		t.Fatal(err)
	}
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: %s\nMaintainer: x <x@x.test>\nDescription: x\n", name, version, arch)
	if err := os.WriteFile(filepath.Join(dir, "DEBIAN", "control"), []byte(control), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "x.deb")
	if said, err := exec.Command("dpkg-deb", "-b", dir, out).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v\n%s", err, said)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sumOf(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// lab is a cluster with files and an updater.
type lab struct {
	*Updater
	t       *testing.T
	url     string
	files   map[string][]byte
	plans   chan Plan
	replies replies
}

func newLab(t *testing.T, running string) *lab {
	t.Helper()
	l := &lab{t: t, files: make(map[string][]byte), plans: make(chan Plan, 8), replies: make(replies, 8)}
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=AKIA/") {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		if b, ok := l.files[r.URL.Path]; ok {
			w.Write(b) //nolint:errcheck // the test sees
			return
		}
		w.WriteHeader(http.StatusNotFound)
	}))
	t.Cleanup(srv.Close)
	l.url = srv.URL
	l.Updater = New(Config{
		Enabled: true, Dir: filepath.Join(t.TempDir(), "updates"), Running: running, Kind: update.Deb, Client: srv.Client(),
		Origin:      func(context.Context) (string, error) { return srv.URL + "/", nil },
		Credentials: credentials.NewStaticCredentialsProvider("AKIA", "x", ""), Region: "us-east-1",
		Install: func(_ context.Context, p Plan) error { l.plans <- p; return nil }, Log: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(l.Close)
	return l
}

func (l *lab) stage(id string, info *acs.UpdateInfo) string {
	l.t.Helper()
	if err := l.Stage(l.t.Context(), &acs.StageUpdateMessage{MessageID: id, ClusterARN: "c", ContainerInstanceARN: "i", UpdateInfo: info}, l.replies); err != nil {
		l.t.Fatal(err)
	}
	return l.replies.next()
}

func (l *lab) perform(id string) string {
	l.t.Helper()
	if err := l.Perform(l.t.Context(), &acs.PerformUpdateMessage{MessageID: id, ClusterARN: "c", ContainerInstanceARN: "i"}, l.replies); err != nil {
		l.t.Fatal(err)
	}
	return l.replies.next()
}

func (l *lab) info(path string, b []byte) *acs.UpdateInfo {
	l.files[path] = b
	return &acs.UpdateInfo{Location: l.url + path, Signature: sumOf(b)}
}

// host is a host that installs nothing.
type host struct {
	did   []string
	fails map[string]error
}

func (h *host) step(what string) error { h.did = append(h.did, what); return h.fails[what] }
func (h *host) Install(ctx context.Context, kind, path string) error {
	v, err := describe(ctx, kind, path)
	if err != nil {
		return err
	}
	return h.step("install " + v.String())
}
func (h *host) Restart(context.Context) error                 { return h.step("restart") }
func (h *host) Ready(_ context.Context, version string) error { return h.step("ready " + version) }

func (l *lab) kept() (names []string) {
	l.t.Helper()
	paths, err := filepath.Glob(filepath.Join(l.c.Dir, "*", "*"))
	if err != nil {
		l.t.Fatal(err)
	}
	for _, p := range paths {
		names = append(names, filepath.Base(p))
	}
	return names
}

func TestUpdate(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	arch := runtime.GOARCH
	l := newLab(t, "0.8.0")
	former := l.info("/former", pack(t, "berth-agent", "0.8.0", arch))
	next := l.info("/next", pack(t, "berth-agent", "0.9.0", arch))
	next.Former = former
	if got := l.stage("1", next); got != "ack 1" {
		t.Fatal(got)
	}
	if b, err := os.ReadFile(filepath.Join(l.c.Dir, "desired-image")); err != nil || !strings.HasSuffix(string(b), ".ecs-update.deb\n") {
		t.Errorf("desired-image is %q, %v", b, err)
	}
	// Another process of the agent finds what was fetched, and asks nobody.
	l.p = progress{}
	clear(l.files)
	if got := l.stage("2", next); got != "ack 2" {
		t.Fatal(got)
	}
	if got := l.perform("3"); got != "ack 3" {
		t.Fatal(got)
	}
	if p := <-l.plans; p.Version != "0.9.0" || p.Running != "0.8.0" {
		t.Errorf("plan %+v", p)
	}
	// The new version does not get ready, and later it does.
	h := &host{fails: map[string]error{"ready 0.9.0": errors.New("it ended 3 times")}}
	if err := Install(t.Context(), l.c.Dir, h, log); !errors.Is(err, ErrWentBack) {
		t.Errorf("a version that fails: %v", err)
	}
	if d := cmp.Diff([]string{"install 0.9.0", "ready 0.9.0", "install 0.8.0", "restart", "ready 0.8.0"}, h.did); d != "" {
		t.Errorf("steps (-want +got):\n%s", d)
	}
	h = &host{fails: map[string]error{"install 0.9.0": errors.New("half"), "install 0.8.0": errors.New("none")}}
	if err := Install(t.Context(), l.c.Dir, h, log); err == nil || errors.Is(err, ErrWentBack) || !strings.Contains(err.Error(), "install it by hand") {
		t.Errorf("no way back: %v", err)
	}
	h = &host{}
	if err := Install(t.Context(), l.c.Dir, h, log); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff([]string{"berth-agent-0.8.0.deb", "berth-agent-0.9.0.deb"}, l.kept()); d != "" {
		t.Errorf("kept (-want +got):\n%s", d)
	}
	// From there back, with the package that was kept.
	l.c.Running, l.p = "0.9.0", progress{}
	if got := l.stage("4", l.info("/back", pack(t, "berth-agent", "0.8.0", arch))); got != "ack 4" {
		t.Fatal(got)
	}
	if err := os.WriteFile(filepath.Join(l.c.Dir, strings.TrimSpace(readFile(t, filepath.Join(l.c.Dir, desired)))), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Install(t.Context(), l.c.Dir, &host{}, log); err == nil || !strings.Contains(err.Error(), "has changed since") {
		t.Errorf("a package that was changed: %v", err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestUpdateRefuses(t *testing.T) {
	arch := runtime.GOARCH
	l := newLab(t, "0.8.0")
	with := func(info *acs.UpdateInfo, change func(i *acs.UpdateInfo)) *acs.UpdateInfo {
		out := *info
		change(&out)
		return &out
	}
	good := l.info("/good", pack(t, "berth-agent", "0.9.0", arch))
	former := l.info("/former", pack(t, "berth-agent", "0.8.0", arch))
	port := l.url[strings.LastIndexByte(l.url, ':'):]
	for name, c := range map[string]struct {
		info *acs.UpdateInfo
		want string
	}{
		"another sum":       {with(good, func(i *acs.UpdateInfo) { i.Signature = former.Signature }), "its SHA-256 is not"},
		"no sum":            {with(good, func(i *acs.UpdateInfo) { i.Signature = "abc" }), "no SHA-256"},
		"another host":      {with(good, func(i *acs.UpdateInfo) { i.Location = "https://elsewhere.test" + port + "/good" }), "not at the cluster"},
		"another port":      {with(good, func(i *acs.UpdateInfo) { i.Location = "https://127.0.0.1:1/good" }), "not at the cluster"},
		"without TLS":       {with(good, func(i *acs.UpdateInfo) { i.Location = strings.Replace(i.Location, "https", "http", 1) }), "not at the cluster"},
		"a user":            {with(good, func(i *acs.UpdateInfo) { i.Location = strings.Replace(i.Location, "//", "//x@", 1) }), "not at the cluster"},
		"not there":         {with(good, func(i *acs.UpdateInfo) { i.Location += "x" }), "404"},
		"no package":        {l.info("/text", []byte("text")), "cannot be read"},
		"another package":   {l.info("/other", pack(t, "bash", "0.9.0", arch)), "and not berth-agent"},
		"another processor": {l.info("/arch", pack(t, "berth-agent", "0.9.0", "s390x")), "and not berth-agent"},
		"the same version":  {former, "is the one that runs"},
		"too far back":      {l.info("/old", pack(t, "berth-agent", "0.6.0", arch)), "more than one before"},
		"no way back":       {good, "no package of the version 0.8.0"},
		"another way back":  {with(good, func(i *acs.UpdateInfo) { i.Former = good }), "and not 0.8.0"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := l.stage("1", c.info); !strings.HasPrefix(got, "nack 1: Unable to download: ") || !strings.Contains(got, c.want) {
				t.Errorf("%s; want %q", got, c.want)
			}
			if got := l.perform("2"); got != "nack 2: Cannot perform update; update not downloaded" {
				t.Error(got)
			}
			if left, err := filepath.Glob(filepath.Join(l.c.Dir, "*.ecs-update.*")); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
	l.c.Enabled = false
	if got := l.stage("1", good); got != "nack 1: Updates are disabled" {
		t.Error(got)
	}
	if got := l.perform("1"); got != "nack 1: Updates are disabled" {
		t.Error(got)
	}
}

// TestAnotherSupervisor has an agent that is in no package fetch what its supervisor
// starts.
func TestAnotherSupervisor(t *testing.T) {
	l := newLab(t, "0.8.0")
	l.c.Kind = ""
	if got := l.stage("1", l.info("/image", []byte("an image"))); got != "ack 1" {
		t.Fatal(got)
	}
	name := strings.TrimSpace(readFile(t, filepath.Join(l.c.Dir, "desired-image")))
	if got := readFile(t, filepath.Join(l.c.Dir, name)); got != "an image" || !strings.HasSuffix(name, ".ecs-update.tar") {
		t.Errorf("%s holds %q", name, got)
	}
	if got := l.perform("2"); got != "ack 2" {
		t.Fatal(got)
	}
	if p := <-l.plans; p.Kind != "" {
		t.Errorf("plan %+v", p)
	}
}
