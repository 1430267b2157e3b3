package block

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	volumeA, volumeB = "vol-0123456789abcdef0", "vol-0123456789abcdef1"
	snapshotA        = "snap-0123456789abcdef0"
	poolVolume       = 32 << 20
)

func needRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("file systems need root")
	}
	t.Skip("file systems need root")
}

// onBtrfs is a directory on a btrfs of its own, which shares blocks.
func onBtrfs(t *testing.T) string {
	needRoot(t)
	dir := t.TempDir()
	img, at := filepath.Join(dir, "fs.img"), filepath.Join(dir, "fs")
	for _, cmd := range [][]string{
		{"truncate", "-s", "512M", img}, {"mkfs.btrfs", "-q", img}, {"mkdir", at}, {"mount", "-o", "loop", img, at},
	} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", cmd, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return filepath.Join(at, "pool")
}

// onTmpfs is one that does not.
func onTmpfs(t *testing.T) string {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "pool")
}

// mark writes to a place of a volume's content that no file system uses.
func mark(t *testing.T, p Pool, id, text string) {
	t.Helper()
	f, err := os.OpenFile(p.file(id, ".img"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte(text), poolVolume-4096)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func marked(t *testing.T, p Pool, id, text string) {
	t.Helper()
	f, err := os.Open(p.file(id, ".img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, len(text))
	if _, err := f.ReadAt(b, poolVolume-4096); err != nil || string(b) != text {
		t.Errorf("%s has %q, want %q: %v", id, b, text, err)
	}
}

func testSnapshots(t *testing.T, p Pool, shares bool) {
	ctx := t.Context()
	if err := p.Create(ctx, volumeA, Content{Size: poolVolume, Kind: "ext4"}, Owned{Task: "a"}); err != nil {
		t.Fatal(err)
	}
	mark(t, p, volumeA, "first")
	if err := p.Snapshot(ctx, snapshotA, volumeA, true); (err == nil) != shares || err != nil && !errors.Is(err, ErrBusy) {
		t.Fatalf("of a volume in use: %v", err)
	}
	for range 2 { // the second finds it
		if err := p.Snapshot(ctx, snapshotA, volumeA, false); err != nil {
			t.Fatal(err)
		}
		mark(t, p, volumeA, "after")
	}
	if err := p.Create(ctx, volumeB, Content{Size: poolVolume / 2, Kind: "ext4", Snapshot: snapshotA}, Owned{Task: "b"}); err == nil || !strings.Contains(err.Error(), "only") {
		t.Errorf("a volume smaller than its snapshot: %v", err)
	}
	for range 2 {
		if err := p.Create(ctx, volumeB, Content{Size: 2 * poolVolume, Kind: "ext4", Snapshot: snapshotA}, Owned{Task: "b"}); err != nil {
			t.Fatal(err)
		}
	}
	marked(t, p, volumeA, "after")
	marked(t, p, volumeB, "first")
	marked(t, p, snapshotA, "first")
	mark(t, p, volumeB, "third")
	marked(t, p, snapshotA, "first")
	if kind, err := Probe(ctx, p.file(volumeB, ".img")); err != nil || kind != "ext4" {
		t.Errorf("the copy has %q, %v", kind, err)
	}
	st, err := os.Stat(p.file(volumeB, ".img"))
	if err != nil || st.Size() != 2*poolVolume {
		t.Errorf("the copy has %d bytes: %v", st.Size(), err)
	}
	if all, err := p.Volumes(); err != nil || len(all) != 2 {
		t.Errorf("volumes %v, %v", all, err)
	}
	for range 2 {
		if err := errors.Join(p.DeleteSnapshot(snapshotA), p.Delete(volumeA), p.Delete(volumeB)); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(p.Dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestSnapshotsThatShareBlocks(t *testing.T) {
	testSnapshots(t, Pool{Dir: onBtrfs(t)}, true)
}

func TestSnapshotsThatAreCopied(t *testing.T) {
	testSnapshots(t, Pool{Dir: onTmpfs(t)}, false)
}

func TestSnapshotsThatCannotBe(t *testing.T) {
	p := Pool{Dir: onTmpfs(t)}
	ctx := t.Context()
	if err := p.Create(ctx, volumeA, Content{Size: poolVolume, Kind: "ext4"}, Owned{Task: "a"}); err != nil {
		t.Fatal(err)
	}
	if err := p.Snapshot(ctx, "snap-../x", volumeA, false); err == nil {
		t.Error("a path was taken for a name")
	}
	if err := p.Snapshot(ctx, snapshotA, volumeB, false); !errors.Is(err, ErrUnknown) {
		t.Errorf("of a volume that is not there: %v", err)
	}
	if err := p.Create(ctx, volumeB, Content{Size: poolVolume, Kind: "ext4", Snapshot: snapshotA}, Owned{Task: "b"}); !errors.Is(err, ErrUnknown) {
		t.Errorf("from a snapshot that is not there: %v", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := p.Snapshot(ended, snapshotA, volumeA, false); !errors.Is(err, context.Canceled) {
		t.Errorf("cut short: %v", err)
	}
	// The pool has no room for all that is in the volume.
	f, err := os.OpenFile(p.file(volumeA, ".img"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(200<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.Dir, "filler"), bytes.Repeat([]byte{1}, 216<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	mark(t, p, volumeA, "x")
	if err := p.Snapshot(ctx, snapshotA, volumeA, false); !errors.Is(err, ErrFull) {
		t.Errorf("without room: %v", err)
	}
	if _, err := os.Lstat(p.file(snapshotA, ".new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a part is left: %v", err)
	}
}
