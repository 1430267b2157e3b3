package block

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func attribute(t *testing.T, name, value string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(value), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestFind(t *testing.T) {
	sys := t.TempDir()
	for name, value := range map[string]string{
		"nvme0n1/device/serial": "vol0123456789abcdef0\n", "vda/serial": "vol0123456789abcdef1", "nvme1n1/device/serial": "AWS1234   \n",
		"nvme2n1/device/serial": "vol-0123456789abcdef2 \n", "nvme3c0n1/device/serial": "vol3\n", "nvme3c0n1/hidden": "1\n", "loop0/size": "0\n",
	} {
		attribute(t, filepath.Join(sys, "block", name), value)
	}
	for id, want := range map[string]string{
		"vol-0123456789abcdef0": "/dev/nvme0n1", "vol-0123456789abcdef1": "/dev/vda", "vol-0123456789abcdef2": "/dev/nvme2n1", "vol-3": "", "vol-4": "", "": "",
	} {
		got, err := Finder{Sys: sys}.Find(Serial(id))
		if got != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, ErrAbsent) {
			t.Errorf("%q: %q, %v; want %q", id, got, err, want)
		}
	}
	if _, err := (Finder{Sys: filepath.Join(sys, "none")}).Find("x"); err == nil || errors.Is(err, ErrAbsent) {
		t.Errorf("without a sysfs: %v", err)
	}
}

func TestUeventsOfBlockDevices(t *testing.T) {
	for event, want := range map[string]bool{
		"add@/devices/pci0000:00/nvme/nvme1/nvme1n1\x00ACTION=add\x00SUBSYSTEM=block\x00DEVNAME=nvme1n1\x00": true,
		"add@/devices/virtual/net/x\x00ACTION=add\x00SUBSYSTEM=net\x00":                                      false,
		"libudev\x00\xfe\xed": false, "": false, "SUBSYSTEM=blocks": false,
	} {
		if isBlock([]byte(event)) != want {
			t.Errorf("%q: %t", event, !want)
		}
	}
}

func FuzzUevent(f *testing.F) {
	f.Add([]byte("add@/x\x00SUBSYSTEM=block\x00"))
	f.Fuzz(func(t *testing.T, event []byte) {
		if isBlock(event) && !strings.Contains(string(event), "SUBSYSTEM=block") {
			t.Errorf("%q", event)
		}
	})
}

func TestPool(t *testing.T) {
	p := Pool{Dir: filepath.Join(t.TempDir(), "pool")}
	if all, err := p.Volumes(); err != nil || len(all) > 0 {
		t.Errorf("a pool that was never used: %v, %v", all, err)
	}
	const id, size = "vol-0123456789abcdef0", 16 << 20
	for range 2 {
		if err := p.Create(t.Context(), id, Content{Size: size, Kind: "ext4"}, Owned{Task: "t", Delete: true}); err != nil {
			t.Fatal(err)
		}
	}
	if kind, err := Probe(t.Context(), p.file(id, ".img")); err != nil || kind != "ext4" {
		t.Errorf("it has %q, %v", kind, err)
	}
	if all, err := p.Volumes(); err != nil || len(all) != 1 || all[id] != (Owned{Task: "t", Delete: true}) {
		t.Errorf("%v, %v", all, err)
	}
	if err := p.Create(t.Context(), "vol-1", Content{Size: size, Kind: "ext4"}, Owned{}); err == nil {
		t.Error("an id that is none was taken")
	}
	if err := p.Create(t.Context(), "vol-01234567", Content{Size: size, Kind: "ntfs"}, Owned{}); err == nil || !strings.Contains(err.Error(), "xfs, ext4") {
		t.Errorf("an unknown file system: %v", err)
	}
	for _, id := range []string{id, id, "vol-01234567"} {
		if err := p.Delete(id); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(p.Dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
