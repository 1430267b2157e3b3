package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rpms installs, upgrades and removes the packages with rpm in files of their own, in
// which their scripts find a systemctl that writes down what it is told.
func rpms(t *testing.T, dir, programs string) {
	h := &redHat{t: t, rpm: command(t, "rpm"), root: t.TempDir()}
	h.furnish(command(t, "busybox"))
	one := func(dir, pattern string) string {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(found) != 1 {
			t.Fatalf("packages %s: %v, %v", pattern, found, err)
		}
		return found[0]
	}
	agent, berth := one(dir, "berth-agent-[0-9]*.x86_64.rpm"), one(dir, "berth-[0-9]*.x86_64.rpm")
	for _, file := range []string{agent, berth, one(dir, "berth-agent-[0-9]*.aarch64.rpm"), one(dir, "berth-[0-9]*.aarch64.rpm")} {
		if out := h.do("-K", "--nosignature", file); !strings.Contains(out, "digests OK") {
			t.Errorf("rpm -K: %s", out)
		}
	}
	for query, want := range map[string][]string{
		"--requires":   {"ca-certificates", "e2fsprogs", "runc"},
		"--recommends": {"(containerd or containerd.io or berth)", "(nfs-utils or nfs-client)", "xfsprogs"},
		"--conflicts":  {"amazon-ecs-init", "ecs-init"},
	} {
		got := slices.DeleteFunc(strings.Split(strings.TrimSpace(h.do("-qp", query, agent)), "\n"), func(s string) bool { return strings.HasPrefix(s, "rpmlib(") || s == "/bin/sh" })
		if slices.Sort(got); !slices.Equal(slices.Compact(got), want) {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	sameFiles(t, h.do("-qlp", agent), one(dir, "berth-agent_*_amd64.deb"))
	sameFiles(t, h.do("-qlp", berth), one(dir, "berth_*_amd64.deb"))

	before := h.files()
	h.do("-i", agent, berth)
	h.told("daemon-reload", "is-active -q berth-containerd.service", "is-active -q berth-cluster.service", "daemon-reload", "is-active -q berth-agent.service")
	write(t, filepath.Join(h.root, "etc/ecs/ecs.config"), "ECS_CLUSTER=mine\n")
	write(t, filepath.Join(h.root, "active"), "")
	next := t.TempDir()
	if said, err := pack(next, programs, []string{"amd64"}, "VERSION=99.0.0", "KINDS=rpm"); err != nil {
		t.Fatalf("build-packages: %v\n%s", err, said)
	}
	h.do("-U", one(next, "berth-agent-99.0.0-*.x86_64.rpm"))
	h.told("daemon-reload", "is-active -q berth-agent.service", "restart --no-block berth-agent.service", "daemon-reload")
	h.do("-U", "--oldpackage", agent)
	h.told("daemon-reload", "is-active -q berth-agent.service", "restart --no-block berth-agent.service", "daemon-reload")
	if got := read(t, filepath.Join(h.root, "etc/ecs/ecs.config")); got != "ECS_CLUSTER=mine\n" {
		t.Errorf("after an upgrade the settings are %q", got)
	}
	h.do("-e", "berth-agent", "berth")
	h.told("disable --now berth-agent.service", "daemon-reload", "disable --now berth-cluster.service berth-containerd.service", "daemon-reload")
	left := slices.DeleteFunc(h.files(), func(f string) bool { return slices.Contains(before, f) })
	// Settings that were changed stay aside, as rpm does it.
	if want := []string{"/etc/ecs", "/etc/ecs/ecs.config.rpmsave"}; !slices.Equal(left, want) {
		t.Errorf("left are %q, want %q", left, want)
	}
}

// redHat is the files of a system with rpm.
type redHat struct {
	t         *testing.T
	rpm, root string
}

// furnish gives the system a shell, and a systemctl that says whether units are active.
func (h *redHat) furnish(busybox string) {
	h.t.Helper()
	for _, dir := range []string{
		"bin", "run/systemd/system", "etc", "usr/bin", "usr/lib/systemd/system", "usr/share/doc", "usr/share/bash-completion/completions", "usr/share/fish/vendor_completions.d",
		"usr/share/man/man1", "usr/share/man/man5", "usr/share/man/man8", "usr/share/zsh/site-functions", "var/lib/rpm", "var/tmp", "tmp",
	} {
		if err := os.MkdirAll(filepath.Join(h.root, dir), 0o755); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(h.root, "bin/busybox"), []byte(read(h.t, busybox)), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if out, err := exec.Command("chroot", h.root, "/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
		h.t.Fatalf("%v: %s", err, out)
	}
	const systemctl = "#!/bin/sh\necho \"$*\" >> /told\n[ \"$1\" != is-active ] || [ -e /active ]\n"
	if err := os.WriteFile(filepath.Join(h.root, "usr/bin/systemctl"), []byte(systemctl), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

// do runs rpm on the system.
func (h *redHat) do(args ...string) string {
	h.t.Helper()
	action := args[0]
	// Debian's rpm wants to be told that it is meant; what packages require is not there.
	base := []string{"--root", h.root, "--define", "_dbpath /var/lib/rpm"}
	switch action {
	case "-i", "-U":
		base = append(base, "--force-debian", "--nodeps", "--ignorearch", "--ignoreos", "--nosignature")
	case "-e":
		base = append(base, "--force-debian", "--nodeps")
	default:
		base = nil
	}
	out, err := exec.Command(h.rpm, append(base, args...)...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("rpm %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// told checks and forgets what systemctl was told.
func (h *redHat) told(want ...string) {
	h.t.Helper()
	path := filepath.Join(h.root, "told")
	if got := strings.Split(strings.TrimSpace(read(h.t, path)), "\n"); !slices.Equal(got, want) {
		h.t.Errorf("systemctl was told %q, want %q", got, want)
	}
	if err := os.Remove(path); err != nil {
		h.t.Fatal(err)
	}
}

// files are all of the system's but rpm's own.
func (h *redHat) files() (names []string) {
	h.t.Helper()
	err := filepath.WalkDir(h.root, func(path string, _ os.DirEntry, err error) error {
		if name := strings.TrimPrefix(path, h.root); !strings.HasPrefix(name, "/var/lib/rpm") && name != "/active" && name != "/told" {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return names
}

// sameFiles compares what a package for rpm lists with that for Debian, which has
// completion for zsh in another folder and lists all folders.
func sameFiles(t *testing.T, rpm, deb string) {
	t.Helper()
	root := t.TempDir()
	if out, err := exec.Command("dpkg-deb", "-x", deb, root).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v\n%s", err, out)
	}
	var inDeb []string
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			inDeb = append(inDeb, strings.Replace(strings.TrimPrefix(path, root), "zsh/vendor-completions", "zsh/site-functions", 1))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	inRPM := slices.DeleteFunc(strings.Fields(rpm), func(name string) bool {
		st, err := os.Stat(filepath.Join(root, name))
		return err == nil && st.IsDir()
	})
	slices.Sort(inDeb)
	if slices.Sort(inRPM); !slices.Equal(inDeb, inRPM) {
		t.Errorf("the package for rpm has %q, that for Debian %q", inRPM, inDeb)
	}
}
