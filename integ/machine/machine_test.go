package machine

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
	"berth.dev/berth/integ/testimage"
)

// root is the files of all machines.
var root string

func TestMain(m *testing.M) {
	if os.Geteuid() == 0 { // host.Main says what is to be said to others
		var err error
		// Before the tests get a network of their own, in which there are no packages.
		if root, err = Root(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	host.Main(m)
}

// unit is the agent's.
const unit = "berth-agent.service"

// tasks is how many tasks run while the agent is replaced.
const tasks = 50

// two is two machines: the first has the cluster and an agent, the second an agent.
type two struct {
	*testing.T
	first, second *Machine
	ecs           *ecs.Client
}

// TestMachines takes two machines from the install script to the removal of the packages.
// Its parts build on one another.
func TestMachines(t *testing.T) {
	began := time.Now()
	dir := t.TempDir()
	Packages(t, dir)
	img, err := testimage.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	if err := testimage.WriteArchive(filepath.Join(dir, "busybox.tar"), "busybox", img); err != nil {
		t.Fatal(err)
	}
	t.Logf("packages after %v", time.Since(began).Round(time.Millisecond))
	folders := map[string]string{"packages": dir}
	s := &two{T: t, first: Boot(t, root, "first", "/proc/self/ns/net", folders), second: Boot(t, root, "second", host.OutsideNamespace(), folders)}
	for _, part := range []struct {
		name string
		run  func(*two)
	}{
		{"cluster", (*two).cluster}, {"join", (*two).join}, {"ready only when all is taken up", (*two).ready}, {"tasks on both", (*two).both},
		{"watchdog", (*two).watchdog}, {"journal", (*two).journal}, {"upgrade and back", (*two).upgrade}, {"sockets are kept", (*two).kept}, {"uninstall", (*two).uninstall},
		{"bake", (*two).bake}, {"shutdown drains", (*two).shutdown}, {"purge", (*two).purge},
	} {
		start := time.Now()
		if !t.Run(part.name, func(t *testing.T) { part.run(&two{t, s.first.on(t), s.second.on(t), s.ecs}) }) {
			t.FailNow()
		}
		if part.name == "cluster" {
			s.ecs = s.client()
		}
		t.Logf("%s: %v", part.name, time.Since(start).Round(time.Millisecond))
	}
	s.first.PowerOff()
}

// cluster installs the cluster on the first machine.
func (s *two) cluster() {
	for _, m := range []*Machine{s.first, s.second} {
		m.Run("sh", "-c", "apt-get -q -y install --no-install-recommends /host/packages/"+Today+"/berth_*.deb")
	}
	s.first.Run("sh", "-c", "echo 'BERTH_CLUSTER_OPTIONS=--listen 0.0.0.0:7700 --advertise "+host.Address+"' > /etc/berth/cluster.conf")
	s.first.Run("systemctl", "enable", "--now", "berth-cluster")
	if got := s.first.Show("berth-cluster", "StatusText"); got != "serving https://"+host.Address+":7700" {
		s.Errorf("the cluster's status is %q", got)
	}
}

// client is a client with the operator's key.
func (s *two) client() *ecs.Client {
	s.Helper()
	var f struct{ AccessKeyID, SecretAccessKey, Endpoint, Region, CA string }
	if err := json.Unmarshal([]byte(s.first.Run("cat", "/var/lib/berth/cluster/operator.json")), &f); err != nil {
		s.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(s.first.Run("cat", f.CA)))
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	s.Cleanup(h.CloseIdleConnections)
	return ecs.New(ecs.Options{
		Region: f.Region, BaseEndpoint: aws.String(f.Endpoint), HTTPClient: h,
		Credentials: credentials.NewStaticCredentialsProvider(f.AccessKeyID, f.SecretAccessKey, ""),
	})
}

// join makes both machines members, each by the install script and a token of its own.
func (s *two) join() {
	for _, m := range []*Machine{s.first, s.second} {
		m.Run("sh", "-c", "mkdir -p /etc/ecs; printf 'ECS_IMAGE_PULL_BEHAVIOR=prefer-cached\nECS_UPDATES_ENABLED=true\n' > /etc/ecs/ecs.config")
		token := s.member(m)
		if got := m.Run("systemctl", "is-active", "ecs.service"); got != "active\n" {
			s.Errorf("ecs.service is %q", got)
		}
		m.Run("berth", "image", "load", "/host/packages/busybox.tar")
		// A second time it finds everything done.
		cmd := m.Command("bash", "/host/packages/"+Today+"/install.sh", "--join-token", "-")
		cmd.Stdin = strings.NewReader(token)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "a member of a cluster already") {
			s.Errorf("again on %s: %v\n%s", m.Name, err, out)
		}
	}
	if list := s.first.Run("berth", "token", "list"); !strings.Contains(list, "first\n") || !strings.Contains(list, "second\n") {
		s.Errorf("the tokens:\n%s", list)
	}
	_ = s.first.Run("berth", "token", "revoke", strings.Fields(strings.Split(s.first.Run("berth", "token", "list"), "\n")[1])[0])
}

// member runs the install script on a machine with a token of its own, which it returns.
func (s *two) member(m *Machine) (token string) {
	s.Helper()
	token = strings.TrimSpace(s.first.Run("berth", "token", "create", "--ttl", "5m"))
	cmd := m.Command("bash", "/host/packages/"+Today+"/install.sh", "--join-token", "-")
	cmd.Stdin = strings.NewReader(token)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "The agent works: 0 tasks; connected to cluster default") {
		s.Fatalf("install.sh on %s: %v\n%s", m.Name, err, out)
	}
	if strings.Contains(string(out), token) {
		s.Errorf("the script tells the token: %s", out)
	}
	return token
}

// ready starts the agent while there is no cluster.
func (s *two) ready() {
	s.first.Run("systemctl", "stop", "berth-cluster")
	s.first.Run("systemctl", "restart", "--no-block", unit)
	system.Until(s, 60*time.Second, "start", func() error {
		if state, text := s.first.Show(unit, "ActiveState"), s.first.Show(unit, "StatusText"); state != "activating" || !strings.HasPrefix(text, "starting") {
			return fmt.Errorf("%s, %q", state, text)
		}
		return nil
	})
	s.first.Run("systemctl", "start", "berth-cluster")
	s.active(s.first)
}

// active waits until the agent of a machine is ready and connected.
func (s *two) active(m *Machine) {
	s.Helper()
	system.Until(s, 60*time.Second, "the agent of "+m.Name, func() error {
		if state, text := m.Show(unit, "ActiveState"), m.Show(unit, "StatusText"); state != "active" || !strings.Contains(text, "; connected to cluster") {
			return fmt.Errorf("%s, %q", state, text)
		}
		return nil
	})
}

// both runs a task on each machine.
func (s *two) both() {
	out, err := s.ecs.ListContainerInstances(s.Context(), &ecs.ListContainerInstancesInput{})
	if err != nil || len(out.ContainerInstanceArns) != 2 {
		s.Fatalf("instances: %v, %v", out, err)
	}
	def, err := s.ecs.RegisterTaskDefinition(s.Context(), &ecs.RegisterTaskDefinitionInput{
		Family: aws.String("counts"), ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("main"), Image: aws.String("busybox"), Memory: aws.Int32(16),
			Command: []string{"sh", "-c", "trap 'exit 0' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.5 & wait $!; done"},
		}},
	})
	if err != nil {
		s.Fatal(err)
	}
	one, err := s.ecs.StartTask(s.Context(), &ecs.StartTaskInput{TaskDefinition: def.TaskDefinition.TaskDefinitionArn, ContainerInstances: out.ContainerInstanceArns})
	if err != nil || len(one.Failures) > 0 {
		s.Fatalf("start tasks: %v %+v", err, one)
	}
	arns := []string{*one.Tasks[0].TaskArn, *one.Tasks[1].TaskArn}
	s.wait("RUNNING", arns...)
	// The 14 of Docker and containerd, whatever the agent's unit leaves to the agent itself.
	want := s.caps(s.first.Show("containerd", "MainPID")) & 0xa80425fb
	containers := s.pids()
	if len(containers) != 1 {
		s.Errorf("containers %q", containers)
	}
	for _, c := range containers {
		if got := s.caps(strings.Fields(c)[1]); got != want {
			s.Errorf("container %s has capabilities %x, want %x", c, got, want)
		}
	}
	for _, arn := range arns {
		if _, err := s.ecs.StopTask(s.Context(), &ecs.StopTaskInput{Task: aws.String(arn)}); err != nil {
			s.Fatal(err)
		}
	}
	s.wait("STOPPED", arns...)
}

// caps are the capabilities that a process of the first machine may have.
func (s *two) caps(pid string) uint64 {
	s.Helper()
	caps, err := strconv.ParseUint(strings.TrimSpace(s.first.Run("sed", "-n", "s/^CapBnd:\t//p", "/proc/"+pid+"/status")), 16, 64)
	if err != nil {
		s.Fatal(err)
	}
	return caps
}

// wait waits until tasks have a status.
func (s *two) wait(status string, arns ...string) {
	s.Helper()
	system.Until(s, 120*time.Second, status, func() error {
		out, err := s.ecs.DescribeTasks(s.Context(), &ecs.DescribeTasksInput{Tasks: arns})
		if err != nil {
			return err
		}
		for i := range out.Tasks {
			if got := aws.ToString(out.Tasks[i].LastStatus); got == "STOPPED" && status != got {
				s.Fatalf("task is %s", system.Explain(out.Tasks[i]))
			} else if got != status {
				return fmt.Errorf("%d of %d and more: %s", i, len(arns), got)
			}
		}
		return nil
	})
}

// watchdog stops the agent's process, so that it hangs, and has systemd end it.
func (s *two) watchdog() {
	const dir = "/run/systemd/system/" + unit + ".d"
	s.first.Run("sh", "-c", "mkdir -p "+dir+"; printf '[Service]\\nWatchdogSec=6\\nTimeoutStopSec=5\\n' > "+dir+"/quick.conf; systemctl daemon-reload; systemctl restart "+unit)
	s.active(s.first)
	before, pid := s.first.Show(unit, "NRestarts"), s.first.Show(unit, "MainPID")
	s.first.Run("kill", "-STOP", pid)
	system.Until(s, 60*time.Second, "a new start", func() error {
		if now := s.first.Show(unit, "NRestarts"); now == before {
			return fmt.Errorf("%s starts", now)
		}
		return nil
	})
	s.first.Run("sh", "-c", "rm -r "+dir+"; systemctl daemon-reload")
	s.active(s.first)
	if log := s.first.Run("journalctl", "-u", unit, "--no-pager"); !strings.Contains(log, "Watchdog timeout") {
		s.Errorf("the journal says nothing of the watchdog:\n%s", log)
	}
}

// journal looks for the fields of the agent's entries.
func (s *two) journal() {
	var entry map[string]any
	out := s.first.Run("journalctl", "-u", unit, "-o", "json", "-n", "1", "BERTH_CLUSTER=default", "--no-pager")
	if err := json.Unmarshal([]byte(out), &entry); err != nil {
		s.Fatalf("%v in %q", err, out)
	}
	if entry["BERTH_CONTAINER_INSTANCE"] == nil || entry["PRIORITY"] != "6" {
		s.Errorf("entry %v", entry)
	}
	if out, err := s.first.Try("journalctl", "--no-pager", "-g", "berth1\\.", "-q"); strings.Contains(out, "berth1.") {
		s.Errorf("a token is in the journal: %v %s", err, out)
	}
}

// upgrade replaces the agent by its next version and that by today's again, with tasks
// that run.
func (s *two) upgrade() {
	first := s.instance(s.first)
	var arns []string
	for range tasks {
		out, err := s.ecs.StartTask(s.Context(), &ecs.StartTaskInput{TaskDefinition: aws.String("counts"), ContainerInstances: []string{first}})
		if err != nil || len(out.Failures) > 0 {
			s.Fatalf("start tasks: %v %+v", err, out)
		}
		arns = append(arns, *out.Tasks[0].TaskArn)
	}
	for chunk := range slices.Chunk(arns, 100) {
		s.wait("RUNNING", chunk...)
	}
	before := s.pids()
	if len(before) != tasks {
		s.Fatalf("%d containers run", len(before))
	}
	for _, version := range []string{Next, Today} {
		began := time.Now()
		old := s.first.Show(unit, "MainPID")
		s.first.Run("sh", "-c", "dpkg -i /host/packages/"+version+"/berth-agent_*.deb")
		system.Until(s, 60*time.Second, "another agent", func() error {
			if s.first.Show(unit, "MainPID") == old {
				return fmt.Errorf("still process %s", old)
			}
			return nil
		})
		s.active(s.first)
		s.Logf("%s is connected after %v", version, time.Since(began).Round(time.Millisecond))
		if got := s.first.Run("berth-agent", "-version"); strings.Contains(got, " "+Next+" ") != (version == Next) {
			s.Errorf("with %s the agent is %s", version, got)
		}
		// One that has ended is remembered.
		if got := s.first.Show(unit, "StatusText"); !strings.HasPrefix(got, strconv.Itoa(tasks+1)+" tasks") {
			s.Errorf("with %s the agent says %q", version, got)
		}
		if d := slices.Compare(before, s.pids()); d != 0 {
			s.Errorf("with %s other processes run:\n%v\n%v", version, before, s.pids())
		}
		backup := map[string]string{Next: "state.db.v1", Today: "state.db.v2"}[version]
		s.first.Run("berth-agent", "state", "check", "/var/lib/berth/agent/"+backup)
	}
	s.updates(first, before)
	s.whole(arns)
	for _, arn := range arns {
		if _, err := s.ecs.StopTask(s.Context(), &ecs.StopTaskInput{Task: aws.String(arn)}); err != nil {
			s.Fatal(err)
		}
	}
	for chunk := range slices.Chunk(arns, 100) {
		s.wait("STOPPED", chunk...)
	}
}

// updates has the cluster update the agent: to the next version, to one that does not
// start, and back to today's.
func (s *two) updates(instance string, before []string) {
	s.Helper()
	const folder = "/var/lib/berth/cluster/packages"
	s.first.Run("mkdir", "-p", folder)
	for _, c := range []struct {
		what, versions string // that the operator puts into the folder
		status, runs   string
	}{
		{"to the next version", Today + " " + Next, "UPDATED", Next},
		{"to one that does not start", Broken, "FAILED", Next},
		{"back", Today, "UPDATED", Today},
	} {
		began := time.Now()
		s.first.Run("sh", "-c", "rm -f "+folder+"/*; for v in "+c.versions+"; do cp /host/packages/$v/berth-agent_*.deb "+folder+"; done")
		out, err := s.ecs.UpdateContainerAgent(s.Context(), &ecs.UpdateContainerAgentInput{ContainerInstance: aws.String(instance)})
		if err != nil || out.ContainerInstance.AgentUpdateStatus != types.AgentUpdateStatusPending {
			s.Fatalf("%s: %v, %+v", c.what, err, out)
		}
		system.Until(s, 3*time.Minute, c.what, func() error {
			out, err := s.ecs.DescribeContainerInstances(s.Context(), &ecs.DescribeContainerInstancesInput{ContainerInstances: []string{instance}})
			if err != nil {
				return err
			}
			if i := out.ContainerInstances[0]; string(i.AgentUpdateStatus) != c.status || !i.AgentConnected || aws.ToString(i.VersionInfo.AgentVersion) != c.runs {
				return fmt.Errorf("%s, connected %t, version %s", i.AgentUpdateStatus, i.AgentConnected, aws.ToString(i.VersionInfo.AgentVersion))
			}
			return nil
		})
		// The unit ends when it has seen the agent.
		system.Until(s, time.Minute, "the end of the installation", func() error {
			if state, err := s.first.Try("systemctl", "is-active", "berth-agent-update"); err == nil {
				return errors.New(state)
			}
			return nil
		})
		s.active(s.first)
		if slices.Compare(before, s.pids()) != 0 {
			s.Errorf("%s: other processes run:\n%v\n%v", c.what, before, s.pids())
		}
		s.Logf("%s: %v", c.what, time.Since(began).Round(time.Millisecond))
	}
	_, err := s.ecs.UpdateContainerAgent(s.Context(), &ecs.UpdateContainerAgentInput{ContainerInstance: aws.String(instance)})
	if _, ok := errors.AsType[*types.NoUpdateAvailableException](err); !ok {
		s.Errorf("when there is nothing newer: %v", err)
	}
}

// instance is the container instance of a machine, by its agent's journal.
func (s *two) instance(m *Machine) string {
	s.Helper()
	out := m.Run("sh", "-c", "journalctl -u "+unit+" -o cat --output-fields=BERTH_CONTAINER_INSTANCE BERTH_CLUSTER=default -n 1 --no-pager")
	return strings.TrimSpace(out)
}

// pids are the processes of all containers of the first machine.
func (s *two) pids() []string {
	s.Helper()
	var out []string
	for line := range strings.Lines(s.first.Run("ctr", "-n", "berth", "tasks", "ls")) {
		if f := strings.Fields(line); len(f) == 3 && f[2] == "RUNNING" {
			out = append(out, f[0]+" "+f[1])
		}
	}
	slices.Sort(out)
	return out
}

// whole looks for gaps in what the tasks printed.
func (s *two) whole(arns []string) {
	s.Helper()
	for _, arn := range arns {
		next := 0
		text := s.first.Run("cat", "/var/log/berth/tasks/"+arn[strings.LastIndexByte(arn, '/')+1:]+"/main/log.json")
		for line := range strings.Lines(text) {
			var entry struct{ Log *string }
			if err := json.Unmarshal([]byte(line), &entry); err != nil {
				s.Fatalf("%s: %v in %q", arn, err, line)
			}
			if entry.Log == nil {
				continue // the head of the file
			}
			if strings.TrimSpace(*entry.Log) != strconv.Itoa(next) {
				s.Fatalf("%s: line %d is %q", arn, next, line)
			}
			next++
		}
		if next < 4 {
			s.Errorf("%s printed %d lines", arn, next)
		}
	}
}

// uninstall has the script take everything off the second machine.
func (s *two) uninstall() {
	s.second.Run("bash", "/host/packages/"+Today+"/install.sh", "--uninstall", "--purge")
	s.gone(s.second, "/var/lib/berth", "/var/log/berth", "/etc/berth", "/usr/bin/berth")
}

// bake makes the second machine one whose files can be copied to others.
func (s *two) bake() {
	out := s.second.Run("env", "BERTH_PACKAGES=/host/packages/"+Today, "BERTH_ARCHIVES=/host/packages/busybox.tar", "bash", "/host/packages/provision.sh")
	if !strings.Contains(out, "This machine can be copied as an image.") {
		s.Errorf("provision.sh:\n%s", out)
	}
	if labels := s.second.Run("ctr", "-n", "berth", "images", "ls"); !strings.Contains(labels, "io.cri-containerd.pinned=pinned") {
		s.Errorf("the image is not pinned:\n%s", labels)
	}
	if id := s.second.Run("cat", "/etc/machine-id"); id != "" {
		s.Errorf("the machine's id is %q", id)
	}
	s.second.Run("systemctl", "is-enabled", unit)
}

// shutdown makes the second machine a member again and turns it off.
func (s *two) shutdown() {
	s.second.Run("sh", "-c", "mkdir -p /etc/ecs; echo BERTH_DRAIN_AT_SHUTDOWN=20s > /etc/ecs/ecs.config")
	s.member(s.second)
	draining := func() int {
		out, err := s.ecs.ListContainerInstances(s.Context(), &ecs.ListContainerInstancesInput{Status: types.ContainerInstanceStatusDraining})
		if err != nil {
			s.Fatal(err)
		}
		return len(out.ContainerInstanceArns)
	}
	if n := draining(); n != 0 {
		s.Errorf("%d instances are draining before the shutdown", n)
	}
	s.second.PowerOff()
	if n := draining(); n != 1 {
		s.Errorf("%d instances are draining after the shutdown", n)
	}
}

// purge removes the packages of the first machine as any others.
func (s *two) purge() {
	s.first.Run("dpkg", "--purge", "berth-agent")
	s.gone(s.first, "/var/lib/berth/agent")
}

// gone looks for what an agent leaves.
func (s *two) gone(m *Machine, paths ...string) {
	s.Helper()
	for _, path := range append(paths, "/etc/ecs", "/run/berth", "/usr/lib/berth/bin/berth-agent", "/usr/lib/systemd/system/berth-agent.service", "/etc/systemd/system/ecs.service") {
		if out, err := m.Try("ls", "-lA", path); err == nil && !(path == "/var/lib/berth" && out == "total 0\n") { // a mount of the test's
			s.Errorf("%s: %s is there:\n%s", m.Name, path, out)
		}
	}
	for what, script := range map[string]string{
		"containers": "ctr -n berth containers ls -q", "interfaces": "ip -br link | grep -E 'berth|ecs' || :", "firewall rules": "nft list tables | grep berth || :",
		"cgroups": "find /sys/fs/cgroup -name 'ecs*' -o -name 'berth*' | grep -v berth-cluster || :", "processes": "pgrep -al '^berth-' || :",
		"namespaces": "ls /run/netns 2>/dev/null || :", "mounts": "grep ' /run/berth' /proc/mounts || :",
	} {
		if out := strings.TrimSpace(m.Run("sh", "-c", script)); out != "" {
			s.Errorf("%s: %s are left:\n%s", m.Name, what, out)
		}
	}
}
