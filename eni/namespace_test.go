package eni_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth.dev/berth/eni"
	"berth.dev/berth/eni/enitest"
)

func TestMain(m *testing.M) { os.Exit(enitest.Main(m)) }

func live(t *testing.T, path string) bool {
	t.Helper()
	ok, err := eni.Live(path)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

func TestNamespaceLivesFromCreateToRemove(t *testing.T) {
	enitest.Root(t)
	path := filepath.Join(t.TempDir(), "ns")
	if live(t, path) {
		t.Error("live before create")
	}
	const key = "net/ipv4/ip_unprivileged_port_start"
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if err := eni.CreateNamespace(path, map[string]string{key: "7"}); err != nil {
		t.Fatal(err)
	}
	if !live(t, path) {
		t.Error("not live after create")
	}
	if err := eni.CreateNamespace(path, nil); !errors.Is(err, os.ErrExist) {
		t.Errorf("create again: %v", err)
	}
	if err := enitest.In(path, func() error {
		v, err := os.ReadFile("/proc/sys/" + key)
		if err != nil || strings.TrimSpace(string(v)) != "7" {
			t.Errorf("sysctl %q, %v", v, err)
		}
		links, err := netlink.LinkList()
		if err != nil || len(links) != 1 {
			t.Errorf("links %v, %v", links, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Readlink("/proc/self/ns/net"); err != nil || after != home {
		t.Errorf("the process is in %s, was in %s, %v", after, home, err)
	}
	// A crash may have mounted it twice.
	if err := unix.Mount(path, path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := eni.RemoveNamespace(path); err != nil {
			t.Fatal(err)
		}
	}
	if live(t, path) {
		t.Error("live after remove")
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	enitest.Root(t)
	path := filepath.Join(t.TempDir(), "ns")
	if err := eni.CreateNamespace(path, map[string]string{"net/no/such/key": "1"}); err == nil || !strings.Contains(err.Error(), "net.no.such.key") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pin is still there: %v", err)
	}
}

func TestWhatIsNoNetworkNamespaceIsRefused(t *testing.T) {
	enitest.Root(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, "/proc/self/ns/mnt", file + "-missing"} {
		if ns, err := eni.OpenNamespace(path); err == nil {
			t.Errorf("%s was opened", path)
			_ = ns.Close()
		}
	}
	if live(t, file) {
		t.Error("a file without a mount is live")
	}
}

func TestSharedDirectory(t *testing.T) {
	enitest.Root(t)
	dir := filepath.Join(t.TempDir(), "a", "namespaces")
	for range 2 {
		if err := eni.ShareDirectory(dir); err != nil {
			t.Fatal(err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[4] == dir && strings.HasPrefix(f[6], "shared:") {
			found++
		}
	}
	if found != 1 {
		t.Errorf("%d shared mounts at %s", found, dir)
	}
	for range 2 {
		if err := eni.UnshareDirectory(dir); err != nil {
			t.Fatal(err)
		}
	}
}
