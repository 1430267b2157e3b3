// Package updown tests what a newcomer does: build, up, the verbs, down, and that the
// host is afterwards as it was before.
package updown

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"

	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
	"berth.dev/berth/integ/world"
)

func TestMain(m *testing.M) { host.Main(m) }

// newcomer is somebody with a checkout, on a host of their own.
type newcomer struct {
	t    *testing.T
	bin  string
	root string

	containerd string // socket; empty is Berth's own
}

// programs builds what "make build" builds, and the examples where they belong.
func programs(t *testing.T) string {
	t.Helper()
	dir := host.ShortDir(t)
	repo, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "bin")
	if out, err := exec.Command("make", "-C", repo, "build", "BIN="+bin).CombinedOutput(); err != nil {
		t.Fatalf("make build: %v\n%s", err, out)
	}
	if err := os.CopyFS(filepath.Join(dir, "examples"), os.DirFS(filepath.Join(repo, "examples"))); err != nil {
		t.Fatal(err)
	}
	return bin
}

// berth runs a verb and returns what it prints; it must exit with code.
func (n *newcomer) berth(code int, args ...string) string {
	n.t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(filepath.Join(n.bin, "berth"), append([]string{"--root", n.root}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != code {
		n.t.Fatalf("berth %s: exit code %d, want %d (%v)\n%s%s", strings.Join(args, " "), got, code, err, out.String(), errs.String())
	}
	return out.String() + errs.String()
}

// take is what is on this host, but for the data that down keeps.
func (n *newcomer) take() world.Snapshot {
	n.t.Helper()
	o := world.Host().Below(n.root)
	o.Mentioning = n.root
	o.CgroupRoots = nil // other tests make theirs at the same time; see cgroups
	o.MountPrefixes, o.NetnsDirs = []string{n.root}, o.NetnsDirs[1:]
	o.Dirs, o.SocketPrefixes = []string{filepath.Join(n.root, "run", "berth")}, []string{n.root}
	s, err := world.Take(n.t.Context(), o)
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

// cgroups lists the cgroups of a task in all hierarchies.
func cgroups(t *testing.T, taskID string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another test's, gone meanwhile
		}
		if err == nil && d.IsDir() && strings.Contains(d.Name(), taskID) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

type upReport struct {
	Task   string `json:"taskArn"`
	Sample string `json:"sampleUrl"`
}

func (n *newcomer) up() upReport {
	n.t.Helper()
	containerd := n.containerd
	if containerd == "" {
		containerd = "private"
	}
	var r upReport
	if err := json.Unmarshal([]byte(n.berth(0, "up", "--json", "--containerd", containerd)), &r); err != nil {
		n.t.Fatal(err)
	}
	return r
}

func (n *newcomer) pid(program string) int {
	n.t.Helper()
	b, err := os.ReadFile(filepath.Join(n.root, "run", "berth", program+".pid"))
	if err != nil {
		n.t.Fatal(err)
	}
	var p struct{ PID int }
	if err := json.Unmarshal(b, &p); err != nil || p.PID <= 1 {
		n.t.Fatalf("pid of %s: %v in %s", program, err, b)
	}
	return p.PID
}

func (n *newcomer) kill(program string) {
	n.t.Helper()
	if err := syscall.Kill(n.pid(program), syscall.SIGKILL); err != nil {
		n.t.Fatal(err)
	}
	system.Until(n.t, 10*time.Second, program+" is seen to be gone", func() error {
		out := n.berth(3, "status")
		if !strings.Contains(out, "the "+program+" does not run") {
			return errors.New(out)
		}
		return nil
	})
}

func get(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
	return b.String()
}

func mustHold(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%s does not say %q:\n%s", what, p, text)
		}
	}
}

func TestNewcomer(t *testing.T) {
	bin := programs(t)
	t.Run("up and down", func(t *testing.T) { upAndDown(t, bin) })
	t.Run("foreground ends with everything", func(t *testing.T) { foreground(t, bin) })
	t.Run("a containerd of the host's own is used and left running", func(t *testing.T) { hostsContainerd(t, bin) })
}

func upAndDown(t *testing.T, bin string) {
	n := &newcomer{t: t, bin: bin, root: host.ShortDir(t)}
	t.Cleanup(func() { exec.Command(filepath.Join(n.bin, "berth"), "--root", n.root, "down").Run() }) //nolint:errcheck // after a failure only
	before := n.take()
	leavesNothing := func(tasks ...string) {
		t.Helper()
		if lines := world.Diff(before, n.take()); len(lines) > 0 {
			t.Errorf("down left:\n%s", strings.Join(lines, "\n"))
		}
		for _, arn := range tasks {
			if dirs := cgroups(t, arn[strings.LastIndexByte(arn, '/')+1:]); len(dirs) > 0 {
				t.Errorf("down left cgroups: %q", dirs)
			}
		}
	}

	first := n.up()
	mustHold(t, "the sample", get(t, first.Sample), "Hello from my-task")
	t.Run("again is harmless and quick", func(t *testing.T) {
		start, agent := time.Now(), n.pid("agent")
		if again := n.up(); again != first {
			t.Errorf("a second up: %+v, the first %+v", again, first)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("a second up took %v", took)
		}
		if n.pid("agent") != agent {
			t.Error("a second up started another agent")
		}
		mustHold(t, "up with other options", n.berth(1, "up", "--listen", "127.0.0.1:7799"), "Berth is up already", "berth down")
	})
	t.Run("verbs", func(t *testing.T) { verbs(t, n) })
	t.Run("killed programs", func(t *testing.T) {
		for _, program := range []string{"agent", "cluster", "containerd"} {
			n.kill(program)
			if again := n.up(); again != first {
				t.Errorf("up after %s was killed: %+v, before %+v", program, again, first)
			}
			mustHold(t, "the sample", get(t, first.Sample), "Hello from my-task")
		}
	})
	mustHold(t, "down", n.berth(0, "down"), "Berth is down", "nothing is left")
	leavesNothing(first.Task)
	mustHold(t, "a second down", n.berth(0, "down"), "Nothing of Berth runs here")

	second := n.up() // with the data of the first
	if second.Task == first.Task {
		t.Error("the task that down stopped runs again")
	}
	n.kill("agent")
	mustHold(t, "down without an agent", n.berth(0, "down", "--purge"), "the agent does not run", "Berth is down")
	leavesNothing(second.Task)
	if _, err := os.Stat(filepath.Join(n.root, "var", "lib", "berth", "cluster")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("--purge left data: %v", err)
	}
}

// foreground is the same system with its logs, until Ctrl-C.
func foreground(t *testing.T, bin string) {
	n := &newcomer{t: t, bin: bin, root: host.ShortDir(t)}
	before := n.take()
	var out synced
	cmd := exec.Command(filepath.Join(n.bin, "berth"), "--root", n.root, "up", "--foreground", "--containerd", "private")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { exec.Command(filepath.Join(n.bin, "berth"), "--root", n.root, "down").Run() }) //nolint:errcheck // after a failure only
	system.Until(t, 60*time.Second, "it is up and shows its logs", func() error {
		if text := out.String(); !strings.Contains(text, "containerd | ") || !strings.Contains(text, "cluster    | ") || !strings.Contains(text, "agent      | ") {
			return errors.New(text)
		}
		return nil
	})
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after Ctrl-C: %v\n%s", err, out.String())
	}
	mustHold(t, "its end", out.String(), "Ctrl-C stops everything", "Berth is down")
	if lines := world.Diff(before, n.take()); len(lines) > 0 {
		t.Errorf("left:\n%s", strings.Join(lines, "\n"))
	}
}

// synced is a buffer that is written and read at the same time.
type synced struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *synced) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *synced) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// hostsContainerd is with Debian's containerd 1.6.
func hostsContainerd(t *testing.T, bin string) {
	cd := system.StartContainerd(t, system.Containerd1, host.ShortDir(t), bin)
	n := &newcomer{t: t, bin: bin, root: host.ShortDir(t), containerd: cd.Address}
	t.Cleanup(func() { exec.Command(filepath.Join(n.bin, "berth"), "--root", n.root, "down", "--purge").Run() }) //nolint:errcheck // after a failure only
	before := n.take()
	r := n.up()
	mustHold(t, "the sample", get(t, r.Sample), "Hello from my-task")
	mustHold(t, "status", n.berth(0, "status"), "1.6.", "(the host's own)")
	mustHold(t, "down", n.berth(0, "down", "--purge"), "agent, cluster stopped")
	if lines := world.Diff(before, n.take()); len(lines) > 0 {
		t.Errorf("down left:\n%s", strings.Join(lines, "\n"))
	}
	client, err := containerd.New(cd.Address)
	if err != nil {
		t.Fatalf("containerd after down: %v", err)
	}
	defer client.Close()
	left, err := client.NamespaceService().List(t.Context())
	if err != nil {
		t.Fatalf("containerd after down: %v", err)
	}
	for _, name := range left { // one that is not empty cannot be removed
		sets, err := world.Namespace{Address: cd.Address, Name: name}.List(t.Context())
		t.Errorf("down --purge left namespace %s: %q, %v", name, sets, err)
	}
	mustHold(t, "up with no containerd there", n.berth(1, "up", "--containerd", filepath.Join(n.root, "none.sock")), "does not answer", "leave --containerd")
}

func verbs(t *testing.T, n *newcomer) {
	mustHold(t, "status", n.berth(0, "status"), "containerd   running", "agent        running", "Agent connected", "ACTIVE")
	mustHold(t, "ps", n.berth(0, "ps"), "my-task:1    RUNNING", "80->80/tcp")
	mustHold(t, "logs", n.berth(0, "logs", "my-task", "web", "--tail", "1"), "GET / from ")
	mustHold(t, "events", n.berth(0, "events", "my-task"), "container/web    Start", "ReportAcked")
	mustHold(t, "doctor", n.berth(0, "doctor"), "is the cluster's", "port 80 is a task's")
	mustHold(t, "logs of no container", n.berth(1, "logs", "my-task", "db"), "has no container db; it has: web")
	mustHold(t, "events of no task", n.berth(1, "events", "ffff"), "no task ffff in cluster default", "berth ps --all")

	job := filepath.Join(t.TempDir(), "job.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(job, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// It ends with code 1, because no such port can be listened on.
	write(`{"family":"job","containerDefinitions":[{"name":"main","image":"my-image","memory":64,"environment":[{"name":"PORT","value":"99999"}]}]}`)
	mustHold(t, "run of a failing job", n.berth(1, "run", job), "PENDING", "STOPPED", "container main: exit code 1")
	mustHold(t, "its logs", n.berth(0, "logs", "job"), "invalid port")
	write(`{"family":"big","containerDefinitions":[{"name":"main","image":"my-image","memory":99999999}]}`)
	mustHold(t, "run of what does not fit", n.berth(1, "run", job), "big:1 was not placed: RESOURCE:MEMORY")
	mustHold(t, "run of what has its port taken", n.berth(1, "run", filepath.Join(filepath.Dir(n.bin), "examples", "my-task.json")), "RESOURCE:PORTS")
	write(`{"family":"web2","containerDefinitions":[{"name":"web","image":"my-image","memory":64,"portMappings":[{"containerPort":80}]}]}`)
	id := strings.TrimSpace(n.berth(0, "run", "--detach", job))
	system.Until(t, 10*time.Second, "it runs", func() error {
		if out := n.berth(0, "ps"); !strings.Contains(out, "web2:1       RUNNING") {
			return errors.New(out)
		}
		return nil
	})
	// A process that is asked to end before it listens to signals ends in another way.
	system.Until(t, 10*time.Second, "it serves", func() error {
		if out := n.berth(0, "logs", id); !strings.Contains(out, "serving on") {
			return errors.New(out)
		}
		return nil
	})
	mustHold(t, "stop", n.berth(0, "stop", id, "--reason", "seen enough"), "STOPPED", "seen enough", "exit code 0")

	// What env prints is all that the stock CLI of Debian needs.
	script := `eval "$(` + filepath.Join(n.bin, "berth") + ` --root ` + n.root + ` env)"; /usr/bin/aws ecs list-tasks --desired-status STOPPED --output text`
	out, err := exec.Command("/bin/sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("aws: %v\n%s", err, out)
	}
	mustHold(t, "aws ecs list-tasks", string(out), id)
}
