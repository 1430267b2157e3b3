// Package packaging tests what a host is given to install: units of systemd, packages
// and scripts.
package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const folder = "../../packaging"

// command returns a program's path, or ends the test: it fails where CI is set and is
// skipped elsewhere.
func command(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip(err)
	}
	return path
}

// program is what units start; on the machine of the test it is not there.
var program = regexp.MustCompile(`(?m)^(Exec[A-Za-z]*=)/usr/lib/berth/bin/[a-z-]+`)

// units copies the units into a folder, with a program that is there, by name.
func units(t *testing.T) map[string]string {
	t.Helper()
	from, err := filepath.Glob(filepath.Join(folder, "systemd", "*.service"))
	if err != nil || len(from) != 3 {
		t.Fatalf("units: %v, %v", from, err)
	}
	dir := t.TempDir()
	copies := map[string]string{}
	for _, path := range from {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !program.Match(text) {
			t.Errorf("%s starts no program in /usr/lib/berth/bin", path)
		}
		name := filepath.Base(path)
		copies[name] = filepath.Join(dir, name)
		if err := os.WriteFile(copies[name], program.ReplaceAll(text, []byte("${1}/bin/true")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return copies
}

func TestUnitsAreVerified(t *testing.T) {
	analyze := command(t, "systemd-analyze")
	args := []string{"verify", "--man=no"}
	for _, path := range units(t) {
		args = append(args, path)
	}
	out, err := exec.Command(analyze, args...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func TestUnitsAreHardened(t *testing.T) {
	analyze := command(t, "systemd-analyze")
	copies := units(t)
	for unit, threshold := range map[string]string{
		"berth-agent.service":   "62", // in tenths; what mounts for containerd cannot have less
		"berth-cluster.service": "30",
	} {
		out, err := exec.Command(analyze, "security", "--offline=true", "--no-pager", "--threshold="+threshold, copies[unit]).CombinedOutput()
		if err != nil {
			t.Errorf("%s is above %s: %v\n%s", unit, threshold, err, out)
		}
	}
}

// mountNamespace is what makes systemd start a program in a mount namespace of its own
// (systemd.exec(5)), from which what is mounted does not come back to the host.
var mountNamespace = regexp.MustCompile(`^(Protect(System|Home|KernelTunables|KernelModules|KernelLogs|ControlGroups|Clock|Hostname|Proc)|ProcSubset|Private(Tmp|Devices|Mounts|Users|IPC)|` +
	`(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec)(Paths|Directories)|TemporaryFileSystem|Bind(ReadOnly)?Paths|Root(Directory|Image)|MountFlags|MountAPIVFS|DynamicUser|LogNamespace|ExtensionImages|MountImages)=`)

func TestWhatMountsHasNoMountNamespace(t *testing.T) {
	copies := units(t)
	for _, unit := range []string{"berth-agent.service", "berth-containerd.service"} {
		text, err := os.ReadFile(copies[unit])
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if mountNamespace.MatchString(line) {
				t.Errorf("%s: %s", unit, line)
			}
		}
		// Tasks go on when the programs end, with all that holds them.
		for _, want := range []string{"KillMode=process\n", "RuntimeDirectoryPreserve=yes\n", "Type=notify\n", "NotifyAccess=main\n"} {
			if !strings.Contains(string(text), "\n"+want) {
				t.Errorf("%s lacks %s", unit, want)
			}
		}
	}
}
