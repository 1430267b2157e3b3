package packaging

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tools are the programs that the install script may use of a host, besides those that
// the stub stands for. A host with these alone is enough for it.
var tools = []string{
	"awk", "base64", "bash", "basename", "cat", "chmod", "comm", "cut", "dirname", "find", "grep", "head", "id", "ln", "mkdir", "mktemp", "rm", "rmdir",
	"sed", "sha256sum", "sleep", "sort", "tail", "touch", "tr",
	// of the stub and the test
	"echo", "sh",
}

// counted are the programs that change files; the stub counts their calls.
var counted = []string{"cp", "install", "mv"}

// host is a root file system that is like a host of some distribution.
type host struct {
	root string
	env  []string
}

// newHost makes a host with the programs of its package manager.
func newHost(t *testing.T, release string, managers ...string) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	h := &host{root: filepath.Join(t.TempDir(), "root")}
	for _, dir := range []string{
		"etc", "usr/bin", "usr/lib/systemd/system", "var/lib", "var/log", "run/systemd/system", "tmp", "root", "bin", "stubs", "tools", "packages", "sys/fs/cgroup/memory",
	} {
		if err := os.MkdirAll(filepath.Join(h.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	stub := read(t, filepath.Join("testdata", "install", "stub"))
	h.put(t, "stubs/stub", stub, 0o755)
	for _, name := range append([]string{"systemctl", "journalctl", "df", "uname", "containerd", "stub-agent", "stub-ssm"}, append(managers, counted...)...) {
		h.link(t, "stub", "stubs/"+name)
	}
	for _, name := range append(slices.Clone(tools), counted...) {
		path, err := exec.LookPath(name)
		if err == nil {
			path, err = filepath.EvalSymlinks(path)
		}
		if err != nil {
			t.Fatal(err)
		}
		h.link(t, "/host-bin/"+filepath.Base(path), "tools/"+name)
	}
	h.link(t, "/tools/bash", "bin/bash")
	h.link(t, "/tools/sh", "bin/sh")
	h.link(t, "usr/lib", "lib")
	h.link(t, "usr/lib64", "lib64")
	h.put(t, "etc/os-release", release, 0o644)
	h.put(t, "etc/passwd", "root:x:0:0::/root:/bin/sh\n", 0o644)
	h.put(t, "install.sh", read(t, filepath.Join(folder, "scripts", "install.sh")), 0o755)
	h.put(t, "packages/berth-agent_1.1.0_amd64.deb", "berth-agent 1.1.0\n", 0o644)
	h.put(t, "packages/berth-agent-1.1.0-1.x86_64.rpm", "berth-agent 1.1.0\n", 0o644)
	for _, kind := range []string{"deb", "rpm"} {
		h.put(t, "packages/amazon-ssm-agent."+kind, "amazon-ssm-agent 3.3\n", 0o644)
	}
	h.put(t, "key", "[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = not-a-secret\n", 0o600)
	h.put(t, "var/lib/stub/packages/bash", "bash installed 5.2\n", 0o644)
	h.put(t, "var/lib/stub/enabled/.keep", "", 0o644)
	h.put(t, "var/lib/stub/active/containerd.service", "", 0o644)
	h.put(t, "run/containerd/containerd.sock", "", 0o644)
	sock := filepath.Join(h.root, "run/containerd/containerd.sock")
	if err := os.Remove(sock); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mknod(sock, syscall.S_IFSOCK|0o600, 0); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) put(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	path = filepath.Join(h.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func (h *host) link(t *testing.T, to, path string) {
	t.Helper()
	if err := os.Symlink(to, filepath.Join(h.root, path)); err != nil {
		t.Fatal(err)
	}
}

// install runs the script, and returns its exit code and what it printed.
func (h *host) install(t *testing.T, stdin string, args ...string) (int, string) {
	t.Helper()
	self, err := filepath.Abs(filepath.Join("testdata", "install", "run"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", append([]string{"--mount", "--propagation", "private", self, h.root}, args...)...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, h.env...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// log is what the programs were told that a host has.
func (h *host) log(t *testing.T) string { t.Helper(); return read(t, filepath.Join(h.root, "log")) }

// unchanged compares the files of the host before and after.
func (h *host) unchanged(t *testing.T) {
	t.Helper()
	if d := cmp.Diff(strings.Split(read(t, h.root+".before"), "\n"), strings.Split(read(t, h.root+".after"), "\n")); d != "" {
		t.Errorf("files of the host (-before +after):\n%s\nafter these calls:\n%s", d, h.log(t))
	}
}

const debian = "ID=debian\nVERSION_ID=\"12\"\n"

var (
	debianTools = []string{"apt-get", "dpkg-query", "dpkg-deb"}
	toCluster   = []string{"--packages", "/packages", "--region", "eu-west-1", "--endpoint", "https://cluster.test:7700", "--key-file", "/key", "--wait", "0"}
	toJoin      = []string{"--packages", "/packages", "--join-token", "berth1.eyJ9", "--wait", "0"}
	toAWS       = []string{
		"--packages", "/packages", "--region", "eu-west-1", "--activation-id", "01234567-89ab-cdef-0123-456789abcdef",
		"--activation-code", "aBcDeFgHiJkLmNoPqRsT", "--wait", "0",
	}
)

// TestFamilies has the script know distributions by what their os-release says, and call
// their package manager.
func TestFamilies(t *testing.T) {
	releases, err := filepath.Glob(filepath.Join("testdata", "os-release", "*"))
	if err != nil || len(releases) < 15 {
		t.Fatalf("%v, %v", releases, err)
	}
	calls := map[string][]string{
		"apt-get": {
			"apt-get -q -s -o DPkg::Lock::Timeout=300 install --no-install-recommends /packages/berth-agent_1.1.0_amd64.deb",
			"apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold install --no-install-recommends --allow-downgrades /packages/berth-agent_1.1.0_amd64.deb",
		},
		"dnf": {
			"dnf -y --setopt=tsflags=test --setopt=install_weak_deps=False install /packages/berth-agent-1.1.0-1.x86_64.rpm",
			"dnf -y --setopt=install_weak_deps=False install /packages/berth-agent-1.1.0-1.x86_64.rpm",
		},
		"zypper": {
			"zypper -n install --dry-run --allow-unsigned-rpm --no-recommends /packages/berth-agent-1.1.0-1.x86_64.rpm",
			"zypper -n install --allow-unsigned-rpm --no-recommends --oldpackage /packages/berth-agent-1.1.0-1.x86_64.rpm",
		},
	}
	for _, line := range calls["dnf"] {
		calls["yum"] = append(calls["yum"], strings.Replace(line, "dnf", "yum", 1))
	}
	for _, path := range releases {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			// The file's name is the distribution and the manager that it has.
			manager := strings.TrimPrefix(filepath.Ext(path), ".")
			var programs []string
			switch manager {
			case "apt-get":
				programs = debianTools
			case "none":
				programs = append(slices.Clone(debianTools), "dnf", "rpm")
			default:
				programs = []string{manager, "rpm"}
			}
			h := newHost(t, read(t, path), programs...)
			code, out := h.install(t, "", toCluster...)
			if manager == "none" {
				if code != 1 || !strings.Contains(out, "none of Debian, Ubuntu, RHEL") {
					t.Errorf("exit code %d:\n%s", code, out)
				}
				h.unchanged(t)
				return
			}
			if code != 0 || !strings.Contains(out, "The agent works") {
				t.Fatalf("exit code %d:\n%s", code, out)
			}
			var got []string
			for line := range strings.Lines(h.log(t)) {
				if strings.HasPrefix(line, manager+" ") {
					got = append(got, strings.TrimSpace(line))
				}
			}
			if d := cmp.Diff(calls[manager], got); d != "" {
				t.Errorf("calls of %s (-want +got):\n%s", manager, d)
			}
			// And off again.
			code, out = h.install(t, "", "--uninstall", "--purge")
			verb := map[bool]string{true: " purge ", false: " remove "}[manager == "apt-get"]
			if code != 0 || !strings.Contains(h.log(t), verb+"berth-agent\n") {
				t.Errorf("uninstall: exit code %d:\n%s%s", code, out, h.log(t))
			}
			for _, left := range []string{"/etc/ecs", "/etc/berth", "/var/lib/berth", "/var/log/berth", "/run/berth", "/usr/lib/berth"} {
				if _, err := os.Stat(filepath.Join(h.root, left)); err == nil {
					t.Errorf("%s is left", left)
				}
			}
		})
	}
}

// TestInstallAtAWS registers a host through AWS Systems Manager.
func TestInstallAtAWS(t *testing.T) {
	for _, c := range []struct {
		name, prepare string
		args          []string
		code          int
		want          string
		calls         []string // of systemctl and the amazon-ssm-agent, in this order
	}{
		{
			name: "registers", args: toAWS, want: "The agent works",
			calls: []string{
				"systemctl stop amazon-ssm-agent.service",
				"amazon-ssm-agent -register -code aBcDeFgHiJkLmNoPqRsT -id 01234567-89ab-cdef-0123-456789abcdef -region eu-west-1",
				"systemctl enable amazon-ssm-agent.service", "systemctl start amazon-ssm-agent.service",
				"systemctl enable berth-agent.service", "systemctl restart --no-block berth-agent.service",
			},
		},
		{
			name: "does not start", args: append(slices.Clone(toAWS), "--no-start"), want: "Start it with",
			calls: []string{
				"systemctl stop amazon-ssm-agent.service",
				"amazon-ssm-agent -register -code aBcDeFgHiJkLmNoPqRsT -id 01234567-89ab-cdef-0123-456789abcdef -region eu-west-1",
				"systemctl enable amazon-ssm-agent.service",
			},
		},
		{name: "changes nothing", args: append(slices.Clone(toAWS), "--dry-run"), want: "Nothing was changed"},
		{
			name: "is registered", args: toAWS, want: "registered with AWS Systems Manager already",
			prepare: `mkdir -p /var/lib/amazon/ssm/Vault/Store && echo '{"instanceID":"mi-1"}' > /var/lib/amazon/ssm/Vault/Store/RegistrationKey`,
			calls: []string{
				"systemctl enable amazon-ssm-agent.service", "systemctl start amazon-ssm-agent.service",
				"systemctl enable berth-agent.service", "systemctl restart --no-block berth-agent.service",
			},
		},
		{
			name: "skips the registration", args: []string{"--packages", "/packages", "--region", "eu-west-1", "--skip-registration", "--wait", "0"}, want: "The agent works",
			prepare: "touch /var/lib/stub/enabled/amazon-ssm-agent.service",
			calls:   []string{"systemctl enable berth-agent.service", "systemctl restart --no-block berth-agent.service"},
		},
		{
			name: "is not registered", args: []string{"--packages", "/packages", "--region", "eu-west-1", "--skip-registration"}, code: 1,
			want: "use --activation-id",
		},
		{name: "has no package", args: toAWS, prepare: "rm /packages/amazon-ssm-agent.*", code: 1, want: "from https://s3.eu-west-1.amazonaws.com/amazon-ssm-eu-west-1/latest/debian_amd64/amazon-ssm-agent.deb"},
		{name: "half an activation", args: toAWS[:6], code: 2, want: "--activation-code is missing"},
		{name: "an id that is none", args: append(slices.Clone(toAWS), "--activation-id", "x"), code: 2, want: "is no id of an activation"},
		{name: "with a key", args: append(slices.Clone(toAWS), "--key-file", "/key"), code: 2, want: "does not go with an activation"},
		{name: "with a token", args: append(slices.Clone(toAWS[4:]), toJoin...), code: 2, want: "--activation-id comes with the token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, debian, debianTools...)
			h.env = []string{"PREPARE=" + c.prepare}
			code, out := h.install(t, "", c.args...)
			if code != c.code || !strings.Contains(out, c.want) {
				t.Fatalf("exit code %d, want %d and %q:\n%s", code, c.code, c.want, out)
			}
			if strings.Contains(out, "aBcDeFgHiJkLmNoPqRsT") {
				t.Errorf("the code is printed:\n%s", out)
			}
			if len(c.calls) == 0 {
				h.unchanged(t)
				return
			}
			var got []string
			for line := range strings.Lines(h.log(t)) {
				for _, verb := range []string{"amazon-ssm-agent ", "systemctl stop ", "systemctl start ", "systemctl restart ", "systemctl enable "} {
					if strings.HasPrefix(line, verb) {
						got = append(got, strings.TrimSpace(line))
					}
				}
			}
			if d := cmp.Diff(c.calls, got); d != "" {
				t.Errorf("calls (-want +got):\n%s", d)
			}
			settings := read(t, filepath.Join(h.root, "etc/ecs/ecs.config"))
			for _, want := range []string{"AWS_DEFAULT_REGION=eu-west-1\n", "ECS_EXTERNAL=true\n", "BERTH_KEY_FILE=/root/.aws/credentials\n"} {
				if !strings.Contains(settings, want) {
					t.Errorf("settings lack %q:\n%s", want, settings)
				}
			}
		})
	}
}

// what a host may have had before.
const (
	member = `mkdir -p /etc/ecs /etc/berth /var/lib/berth/agent/updates/kept /usr/lib/berth/bin /usr/lib/systemd/system /run/berth /var/log/berth/tasks
ln -s /stubs/stub-agent /usr/lib/berth/bin/berth-agent
echo 'agent 1.0.0' > /usr/lib/systemd/system/berth-agent.service
echo 'berth-agent installed 1.0.0' > /var/lib/stub/packages/berth-agent
echo 'berth-agent 1.0.0' > /var/lib/berth/agent/updates/kept/berth-agent-1.0.0.deb
echo state > /var/lib/berth/agent/state.db; echo old > /var/lib/berth/agent/credentials; touch /run/berth/agent.sock
chmod 0600 /var/lib/berth/agent/credentials
printf 'ECS_CLUSTER=old\n# mine\n' > /etc/ecs/ecs.config; chmod 0640 /etc/ecs/ecs.config
touch /var/lib/stub/enabled/berth-agent.service /var/lib/stub/active/berth-agent.service
`
	removed = `mkdir -p /etc/ecs /var/lib/berth/agent
echo 'ECS_CLUSTER=old' > /etc/ecs/ecs.config; echo old > /var/lib/berth/agent/state.db
echo 'berth-agent config-files -' > /var/lib/stub/packages/berth-agent
`
	managed = `mkdir -p /var/lib/amazon/ssm; echo log > /var/lib/amazon/ssm/log; mkdir -p /root/.aws; echo mine > /root/.aws/config
`
)

// TestInstallLeavesNothing breaks each step of the script in turn, and compares the files
// of the host before and after.
func TestInstallLeavesNothing(t *testing.T) {
	hosts := map[string]string{"fresh": "", "member": member, "removed": removed, "managed": managed}
	for _, c := range []struct {
		name string
		env  string
		args []string
		on   []string // which hosts; none means all
		want string
	}{
		{name: "a program is missing", env: "PREPARE=rm /tools/comm;", args: toCluster, on: []string{"fresh"}, want: "the program comm is missing"},
		{name: "the package manager is missing", env: "PREPARE=rm /stubs/apt-get;", args: toCluster, on: []string{"fresh"}, want: "apt-get is missing"},
		{name: "systemd is missing", env: "PREPARE=rm -r /run/systemd;", args: toCluster, on: []string{"fresh"}, want: "systemd does not run here"},
		{name: "another processor", env: "MACHINE=riscv64", args: toCluster, on: []string{"fresh"}, want: "kind riscv64"},
		{name: "no containerd", env: "PREPARE=rm /stubs/containerd /run/containerd/*;", args: toCluster, on: []string{"fresh"}, want: "there is no containerd"},
		{name: "no cgroups", env: "PREPARE=rm -r /sys/fs/cgroup;", args: toCluster, on: []string{"fresh"}, want: "no cgroups"},
		{name: "the other agent", env: "PREPARE=echo ecs-init installed 1 > /var/lib/stub/packages/ecs-init;", args: toCluster, on: []string{"fresh"}, want: "one host has one agent"},
		{name: "a bad sum", env: "PREPARE=echo '0000  berth-agent_1.1.0_amd64.deb' > /packages/SHA256SUMS;", args: toCluster, on: []string{"fresh"}, want: "is not what SHA256SUMS says"},
		{name: "no package", env: "PREPARE=rm /packages/berth-agent_*;", args: toCluster, on: []string{"fresh"}, want: "there is no package file"},
		{name: "a full disk", env: "FREE=99999", args: toCluster, on: []string{"fresh"}, want: "MiB free"},
		{name: "dependencies", env: "BREAK=check", args: toCluster, on: []string{"fresh"}, want: "cannot be installed"},
		{name: "no way back", env: "PREPARE=rm /var/lib/berth/agent/updates/kept/*;", args: toCluster, on: []string{"member"}, want: "needed to go back to"},
		{name: "the package fails", env: "BREAK=install", args: toCluster, on: []string{"fresh", "removed", "managed"}, want: "could not install"},
		{name: "the package fails half way", env: "BREAK=half", args: toCluster, on: []string{"fresh", "removed", "managed"}, want: "could not install"},
		{name: "no GPUs", env: "BREAK=nvidia", args: append(slices.Clone(toCluster), "--enable-gpu"), on: []string{"fresh"}, want: "nvidia-smi does not work"},
		{name: "the join is refused", env: "BREAK=join", args: toJoin, on: []string{"fresh", "removed", "managed"}, want: "the token has expired"},
		{name: "the activation is refused", env: "BREAK=ssm", args: toAWS, want: "InvalidActivation"},
		{name: "the SSM agent does not start", env: "BREAK=start-amazon-ssm-agent.service", args: toAWS, want: "amazon-ssm-agent.service does not start"},
		{name: "cannot be enabled", env: "BREAK=enable-berth-agent.service", args: toCluster, want: "could not be enabled"},
		{name: "cannot be started", env: "BREAK=start-berth-agent.service", args: toCluster, on: []string{"fresh", "removed", "managed"}, want: "could not be started"},
		{name: "fails when it runs", env: "BREAK=failed connect", args: toCluster, want: "is not connected"},
		{name: "the network is away", env: "BREAK=connect", args: toCluster, want: "is not connected"},
		{name: "the network is away after the join", env: "BREAK=connect", args: toJoin, want: "is not connected"},
		{name: "the network is away after the registration", env: "BREAK=connect", args: toAWS, want: "deregister-managed-instance"},
	} {
		for on, prepare := range hosts {
			if len(c.on) > 0 && !slices.Contains(c.on, on) {
				continue
			}
			t.Run(c.name+"/"+on, func(t *testing.T) {
				t.Parallel()
				h := newHost(t, debian, append([]string{"nvidia-smi"}, debianTools...)...)
				more, isPrepare := strings.CutPrefix(c.env, "PREPARE=")
				if !isPrepare {
					h.env, more = append(h.env, c.env), ""
				}
				h.env = append(h.env, "PREPARE="+prepare+more)
				code, out := h.install(t, "", c.args...)
				if code != 1 || !strings.Contains(out, c.want) {
					t.Errorf("exit code %d, want 1 and %q:\n%s", code, c.want, out)
				}
				if strings.Contains(out, "could not undo") {
					t.Errorf("the script could not undo:\n%s", out)
				}
				h.unchanged(t)
			})
		}
	}
}

// TestInstallOnAFullDisk has each program that changes files fail once in turn.
func TestInstallOnAFullDisk(t *testing.T) {
	for _, c := range []struct {
		name, prepare string
		args          []string
	}{{"fresh, with a key", "", toCluster}, {"member, with a token", member, toJoin}, {"removed, with an activation", removed, toAWS}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for call := 1; ; call++ {
				h := newHost(t, debian, debianTools...)
				h.env = []string{"PREPARE=" + c.prepare, fmt.Sprintf("FAIL_CALL=%d", call)}
				code, out := h.install(t, "", c.args...)
				if code == 0 {
					if call < 3 {
						t.Errorf("only %d calls were counted", call-1)
					}
					return
				}
				if code != 1 || !strings.Contains(out, "No space left on device") {
					t.Fatalf("call %d: exit code %d:\n%s", call, code, out)
				}
				h.unchanged(t)
				if t.Failed() || call > 40 {
					t.Fatalf("call %d:\n%s", call, out)
				}
			}
		})
	}
	t.Run("what the shell writes", func(t *testing.T) {
		t.Parallel()
		h := newHost(t, debian, debianTools...)
		h.env = []string{"PREPARE=mkdir -p /etc/ecs; echo '# mine' > /etc/ecs/ecs.config; ln -s /dev/full /etc/ecs/ecs.config.new"}
		if code, out := h.install(t, "", toCluster...); code != 1 || !strings.Contains(out, "No space left on device") {
			t.Errorf("exit code %d:\n%s", code, out)
		}
		if got := read(t, filepath.Join(h.root, "etc/ecs/ecs.config")); got != "# mine\n" {
			t.Errorf("the settings are %q", got)
		}
	})
}
