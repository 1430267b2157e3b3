package vm

import (
	"archive/tar"
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
)

// limit is for everything in the machine together, which takes about three minutes on two
// processors that have nothing else to do. It ends what hangs; guest.Patience says why it
// is no measure of anything.
const limit = 17 * time.Minute

// made is the machine's disk, which is made once for all tests.
var made = sync.OnceValues(func() (Image, error) {
	packages, err := Packages("../../packaging/packages.txt", "guest")
	if err != nil {
		return Image{}, err
	}
	log := new(bytes.Buffer)
	img, err := Build("../../.cache/vm", packages, log)
	if err != nil {
		return img, fmt.Errorf("the image: %w\n%s", err, log)
	}
	return img, nil
})

func image(t *testing.T) Image {
	t.Helper()
	start := time.Now()
	img, err := made()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the image is there after %v", time.Since(start).Round(time.Second))
	return img
}

// TestGuest boots the machine and runs the tests of package guest in it.
func TestGuest(t *testing.T) {
	t.Parallel()
	img := image(t)
	payload := pack(t)
	booted := time.Now()
	m, err := Boot(Config{Image: img, Payload: payload, Dir: host.ShortDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill() //nolint:errcheck // it has ended by itself, or the test has failed
	out, err := m.Results()
	if err != nil {
		t.Fatalf("%v\n%s", err, m.Log())
	}
	go func() {
		if err := m.Serve(); err != nil {
			t.Logf("questions of the guest: %v", err)
		}
	}()
	late := time.AfterFunc(limit, func() { m.Kill() }) //nolint:errcheck // noticed by the missing end
	defer late.Stop()
	report(t, m, out, booted)
}

var (
	ends = regexp.MustCompile(`^(?:=== [A-Z]+ .*)?--- (PASS|FAIL|SKIP): (\S+) \(([0-9.]+s)\)`)
)

// report makes a subtest of every test of the guest, as its results come in.
func report(t *testing.T, m *Machine, out io.Reader, booted time.Time) {
	var all []string
	first, passed := true, 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := strings.TrimRight(lines.Text(), "\r")
		all = append(all, line)
		if first {
			t.Logf("the guest speaks after %v", time.Since(booted).Round(time.Second))
			first = false
		}
		f := ends.FindStringSubmatch(line)
		if f == nil {
			continue
		}
		t.Run(f[2], func(t *testing.T) {
			t.Logf("%s in the guest after %s", f[1], f[3])
			if f[1] != "PASS" {
				t.Fail()
			}
		})
		passed++
	}
	t.Logf("%d tests in the guest, %v", passed, time.Since(booted).Round(time.Second))
	if t.Failed() || passed == 0 || all[len(all)-1] != "guest: PASS" {
		t.Errorf("the guest printed:\n%s\n\nand its console:\n%s", strings.Join(all, "\n"), m.Log())
	}
}

// script runs in the machine.
const script = `export PATH=/berth/bin:$PATH CI=true HOME=/root
./guest.test -test.v -test.parallel 8 -test.timeout 600s && echo guest: PASS || echo guest: FAIL
`

// pack makes the payload: the tests, and the programs of Berth.
func pack(t *testing.T) string {
	t.Helper()
	bin := system.Programs(t, system.Containerd2)
	tests := t.TempDir()
	for name, of := range map[string]string{"guest.test": "integ/vm/guest", "branch.test": "cni-plugins/ecs-branch-eni"} {
		cmd := exec.Command("go", "test", "-c", "-tags", "no_cri no_btrfs no_zfs no_devmapper no_tracing grpcnotrace", "-ldflags", "-s -w", "-o", filepath.Join(tests, name), "berth.dev/berth/"+of)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
	}
	files := []entry{{name: "run", text: script}}
	for _, name := range []string{"guest.test", "branch.test"} {
		files = append(files, entry{name: name, path: filepath.Join(tests, name)})
	}
	programs, err := os.ReadDir(bin)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		files = append(files, entry{name: "bin/" + p.Name(), path: filepath.Join(bin, p.Name())})
	}
	return tarball(t, files...)
}

// entry is a file for a machine: a text, or what is at a path.
type entry struct{ name, text, path string }

// tarball makes the file that a machine is started with.
func tarball(t *testing.T, entries ...entry) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "payload.tar")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for _, e := range entries {
		if err := addEntry(w, e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return name
}

func addEntry(w *tar.Writer, e entry) error {
	header := &tar.Header{Name: e.name, Mode: 0o755, Size: int64(len(e.text))}
	from := io.Reader(strings.NewReader(e.text))
	if e.path != "" {
		f, err := os.Open(e.path)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		header.Size, from = st.Size(), f
	}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.Copy(w, from)
	return err
}

// built makes the programs, as "make build" does, and returns their folder.
func built(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("make", "-s", "-C", "../..", "programs")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make programs: %v\n%s", err, out)
	}
	dir, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
