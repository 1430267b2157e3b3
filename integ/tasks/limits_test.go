package tasks

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// limits are about what the kernel is told of a task.
func limits() []scenario {
	return []scenario{
		{
			name: "limits of a container", want: stopped(end{"main", 0, ""}),
			define: task(nil, with(shell(waits(0)), func(c *types.ContainerDefinition) {
				c.Cpu, c.Memory, c.MemoryReservation = 256, aws.Int32(128), aws.Int32(64)
				c.Ulimits = []types.Ulimit{{Name: types.UlimitNameNofile, SoftLimit: 100, HardLimit: 200}}
			})),
			running: func(t *testing.T, l *lab, tk types.Task) {
				l.printed(t, tk, "main", "ready")
				dir := filepath.Join(filepath.Base(*tk.TaskArn), *tk.Containers[0].RuntimeId)
				l.cgroupFile(t, "cpu", dir, "cpu.shares", "256")
				l.cgroupFile(t, "memory", dir, "memory.limit_in_bytes", mib(128))
				l.cgroupFile(t, "memory", dir, "memory.soft_limit_in_bytes", mib(64))
				l.cgroupFile(t, "cpu", filepath.Dir(dir), "cpu.shares", "256")
				l.cgroupFile(t, "pids", dir, "pids.max", "4096") // reliability rules, "Defaults"
			},
		},
		{
			name: "limits of open files", want: exited(end{"main", 0, ""}), output: []string{"100", "200"},
			define: task(nil, with(shell("ulimit -Sn; ulimit -Hn"), func(c *types.ContainerDefinition) {
				c.Ulimits = []types.Ulimit{{Name: types.UlimitNameNofile, SoftLimit: 100, HardLimit: 200}}
			})),
		},
		{
			name: "limits of a task", want: stopped(end{"main", 0, ""}, end{"second", 0, ""}),
			define: task(func(in *ecs.RegisterTaskDefinitionInput) {
				in.Cpu, in.Memory = aws.String("512"), aws.String("256")
			}, with(shell(waits(0)), func(c *types.ContainerDefinition) { c.Memory = nil }), named("second", shell(waits(0)))),
			running: func(t *testing.T, l *lab, tk types.Task) {
				l.printed(t, tk, "main", "ready")
				l.printed(t, tk, "second", "ready")
				dir := filepath.Base(*tk.TaskArn)
				l.cgroupFile(t, "cpu", dir, "cpu.cfs_period_us", "100000")
				l.cgroupFile(t, "cpu", dir, "cpu.cfs_quota_us", "50000")
				l.cgroupFile(t, "memory", dir, "memory.limit_in_bytes", mib(256))
				for _, c := range tk.Containers {
					if *c.Name == "second" {
						l.cgroupFile(t, "memory", filepath.Join(dir, *c.RuntimeId), "memory.limit_in_bytes", mib(32))
					}
				}
				if got := aws.ToString(tk.Cpu) + " " + aws.ToString(tk.Memory); got != "512 256" {
					t.Errorf("cpu and memory of the task are shown as %q", got)
				}
			},
		},
		{
			name: "task without memory", want: exited(end{"main", 137, "OutOfMemoryError: Container killed due to memory usage"}),
			define: task(func(in *ecs.RegisterTaskDefinitionInput) {
				in.Cpu, in.Memory = aws.String("256"), aws.String("16")
			}, with(container("tail", "/dev/zero"), func(c *types.ContainerDefinition) { c.Memory = nil })),
		},
	}
}

func mib(n int64) string { return strconv.FormatInt(n<<20, 10) }

// cgroupFile compares one file of a cgroup of this system's tasks.
func (l *lab) cgroupFile(t *testing.T, controller, dir, file, want string) {
	t.Helper()
	path := filepath.Join("/sys/fs/cgroup", controller, l.Cgroup(), dir, file)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return
	}
	if got := strings.TrimSpace(string(b)); got != want {
		t.Errorf("%s of %s is %q, want %q", file, dir, got, want)
	}
}
