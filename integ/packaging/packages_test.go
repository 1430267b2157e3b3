package packaging

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
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

// programs makes a folder with programs for each kind of processor. A small program stands
// in for all of them: what is tested is the same, and quicker.
func programs(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat(filepath.Join(built, "berth-agent")); err != nil && os.Getenv("CI") != "" {
		t.Fatalf("%v; run: make build", err)
	} else if err != nil {
		t.Skipf("%v; run: make build", err)
	}
	standIns := t.TempDir()
	for arch, small := range map[string]string{"amd64": filepath.Join(built, "berth-logger"), "arm64": compile(t, "../..")} {
		if arch == runtime.GOARCH {
			small = filepath.Join(built, "berth-logger")
		}
		text, err := os.ReadFile(small)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(standIns, arch), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{
			"berth", "berth-agent", "berth-logger", "berth-pause", "berth-shipper", "berth-volume", "containerd-shim-runc-v2",
			"ecs-bridge", "ecs-eni", "ecs-branch-eni", "my-image", "my-image.tar",
		} {
			if err := os.WriteFile(filepath.Join(standIns, arch, name), text, 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	return standIns
}

// compile makes the smallest program for arm64 from the sources in a folder, as "make
// programs" does, and returns its path.
func compile(t *testing.T, dir string, flags ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "berth-pause")
	args := append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version=test"}, flags...)
	cmd := exec.Command("go", append(args, "-o", out, "./cmd/berth-pause")...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOARCH=arm64", "CGO_ENABLED=0", "GOFLAGS=")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compile: %v\n%s", err, said)
	}
	return out
}

// pack has the packages made from programs and returns the script's output.
func pack(out, programs string, arches []string, env ...string) ([]byte, error) {
	berth, err := filepath.Abs(filepath.Join(built, "berth"))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(folder, "scripts", "build-packages"), append([]string{out}, arches...)...)
	cmd.Env = append(append(os.Environ(), "PROGRAMS="+programs, "BERTH="+berth), env...)
	return cmd.CombinedOutput()
}

// build makes the packages for both kinds of processors.
func build(t *testing.T, programs string, env ...string) string {
	t.Helper()
	out := t.TempDir()
	if said, err := pack(out, programs, []string{"amd64", "arm64"}, env...); err != nil {
		t.Fatalf("build-packages: %v\n%s", err, said)
	}
	return out
}

// TestCompiledElsewhere compiles a program again, everything in it included, from a copy of
// the sources in another folder.
func TestCompiledElsewhere(t *testing.T) {
	copied := t.TempDir()
	for _, path := range []string{"go.mod", "go.sum", "cmd/berth-pause/main.go"} {
		if err := os.MkdirAll(filepath.Join(copied, filepath.Dir(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(copied, path), read(t, filepath.Join("../..", path)))
	}
	if read(t, compile(t, "../..")) != read(t, compile(t, copied, "-a")) {
		t.Error("the program of one folder is not that of another")
	}
}

func TestPackages(t *testing.T) {
	dpkg := command(t, "dpkg-deb")
	small := programs(t)
	dir := build(t, small)
	t.Run("are not made with programs of others", func(t *testing.T) {
		out, err := pack(t.TempDir(), filepath.Join(small, "amd64"), []string{"arm64"})
		if err == nil || !strings.Contains(string(out), "is not of arm64: its ELF machine is 62") {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("are the same when made again", func(t *testing.T) {
		again := build(t, small, "TZ=Asia/Tokyo", "LANG=C.UTF-8", "TMPDIR="+t.TempDir())
		if d := cmp.Diff(read(t, filepath.Join(dir, "SHA256SUMS")), read(t, filepath.Join(again, "SHA256SUMS"))); d != "" {
			t.Errorf("sums (-first +second):\n%s", d)
		}
	})
	t.Run("have programs of their processor", func(t *testing.T) { machines(t, dpkg, dir) })
	t.Run("rpm", func(t *testing.T) { rpms(t, dir, filepath.Join(small, "amd64")) })
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

// machines looks at each program of each package.
func machines(t *testing.T, dpkg, dir string) {
	for arch, want := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		found, err := filepath.Glob(filepath.Join(dir, "*_"+arch+".deb"))
		if err != nil || len(found) != 2 {
			t.Fatalf("packages %v, %v", found, err)
		}
		seen := 0
		for _, file := range found {
			root := t.TempDir()
			if out, err := exec.Command(dpkg, "-x", file, root).CombinedOutput(); err != nil {
				t.Fatalf("dpkg-deb: %v\n%s", err, out)
			}
			programs, err := filepath.Glob(filepath.Join(root, "usr/lib/berth", "[bc]*", "*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range programs {
				if filepath.Ext(p) == ".tar" {
					continue
				}
				f, err := elf.Open(p)
				if err != nil {
					t.Fatalf("%s: %v", p, err)
				}
				if f.Machine != want {
					t.Errorf("%s in %s is of %v", filepath.Base(p), filepath.Base(file), f.Machine)
				}
				f.Close()
				seen++
			}
		}
		if seen != 10 {
			t.Errorf("%d programs for %s", seen, arch)
		}
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
	more = append(more, filepath.Join(folder, "bake", "provision.sh"), "testdata/install/run", "testdata/install/stub")
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
