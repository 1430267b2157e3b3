package guest

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	cacs "berth.dev/berth/cluster/acs"
	"berth.dev/berth/cluster/store"
	"berth.dev/berth/integ/system"
	wire "berth.dev/berth/wire/acs"
)

// taskTests run tasks by the ECS API on cgroup version 2 alone, all at the same time in
// one system.
var taskTests = []struct {
	name string
	run  func(t *testing.T, l *lab)
}{
	{"limits", limits},
	{"block volume", blockVolume},
	{"efs", efs},
	{"latency", latency},
	{"branch", branch},
	{"branch plugin", branchPlugin},
}

// lab is what the tests of tasks share.
type lab struct {
	*system.System
	front     *front      // of the file system fileSystem
	announced chan string // volumes, as their messages are sent
}

// slow is how many times longer things may take here than on a machine; see Soon.
const slow = 4

func TestTasks(t *testing.T) {
	nfsServer(t)
	l := &lab{front: newFront(t, fileSystem+".efs.us-east-1.amazonaws.com", askForCertificate), announced: make(chan string, 8)}
	targets, err := json.Marshal(map[string]string{fileSystem: gateway + ":" + l.front.port})
	if err != nil {
		t.Fatal(err)
	}
	l.System = system.Start(t, system.Options{
		Containerd: system.Containerd2, Programs: "/berth/bin", Slow: slow,
		AgentEnv: []string{"BERTH_EFS_TARGETS=" + string(targets), "BERTH_EFS_CA_FILE=" + l.front.ca, "ECS_CONTAINER_STOP_TIMEOUT=5s"},
		ACS: func(c *cacs.Config) {
			c.Credentials = taskRole
			c.Faults = &cacs.Faults{Alter: pluggedInPayload, AlterInterface: onTrunk, AlterAttachment: func(m *wire.ConfirmAttachmentMessage) {
				pluggedIn(m.Attachment)
				l.announced <- m.TaskARN
			}}
		},
	})
	t.Run("all", func(t *testing.T) {
		for _, test := range taskTests {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				test.run(t, &lab{System: l.On(t), front: l.front, announced: l.announced})
			})
		}
	})
	l.front.start() // a server that is gone for ever is so until here
}

// taskRole issues credentials of a task role.
func taskRole(_ context.Context, t *store.Task) (role, execution *wire.IAMRoleCredentials, err error) {
	return &wire.IAMRoleCredentials{
		CredentialsID: "role-" + t.ID, RoleARN: "arn:aws:iam::000000000000:role/files", AccessKeyID: roleKey, SecretAccessKey: roleSecret,
		SessionToken: roleToken, Expiration: time.Now().Add(time.Hour).UTC().Format(time.RFC3339),
	}, nil, nil
}

// limits has a task that is limited and one that wants more memory than it may have.
func limits(t *testing.T, s *lab) {
	limited := s.Run(s.Register(&ecs.RegisterTaskDefinitionInput{
		Family: aws.String("limited"), Cpu: aws.String("512"), Memory: aws.String("128"),
		ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("main"), Image: aws.String("busybox"), Memory: aws.Int32(64), Cpu: 256,
			Command: []string{"sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.5; done"},
		}},
	}), 1)[0]
	oom := s.Run(s.Register(&ecs.RegisterTaskDefinitionInput{
		Family: aws.String("oom"), ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("main"), Image: aws.String("busybox"), Memory: aws.Int32(16), Command: []string{"tail", "/dev/zero"},
		}},
	}), 1)[0]
	tk := s.Wait("RUNNING", Soon, limited)[0]
	dir := filepath.Join("/sys/fs/cgroup", s.Cgroup()+".slice", s.Cgroup()+"-"+filepath.Base(limited)+".slice")
	for file, want := range map[string]string{
		"memory.max": "134217728", "cpu.max": "50000 100000",
		*tk.Containers[0].RuntimeId + "/memory.max": "67108864",
	} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if got := strings.TrimSpace(string(b)); err != nil || got != want {
			t.Errorf("%s is %q, want %q (%v)", file, got, want, err)
		}
	}
	ended := s.Wait("STOPPED", Soon, oom)[0]
	if c := ended.Containers[0]; aws.ToInt32(c.ExitCode) != 137 || !strings.HasPrefix(aws.ToString(c.Reason), "OutOfMemoryError") {
		t.Error(system.Explain(ended))
	}
}
