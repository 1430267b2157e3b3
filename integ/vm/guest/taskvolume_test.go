package guest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/vpc"
	"berth.dev/berth/integ/system"
	"berth.dev/berth/volumes/block"
	"berth.dev/berth/volumes/volumestest/efsserver"
	wire "berth.dev/berth/wire/acs"
)

// pluggedVolume is the volume whose disk is plugged in.
const pluggedVolume = "vol-0123456789abcdef0"

// pluggedIn makes an attachment that of a disk which a control plane plugs in, as on EC2.
func pluggedIn(a *wire.Attachment) {
	var out []wire.AttachmentProperty
	for _, p := range a.AttachmentProperties {
		switch p.Name {
		case wire.PropertyPool, wire.PropertyDelete:
			continue
		case "volumeId":
			p.Value = pluggedVolume
		}
		out = append(out, p)
	}
	a.AttachmentProperties = out
}

func pluggedInPayload(m *wire.PayloadMessage) {
	for i := range m.Tasks {
		for j := range m.Tasks[i].Attachments {
			pluggedIn(&m.Tasks[i].Attachments[j])
		}
	}
}

// blockVolume runs two tasks with the same disk, which is plugged in while the first waits
// for it: the first finds it empty and writes a file, the second reads it.
func blockVolume(t *testing.T, l *lab) {
	run := func(family, script string) string {
		def := l.Register(&ecs.RegisterTaskDefinitionInput{
			Family: &family, Volumes: []types.Volume{{Name: aws.String("data"), ConfiguredAtLaunch: aws.Bool(true)}},
			ContainerDefinitions: []types.ContainerDefinition{{
				Name: aws.String("main"), Image: aws.String("busybox"), Memory: aws.Int32(32), User: aws.String("1000:1000"),
				Command: []string{"sh", "-c", script}, MountPoints: []types.MountPoint{{SourceVolume: aws.String("data"), ContainerPath: aws.String("/v")}},
			}},
		})
		out, err := l.ECS.RunTask(context.Background(), &ecs.RunTaskInput{TaskDefinition: &def, VolumeConfigurations: []types.TaskVolumeConfiguration{{
			Name: aws.String("data"), ManagedEBSVolume: &types.TaskManagedEBSVolumeConfiguration{
				RoleArn: aws.String("arn:aws:iam::000000000000:role/ecsInfrastructureRole"), SizeInGiB: aws.Int32(1),
				TerminationPolicy: &types.TaskManagedEBSVolumeTerminationPolicy{DeleteOnTermination: aws.Bool(false)},
			},
		}}})
		if err != nil || len(out.Tasks) != 1 {
			t.Fatalf("run %s: %+v, %v", family, out, err)
		}
		<-l.announced
		return *out.Tasks[0].TaskArn
	}
	ended := func(arn string) {
		t.Helper()
		tk := l.Wait("STOPPED", Soon, arn)[0]
		if aws.ToInt32(tk.Containers[0].ExitCode) != 0 || tk.Containers[0].ExitCode == nil {
			t.Error(system.Explain(tk))
		}
		if a := tk.Attachments; len(a) != 1 || aws.ToString(a[0].Type) != "AmazonElasticBlockStorage" || aws.ToString(a[0].Status) != "DETACHED" {
			t.Errorf("attachments %+v", a)
		}
	}
	first := run("first", `[ ! -e /v/file ] && grep -q ' /v xfs rw,nosuid,nodev' /proc/mounts && echo kept > /v/file`)
	if tk := l.Describe(first)[0]; aws.ToString(tk.LastStatus) != "PROVISIONING" || aws.ToString(tk.Attachments[0].Status) != "ATTACHING" {
		t.Errorf("before its disk is there: %s, %s", aws.ToString(tk.LastStatus), aws.ToString(tk.Attachments[0].Status))
	}
	serial := block.Serial(pluggedVolume)
	Ask(t, "nvme", serial, "512")
	ended(first)
	ended(run("second", `grep kept /v/file && echo again >> /v/file`))
	Until(t, "the disk is not mounted any more", func() error {
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err == nil && strings.Contains(string(b), "/dev/nvme") {
			err = errors.New("it is")
		}
		return err
	})
	Ask(t, "unplug", serial)
	Until(t, "the disk is gone", func() error {
		if device, err := (block.Finder{}).Find(serial); !errors.Is(err, block.ErrAbsent) {
			return fmt.Errorf("it is %s (%v)", device, err)
		}
		return nil
	})
}

// gateway is that of the default subnet: this machine.
const gateway = "10.214.0.1"

// inSubnet runs one task of a definition in the default subnet.
func (l *lab) inSubnet(t *testing.T, definition string) (arn string) {
	t.Helper()
	var subnet string
	err := l.Cluster.Store.Update(context.Background(), func(tx *store.Tx) error {
		if err := vpc.EnsureDefaults(tx, "us-east-1"); err != nil {
			return err
		}
		for _, s := range store.List(tx, store.Subnets, "") {
			if s.Default {
				subnet = s.ID
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	out, err := l.ECS.RunTask(context.Background(), &ecs.RunTaskInput{TaskDefinition: &definition, NetworkConfiguration: &types.NetworkConfiguration{
		AwsvpcConfiguration: &types.AwsVpcConfiguration{Subnets: []string{subnet}},
	}})
	if err != nil || len(out.Tasks) != 1 {
		t.Fatalf("run: %+v, %v", out, err)
	}
	return *out.Tasks[0].TaskArn
}

// The file system of the tests of EFS, and the role that may mount it.
const (
	fileSystem        = "fs-0123456789abcdef0"
	accessPoint       = "fsap-0123456789abcdef0"
	askForCertificate = tls.RequireAnyClientCert
	roleKey           = "ASIAFILES"
	roleSecret        = "secret of the role"
	roleToken         = "token/of+the=role"
)

// efs runs a task of network mode awsvpc with a file system that its role may mount; the
// server is away for a minute, and then for ever.
func efs(t *testing.T, l *lab) {
	def := l.Register(&ecs.RegisterTaskDefinitionInput{
		Family: aws.String("efs"), NetworkMode: types.NetworkModeAwsvpc,
		Volumes: []types.Volume{{Name: aws.String("files"), EfsVolumeConfiguration: &types.EFSVolumeConfiguration{
			FileSystemId: aws.String(fileSystem), TransitEncryption: types.EFSTransitEncryptionEnabled,
			AuthorizationConfig: &types.EFSAuthorizationConfig{AccessPointId: aws.String(accessPoint), Iam: types.EFSAuthorizationConfigIAMEnabled},
		}}},
		ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("main"), Image: aws.String("busybox"), Memory: aws.Int32(32),
			Command:     []string{"sh", "-c", `i=0; while :; do i=$((i+1)); echo $i > /v/count; sleep 0.2; done`},
			MountPoints: []types.MountPoint{{SourceVolume: aws.String("files"), ContainerPath: aws.String("/v")}},
		}},
	})
	run := func() string { return l.inSubnet(t, def) }
	writer := run()
	tk := l.Wait("RUNNING", Soon, writer)[0]
	shownRole(t, l.front, aws.ToString(tk.Containers[0].NetworkInterfaces[0].PrivateIpv4Address))
	counts := func(what string) int {
		var n int
		before := count()
		Until(t, what, func() error {
			if n = count(); n <= before {
				return fmt.Errorf("it wrote %d", n)
			}
			return nil
		})
		return n
	}
	counts("the task writes")

	l.front.stop()
	back := time.After(time.Minute)
	l.others(t)
	<-back
	if tk := l.Describe(writer)[0]; aws.ToString(tk.LastStatus) != "RUNNING" {
		t.Errorf("a minute without the server ended the task: %s", system.Explain(tk))
	}
	l.front.start()
	counts("the task goes on")

	l.front.stop()
	late := run() // it will never have its volume
	l.Stop(writer)
	l.Wait("STOPPED", Soon, writer)
	l.others(t)
	ended := l.Wait("STOPPED", Soon, late)[0]
	if why := aws.ToString(ended.StoppedReason); ended.StopCode != types.TaskStopCodeTaskFailedToStart || !strings.Contains(why, "volume files: ") || !strings.Contains(why, "does not answer") {
		t.Errorf("a task whose server never answers: %s", system.Explain(ended))
	}
}

// shownRole checks what the server was shown, and that it was by the task's own network.
func shownRole(t *testing.T, f *front, address string) {
	t.Helper()
	select {
	case cert := <-f.shown:
		got, err := efsserver.ReadClient(cert, "us-east-1", func(id, token string) string {
			if id != roleKey || token != roleToken {
				return ""
			}
			return roleSecret
		})
		if want := (efsserver.Client{FileSystem: fileSystem, AccessPoint: accessPoint, AccessKeyID: roleKey}); err != nil || got != want {
			t.Errorf("the server was shown %+v, %v", got, err)
		}
	default:
		t.Error("the server was shown nothing")
	}
	if peer := <-f.peers; !strings.HasPrefix(peer, address+":") {
		t.Errorf("the server was reached from %s, not from the task's %s", peer, address)
	}
}

// count is what a task has written to the server last.
func count() int {
	b, err := os.ReadFile(filepath.Join("/srv", "count"))
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0 // it is just being written
	}
	return n
}

// others runs a task that has nothing to do with a server that does not answer.
func (l *lab) others(t *testing.T) {
	t.Helper()
	arn := l.Run(l.Register(&ecs.RegisterTaskDefinitionInput{
		Family: aws.String("other"), Volumes: []types.Volume{{Name: aws.String("own")}},
		ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("main"), Image: aws.String("busybox"), Memory: aws.Int32(16), Command: []string{"sh", "-c", "echo x > /v/x"},
			MountPoints: []types.MountPoint{{SourceVolume: aws.String("own"), ContainerPath: aws.String("/v")}},
		}},
	}), 1)[0]
	tk := l.Wait("STOPPED", Soon, arn)[0]
	if aws.ToInt32(tk.Containers[0].ExitCode) != 0 || tk.Containers[0].ExitCode == nil {
		t.Errorf("beside a server that does not answer: %s", system.Explain(tk))
	}
}
