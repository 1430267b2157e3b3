package image_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	cdimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/image"
	"berth.dev/berth/agent/runtime"
	"berth.dev/berth/agent/runtime/containerdtest"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/integ/testimage"
)

// Images in a real store are listed with what cleaning up has to know, and are gone from
// it, and from the disk, when they are removed.
func TestCleaningAStore(t *testing.T) {
	d := containerdtest.Start(t, containerdtest.Embedded)
	c, err := runtime.Open(t.Context(), runtime.Config{Address: d.Address, StateDir: d.Dir + "/run", LogDir: d.Dir + "/logs", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	reg := testimage.NewRegistry()
	t.Cleanup(reg.Close)
	s := images(t, c, image.Config{})
	names := map[string]string{}
	for _, name := range []string{"old", "used", "pinned"} {
		ref := push(t, reg, "team/"+name+":1", layered(t, 1, name))
		names[ref] = name
		if _, err := ensure(t.Context(), s, ref); err != nil {
			t.Fatal(err)
		}
	}
	pinned := reg.Host + "/team/pinned:1"
	// As "ctr images label" does.
	cd := connect(t, d)
	ctx := namespaces.WithNamespace(t.Context(), runtime.DefaultNamespace)
	label := cdimages.Image{Name: pinned, Labels: map[string]string{runtime.LabelPinned: "pinned"}}
	if _, err := cd.ImageService().Update(ctx, label, "labels."+runtime.LabelPinned); err != nil {
		t.Fatal(err)
	}
	list, err := c.StoredImages(t.Context())
	if err != nil || len(list) != 3 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, i := range list {
		if age := time.Since(i.Used); !i.Pulled || i.Pinned != (i.Name == pinned) || age > time.Minute || i.Digest == "" {
			t.Errorf("%+v", i)
		}
	}
	if percent, err := c.DiskUse(t.Context()); err != nil || percent < 1 || percent > 100 {
		t.Errorf("disk %d, %v", percent, err)
	}
	cctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	s.Clean(cctx, c, image.CleanConfig{Interval: 100 * time.Millisecond, PerCycle: 5, InUse: func() []string { return []string{reg.Host + "/team/used:1"} }})
	left := map[string]bool{}
	if list, err = c.StoredImages(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		left[names[i.Name]] = true
	}
	if d := cmp.Diff(map[string]bool{"used": true, "pinned": true}, left); d != "" {
		t.Errorf("left (-want +got):\n%s", d)
	}
	if err := c.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	// It is downloaded again when it is needed again.
	before, _ := blobGets(reg)
	if _, err := ensure(t.Context(), s, reg.Host+"/team/old:1"); err != nil {
		t.Fatal(err)
	}
	if _, most := blobGets(reg); most != 2 || before == 0 {
		t.Errorf("blobs were asked for at most %d times, want 2", most)
	}
}

// connect is a client of the test's own.
func connect(t *testing.T, d *containerdtest.Daemon) *containerd.Client {
	t.Helper()
	cd, err := containerd.New(d.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cd.Close() }) //nolint:errcheck // the daemon ends next
	return cd
}

// Another snapshotter is a matter of the setting; one that is not there is refused.
func TestSnapshotters(t *testing.T) {
	d := containerdtest.Start(t, containerdtest.Embedded)
	config := runtime.Config{Address: d.Address, StateDir: d.Dir + "/run", LogDir: d.Dir + "/logs", Snapshotter: "stargz", Log: slog.New(slog.DiscardHandler)}
	_, err := runtime.Open(t.Context(), config)
	if err == nil || !strings.Contains(err.Error(), `has no working snapshotter "stargz" (BERTH_SNAPSHOTTER); it has `) || task.ClassOf(err).Retriable() {
		t.Errorf("got %v", err)
	}
	config.Snapshotter = "native"
	c, err := runtime.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	reg := testimage.NewRegistry()
	t.Cleanup(reg.Close)
	ref := push(t, reg, "team/app:1", layered(t, 2, "native"))
	if _, err := images(t, c, image.Config{}).Ensure(t.Context(), &task.Task{ARN: "a/t", Containers: []task.Container{{Name: "c", Image: ref}}}, "c", engine.Deps{}); err != nil {
		t.Fatal(err)
	}
	var labels []map[string]string
	ctx := namespaces.WithNamespace(t.Context(), runtime.DefaultNamespace)
	err = connect(t, d).SnapshotService("native").Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		labels = append(labels, i.Labels)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(labels) != 2 {
		t.Errorf("%d snapshots", len(labels))
	}
	for _, l := range labels {
		if l["containerd.io/snapshot/cri.image-ref"] != ref || !strings.HasPrefix(l["containerd.io/snapshot/cri.layer-digest"], "sha256:") {
			t.Errorf("labels %v", l)
		}
	}
}
