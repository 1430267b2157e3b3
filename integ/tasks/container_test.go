package tasks

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/system"
	"berth.dev/berth/integ/testimage"
)

// linux is a shell container with linuxParameters.
func linux(script string, p types.LinuxParameters) types.ContainerDefinition {
	return with(shell(script), func(c *types.ContainerDefinition) { c.LinuxParameters = &p })
}

// secured is a shell container with security options.
func secured(script string, options ...string) types.ContainerDefinition {
	return with(shell(script), func(c *types.ContainerDefinition) { c.DockerSecurityOptions = options })
}

// ofStatus prints one line of a process's own status.
func ofStatus(name string) string {
	return "while read -r k v; do [ $k = " + name + ": ] && echo $v; done < /proc/self/status; true"
}

// capabilities that this machine can give, as /proc shows them.
func hostCapabilities() string {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func caps(add, drop []string) types.LinuxParameters {
	return types.LinuxParameters{Capabilities: &types.KernelCapabilities{Add: add, Drop: drop}}
}

// containers are about the settings of one container, as a program in it sees them.
func containers() []scenario {
	ok := exited(end{"main", 0, ""})
	return []scenario{
		{name: "user by number alone", want: ok, output: []string{"uid=1000(app) gid=1001(app) groups=1001(app),2000(extra)"},
			define: task(nil, with(container("id"), func(c *types.ContainerDefinition) { c.User = aws.String("1000") }))},
		{name: "user with a group by name", want: ok, output: []string{"uid=1000(app) gid=2000(extra) groups=2000(extra)"},
			define: task(nil, with(container("id"), func(c *types.ContainerDefinition) { c.User = aws.String("app:extra") }))},
		{name: "working directory that has to be made", want: ok, output: []string{"/var/lib/new"},
			define: task(nil, with(container("pwd"), func(c *types.ContainerDefinition) { c.WorkingDirectory = aws.String("/var/lib/new") }))},
		{name: "working directory in a read-only root", want: ok, output: []string{"/not/there"},
			define: task(nil, with(container("pwd"), func(c *types.ContainerDefinition) {
				c.WorkingDirectory, c.ReadonlyRootFilesystem = aws.String("/not/there"), aws.Bool(true)
			}))},
		{name: "hostname", want: ok, output: []string{"my-host", "my-host", "my-host"},
			define: task(nil, with(shell("hostname; cat /etc/hostname; echo $HOSTNAME"), func(c *types.ContainerDefinition) { c.Hostname = aws.String("my-host") }))},
		{name: "name servers", want: ok, output: []string{"nameserver 192.0.2.53", "nameserver 192.0.2.54", "search corp.example lab.example"},
			define: task(nil, with(shell("cat /etc/resolv.conf"), func(c *types.ContainerDefinition) {
				c.DnsServers, c.DnsSearchDomains = []string{"192.0.2.53", "192.0.2.54"}, []string{"corp.example", "lab.example"}
			}))},
		{name: "extra hosts", want: ok, output: []string{"192.0.2.7\tdatabase", "192.0.2.8\tcache"},
			define: task(nil, with(shell("tail -n 2 /etc/hosts"), func(c *types.ContainerDefinition) {
				c.ExtraHosts = []types.HostEntry{
					{Hostname: aws.String("database"), IpAddress: aws.String("192.0.2.7")}, {Hostname: aws.String("cache"), IpAddress: aws.String("192.0.2.8")},
				}
			}))},
		{name: "without a network", want: ok, output: []string{"lo"},
			define: task(nil, with(shell("ls /sys/class/net"), func(c *types.ContainerDefinition) { c.DisableNetworking = aws.Bool(true) }))},
		{name: "region", want: ok, output: []string{"us-east-1 us-east-1"},
			define: task(nil, shell("echo $AWS_REGION $AWS_DEFAULT_REGION"))},
		{name: "region of its own", want: ok, output: []string{"eu-west-1 ."},
			define: task(nil, with(shell("echo $AWS_REGION .$AWS_DEFAULT_REGION"), func(c *types.ContainerDefinition) {
				c.Environment = []types.KeyValuePair{{Name: aws.String("AWS_REGION"), Value: aws.String("eu-west-1")}}
			}))},
		{name: "core limit", want: ok, output: []string{"0", "unlimited"},
			define: task(nil, with(shell("ulimit -Sc; ulimit -Hc"), func(c *types.ContainerDefinition) {
				c.Ulimits = []types.Ulimit{{Name: types.UlimitNameCore, SoftLimit: 0, HardLimit: -1}}
			}))},
		{name: "standard input is empty", want: ok, output: []string{"over"}, define: task(nil, shell("cat; echo over"))},
		{
			name: "interactive", want: stopped(end{"main", 137, ""}),
			define: task(nil, with(shell("echo ready; cat; echo over"), func(c *types.ContainerDefinition) { c.Interactive, c.StopTimeout = aws.Bool(true), aws.Int32(2) })),
			running: func(t *testing.T, l *lab, tk types.Task) {
				l.printed(t, tk, "main", "ready")
				l.stays(t, tk)
			},
		},
		{
			name: "terminal", want: ok, output: []string{"a terminal\r", "xterm\r"},
			define: task(nil, with(shell("test -t 0 && test -t 1 && test -t 2 && echo a terminal; echo $TERM"), func(c *types.ContainerDefinition) { c.PseudoTerminal = aws.Bool(true) })),
		},
		{
			name: "interactive terminal", want: stopped(end{"main", 137, ""}),
			define: task(nil, with(container("sh"), func(c *types.ContainerDefinition) {
				c.Interactive, c.PseudoTerminal, c.StopTimeout = aws.Bool(true), aws.Bool(true), aws.Int32(2)
			})),
			running: func(t *testing.T, l *lab, tk types.Task) { l.stays(t, tk) },
		},
		{
			name: "runtime by name", want: ok, output: []string{"hello"},
			define: task(nil, with(container("echo", "hello"), func(c *types.ContainerDefinition) { c.DockerLabels = map[string]string{"berth.runtime": "runc"} })),
		},
	}
}

// stays waits a moment and checks that the task still runs.
func (l *lab) stays(t *testing.T, tk types.Task) {
	t.Helper()
	<-time.After(500 * time.Millisecond)
	if now := l.On(t).Describe(*tk.TaskArn)[0]; aws.ToString(now.LastStatus) != "RUNNING" {
		t.Errorf("the task is %s", system.Explain(now))
	}
}

// kernels are about linuxParameters, security options and system controls.
func kernels() []scenario {
	ok := exited(end{"main", 0, ""})
	const defaults = "00000000a80425fb" // the 14 capabilities
	return []scenario{
		{name: "capabilities by default", want: ok, output: []string{defaults}, define: task(nil, shell(ofStatus("CapEff")))},
		{name: "capability added", want: ok, output: []string{"00000000a80435fb"}, define: task(nil, linux(ofStatus("CapEff"), caps([]string{"NET_ADMIN"}, nil)))},
		{name: "capability dropped", want: ok, output: []string{"00000000a80405fb"}, define: task(nil, linux(ofStatus("CapBnd"), caps(nil, []string{"NET_RAW"})))},
		{name: "no capability", want: ok, output: []string{"0000000000000000"}, define: task(nil, linux(ofStatus("CapEff"), caps(nil, []string{"ALL"})))},
		{name: "one capability", want: ok, output: []string{"0000000000000400"},
			define: task(nil, linux(ofStatus("CapEff"), caps([]string{"NET_BIND_SERVICE"}, []string{"ALL"})))},
		{name: "all capabilities", want: ok, output: []string{hostCapabilities()}, define: task(nil, linux(ofStatus("CapEff"), caps([]string{"ALL"}, nil)))},
		{name: "privileged", want: ok, output: []string{hostCapabilities(), "0", "/dev/net/tun"},
			define: task(nil, with(shell(ofStatus("CapEff")+";"+ofStatus("Seccomp")+"; ls /dev/net/tun; : > /proc/sys/net/core/somaxconn"), func(c *types.ContainerDefinition) { c.Privileged = aws.Bool(true) }))},
		{name: "device", want: ok, output: []string{"crw-rw-rw-", "3"},
			define: task(nil, linux("ls -l /dev/nought | head -c 10; echo; head -c 3 /dev/nought | wc -c", types.LinuxParameters{
				Devices: []types.Device{{HostPath: aws.String("/dev/zero"), ContainerPath: aws.String("/dev/nought")}},
			}))},
		{name: "device to read only", want: exited(end{"main", 1, ""}), output: []string{"sh: can't create /dev/control: Operation not permitted"},
			define: task(nil, linux(": < /dev/control; : > /dev/control", types.LinuxParameters{
				Devices: []types.Device{{HostPath: aws.String("/dev/loop-control"), ContainerPath: aws.String("/dev/control"), Permissions: []types.DeviceCgroupPermission{types.DeviceCgroupPermissionRead}}},
			}))},
		{name: "GPU", want: ok, output: []string{"GPU-a example", "3"},
			define: task(nil, with(shell("echo $NVIDIA_VISIBLE_DEVICES $DRIVER; head -c 3 /dev/gpu | wc -c"), func(c *types.ContainerDefinition) {
				c.ResourceRequirements = []types.ResourceRequirement{{Type: types.ResourceTypeGpu, Value: aws.String("1")}}
			}))},
		{name: "no device of the host", want: ok, output: []string{"0"}, define: task(nil, shell("ls -d /dev/net /dev/loop* /dev/kvm 2>/dev/null | wc -l"))},
		{name: "init process", want: ok, output: []string{"init", "sh"},
			define: task(nil, linux("cat /proc/1/comm /proc/$$/comm; true", types.LinuxParameters{InitProcessEnabled: aws.Bool(true)}))},
		{name: "init process hands on signals", want: stopped(end{"main", 4, ""}),
			define:  task(nil, linux(waits(4), types.LinuxParameters{InitProcessEnabled: aws.Bool(true)})),
			running: func(t *testing.T, l *lab, tk types.Task) { l.printed(t, tk, "main", "ready") }},
		{name: "tmpfs", want: ok, output: []string{"1024", "drwx------"},
			define: task(nil, linux("df -k /scratch | while read -r _ n _; do s=$n; done; df -k /scratch | tail -n 1 | (read -r _ n _; echo $n); ls -ld /scratch | head -c 10; echo; touch /scratch/x", types.LinuxParameters{
				Tmpfs: []types.Tmpfs{{ContainerPath: aws.String("/scratch"), Size: 1, MountOptions: []string{"mode=700", "exec"}}},
			}))},
		{name: "shared memory", want: ok, output: []string{"2048"},
			define: task(nil, linux("df -k /dev/shm | tail -n 1 | (read -r _ n _; echo $n)", types.LinuxParameters{SharedMemorySize: aws.Int32(2)}))},
		{name: "shared memory by default", want: ok, output: []string{"65536"},
			define: task(nil, shell("df -k /dev/shm | tail -n 1 | (read -r _ n _; echo $n)"))},
		{name: "system controls", want: ok, output: []string{"123", "4096"},
			define: task(nil, with(shell("cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax"), func(c *types.ContainerDefinition) {
				c.SystemControls = []types.SystemControl{
					{Namespace: aws.String("net.core.somaxconn"), Value: aws.String("123")}, {Namespace: aws.String("kernel.msgmax"), Value: aws.String("4096")},
				}
			}))},
		{name: "no new privileges", want: ok, output: []string{"1"}, define: task(nil, secured(ofStatus("NoNewPrivs"), "no-new-privileges"))},
		{name: "seccomp by default", want: ok, output: []string{"2"}, define: task(nil, shell(ofStatus("Seccomp")))},
		{name: "seccomp unconfined", want: ok, output: []string{"0"}, define: task(nil, secured(ofStatus("Seccomp"), "seccomp:unconfined"))},
		{name: "seccomp profile of its own", want: exited(end{"main", 1, ""}), output: []string{"mkdir: can't create directory '/x': Operation not permitted"},
			define: task(nil, secured("mkdir /x", `seccomp:{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`))},
		{name: "seccomp profile by name", want: exited(end{"main", 1, ""}), output: []string{"mkdir: can't create directory '/x': Operation not permitted"},
			define: task(nil, secured("mkdir /x", "seccomp:nodirs"))},
		{name: "paths of the kernel", want: ok, output: []string{"0", "read-only", "0"},
			define: task(nil, shell("cat /proc/keys | wc -c; (: > /proc/sys/kernel/msgmax) 2>/dev/null || echo read-only; ls /sys/firmware | wc -l"))},
		{name: "read-only root with a tmpfs", want: ok, output: []string{"written"},
			define: task(nil, with(linux("echo written > /scratch/x; cat /scratch/x", types.LinuxParameters{
				Tmpfs: []types.Tmpfs{{ContainerPath: aws.String("/scratch"), Size: 1}},
			}), func(c *types.ContainerDefinition) { c.ReadonlyRootFilesystem = aws.Bool(true) }))},
		{
			name: "swap", want: stopped(end{"main", 0, ""}),
			define: task(nil, with(linux(waits(0), types.LinuxParameters{MaxSwap: aws.Int32(16), Swappiness: aws.Int32(70)}), func(c *types.ContainerDefinition) { c.Memory = aws.Int32(32) })),
			running: func(t *testing.T, l *lab, tk types.Task) {
				l.printed(t, tk, "main", "ready")
				dir := filepath.Join(taskID(tk), *tk.Containers[0].RuntimeId)
				l.cgroupFile(t, "memory", dir, "memory.memsw.limit_in_bytes", mib(48))
				l.cgroupFile(t, "memory", dir, "memory.swappiness", "70")
			},
		},
		{
			name: "no swap", want: stopped(end{"main", 0, ""}),
			define: task(nil, linux(waits(0), types.LinuxParameters{MaxSwap: aws.Int32(0)})),
			running: func(t *testing.T, l *lab, tk types.Task) {
				l.printed(t, tk, "main", "ready")
				l.cgroupFile(t, "memory", filepath.Join(taskID(tk), *tk.Containers[0].RuntimeId), "memory.memsw.limit_in_bytes", mib(32))
			},
		},
		{
			name: "no CPU units", want: stopped(end{"main", 0, ""}), define: task(nil, shell(waits(0))),
			running: func(t *testing.T, l *lab, tk types.Task) {
				l.printed(t, tk, "main", "ready")
				l.cgroupFile(t, "cpu", filepath.Join(taskID(tk), *tk.Containers[0].RuntimeId), "cpu.shares", "2")
			},
		},
		{name: "processes of the host", want: ok, output: []string{namespaceOf("pid")},
			define: task(func(in *ecs.RegisterTaskDefinitionInput) { in.PidMode = types.PidModeHost }, shell("readlink /proc/self/ns/pid"))},
		{name: "memory of the host", want: ok, output: []string{namespaceOf("ipc")},
			define: task(func(in *ecs.RegisterTaskDefinitionInput) { in.IpcMode = types.IpcModeHost }, shell("readlink /proc/self/ns/ipc"))},
		{
			name: "processes of the task", want: exited(end{"main", 0, ""}, end{"second", 143, ""}), output: []string{"berth-pause", "true"},
			define: task(func(in *ecs.RegisterTaskDefinitionInput) { in.PidMode = types.PidModeTask },
				with(shell("cat /proc/1/comm; while :; do for p in /proc/[0-9]*; do [ \"$(cat $p/cmdline 2>/dev/null)\" = sleep1234 ] && echo true && exit 0; done; sleep 0.05; done"), func(c *types.ContainerDefinition) {
					c.DependsOn = []types.ContainerDependency{{ContainerName: aws.String("second"), Condition: types.ContainerConditionStart}}
				}),
				with(named("second", container("sleep", "1234")), func(c *types.ContainerDefinition) { c.StopTimeout = aws.Int32(2) })),
		},
		{
			name: "memory of the task", want: exited(end{"main", 0, ""}, end{"second", 0, ""}), output: []string{"hello from the second"},
			define: task(func(in *ecs.RegisterTaskDefinitionInput) { in.IpcMode = types.IpcModeTask },
				with(shell("while ! cat /dev/shm/word 2>/dev/null; do sleep 0.05; done"), func(c *types.ContainerDefinition) {
					c.DependsOn = []types.ContainerDependency{{ContainerName: aws.String("second"), Condition: types.ContainerConditionStart}}
				}),
				named("second", shell("trap 'exit 0' TERM; echo hello from the second > /dev/shm/word.new; mv /dev/shm/word.new /dev/shm/word; "+loop))),
		},
		{name: "no shared memory", want: ok, output: []string{"0"},
			define: task(func(in *ecs.RegisterTaskDefinitionInput) { in.IpcMode = types.IpcModeNone }, shell("cat /proc/mounts | while read -r _ at _; do echo $at; done | while read -r at; do [ $at = /dev/shm ] && echo $at; done | wc -l"))},
	}
}

// namespaceOf names a namespace of this machine as a link in /proc shows it.
func namespaceOf(kind string) string {
	s, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		return fmt.Sprint(err)
	}
	return s
}

// refused is a row of a task that cannot be created or started, for the reason.
func refused(name, reason string, c types.ContainerDefinition) scenario {
	return scenario{name: name, define: task(nil, c), want: neverStarted(reason, end{"main", noExit, reason})}
}

// oddBox is an image with programs that cannot be executed.
func oddBox(command ...string) func(*lab) *ecs.RegisterTaskDefinitionInput {
	return func(l *lab) *ecs.RegisterTaskDefinitionInput {
		base, err := testimage.BusyboxLayer()
		if err != nil {
			panic(err) // the scenario cannot be defined
		}
		odd, err := testimage.Layer(map[string]testimage.File{
			"bin/words": {Data: []byte("just words\n")}, "bin/secret": {Data: []byte("x"), Mode: 0o600},
			"bin/foreign": {Data: []byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xff\x7f")},
		})
		if err != nil {
			panic(err)
		}
		img, err := testimage.Image(testimage.Config{Env: []string{"PATH=/bin"}, StopSignal: "SIGQUIT"}, base, odd)
		if err == nil {
			_, err = l.registry.Push("team/odd:v1", img)
		}
		if err != nil {
			panic(err)
		}
		return &ecs.RegisterTaskDefinitionInput{ContainerDefinitions: []types.ContainerDefinition{
			with(container(command...), func(c *types.ContainerDefinition) { c.Image = aws.String(l.registry.Host + "/team/odd:v1") }),
		}}
	}
}

// refusals are definitions that the API takes and a host cannot carry out.
func refusals() []scenario {
	const (
		start  = "CannotStartContainerError: "
		create = "CannotCreateContainerError: "
	)
	odd := func(name, reason string, command ...string) scenario {
		return scenario{name: name, define: oddBox(command...), want: neverStarted(reason, end{"main", noExit, reason})}
	}
	system := func(key, value string) types.ContainerDefinition {
		return with(shell("true"), func(c *types.ContainerDefinition) {
			c.SystemControls = []types.SystemControl{{Namespace: aws.String(key), Value: aws.String(value)}}
		})
	}
	const (
		program = ": correct command or entryPoint, or use an image that has the program"
		execute = ": name a program that the container's user may execute"
		persons = ": name a user and group of the image, or give their numbers"
		control = ": correct systemControls: the kernel of this host does not have the setting, or refuses the value"
		options = create + "dockerSecurityOptions: "
	)
	// As with Docker, what cannot be executed at all has started, and ends at once.
	words := func(name, program string) scenario {
		return scenario{name: name, define: oddBox(program), want: exited(end{"main", 1, ""}), output: []string{"exec " + program + ": exec format error"}}
	}
	return []scenario{
		refused("program that is not on the path", start+`exec: "no-such-program": executable file not found in $PATH`+program, container("no-such-program")),
		refused("program that is a directory", start+`exec: "/tmp": permission denied`+execute, container("/tmp")),
		refused("program that is not executable", start+`exec: "/etc/passwd": permission denied`+execute, container("/etc/passwd")),
		odd("program that the user may not execute", start+`exec: "/bin/secret": permission denied`+execute, "/bin/secret"),
		words("program that is only words", "/bin/words"),
		words("program of another processor", "/bin/foreign"),
		odd("no command at all", create+"no command specified: set command or entryPoint, or use an image that has one"),
		refused("group that is not there", start+"user: unable to find user app:nogroup: unable to find group nogroup: no matching entries in group file"+persons,
			with(container("id"), func(c *types.ContainerDefinition) { c.User = aws.String("app:nogroup") })),
		refused("user out of range", start+`user: unable to find user 4294967296: "4294967296" is not an id between 0 and 2147483647`+persons,
			with(container("id"), func(c *types.ContainerDefinition) { c.User = aws.String("4294967296") })),
		refused("working directory in proc", create+"workingDirectory: /proc/self is not allowed",
			with(container("pwd"), func(c *types.ContainerDefinition) { c.WorkingDirectory = aws.String("/proc/self") })),
		refused("device that is not there", create+"devices: this host has no /dev/no-such-device: correct hostPath, or place the task on an instance that has the device",
			linux("true", types.LinuxParameters{Devices: []types.Device{{HostPath: aws.String("/dev/no-such-device")}}})),
		refused("device that is a file", create+"devices: /etc/passwd is not a device: mount it as a volume instead",
			linux("true", types.LinuxParameters{Devices: []types.Device{{HostPath: aws.String("/etc/passwd")}}})),
		refused("system control that is not there", start+"open /proc/sys/net/no/such: no such file or directory"+control, system("net.no.such", "1")),
		refused("system control with a bad value", start+"write /proc/sys/net/core/somaxconn: invalid argument"+control, system("net.core.somaxconn", "many")),
		refused("ulimit too high", tooManyFiles(2000000000), with(shell("true"), func(c *types.ContainerDefinition) {
			c.Ulimits = []types.Ulimit{{Name: types.UlimitNameNofile, SoftLimit: 1024, HardLimit: 2000000000}}
		})),
		refused("seccomp profile that is not there", options+`this host has no seccomp profile "none-such": install it as none-such.json in the directory of BERTH_SECCOMP_DIR, or remove the option`,
			secured("true", "seccomp:none-such")),
		refused("seccomp profile by a path", options+`seccomp profile "/etc/passwd": give the name of a profile, not a path; profiles are installed in the directory of BERTH_SECCOMP_DIR`,
			secured("true", "seccomp:/etc/passwd")),
		refused("seccomp profile that is none", options+`seccomp profile "{}": it has neither a default action nor system calls`, secured("true", "seccomp:{}")),
	}
}

// tooManyFiles is why this machine refuses a limit of open files: it withholds the
// capability to raise its own, or the kernel has a limit for everybody.
func tooManyFiles(n int64) string {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return err.Error()
	}
	const sysResource = 1 << 24
	if caps, err := strconv.ParseUint(hostCapabilities(), 16, 64); err == nil && caps&sysResource == 0 {
		return fmt.Sprintf("CannotCreateContainerError: ulimits: the hard limit of nofile can be at most %d on this host, not %d", l.Max, n)
	}
	return "CannotStartContainerError: ulimits: this host does not let the agent raise nofile so far (operation not permitted): ask for less"
}
