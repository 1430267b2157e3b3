package packaging

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// built is where "make build" puts the programs.
const built = "../../bin"

// build makes the packages for both kinds of processors from the programs that were built.
func build(t *testing.T, env ...string) string {
	t.Helper()
	programs, err := filepath.Abs(built)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(programs, "berth-agent")); err != nil && os.Getenv("CI") != "" {
		t.Fatalf("%v; run: make build", err)
	} else if err != nil {
		t.Skipf("%v; run: make build", err)
	}
	// A small program stands in for all of them: what is tested is the same, and quicker.
	small, err := os.ReadFile(filepath.Join(programs, "berth-logger"))
	if err != nil {
		t.Fatal(err)
	}
	standIns := t.TempDir()
	for _, name := range []string{
		"berth", "berth-agent", "berth-logger", "berth-pause", "berth-shipper", "berth-volume", "containerd-shim-runc-v2",
		"ecs-bridge", "ecs-eni", "ecs-branch-eni", "my-image", "my-image.tar",
	} {
		if err := os.WriteFile(filepath.Join(standIns, name), small, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	out := t.TempDir()
	cmd := exec.Command(filepath.Join(folder, "scripts", "build-packages"), out, "amd64", "arm64")
	cmd.Env = append(append(os.Environ(), "PROGRAMS="+standIns, "BERTH="+filepath.Join(programs, "berth")), env...)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build-packages: %v\n%s", err, said)
	}
	return out
}

func TestPackages(t *testing.T) {
	dpkg := command(t, "dpkg-deb")
	dir := build(t)
	t.Run("are the same when made again", func(t *testing.T) {
		again := build(t, "TZ=Asia/Tokyo", "LANG=C.UTF-8", "TMPDIR="+t.TempDir())
		if d := cmp.Diff(read(t, filepath.Join(dir, "SHA256SUMS")), read(t, filepath.Join(again, "SHA256SUMS"))); d != "" {
			t.Errorf("sums (-first +second):\n%s", d)
		}
	})
	for name, want := range map[string]struct {
		files, programs []string
		conf            string
	}{
		"berth-agent": {
			files: []string{
				"/usr/bin/berth-agent -> ../lib/berth/bin/berth-agent", "/usr/lib/berth/cni/ecs-bridge", "/usr/lib/systemd/system/berth-agent.service",
				"/usr/share/man/man8/berth-agent.8.gz", "/usr/share/man/man5/ecs.config.5.gz", "/usr/share/doc/berth-agent/licenses.txt",
			},
			programs: []string{"berth-agent", "berth-logger", "berth-pause", "berth-shipper", "berth-volume", "containerd-shim-runc-v2"},
			conf:     "/etc/ecs/ecs.config",
		},
		"berth": {
			files: []string{
				"/usr/bin/berth -> ../lib/berth/bin/berth", "/usr/lib/berth/bin/my-image.tar", "/usr/lib/berth/examples/my-task.json",
				"/usr/lib/systemd/system/berth-cluster.service", "/usr/lib/systemd/system/berth-containerd.service",
				"/usr/share/bash-completion/completions/berth", "/usr/share/man/man1/berth.1.gz",
			},
			programs: []string{"berth"},
			conf:     "/etc/berth/cluster.conf",
		},
	} {
		t.Run(name, func(t *testing.T) {
			files, err := filepath.Glob(filepath.Join(dir, name+"_*_"+runtime.GOARCH+".deb"))
			if err != nil || len(files) != 1 {
				t.Fatalf("packages: %v, %v", files, err)
			}
			for _, pattern := range []string{"_*_amd64.deb", "_*_arm64.deb", "-[0-9]*.x86_64.rpm", "-[0-9]*.aarch64.rpm"} {
				if found, err := filepath.Glob(filepath.Join(dir, name+pattern)); len(found) != 1 {
					t.Errorf("packages %s: %v, %v", pattern, found, err)
				}
			}
			root := t.TempDir()
			if out, err := exec.Command(dpkg, "-R", files[0], root).CombinedOutput(); err != nil {
				t.Fatalf("dpkg-deb: %v\n%s", err, out)
			}
			for _, f := range want.files {
				f, to, link := strings.Cut(f, " -> ")
				at := filepath.Join(root, f)
				if got, err := os.Readlink(at); link && (err != nil || got != to) {
					t.Errorf("%s: links to %q, %v; want %q", f, got, err, to)
				} else if _, err := os.Stat(at); err != nil {
					t.Error(err)
				}
			}
			if got := read(t, filepath.Join(root, "DEBIAN/conffiles")); got != want.conf+"\n" {
				t.Errorf("configuration files %q, want %q", got, want.conf)
			}
			bill(t, root, name, want.programs)
		})
	}
}

// bill checks that a package's bill of materials has every module of its programs, and
// its list of licences every module of the bill.
func bill(t *testing.T, root, name string, programs []string) {
	t.Helper()
	var doc struct {
		Components []struct {
			Name, Version string
			Licenses      []struct{ License struct{ ID string } }
		}
	}
	docs := filepath.Join(root, "usr/share/doc", name)
	if err := json.Unmarshal([]byte(read(t, filepath.Join(docs, "sbom.cdx.json"))), &doc); err != nil {
		t.Fatal(err)
	}
	licences := read(t, filepath.Join(docs, "licenses.txt"))
	var listed []string
	for _, c := range doc.Components {
		listed = append(listed, c.Name+" "+c.Version)
		if len(c.Licenses) != 1 || !strings.Contains(licences, fmt.Sprintf("%-12s  %s %s\n", c.Licenses[0].License.ID, c.Name, c.Version)) {
			t.Errorf("%s %s has licences %v in the bill and is not so in the list", c.Name, c.Version, c.Licenses)
		}
	}
	for _, p := range programs {
		info, err := buildinfo.ReadFile(filepath.Join(root, "usr/lib/berth/bin", p))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range info.Deps {
			if !slices.Contains(listed, m.Path+" "+m.Version) {
				t.Errorf("%s has %s %s in it, and the bill has not", p, m.Path, m.Version)
			}
		}
	}
}

func TestScriptsAreClean(t *testing.T) {
	shellcheck := command(t, "shellcheck")
	scripts, err := filepath.Glob(filepath.Join(folder, "scripts", "*"))
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob(filepath.Join(folder, "nfpm", "*.p[ro]*")) // maintainer scripts
	if err != nil || len(scripts) < 4 || len(more) < 6 {
		t.Fatalf("scripts: %v, %v, %v", scripts, more, err)
	}
	more = append(more, filepath.Join(folder, "bake", "provision.sh"))
	if out, err := exec.Command(shellcheck, append(scripts, more...)...).CombinedOutput(); err != nil {
		t.Errorf("shellcheck: %v\n%s", err, out)
	}
}

// TestInstallRefuses has the install script find what is wrong before it changes
// anything, and say so with the remedy.
func TestInstallRefuses(t *testing.T) {
	dir := t.TempDir()
	pem := filepath.Join(dir, "ca.pem")
	key := filepath.Join(dir, "key")
	write(t, pem, "-----BEGIN CERTIFICATE-----\nQmVydGg=\n-----END CERTIFICATE-----\n")
	write(t, key, "[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = not-a-secret\n")
	to := []string{"--region", "eu-west-1", "--endpoint", "https://cluster.example:7700"}
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"help", []string{"--help"}, 0, "Usage: install.sh"},
		{"unknown flag", []string{"--frobnicate"}, 2, "unknown flag '--frobnicate'"},
		{"flag for a value", []string{"--region", "--cluster"}, 2, "--region needs a value, not '--cluster'"},
		{"no value", []string{"--region"}, 2, "--region needs a value"},
		{"a second line in a value", []string{"--region", "a\nECS_X=1"}, 2, "control character"},
		{"no region", []string{"--dry-run"}, 2, "--region is missing"},
		{"no URL", []string{"--region", "eu-west-1", "--endpoint", "cluster"}, 2, "--endpoint is an URL"},
		{"bad time", append(slices.Clone(to), "--wait", "long"), 2, "--wait takes seconds"},
		{"purge alone", []string{"--purge"}, 2, "--purge goes with --uninstall"},
		{"key that is none", append(slices.Clone(to), "--key-file", pem), 1, "no AWS shared credentials file"},
		{"ca that is none", append(slices.Clone(to), "--key-file", key, "--ca-file", key), 1, "has no certificate"},
		{"fingerprint alone", append(slices.Clone(to), "--key-file", key, "--ca-fingerprint", "00"), 2, "goes with --ca-file"},
		{"fingerprint that is none", append(slices.Clone(to), "--key-file", key, "--ca-file", pem, "--ca-fingerprint", "00"), 2, "64 hex digits"},
		{"other fingerprint", append(slices.Clone(to), "--key-file", key, "--ca-file", pem, "--ca-fingerprint", strings.Repeat("ab", 32)), 1, "has the fingerprint "},
		{"token that is none", []string{"--join-token", "AKIDEXAMPLE"}, 2, "begins with berth1."},
		{"token and region", append(slices.Clone(to), "--join-token", "berth1.eyJ9"), 2, "--region comes with the token"},
		{"token in no file", []string{"--join-token", "@" + filepath.Join(dir, "none")}, 1, "cannot be read"},
		{"no packages", append(slices.Clone(to), "--key-file", key, "--no-start", "--packages", dir), 1, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command("bash", append([]string{filepath.Join(folder, "scripts", "install.sh"), "--dry-run"}, c.args...)...)
			out, err := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != c.code || !bytes.Contains(out, []byte(c.want)) {
				t.Errorf("exit code %d, %v; want %d and %q:\n%s", code, err, c.code, c.want, out)
			}
		})
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
