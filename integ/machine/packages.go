package machine

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Versions of the packages that tests make: the one of today, and one that stands for the
// next, with a state database that has a schema of its own.
const (
	Today = "0.1.0" // that of the file VERSION, which the programs have in them
	Next  = "0.2.0"
	// Broken is one whose agent ends as soon as it is started.
	Broken = "0.3.0"
)

// Packages makes the packages of today and of the next version, and the install script,
// in a folder of each version below dir. It takes the programs of "make build".
func Packages(t testing.TB, dir string) {
	t.Helper()
	if v, err := os.ReadFile("../../VERSION"); err != nil || strings.TrimSpace(string(v)) != Today {
		t.Fatalf("VERSION is %q, %v; Today has to be the same, and Next and Broken after it", v, err)
	}
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "berth-agent")); err != nil && os.Getenv("CI") != "" {
		t.Fatalf("%v; run: make build", err)
	} else if err != nil {
		t.Skipf("%v; run: make build", err)
	}
	today, next := filepath.Join(dir, Today), filepath.Join(dir, Next)
	command(t, []string{"PROGRAMS=" + bin, "BERTH=" + filepath.Join(bin, "berth"), "KINDS=deb", "VERSION=" + Today},
		"../../packaging/scripts/build-packages", today, runtime.GOARCH)
	command(t, nil, "cp", "../../packaging/scripts/install.sh", today)
	command(t, nil, "cp", "../../packaging/bake/provision.sh", dir)
	// The next version is the same package with another agent, which is quicker to make.
	files := filepath.Join(t.TempDir(), "next")
	command(t, nil, "dpkg-deb", "-R", filepath.Join(today, "berth-agent_"+Today+"_"+runtime.GOARCH+".deb"), files)
	command(t, nil, "sed", "-i", "s/^Version: .*/Version: "+Next+"/", filepath.Join(files, "DEBIAN", "control"))
	command(t, []string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-buildvcs=false", "-tags", "no_cri,no_btrfs,no_zfs,no_devmapper,no_tracing,nextstate",
		"-ldflags", "-s -w -X main.version="+Next+" -X main.hash=test", "-o", filepath.Join(files, "usr/lib/berth/bin/berth-agent"), "berth.dev/berth/cmd/berth-agent")
	if err := os.Mkdir(next, 0o755); err != nil {
		t.Fatal(err)
	}
	command(t, nil, "dpkg-deb", "-Zgzip", "-z1", "-b", files, next)
	broken := filepath.Join(dir, Broken)
	command(t, nil, "sed", "-i", "s/^Version: .*/Version: "+Broken+"/", filepath.Join(files, "DEBIAN", "control"))
	if err := errors.Join(os.Mkdir(broken, 0o755), os.WriteFile(filepath.Join(files, "usr/lib/berth/bin/berth-agent"), []byte("#!/bin/sh\nexit 1\n"), 0o755)); err != nil {
		t.Fatal(err)
	}
	command(t, nil, "dpkg-deb", "-Zgzip", "-z1", "-b", files, broken)
}

func command(t testing.TB, env []string, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}
