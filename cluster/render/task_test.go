package render

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/wire/acs"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const (
	taskARN    = "arn:aws:ecs:eu-west-1:111122223333:task/lab/0123456789abcdef0123456789abcdef"
	clusterARN = "arn:aws:ecs:eu-west-1:111122223333:cluster/lab"
)

func kv(name, value string) types.KeyValuePair {
	return types.KeyValuePair{Name: &name, Value: &value}
}

// fullDefinition sets every member of a container definition that reaches an agent.
func fullDefinition() *types.TaskDefinition {
	return &types.TaskDefinition{
		Family: aws.String("full"), Revision: 7, Cpu: aws.String("512"), Memory: aws.String("1024"),
		NetworkMode: types.NetworkModeBridge, PidMode: types.PidModeTask, IpcMode: types.IpcModeHost,
		ExecutionRoleArn: aws.String("arn:aws:iam::111122223333:role/exec"),
		Volumes: []types.Volume{
			{Name: aws.String("scratch")},
			{Name: aws.String("host"), Host: &types.HostVolumeProperties{SourcePath: aws.String("/srv")}},
			{Name: aws.String("docker"), DockerVolumeConfiguration: &types.DockerVolumeConfiguration{
				Scope: types.ScopeShared, Autoprovision: aws.Bool(true), Driver: aws.String("local"), DriverOpts: map[string]string{"type": "tmpfs"},
			}},
			{Name: aws.String("efs"), EfsVolumeConfiguration: &types.EFSVolumeConfiguration{
				FileSystemId: aws.String("fs-1"), RootDirectory: aws.String("/"), TransitEncryption: types.EFSTransitEncryptionEnabled,
				AuthorizationConfig: &types.EFSAuthorizationConfig{AccessPointId: aws.String("fsap-1"), Iam: types.EFSAuthorizationConfigIAMEnabled},
			}},
		},
		ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("web"), Image: aws.String("registry.lab.example/web:1"),
			Command: []string{"serve", "--port", "80"}, EntryPoint: []string{"/bin/web"},
			Cpu: 256, Memory: aws.Int32(512), MemoryReservation: aws.Int32(128), Essential: aws.Bool(true),
			Environment:      []types.KeyValuePair{kv("STAGE", "lab"), kv("EMPTY", "")},
			EnvironmentFiles: []types.EnvironmentFile{{Type: types.EnvironmentFileTypeS3, Value: aws.String("arn:aws:s3:::bucket/a.env")}},
			Secrets: []types.Secret{
				{Name: aws.String("DB"), ValueFrom: aws.String("arn:aws:secretsmanager:us-east-1:111122223333:secret:db-abc")},
				{Name: aws.String("KEY"), ValueFrom: aws.String("/lab/key")},
			},
			User: aws.String("1000:1000"), WorkingDirectory: aws.String("/srv"), Hostname: aws.String("web"),
			Interactive: aws.Bool(true), PseudoTerminal: aws.Bool(true), Privileged: aws.Bool(true), ReadonlyRootFilesystem: aws.Bool(true),
			DisableNetworking: aws.Bool(false), DockerLabels: map[string]string{"b": "2", "a": "1"},
			DockerSecurityOptions: []string{"no-new-privileges"},
			DnsServers:            []string{"10.0.0.2"}, DnsSearchDomains: []string{"lab.example"},
			ExtraHosts: []types.HostEntry{{Hostname: aws.String("db"), IpAddress: aws.String("10.0.0.9")}},
			Ulimits:    []types.Ulimit{{Name: types.UlimitNameNofile, SoftLimit: 1024, HardLimit: 4096}},
			LinuxParameters: &types.LinuxParameters{
				Capabilities: &types.KernelCapabilities{Add: []string{"NET_ADMIN"}, Drop: []string{"NET_RAW"}},
				Devices: []types.Device{
					{HostPath: aws.String("/dev/fuse")},
					{HostPath: aws.String("/dev/kvm"), ContainerPath: aws.String("/dev/vm"), Permissions: []types.DeviceCgroupPermission{types.DeviceCgroupPermissionRead}},
				},
				InitProcessEnabled: aws.Bool(true), SharedMemorySize: aws.Int32(64), MaxSwap: aws.Int32(0), Swappiness: aws.Int32(10),
				Tmpfs: []types.Tmpfs{{ContainerPath: aws.String("/run"), Size: 16, MountOptions: []string{"noexec", "nosuid"}}},
			},
			SystemControls: []types.SystemControl{{Namespace: aws.String("net.core.somaxconn"), Value: aws.String("1024")}},
			HealthCheck: &types.HealthCheck{
				Command: []string{"CMD-SHELL", "true"}, Interval: aws.Int32(5), Timeout: aws.Int32(2), Retries: aws.Int32(3), StartPeriod: aws.Int32(10),
			},
			LogConfiguration: &types.LogConfiguration{
				LogDriver:     types.LogDriverAwslogs,
				Options:       map[string]string{"awslogs-group": "lab", "awslogs-region": "eu-west-1", "awslogs-stream-prefix": "berth"},
				SecretOptions: []types.Secret{{Name: aws.String("token"), ValueFrom: aws.String("arn:aws:ssm:eu-west-1:111122223333:parameter/token")}},
			},
			PortMappings: []types.PortMapping{
				{ContainerPort: aws.Int32(80), HostPort: aws.Int32(8080)},
				{ContainerPort: aws.Int32(53), Protocol: types.TransportProtocolUdp},
				{ContainerPortRange: aws.String("9000-9010")},
			},
			MountPoints: []types.MountPoint{{SourceVolume: aws.String("scratch"), ContainerPath: aws.String("/scratch"), ReadOnly: aws.Bool(true)}},
			StopTimeout: aws.Int32(5), StartTimeout: aws.Int32(60),
			RestartPolicy: &types.ContainerRestartPolicy{Enabled: aws.Bool(true), IgnoredExitCodes: []int32{0}, RestartAttemptPeriod: aws.Int32(60)},
			DependsOn:     []types.ContainerDependency{{ContainerName: aws.String("init"), Condition: types.ContainerConditionSuccess}},
			VolumesFrom:   []types.VolumeFrom{{SourceContainer: aws.String("init"), ReadOnly: aws.Bool(true)}},
			Links:         []string{"init:first"},
		}, {
			Name: aws.String("init"), Image: aws.String("111122223333.dkr.ecr.eu-west-1.amazonaws.com/init@sha256:00"),
			Essential: aws.Bool(false), MemoryReservation: aws.Int32(64),
		}},
	}
}

func taskOf(def *types.TaskDefinition) *types.Task {
	t := &types.Task{
		TaskArn: aws.String(taskARN), ClusterArn: aws.String(clusterARN), DesiredStatus: aws.String("RUNNING"),
		LaunchType: types.LaunchTypeExternal, Group: aws.String("family:" + *def.Family),
	}
	for _, c := range def.ContainerDefinitions {
		t.Containers = append(t.Containers, types.Container{
			Name: c.Name, ContainerArn: aws.String("arn:aws:ecs:eu-west-1:111122223333:container/lab/0123456789abcdef0123456789abcdef/" + *c.Name),
		})
	}
	return t
}

// sampleDefinition is the definition of examples/my-task.json.
func sampleDefinition() *types.TaskDefinition {
	return &types.TaskDefinition{
		Family: aws.String("my-task"), Revision: 1,
		ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("web"), Image: aws.String("my-image"), Cpu: 256, Memory: aws.Int32(512),
			PortMappings: []types.PortMapping{{ContainerPort: aws.Int32(80), HostPort: aws.Int32(80)}},
		}},
	}
}

func TestTaskGolden(t *testing.T) {
	host := sampleDefinition()
	host.NetworkMode = types.NetworkModeHost
	awsvpc := sampleDefinition()
	awsvpc.NetworkMode = types.NetworkModeAwsvpc
	cases := map[string]*types.TaskDefinition{
		"full": fullDefinition(), "sample": sampleDefinition(), "host": host, "awsvpc": awsvpc,
	}
	for name, def := range cases {
		t.Run(name, func(t *testing.T) {
			wire, err := Task(def, taskOf(def))
			if err != nil {
				t.Fatal(err)
			}
			checkGolden(t, name, wire)
		})
	}
}

func TestTaskWithOverridesGolden(t *testing.T) {
	def := fullDefinition()
	before, _ := json.Marshal(def)
	ov := &types.TaskOverride{
		Cpu: aws.String("1024"), TaskRoleArn: aws.String("arn:aws:iam::111122223333:role/other"),
		ContainerOverrides: []types.ContainerOverride{{
			Name: aws.String("web"), Command: []string{"other"}, Cpu: aws.Int32(1), Memory: aws.Int32(99), MemoryReservation: aws.Int32(9),
			Environment: []types.KeyValuePair{kv("STAGE", "override"), kv("NEW", "1")},
		}},
	}
	resolved, err := Resolve(def, ov)
	if err != nil {
		t.Fatal(err)
	}
	wire, err := Task(resolved, taskOf(resolved))
	if err != nil {
		t.Fatal(err)
	}
	checkGolden(t, "overrides", wire)
	after, _ := json.Marshal(def)
	if diff := cmp.Diff(string(before), string(after)); diff != "" {
		t.Errorf("Resolve changed the definition it was given:\n%s", diff)
	}
}

func checkGolden(t *testing.T, name string, wire *acs.Task) {
	t.Helper()
	got, err := json.MarshalIndent(wire, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	path := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("run with -update if this is meant:\n%s", diff)
	}
}

func TestResolveErrors(t *testing.T) {
	_, err := Resolve(sampleDefinition(), &types.TaskOverride{ContainerOverrides: []types.ContainerOverride{{Name: aws.String("nobody")}}})
	if err == nil || !strings.Contains(err.Error(), `"nobody"`) {
		t.Errorf("override of an unknown container: got error %v", err)
	}
}

func TestTaskErrors(t *testing.T) {
	def := sampleDefinition()
	def.Cpu = aws.String("half")
	if _, err := Task(def, taskOf(def)); err == nil {
		t.Error("cpu that is no number: want an error")
	}
	bad := taskOf(sampleDefinition())
	bad.TaskArn = aws.String("nonsense")
	if _, err := Task(sampleDefinition(), bad); err == nil {
		t.Error("task ARN that is none: want an error")
	}
}

// TestEmptyEntryPointIsAbsent pins what stock tools send: "entryPoint": [] in a
// definition keeps the image's entry point, but an empty list on the wire clears it.
func TestEmptyEntryPointIsAbsent(t *testing.T) {
	def := sampleDefinition()
	def.ContainerDefinitions[0].EntryPoint = []string{}
	wire, err := Task(def, taskOf(def))
	if err != nil {
		t.Fatal(err)
	}
	if wire.Containers[0].EntryPoint != nil {
		t.Errorf("entryPoint = %v, want it absent", *wire.Containers[0].EntryPoint)
	}
}

func TestGPUsBecomeAssociations(t *testing.T) {
	task := taskOf(sampleDefinition())
	task.Containers[0].GpuIds = []string{"GPU-1", "GPU-2"}
	wire, err := Task(sampleDefinition(), task)
	if err != nil {
		t.Fatal(err)
	}
	want := []acs.Association{
		{Type: "gpu", Name: "GPU-1", Containers: []string{"web"}},
		{Type: "gpu", Name: "GPU-2", Containers: []string{"web"}},
	}
	if diff := cmp.Diff(want, wire.Associations); diff != "" {
		t.Error(diff)
	}
}

func TestLogMode(t *testing.T) {
	for _, tt := range []struct {
		name, driver, mode string
		options, want      map[string]string
	}{
		{"none given", "awslogs", "blocking", map[string]string{"awslogs-group": "g"}, map[string]string{"awslogs-group": "g", "mode": "blocking"}},
		{"no options at all", "syslog", "non-blocking", nil, map[string]string{"mode": "non-blocking"}},
		{"the definition's own", "awslogs", "blocking", map[string]string{"mode": "non-blocking"}, map[string]string{"mode": "non-blocking"}},
		{"a buffer", "gelf", "blocking", map[string]string{"max-buffer-size": "1m"}, map[string]string{"max-buffer-size": "1m", "mode": "non-blocking"}},
		{"a local file", "json-file", "blocking", map[string]string{"max-file": "2"}, map[string]string{"max-file": "2"}},
		{"the router", "awsfirelens", "non-blocking", map[string]string{"Name": "null"}, map[string]string{"Name": "null"}},
		{"the router, blocking", "awsfirelens", "blocking", map[string]string{"Name": "null"}, map[string]string{"Name": "null", "mode": "blocking"}},
		{"a task of an older cluster", "awslogs", "", map[string]string{"awslogs-group": "g"}, map[string]string{"awslogs-group": "g"}},
	} {
		def := sampleDefinition()
		def.ContainerDefinitions[0].LogConfiguration = &types.LogConfiguration{LogDriver: types.LogDriver(tt.driver), Options: tt.options}
		before, err := json.Marshal(def)
		if err != nil {
			t.Fatal(err)
		}
		got := LogMode(def, tt.mode)
		if diff := cmp.Diff(tt.want, got.ContainerDefinitions[0].LogConfiguration.Options); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
		if after, err := json.Marshal(def); err != nil || string(after) != string(before) {
			t.Errorf("%s: the definition was changed: %s", tt.name, after)
		}
	}
	if def := sampleDefinition(); LogMode(def, "blocking").ContainerDefinitions[0].LogConfiguration != nil {
		t.Error("a container without a log configuration got one")
	}
}
