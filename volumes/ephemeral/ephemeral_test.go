package ephemeral_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"berth.dev/berth/volumes/ephemeral/ephemeraltest"
)

func needRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("quotas need root")
	}
	t.Skip("quotas need root")
}

// onBtrfs is a directory on a btrfs of its own.
func onBtrfs(t *testing.T) string {
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
	return at
}

func TestLoop(t *testing.T) {
	needRoot(t)
	ephemeraltest.Run(t, t.TempDir(), "loop")
}

func TestBtrfs(t *testing.T) {
	needRoot(t)
	ephemeraltest.Run(t, onBtrfs(t), "btrfs")
}
