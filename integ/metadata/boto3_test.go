package metadata

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/system"
)

// chain has boto3 find credentials as it does for everybody, do what the role allows, and
// try what it does not.
const chain = `
import os, boto3, botocore
session = boto3.Session(region_name="us-east-1")
found = session.get_credentials()
assert found.method == "container-role", found.method
cluster = session.client("ecs", endpoint_url=os.environ["CLUSTER"])
assert "stock" in cluster.list_task_definition_families()["families"]
try:
    cluster.delete_cluster(cluster="default")
except botocore.exceptions.ClientError as e:
    assert e.response["Error"]["Code"] == "AccessDeniedException", e
    assert "assumed-role/stock/" in str(e), e
else:
    raise Exception("the role's policy does not hold")
print("done")
`

// stockSDK runs Debian's own boto3 in a container, which has the host's programs and
// libraries as read-only volumes.
func stockSDK(t *testing.T, l *lab) {
	if out, err := exec.Command("/usr/bin/python3", "-c", "import boto3").CombinedOutput(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v: %s", err, out)
		}
		t.Skipf("this host has no boto3 (package python3-boto3): %s", out)
	}
	in := &ecs.RegisterTaskDefinitionInput{
		Family: aws.String("stock"), TaskRoleArn: aws.String(l.role(t, "stock", "ecs:List*")),
		ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("main"), Image: aws.String("guest"), Memory: aws.Int32(256), Command: []string{"-c", chain},
			EntryPoint:  []string{"/usr/bin/python3"},
			Environment: []types.KeyValuePair{{Name: aws.String("CLUSTER"), Value: aws.String(l.reachable())}},
		}},
	}
	for name, at := range map[string]string{"usr": "/usr", "lib": "/lib", "lib64": "/lib64"} {
		from, err := filepath.EvalSymlinks(at) // on Debian they are links into /usr
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		in.Volumes = append(in.Volumes, types.Volume{Name: aws.String(name), Host: &types.HostVolumeProperties{SourcePath: &from}})
		c := &in.ContainerDefinitions[0]
		c.MountPoints = append(c.MountPoints, types.MountPoint{SourceVolume: aws.String(name), ContainerPath: aws.String(at), ReadOnly: aws.Bool(true)})
	}
	d := l.On(t)
	arn := d.Run(d.Register(in), 1)[0]
	tk := d.Wait("STOPPED", 3*time.Minute, arn)[0]
	said, err := os.ReadFile(filepath.Join(l.Dir, "log", "tasks", arn[strings.LastIndexByte(arn, '/')+1:], "main", "log.json"))
	if c := tk.Containers[0]; aws.ToInt32(c.ExitCode) != 0 || c.ExitCode == nil || err != nil || !strings.Contains(string(said), "done") {
		t.Errorf("%s, %v\n%s", system.Explain(tk), err, said)
	}
}
