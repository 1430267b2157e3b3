package tasks

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/system"
)

// mounts adds mount points to a container, each VOLUME:PATH or VOLUME:PATH:ro.
func mounts(c types.ContainerDefinition, points ...string) types.ContainerDefinition {
	for _, p := range points {
		part := strings.Split(p, ":")
		c.MountPoints = append(c.MountPoints, types.MountPoint{
			SourceVolume: &part[0], ContainerPath: &part[1], ReadOnly: aws.Bool(len(part) > 2),
		})
	}
	return c
}

// hostVolume is a volume of a path in the system's directory.
func hostVolume(l *lab, name, path string) types.Volume {
	return types.Volume{Name: &name, Host: &types.HostVolumeProperties{SourcePath: aws.String(filepath.Join(l.Dir, path))}}
}

func dockerVolume(name string, scope types.Scope, provision bool, options map[string]string) types.Volume {
	d := &types.DockerVolumeConfiguration{Scope: scope, DriverOpts: options, Labels: map[string]string{"made": "by a test"}}
	if scope == types.ScopeShared {
		d.Autoprovision = &provision
	}
	return types.Volume{Name: &name, DockerVolumeConfiguration: d}
}

// volumes makes a definition with volumes that may depend on the system.
func volumes(of func(l *lab) []types.Volume, cs ...types.ContainerDefinition) func(*lab) *ecs.RegisterTaskDefinitionInput {
	return func(l *lab) *ecs.RegisterTaskDefinitionInput {
		return task(func(in *ecs.RegisterTaskDefinitionInput) { in.Volumes = of(l) }, cs...)(l)
	}
}

// blockVolume configures a volume of 1 GiB.
func blockVolume(name string, kind types.TaskFilesystemType, gone bool) *types.TaskVolumeConfiguration {
	return &types.TaskVolumeConfiguration{Name: &name, ManagedEBSVolume: &types.TaskManagedEBSVolumeConfiguration{
		RoleArn: aws.String("arn:aws:iam::000000000000:role/ecsInfrastructureRole"), SizeInGiB: aws.Int32(1), FilesystemType: kind,
		TerminationPolicy: &types.TaskManagedEBSVolumeTerminationPolicy{DeleteOnTermination: &gone},
	}}
}

// atLaunch is a task whose container runs as a user that is not root and has a volume at
// /v that is configured at launch.
func atLaunch(name, script string) func(*lab) *ecs.RegisterTaskDefinitionInput {
	return volumes(func(*lab) []types.Volume { return []types.Volume{{Name: &name, ConfiguredAtLaunch: aws.Bool(true)}} },
		with(mounts(shell(script), name+":/v"), func(c *types.ContainerDefinition) { c.User = aws.String("1000:1000") }))
}

// attachmentOf checks the block volume of a task and returns its details.
func attachmentOf(t *testing.T, tk types.Task, status, deleted string) map[string]string {
	t.Helper()
	details := map[string]string{}
	if len(tk.Attachments) != 1 || aws.ToString(tk.Attachments[0].Type) != "AmazonElasticBlockStorage" || aws.ToString(tk.Attachments[0].Status) != status {
		t.Errorf("attachments %+v, want a block volume that is %s", tk.Attachments, status)
		return details
	}
	for _, d := range tk.Attachments[0].Details {
		details[*d.Name] = *d.Value
	}
	if details["volumeName"] != "data" || details["deleteOnTermination"] != deleted || details["roleArn"] == "" || !strings.HasPrefix(details["volumeId"], "vol-") {
		t.Errorf("details %v", details)
	}
	return details
}

// goneFromPool waits until a volume is no more.
func (l *lab) goneFromPool(t *testing.T, id string) {
	t.Helper()
	system.Until(t, time.Minute, "the volume is deleted", func() error {
		if _, err := os.Stat(filepath.Join(l.Dir, "volumes", "pool", id+".img")); !os.IsNotExist(err) {
			return fmt.Errorf("it is there (%v)", err)
		}
		return nil
	})
}

// volumeRows are about what tasks keep files in.
func volumeRows() []scenario {
	ok := exited(end{"main", 0, ""})
	const flags = `sed -n 's/.* \(\/v[a-z]*\) \([^ ]*\) .*/\1 \2/p' /proc/self/mountinfo | sed 's/,relatime//' | sort`
	missing := "ResourceInitializationError: volume none: initialize volume: volume detection failed, volume 'none' does not exist and autoprovision is set to false"
	refused := "ResourceInitializationError: volume kernel: /proc/sys shows the kernel and its devices; the operator of the host can allow it with BERTH_HOST_PATHS_ALLOWED"
	return []scenario{
		{
			name: "volume of the host", want: ok, output: []string{"/v rw,nosuid,nodev", "/vro ro,nosuid,nodev", "sh: can't create /vro/b: Read-only file system", "a"},
			define: volumes(func(l *lab) []types.Volume { return []types.Volume{hostVolume(l, "data", "made/for/a-task")} },
				mounts(shell("exec 2>&1; "+flags+"; echo a > /v/a; echo b > /vro/b; cat /vro/a"), "data:/v", "data:/vro:ro")),
			ended: func(t *testing.T, l *lab, _ types.Task) {
				if b, err := os.ReadFile(filepath.Join(l.Dir, "made/for/a-task/a")); err != nil || string(b) != "a\n" {
					t.Errorf("the file on the host: %q, %v", b, err)
				}
			},
		},
		{
			name: "volume of the task", want: exited(end{"main", 0, ""}, end{"writer", 0, ""}), output: []string{"from the writer", "sh: can't create /v/b: Read-only file system"},
			define: volumes(func(*lab) []types.Volume { return []types.Volume{{Name: aws.String("scratch")}} },
				with(shell("exec 2>&1; cat /v/a; echo b > /v/b; true"), func(c *types.ContainerDefinition) {
					c.VolumesFrom = []types.VolumeFrom{{SourceContainer: aws.String("writer"), ReadOnly: aws.Bool(true)}}
					c.DependsOn = []types.ContainerDependency{{ContainerName: aws.String("writer"), Condition: types.ContainerConditionSuccess}}
				}),
				with(mounts(named("writer", shell("echo from the writer > /v/a")), "scratch:/v"), func(c *types.ContainerDefinition) { c.Essential = aws.Bool(false) })),
		},
		{
			name: "volume filled from the image", want: ok, output: []string{"app:x:1000:1001::/home/app:/bin/sh", "1"},
			define: volumes(func(*lab) []types.Volume { return []types.Volume{{Name: aws.String("etc")}} },
				mounts(shell("grep ^app: /etc/passwd; echo new > /etc/new; ls /etc | grep -c new"), "etc:/etc")),
		},
		{
			name: "volume in memory", want: ok, output: []string{"/v rw,nosuid,nodev,noexec", "tmpfs", "1777 0", "No space left on device"},
			define: volumes(func(*lab) []types.Volume {
				return []types.Volume{dockerVolume("memory", types.ScopeTask, false, map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m,noexec"})}
			}, mounts(shell(flags+`; grep ' /v ' /proc/mounts | cut -d ' ' -f 3; stat -c '%a %u' /v; dd if=/dev/zero of=/v/x bs=65536 count=100 2>&1 | sed -n 's/.*: //p' | head -n 1`), "memory:/v")),
		},
		{
			name: "volume that tasks share", want: ok, output: []string{"kept"},
			define: volumes(func(*lab) []types.Volume {
				return []types.Volume{dockerVolume("kept", types.ScopeShared, true, nil)}
			}, mounts(shell("echo kept > /v/a; cat /v/a"), "kept:/v")),
			ended: func(t *testing.T, l *lab, _ types.Task) {
				again := l.On(t)
				arn := again.Run(again.Register(&ecs.RegisterTaskDefinitionInput{
					Family: aws.String("again"), ContainerDefinitions: []types.ContainerDefinition{mounts(shell("cat /v/a"), "kept:/v")},
					Volumes: []types.Volume{dockerVolume("kept", types.ScopeShared, false, nil)},
				}), 1)[0]
				l.prints(t, again.Wait("STOPPED", 30e9, arn)[0], []string{"kept"})
			},
		},
		{
			name: "block volume", want: ok, output: []string{"xfs rw,nosuid,nodev", "kept by the group"}, volume: blockVolume("data", "", true),
			define: atLaunch("data", `exec 2>&1; awk '$2 == "/v" {print $3, $4}' /proc/mounts | cut -d , -f 1-3; echo kept by the group > /v/a; cat /v/a`),
			ended: func(t *testing.T, l *lab, tk types.Task) {
				details := attachmentOf(t, tk, "DELETED", "true")
				l.goneFromPool(t, details["volumeId"])
			},
		},
		{
			name: "block volume that outlives its task", want: ok, output: []string{"ext4"}, volume: blockVolume("data", "ext4", false),
			define: atLaunch("data", `grep ' /v ' /proc/mounts | cut -d ' ' -f 3; echo kept > /v/a`),
			ended: func(t *testing.T, l *lab, tk types.Task) {
				id := attachmentOf(t, tk, "DETACHED", "false")["volumeId"]
				l.keptVolume(t, id)
			},
		},
		{
			name: "limited storage", want: exited(end{"main", 0, ""}, end{"neighbour", 0, ""}),
			output: []string{"layer: No space left on device", "volume: No space left on device", "app:x:1000:1001::/home/app:/bin/sh", `"Reserved":21504`},
			define: func(l *lab) *ecs.RegisterTaskDefinitionInput {
				fill := func(name, file string) string {
					return fmt.Sprintf(`fallocate -l 21474836480 %s 2>&1 | sed 's/.*: /%s: /'; rm -f %s; `, file, name, file)
				}
				return task(func(in *ecs.RegisterTaskDefinitionInput) {
					in.EphemeralStorage = &types.EphemeralStorage{SizeInGiB: 21}
					in.Volumes = []types.Volume{{Name: aws.String("scratch")}}
				}, with(mounts(shell(fill("layer", "/x")+fill("volume", "/v/x")+`grep ^app: /etc/passwd; wget -q -O - $ECS_CONTAINER_METADATA_URI_V4/task | grep -o '"Reserved":[0-9]*'`), "scratch:/v"), func(c *types.ContainerDefinition) {
					after("neighbour", healthy)(c)
					c.LogConfiguration = &types.LogConfiguration{LogDriver: types.LogDriverJsonFile, Options: map[string]string{"max-size": "2g"}} // which has its part
				}),
					runs("neighbour", "trap 'exit 0' TERM; while :; do echo x > /x || exit 1; sleep 0.05; done", checked(1, "CMD-SHELL", "test -s /x")))(l)
			},
		},
		{
			name: "volume that does not exist", want: neverStarted(missing, end{"main", noExit, ""}),
			define: volumes(func(*lab) []types.Volume {
				return []types.Volume{dockerVolume("none", types.ScopeShared, false, nil)}
			}, mounts(shell("true"), "none:/v")),
		},
		{
			name: "volume that is refused", want: neverStarted(refused, end{"main", noExit, ""}),
			define: volumes(func(*lab) []types.Volume {
				return []types.Volume{{Name: aws.String("kernel"), Host: &types.HostVolumeProperties{SourcePath: aws.String("/proc/sys")}}}
			}, mounts(shell("true"), "kernel:/v")),
		},
	}
}
