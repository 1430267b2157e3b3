package image

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/runtime"
	"berth.dev/berth/agent/task"
)

// program writes a verifier.
func program(t *testing.T, dir, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestVerifiersAreCalledAsContainerdCallsThem(t *testing.T) {
	dir, seen := t.TempDir(), filepath.Join(t.TempDir(), "seen")
	program(t, dir, "a", `{ echo "$@"; cat; } >> `+seen+`; echo fine`)
	program(t, dir, "b", `case "$*" in *bad*) echo "not signed"; exit 7;; *slow*) sleep 60;; esac`)
	v, err := NewVerifier(dir, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	const digest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	rt := &fakeRuntime{resolve: func(context.Context, int64) (runtime.Remote, error) {
		return runtime.Remote{Digest: digest, MediaType: "application/vnd.oci.image.index.v1+json", Size: 7}, nil
	}}
	s := images(t, Config{Runtime: rt, Verifier: v, Log: slog.New(slog.DiscardHandler)})
	for range 2 { // asked about once
		if _, err := s.Ensure(t.Context(), oneTask("good"), "c", engine.Deps{}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(seen)
	want := "-name docker.io/library/good:latest -digest " + digest + " -stdin-media-type application/vnd.oci.descriptor.v1+json\n" +
		`{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"` + digest + `","size":7}` + "\n"
	if err != nil || string(got) != want {
		t.Errorf("called with\n%s\nwant\n%s\n%v", got, want, err)
	}
	for image, reason := range map[string]string{
		"bad":  "is not allowed on this instance (BERTH_IMAGE_VERIFIER_DIR): verifier b rejected image (exit code 7): not signed",
		"slow": "is not allowed on this instance (BERTH_IMAGE_VERIFIER_DIR): ",
	} {
		begin, pulls := time.Now(), rt.pulls.Load()
		_, err := s.Ensure(t.Context(), oneTask(image), "c", engine.Deps{})
		r := task.ReasonOf(orNil(err), "")
		if r.Code != task.CannotPullContainer || !strings.Contains(r.Detail, reason) || task.ClassOf(err).Retriable() {
			t.Errorf("%s: %v", image, r)
		}
		if rt.pulls.Load() != pulls || time.Since(begin) > time.Minute {
			t.Errorf("%s: %d pulls, after %s", image, rt.pulls.Load()-pulls, time.Since(begin))
		}
	}
	// What is on the host already is asked about too, and what the operator loaded is not.
	rt.local = have(runtime.Image{Digest: digest})
	if _, err := s.Ensure(t.Context(), oneTask("bad"), "c", engine.Deps{}); err == nil {
		t.Error("an image on the host is used unasked")
	}
	rt.local = have(runtime.Image{Digest: digest, Imported: true})
	if _, err := s.Ensure(t.Context(), oneTask("bad"), "c", engine.Deps{}); err != nil {
		t.Error(err)
	}
	// Without the directory nobody could say no.
	rt.local = nil
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Ensure(t.Context(), oneTask("other"), "c", engine.Deps{}); err == nil {
		t.Error("used although the verifiers are gone")
	}
	for _, bad := range []string{"relative", filepath.Join(dir, "none"), "/etc/passwd"} {
		if _, err := NewVerifier(bad, 0); err == nil || !strings.HasPrefix(err.Error(), "BERTH_IMAGE_VERIFIER_DIR: ") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
