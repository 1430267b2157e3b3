package spec

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"berth.dev/berth/agent/task"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func ptr[T any](v T) *T { return &v }

// base is a task in bridge mode on a cgroup v1 host.
func base() Input {
	c := task.Container{Name: "web", Image: "my-image", Command: []string{"/serve"}, CPU: 256, Memory: 512}
	t := &task.Task{ARN: "arn:aws:ecs:us-east-1:000000000000:task/default/0123", NetworkMode: task.NetworkBridge, Containers: []task.Container{c}}
	return Input{
		Task: t, Container: &t.Containers[0], CgroupsPath: "/ecs/0123/abcd",
		Image: Image{Env: []string{"LANG=C"}},
		Network: Network{Namespace: "/run/netns/x", Hostname: "h1",
			Hosts: "/n/hosts", Resolv: "/n/resolv.conf", HostnameFile: "/n/hostname"},
		Host: Host{Arch: "amd64", SwapLimit: true, PidsLimit: 4096,
			// A host that withholds a capability, as virtual machines of some providers do.
			Capabilities: slices.DeleteFunc(slices.Clone(capabilitiesAll), func(c string) bool { return c == "CAP_SYS_RESOURCE" }),
			CPUs:         "0-1", Mems: "0", Rlimits: map[string]uint64{"RLIMIT_NOFILE": 20000},
			HasAppArmor: true, HasSELinux: true, Init: "/usr/bin/tini-static", Hold: "/usr/lib/berth/berth-pause"},
	}
}

func TestBuildGolden(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(*Input)
	}{
		{"default", func(*Input) {}},
		{"host-network", func(in *Input) { in.Task.NetworkMode, in.Network = task.NetworkHost, Network{Hostname: "node"} }},
		{"cgroup-v2", func(in *Input) { in.Host.CgroupV2 = true }},
		{"environment", func(in *Input) {
			in.Region = "us-east-1"
			in.Container.Environment = map[string]string{"LANG": "de", "B": "2", "A": "1=1"}
			in.Image.Env = []string{"LANG=C", "PATH=/bin", "X="}
		}},
		{"environment-replaced", func(in *Input) {
			in.Container.Environment = map[string]string{"GONE": "1"}
			in.Container.Config.Env = []string{"K=1", "K=2", "AWS_REGION=here"}
			in.Region = "us-east-1"
		}},
		{"privileged", func(in *Input) {
			in.Container.HostConfig.Privileged = true
			in.Host.AppArmor = "berth-default"
			in.Host.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}
		}},
		{"capabilities", func(in *Input) {
			in.Container.HostConfig.CapAdd = []string{"NET_ADMIN", "cap_sys_ptrace"}
			in.Container.HostConfig.CapDrop = []string{"MKNOD", "NET_RAW"}
		}},
		{"capabilities-none", func(in *Input) { in.Container.HostConfig.CapDrop = []string{"all"} }},
		{"memory", func(in *Input) {
			in.Container.HostConfig.MemoryReservation = 64 << 20
			in.Container.HostConfig.MemorySwap = -1
		}},
		{"memory-raised-to-minimum", func(in *Input) { in.Container.HostConfig.Memory = 1 << 20 }},
		{"shares-clamped", func(in *Input) { in.Container.CPU = 1 << 20; in.Container.Memory = 0 }},
		{"security-options", func(in *Input) {
			in.Host.AppArmor = "berth-default"
			in.Container.HostConfig.SecurityOpt = []string{"no-new-privileges", "seccomp=unconfined", "apparmor:mine", "label:disable"}
		}},
		{"ulimits-sysctls", func(in *Input) {
			in.Container.HostConfig.Ulimits = []task.Ulimit{{Name: "nofile", Soft: 1024, Hard: 4096}, {Name: "core", Soft: -1, Hard: -1}}
			in.Container.HostConfig.Sysctls = map[string]string{"net.core.somaxconn": "1024", "kernel.shmmax": "1"}
		}},
		{"files", func(in *Input) {
			hc := &in.Container.HostConfig
			hc.ReadonlyRootfs, hc.ShmSize, hc.Init = true, 1<<20, ptr(true)
			hc.Tmpfs = map[string]string{"/tmp": "size=1m,mode=1777", "/run": ""}
			in.Volumes = map[string]Volume{"data": {Path: "/srv/data"}}
			in.Container.Mounts = []task.Mount{{Volume: "data", Path: "/data", ReadOnly: true}}
		}},
		{"user-workdir-tty", func(in *Input) {
			in.User = User{UID: 1000, GID: 1001, AdditionalGIDs: []uint32{10}}
			in.Image.WorkingDir, in.Container.Config.Tty = "srv/../app", true
			in.Container.Config.Hostname, in.Container.Config.Domainname = "mine", "example.com"
		}},
		{"capabilities-all", func(in *Input) {
			in.Host.Capabilities = []string{"CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_KILL"}
			in.Container.HostConfig.CapAdd, in.Container.HostConfig.CapDrop = []string{"ALL"}, []string{"KILL"}
		}},
		{"capabilities-only", func(in *Input) {
			in.Container.HostConfig.CapAdd, in.Container.HostConfig.CapDrop = []string{"NET_BIND_SERVICE"}, []string{"ALL"}
		}},
		{"devices", func(in *Input) {
			in.Container.HostConfig.Devices = []task.Device{{PathOnHost: "/dev/fuse"}, {PathOnHost: "/dev/zero", PathInContainer: "/dev/null0"}}
			in.Devices = []Device{
				{Nodes: []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}, Access: "rwm"},
				{Nodes: []specs.LinuxDevice{{Path: "/dev/null0", Type: "c", Major: 1, Minor: 5}}, Access: "r"},
			}
		}},
		{"devices-of-privileged", func(in *Input) {
			in.Container.HostConfig.Privileged = true
			in.Host.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}
			in.Container.HostConfig.Devices = []task.Device{{PathOnHost: "/dev/zero", PathInContainer: "/dev/fuse"}}
			in.Devices = []Device{{Nodes: []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 1, Minor: 5}}, Access: "rw"}}
		}},
		{"entry-point", func(in *Input) {
			in.Image.Entrypoint, in.Image.Cmd = []string{"/image"}, []string{"image", "args"}
			in.Container.EntryPoint, in.Container.Command = &[]string{"/bin/sh", "-c"}, []string{"echo hello"}
		}},
		{"init", func(in *Input) { in.Container.HostConfig.Init = ptr(true) }},
		{"init-in-shared-pid", func(in *Input) {
			in.Container.HostConfig.Init, in.Task.PidMode = ptr(true), "task"
			in.Shared.PID = "/proc/17/ns/pid"
		}},
		{"interactive", func(in *Input) { in.Container.Config.OpenStdin = true }},
		{"interactive-tty", func(in *Input) { in.Container.Config.OpenStdin, in.Container.Config.Tty = true, true }},
		{"tmpfs", func(in *Input) {
			in.Container.HostConfig.Tmpfs = map[string]string{"/run/x": "size=16m,exec,mode=700,uid=5,defaults,ro", "/cache": ""}
		}},
		{"shm-size", func(in *Input) { in.Container.HostConfig.ShmSize = 8 << 20 }},
		{"swap-none", func(in *Input) { in.Container.HostConfig.MemorySwap = 512 << 20 }},
		{"swappiness", func(in *Input) {
			in.Container.HostConfig.MemorySwap, in.Container.HostConfig.MemorySwappiness = 1<<30, ptr(int64(60))
		}},
		{"swappiness-cgroup-v2", func(in *Input) {
			in.Host.CgroupV2 = true
			in.Container.HostConfig.MemorySwap, in.Container.HostConfig.MemorySwappiness = 1<<30, ptr(int64(60))
		}},
		{"oom", func(in *Input) {
			in.Container.HostConfig.OomKillDisable, in.Container.HostConfig.OomScoreAdj = true, 500
		}},
		{"cpu-quota", func(in *Input) { in.Container.HostConfig.CPUQuota, in.Container.HostConfig.CPUPeriod = 25000, 50000 }},
		{"cpu-nano", func(in *Input) { in.Container.HostConfig.NanoCPUs = 1_500_000_000 }},
		{"cpuset", func(in *Input) { in.Container.HostConfig.CpusetCpus, in.Container.HostConfig.CpusetMems = "0-1", "0" }},
		{"blkio-weight", func(in *Input) { in.Container.HostConfig.BlkioWeight = 300 }},
		{"pids-limit", func(in *Input) { in.Container.HostConfig.PidsLimit = 7 }},
		{"pids-unlimited", func(in *Input) { in.Container.HostConfig.PidsLimit = -1 }},
		{"namespaces-of-the-task", func(in *Input) {
			in.Task.PidMode, in.Task.IpcMode = "task", "task"
			in.Shared = Shared{PID: "/proc/17/ns/pid", IPC: "/proc/17/ns/ipc", Shm: "/run/berth/shm/0123"}
		}},
		{"ipc-none", func(in *Input) { in.Task.IpcMode = "none" }},
		{"namespaces-of-one-container", func(in *Input) {
			hc := &in.Container.HostConfig
			hc.PidMode, hc.IpcMode, hc.UTSMode, hc.CgroupnsMode = "host", "shareable", "host", "private"
		}},
		{"seccomp-named", func(in *Input) {
			in.Container.HostConfig.SecurityOpt = []string{"seccomp:strict"}
			in.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActKill}
		}},
		{"seccomp-unconfined", func(in *Input) { in.Container.HostConfig.SecurityOpt = []string{"seccomp:unconfined"} }},
		{"apparmor-default", func(in *Input) { in.Host.AppArmor = "berth-default" }},
		{"apparmor-unconfined", func(in *Input) {
			in.Host.AppArmor = "berth-default"
			in.Container.HostConfig.SecurityOpt = []string{"apparmor:unconfined"}
		}},
		{"selinux", func(in *Input) {
			in.Container.HostConfig.SecurityOpt = []string{"label:type:svirt_apache_t"}
			in.SELinux = SELinux{Process: "system_u:system_r:svirt_apache_t:s0:c1,c2", Mount: "system_u:object_r:container_file_t:s0:c1,c2"}
		}},
		{"no-new-privileges", func(in *Input) { in.Container.HostConfig.SecurityOpt = []string{"no-new-privileges:true"} }},
		{"arm64", func(in *Input) { in.Host.Arch = "arm64" }},
		{"namespaces-of-the-host", func(in *Input) { in.Task.PidMode, in.Task.IpcMode = "host", "host" }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := base()
			tc.edit(&in)
			s, err := Build(in)
			if err != nil {
				t.Fatal(err)
			}
			if s.Linux.Seccomp != nil && tc.name != "default" && tc.name != "arm64" {
				// The profile has a golden file; the others only show that there is one.
				s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: s.Linux.Seccomp.DefaultAction}
			}
			golden(t, tc.name, s)
		})
	}
}

func TestPauseGolden(t *testing.T) {
	s, err := Pause(base().Host, "/ecs/0123/pause")
	if err != nil {
		t.Fatal(err)
	}
	s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: s.Linux.Seccomp.DefaultAction}
	golden(t, "pause", s)
	if _, err := Pause(Host{Arch: "amd64"}, "/"); err == nil || !strings.Contains(err.Error(), "berth-pause") {
		t.Errorf("without the program: %v", err)
	}
}

func golden(t *testing.T, name string, v any) {
	t.Helper()
	got, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	file := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (run with -update if that is meant):\n%s", file, diff)
	}
}

func TestBuildRefuses(t *testing.T) {
	for _, tc := range []struct {
		name, field string
		edit        func(*Input)
	}{
		{"no command", "command", func(in *Input) { in.Container.Command = nil }},
		{"workdir in proc", "workingDirectory", func(in *Input) { in.Container.Config.WorkingDir = "/x/../proc/self/fd/7" }},
		{"image workdir in proc", "workingDirectory", func(in *Input) { in.Image.WorkingDir = "/proc/1/cwd" }},
		{"unknown capability", "capabilities.add", func(in *Input) { in.Container.HostConfig.CapAdd = []string{"FLY"} }},
		{"unknown ulimit", "ulimits", func(in *Input) { in.Container.HostConfig.Ulimits = []task.Ulimit{{Name: "wishes"}} }},
		{"soft above hard", "ulimits", func(in *Input) { in.Container.HostConfig.Ulimits = []task.Ulimit{{Name: "nofile", Soft: 2, Hard: 1}} }},
		{"host sysctl", "systemControls", func(in *Input) { in.Container.HostConfig.Sysctls = map[string]string{"kernel.core_pattern": "|/x"} }},
		{"net sysctl on host", "systemControls", func(in *Input) {
			in.Network = Network{}
			in.Container.HostConfig.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
		}},
		{"mount over proc", "mountPoints", func(in *Input) {
			in.Container.Mounts = []task.Mount{{Volume: "v", Path: "/proc/sys"}}
			in.Volumes = map[string]Volume{"v": {Path: "/v"}}
		}},
		{"unknown volume", "mountPoints", func(in *Input) { in.Container.Mounts = []task.Mount{{Volume: "v", Path: "/v"}} }},
		{"relative tmpfs", "tmpfs", func(in *Input) { in.Container.HostConfig.Tmpfs = map[string]string{"tmp": ""} }},
		{"security option", "dockerSecurityOptions", func(in *Input) { in.Container.HostConfig.SecurityOpt = []string{"open-sesame"} }},
		{"label", "dockerSecurityOptions", func(in *Input) { in.Container.HostConfig.SecurityOpt = []string{"label:x"} }},
		{"credential spec", "dockerSecurityOptions", func(in *Input) { in.Container.HostConfig.SecurityOpt = []string{"credentialspec:file://x"} }},
		{"no AppArmor", "no AppArmor", func(in *Input) {
			in.Host.HasAppArmor = false
			in.Container.HostConfig.SecurityOpt = []string{"apparmor:mine"}
		}},
		{"no SELinux", "no SELinux", func(in *Input) {
			in.Host.HasSELinux = false
			in.Container.HostConfig.SecurityOpt = []string{"label:type:x_t"}
		}},
		{"init missing", "initProcessEnabled", func(in *Input) { in.Host.Init, in.Container.HostConfig.Init = "", ptr(true) }},
		{"holder missing", "interactive", func(in *Input) { in.Host.Hold, in.Container.Config.OpenStdin = "", true }},
		{"capability that the host withholds", "cannot give SYS_RESOURCE", func(in *Input) { in.Container.HostConfig.CapAdd = []string{"SYS_RESOURCE"} }},
		{"ulimit that the host withholds", "at most 20000", func(in *Input) {
			in.Container.HostConfig.Ulimits = []task.Ulimit{{Name: "nofile", Soft: 1, Hard: 65536}}
		}},
		{"unlimited files", "ulimits", func(in *Input) { in.Container.HostConfig.Ulimits = []task.Ulimit{{Name: "nofile", Soft: 1, Hard: -1}} }},
		{"ulimit twice", "ulimits", func(in *Input) {
			in.Container.HostConfig.Ulimits = []task.Ulimit{{Name: "core"}, {Name: "CORE"}}
		}},
		{"cpuset out of range", "CpusetCpus: this host has no 7", func(in *Input) { in.Container.HostConfig.CpusetCpus = "0,7" }},
		{"cpuset of words", "CpusetCpus", func(in *Input) { in.Container.HostConfig.CpusetCpus = "all" }},
		{"cpuset backwards", "CpusetCpus", func(in *Input) { in.Container.HostConfig.CpusetCpus = "1-0" }},
		{"mems out of range", "CpusetMems", func(in *Input) { in.Container.HostConfig.CpusetMems = "3" }},
		{"tiny quota", "CpuQuota", func(in *Input) { in.Container.HostConfig.CPUQuota = 5 }},
		{"tiny period", "CpuPeriod", func(in *Input) { in.Container.HostConfig.CPUPeriod = 5 }},
		{"quota twice", "NanoCpus", func(in *Input) { in.Container.HostConfig.NanoCPUs, in.Container.HostConfig.CPUQuota = 1, 5000 }},
		{"weight", "blkioWeight", func(in *Input) { in.Container.HostConfig.BlkioWeight = 1 }},
		{"swappiness", "swappiness", func(in *Input) { in.Container.HostConfig.MemorySwappiness = ptr(int64(101)) }},
		{"oom score", "OomScoreAdj", func(in *Input) { in.Container.HostConfig.OomScoreAdj = 2000 }},
		{"oom score below zero", "OomScoreAdj", func(in *Input) { in.Container.HostConfig.OomScoreAdj = -1 }},
		{"oom killer with cgroup v2", "OomKillDisable", func(in *Input) { in.Host.CgroupV2, in.Container.HostConfig.OomKillDisable = true, true }},
		{"shm", "sharedMemorySize", func(in *Input) { in.Container.HostConfig.ShmSize = -1 }},
		{"bind as tmpfs", "tmpfs", func(in *Input) { in.Container.HostConfig.Tmpfs = map[string]string{"/t": "bind"} }},
		{"unknown tmpfs option", "tmpfs", func(in *Input) { in.Container.HostConfig.Tmpfs = map[string]string{"/t": "lowerdir=/"} }},
		{"tmpfs option without value", "tmpfs", func(in *Input) { in.Container.HostConfig.Tmpfs = map[string]string{"/t": "size"} }},
		{"device permissions", "devices", func(in *Input) {
			in.Container.HostConfig.Devices, in.Devices = []task.Device{{PathOnHost: "/dev/x"}}, []Device{{Access: "rx"}}
		}},
		{"device in proc", "devices", func(in *Input) {
			in.Container.HostConfig.Devices = []task.Device{{PathOnHost: "/dev/x"}}
			in.Devices = []Device{{Access: "r", Nodes: []specs.LinuxDevice{{Path: "/proc/x"}}}}
		}},
		{"pid mode", "pidMode", func(in *Input) { in.Container.HostConfig.PidMode = "container:x" }},
		{"ipc mode", "ipcMode", func(in *Input) { in.Container.HostConfig.IpcMode = "container:x" }},
		{"shared pid is not there", "pidMode", func(in *Input) { in.Task.PidMode = "task" }},
		{"uts mode", "UTSMode", func(in *Input) { in.Container.HostConfig.UTSMode = "x" }},
		{"cgroup namespace", "CgroupnsMode", func(in *Input) { in.Container.HostConfig.CgroupnsMode = "x" }},
		{"ipc sysctl on host", "systemControls", func(in *Input) {
			in.Task.IpcMode, in.Container.HostConfig.Sysctls = "host", map[string]string{"kernel.sem": "1"}
		}},
		{"sysctl with a path", "systemControls", func(in *Input) { in.Container.HostConfig.Sysctls = map[string]string{"net/../kernel/panic": "1"} }},
		{"reservation above limit", "memoryReservation", func(in *Input) { in.Container.HostConfig.MemoryReservation = 1 << 40 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := base()
			tc.edit(&in)
			_, err := Build(in)
			if err == nil || !strings.Contains(err.Error(), tc.field) || task.ClassOf(err) != task.Invalid {
				t.Errorf("got %v (class %q), want an invalid error naming %s", err, task.ClassOf(err), tc.field)
			}
		})
	}
}

func TestCommand(t *testing.T) {
	for _, tc := range []struct {
		name               string
		imageEntry, imgCmd []string
		entry              *[]string
		cmd, want          []string
	}{
		{"image only", []string{"e"}, []string{"c"}, nil, nil, []string{"e", "c"}},
		{"command replaces", []string{"e"}, []string{"c"}, nil, []string{"x"}, []string{"e", "x"}},
		{"entry point drops the image's command", []string{"e"}, []string{"c"}, &[]string{"n"}, nil, []string{"n"}},
		{"both", []string{"e"}, []string{"c"}, &[]string{"n"}, []string{"x"}, []string{"n", "x"}},
		{"empty entry point clears", []string{"e"}, []string{"c"}, &[]string{}, nil, []string{"c"}},
		{"empty entry point with command", []string{"e"}, []string{"c"}, &[]string{}, []string{"x"}, []string{"x"}},
	} {
		in := base()
		in.Image.Entrypoint, in.Image.Cmd = tc.imageEntry, tc.imgCmd
		in.Container.EntryPoint, in.Container.Command = tc.entry, tc.cmd
		got, err := command(in)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
	}
}

func TestStopSignal(t *testing.T) {
	for _, tc := range []struct {
		configured, image string
		want              syscall.Signal
	}{
		{"", "", syscall.SIGTERM}, {"", "SIGQUIT", syscall.SIGQUIT}, {"INT", "SIGQUIT", syscall.SIGINT},
		{"9", "", syscall.SIGKILL}, {"SIGRTMIN+3", "", 37}, {"rtmax-1", "", 63},
		{"0", "", 0}, {"65", "", 0}, {"SIGFOO", "", 0}, {"SIGRTMIN+99", "", 0}, {"RTMINx", "", 0},
	} {
		got, err := StopSignal(tc.configured, tc.image)
		if got != tc.want || (err != nil) != (tc.want == 0) {
			t.Errorf("%q, %q: got %d, %v", tc.configured, tc.image, got, err)
		}
	}
}

func FuzzSpec(f *testing.F) {
	f.Add([]byte(`{"command":["x"],"hostConfig":{"CapAdd":["NET_ADMIN"],"Sysctls":{"net.a":"b"}}}`), []byte(`{"WorkingDir":"/w"}`))
	f.Add([]byte(`{"hostConfig":{"Tmpfs":{"/a":"b"},"SecurityOpt":["seccomp=unconfined"],"Ulimits":[{"Name":"core"}]}}`), []byte(`{"Cmd":["c"]}`))
	f.Fuzz(func(t *testing.T, container, image []byte) {
		in := base()
		var c task.Container
		if json.Unmarshal(container, &c) != nil || json.Unmarshal(image, &in.Image) != nil {
			return
		}
		in.Container = &c
		s, err := Build(in)
		if err != nil {
			return
		}
		if len(s.Process.Args) == 0 || !filepath.IsAbs(s.Process.Cwd) || CheckWorkdir(s.Process.Cwd) != nil {
			t.Fatalf("args %q cwd %q", s.Process.Args, s.Process.Cwd)
		}
		if c.HostConfig.Privileged {
			return
		}
		if !slices.Equal(s.Linux.MaskedPaths, maskedPaths) || !slices.Equal(s.Linux.ReadonlyPaths, readonlyPaths) {
			t.Fatal("paths are not protected")
		}
		asked, _ := capabilityNames("", c.HostConfig.CapAdd)
		for _, have := range s.Process.Capabilities.Bounding {
			if !slices.Contains(capabilitiesDefault, have) && !slices.Contains(asked, have) && !slices.Contains(asked, "ALL") {
				t.Fatalf("capability %s was not asked for", have)
			}
		}
		if s.Process.Capabilities.Ambient != nil || s.Process.Capabilities.Inheritable != nil || s.Linux.Resources.Devices[0].Allow || len(s.Linux.Devices) > 0 {
			t.Fatal("more than was asked for")
		}
		for _, m := range s.Mounts {
			if m.Type == "bind" && !slices.Contains([]string{"/n/hosts", "/n/resolv.conf", "/n/hostname"}, m.Source) {
				t.Fatalf("mount of %s", m.Source)
			}
		}
	})
}
