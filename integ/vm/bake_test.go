package vm

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"go.yaml.in/yaml/v3"

	"berth.dev/berth/cluster"
	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
	"berth.dev/berth/wire/join"
)

// bakes prepares the machine as its owner would. Before, it takes away what this package
// has in its image for tests, and puts into it what stands in for cloud-init.
const bakes = `set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
rm /etc/systemd/system/containerd.service /etc/systemd/system/multi-user.target.wants/berth-guest.service /etc/berth-guest
cp cloud-final.service outlet.service /etc/systemd/system/
cp user-data outlet /usr/local/sbin/
systemctl daemon-reload
systemctl enable cloud-final outlet
BERTH_PACKAGES=/berth BERTH_ARCHIVES=/berth/my-image.tar BERTH_SETTINGS=/berth/settings bash ./provision.sh
cd / && rm -rf /berth
`

// userData is started where cloud-init is, and does with the user data what that would do.
const userData = `[Unit]
Description=User data, as by cloud-init
After=basic.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/user-data
[Install]
WantedBy=multi-user.target
`

const userDataScript = `#!/bin/sh
set -eu
until [ -e /sys/class/net/eth0 ] && [ -e /dev/vdb ]; do sleep 0.2; done
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
tar -xOf /dev/vdb user-data | sh -eu
`

// outlet tells the outside who the copy is, and what happens in it.
const outlet = `[Unit]
Description=What the test outside sees
[Service]
ExecStart=/usr/local/sbin/outlet
[Install]
WantedBy=multi-user.target
`

const outletScript = `#!/bin/sh
until [ -e /dev/virtio-ports/berth.result ]; do sleep 0.2; done
exec > /dev/virtio-ports/berth.result
cat /etc/machine-id
exec journalctl -b -f -n 400 -o short-monotonic -u berth-agent -u cloud-final
`

// gateway is this host, as machines with a network see it.
const gateway = "10.0.2.2"

// TestBake makes an image of the machine with the agent's package and packaging/bake,
// boots it twice at the same time, and has both copies register as hosts of their own and
// run the sample task.
func TestBake(t *testing.T) {
	t.Parallel()
	baked := bake(t)
	c, api := serve(t)
	token, err := c.JoinToken(t.Context(), join.TokenRequest{Uses: 2})
	if err != nil {
		t.Fatal(err)
	}
	payload := tarball(t, entry{name: "user-data", text: cloudConfig(t, token.Token)})
	began := time.Now()
	copies := []*baby{hatch(t, baked, payload), hatch(t, baked, payload)}
	var instances []string
	wait(t, copies, "both copies are members", func() error {
		out, err := api.ListContainerInstances(t.Context(), &ecs.ListContainerInstancesInput{Status: types.ContainerInstanceStatusActive})
		if err != nil {
			return err
		}
		if instances = out.ContainerInstanceArns; len(instances) < len(copies) {
			return fmt.Errorf("instances %v", instances)
		}
		return connected(t, api, instances)
	})
	t.Logf("members after %v", time.Since(began).Round(time.Second))
	if a, b := copies[0].machineID(), copies[1].machineID(); len(a) != 32 || a == b {
		t.Errorf("the machines' ids are %q and %q", a, b)
	}
	for _, arn := range sample(t, api, copies, instances) {
		t.Logf("%s runs", arn)
	}
	t.Logf("the sample task runs on both after %v", time.Since(began).Round(time.Second))
}

// connected says whether instances are two hosts, and their agents connected.
func connected(t *testing.T, api *ecs.Client, instances []string) error {
	t.Helper()
	out, err := api.DescribeContainerInstances(t.Context(), &ecs.DescribeContainerInstancesInput{ContainerInstances: instances})
	if err != nil {
		return err
	}
	if len(out.ContainerInstances) != 2 {
		t.Fatalf("two copies are %d hosts", len(out.ContainerInstances))
	}
	for _, i := range out.ContainerInstances {
		if !i.AgentConnected {
			return fmt.Errorf("%s is not connected", *i.ContainerInstanceArn)
		}
	}
	return nil
}

// sample starts the sample task on each instance and waits until all run.
func sample(t *testing.T, api *ecs.Client, copies []*baby, instances []string) (arns []string) {
	t.Helper()
	text, err := os.ReadFile("../../examples/my-task.json")
	if err != nil {
		t.Fatal(err)
	}
	var definition ecs.RegisterTaskDefinitionInput
	if err := json.Unmarshal(text, &definition); err != nil {
		t.Fatal(err)
	}
	def, err := api.RegisterTaskDefinition(t.Context(), &definition)
	if err != nil {
		t.Fatal(err)
	}
	started, err := api.StartTask(t.Context(), &ecs.StartTaskInput{TaskDefinition: def.TaskDefinition.TaskDefinitionArn, ContainerInstances: instances})
	if err != nil || len(started.Failures) > 0 {
		t.Fatalf("start the sample task: %v %+v", err, started)
	}
	for i := range started.Tasks {
		arns = append(arns, *started.Tasks[i].TaskArn)
	}
	wait(t, copies, "the sample task runs on both", func() error {
		out, err := api.DescribeTasks(t.Context(), &ecs.DescribeTasksInput{Tasks: arns})
		if err != nil {
			return err
		}
		var on []string
		for i := range out.Tasks {
			switch tk := out.Tasks[i]; aws.ToString(tk.LastStatus) {
			case "RUNNING":
				on = append(on, *tk.ContainerInstanceArn)
			case "STOPPED":
				t.Fatal(system.Explain(tk))
			}
		}
		if slices.Sort(on); len(slices.Compact(on)) != len(instances) {
			return fmt.Errorf("runs on %v", on)
		}
		return nil
	})
	return arns
}

// bake makes an image of the machine's disk.
func bake(t *testing.T) Image {
	t.Helper()
	began := time.Now()
	packages := t.TempDir()
	programs := built(t)
	cmd := exec.Command("../../packaging/scripts/build-packages", packages, runtime.GOARCH)
	cmd.Env = append(os.Environ(), "PROGRAMS="+programs, "BERTH="+filepath.Join(programs, "berth"), "KINDS=deb")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build-packages: %v\n%s", err, out)
	}
	found, err := filepath.Glob(filepath.Join(packages, "berth-agent_*.deb"))
	if err != nil || len(found) != 1 {
		t.Fatalf("packages %v, %v", found, err)
	}
	img := image(t)
	disk := filepath.Join(packages, "baked.raw")
	if err := run(t.Output(), "cp", "--sparse=always", img.Disk, disk); err != nil {
		t.Fatal(err)
	}
	img.Disk = disk
	payload := tarball(t,
		entry{name: "run", text: "sh ./bake && echo guest: PASS\n"}, entry{name: "bake", text: bakes},
		entry{name: "provision.sh", path: "../../packaging/bake/provision.sh"}, entry{name: filepath.Base(found[0]), path: found[0]},
		entry{name: "my-image.tar", path: filepath.Join(programs, "my-image.tar")},
		entry{name: "settings", text: "ECS_IMAGE_PULL_BEHAVIOR=prefer-cached\n"},
		entry{name: "cloud-final.service", text: userData}, entry{name: "user-data", text: userDataScript},
		entry{name: "outlet.service", text: outlet}, entry{name: "outlet", text: outletScript},
	)
	t.Logf("packages after %v", time.Since(began).Round(time.Second))
	m, err := Boot(Config{Image: img, Payload: payload, Dir: host.ShortDir(t), Keep: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()                                     //nolint:errcheck // it has ended by itself, or the test has failed
	late := time.AfterFunc(limit, func() { m.Kill() }) //nolint:errcheck // noticed by the missing end
	defer late.Stop()
	out, err := m.Results()
	if err != nil {
		t.Fatalf("%v\n%s", err, m.Log())
	}
	said, err := io.ReadAll(out)
	if err := errors.Join(err, m.Wait()); err != nil || !strings.HasSuffix(strings.ReplaceAll(string(said), "\r", ""), "\nguest: PASS\n") {
		t.Fatalf("bake: %v\n%s\n%s", err, said, m.Log())
	}
	t.Logf("baked after %v", time.Since(began).Round(time.Second))
	return img
}

// serve starts a cluster that machines can reach.
func serve(t *testing.T) (*cluster.Server, *ecs.Client) {
	t.Helper()
	dir := t.TempDir()
	c, err := cluster.Open(t.Context(), cluster.Config{Dir: dir, Listen: "0.0.0.0:0", Advertise: gateway})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	ca, err := os.ReadFile(filepath.Join(dir, "tls", "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	t.Cleanup(h.CloseIdleConnections)
	key := c.OperatorKey()
	return c, ecs.New(ecs.Options{
		Region: cluster.DefaultRegion, BaseEndpoint: aws.String(strings.Replace(c.URL(), gateway, "127.0.0.1", 1)), HTTPClient: h,
		Credentials: credentials.NewStaticCredentialsProvider(key.AccessKeyID, key.SecretAccessKey, ""),
	})
}

// cloudConfig is the example of user data as a script that does what cloud-init would.
func cloudConfig(t *testing.T, token string) string {
	t.Helper()
	text, err := os.ReadFile("../../packaging/bake/user-data.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		WriteFiles []struct{ Path, Permissions, Content string } `yaml:"write_files"`
		RunCmd     [][]string                                    `yaml:"runcmd"`
	}
	decode := yaml.NewDecoder(strings.NewReader(strings.Replace(string(text), "berth1.REPLACE", token, 1)))
	decode.KnownFields(true)
	if err := decode.Decode(&config); err != nil {
		t.Fatal(err)
	}
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	var script strings.Builder
	for _, f := range config.WriteFiles {
		fmt.Fprintf(&script, "install -D -m %s /dev/null %s; printf %%s %s > %s\n", f.Permissions, quote(f.Path), quote(f.Content), quote(f.Path))
	}
	for _, words := range config.RunCmd {
		for _, w := range words {
			fmt.Fprint(&script, quote(w), " ")
		}
		fmt.Fprintln(&script)
	}
	return script.String()
}

// baby is a machine that was booted from a baked image.
type baby struct {
	t    *testing.T
	m    *Machine
	id   chan string // its first line
	mu   sync.Mutex
	said []string
}

// hatch boots a copy of a baked image.
func hatch(t *testing.T, baked Image, payload string) *baby {
	t.Helper()
	m, err := Boot(Config{Image: baked, Payload: payload, Dir: host.ShortDir(t), CPUs: 1, MiB: 1024, Network: true})
	if err != nil {
		t.Fatal(err)
	}
	b := &baby{t: t, m: m, id: make(chan string, 1)}
	t.Cleanup(func() {
		if err := m.Kill(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("a copy said:\n%s\n%s", b.tail(), m.Log())
		}
	})
	out, err := m.Results()
	if err != nil {
		t.Fatalf("%v\n%s", err, m.Log())
	}
	go func() {
		defer close(b.id)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			line := strings.TrimRight(lines.Text(), "\r")
			b.mu.Lock()
			if b.said = append(b.said, line); len(b.said) == 1 {
				b.id <- line
			}
			b.said = b.said[max(0, len(b.said)-200):]
			b.mu.Unlock()
		}
	}()
	return b
}

func (b *baby) tail() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.said, "\n")
}

// machineID is the machine's own.
func (b *baby) machineID() string { return <-b.id }

// wait waits until something is so, as long as the machines run.
func wait(t *testing.T, copies []*baby, what string, so func() error) {
	t.Helper()
	for end := time.Now().Add(limit); ; {
		err := so()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		select {
		case <-copies[0].m.done:
			t.Fatalf("%s: the first copy has ended; %v", what, err)
		case <-copies[1].m.done:
			t.Fatalf("%s: the second copy has ended; %v", what, err)
		case <-time.After(500 * time.Millisecond):
		}
	}
}
