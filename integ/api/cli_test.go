package api

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/cluster"
	"berth.dev/berth/integ/lab"
)

// command runs a program for at most two minutes and returns what it printed on both
// outputs. A program that is not installed skips the test, except in CI.
func command(t *testing.T, env []string, name string, args ...string) (string, error) {
	t.Helper()
	if _, err := os.Stat(name); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is not installed: make test installs it", name)
		}
		t.Skipf("%s is not installed: make test installs it", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", name, err)
	}
	return string(out), err
}

// cliEnv is the environment in which stock AWS tools find the cluster and nothing else.
func cliEnv(l *lab.Lab, k cluster.Key) []string {
	return []string{
		"PATH=/usr/bin:/bin", "HOME=" + l.Dir, "LC_ALL=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1",
		"AWS_ACCESS_KEY_ID=" + k.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + k.SecretAccessKey,
		"AWS_DEFAULT_REGION=" + lab.Region, "AWS_REGION=" + lab.Region, "AWS_ENDPOINT_URL=" + l.URL, "AWS_PAGER=", "AWS_MAX_ATTEMPTS=1",
		"AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
	}
}

// newModel makes Debian's older tools know the operations and members of today: they read
// the service model that the cluster itself is checked against.
func newModel(t *testing.T) string {
	t.Helper()
	model, err := os.ReadFile("../../cluster/api/model/ecs-2014-11-13.model.json")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "ecs", "2014-11-13"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ecs", "2014-11-13", "service-2.json"), model, 0o600); err != nil {
		t.Fatal(err)
	}
	return "AWS_DATA_PATH=" + dir
}

// cli is the aws command line against one lab.
type cli struct {
	t   *testing.T
	l   *lab.Lab
	env []string
}

// ecs runs a command that must succeed and returns its answer.
func (c cli) ecs(args ...string) map[string]any {
	c.t.Helper()
	text, err := command(c.t, c.env, "/usr/bin/aws", append([]string{"ecs", "--endpoint-url", c.l.URL, "--output", "json"}, args...)...)
	if err != nil {
		c.t.Fatalf("aws ecs %s: %v\n%s", strings.Join(args, " "), err, text)
	}
	var out map[string]any
	if strings.TrimSpace(text) != "" {
		if err := json.Unmarshal([]byte(text), &out); err != nil {
			c.t.Fatalf("aws ecs %s printed no JSON: %v\n%s", args[0], err, text)
		}
	}
	return out
}

// fails runs a command that must fail with an error code.
func (c cli) fails(code string, args ...string) {
	c.t.Helper()
	text, err := command(c.t, c.env, "/usr/bin/aws", append([]string{"ecs", "--endpoint-url", c.l.URL}, args...)...)
	if err == nil || !strings.Contains(text, "("+code+")") {
		c.t.Errorf("aws ecs %s: got %v, want %s\n%s", args[0], err, code, text)
	}
}

// at digs a value out of a JSON answer: names of members and indexes.
func at(t *testing.T, v any, path ...any) any {
	t.Helper()
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			list, _ := v.([]any)
			if p >= len(list) {
				t.Fatalf("no element %d at %v", p, path)
			}
			v = list[p]
		}
	}
	return v
}

// The walk of the issue: what a newcomer types.
func TestCLIWalk(t *testing.T) {
	l := lab.Start(t)
	c := cli{t, l, cliEnv(l, l.Key)}
	if got := at(t, c.ecs("create-cluster", "--cluster-name", "default"), "cluster", "status"); got != "ACTIVE" {
		t.Errorf("create-cluster: status %v", got)
	}
	l.Agent(lab.Shape{})
	list, _ := at(t, c.ecs("list-clusters"), "clusterArns").([]any)
	if len(list) != 1 {
		t.Errorf("list-clusters: %v", list)
	}
	if got := at(t, c.ecs("describe-clusters"), "clusters", 0, "registeredContainerInstancesCount"); got != 1.0 {
		t.Errorf("describe-clusters: %v instances", got)
	}
	if got := at(t, c.ecs("register-task-definition", "--cli-input-json", "file://../../examples/my-task.json"), "taskDefinition", "revision"); got != 1.0 {
		t.Errorf("register-task-definition: revision %v", got)
	}
	r := c.ecs("run-task", "--task-definition", "my-task")
	arn, _ := at(t, r, "tasks", 0, "taskArn").(string)
	if failed, ok := at(t, r, "failures").([]any); !ok || len(failed) != 0 || arn == "" {
		t.Fatalf("run-task: %v", r)
	}
	c.ecs("wait", "tasks-running", "--tasks", arn)
	up := at(t, c.ecs("describe-tasks", "--tasks", arn), "tasks", 0)
	if at(t, up, "lastStatus") != "RUNNING" || at(t, up, "containers", 0, "networkBindings", 0, "hostPort") != 80.0 || at(t, up, "containers", 0, "imageDigest") != lab.Digest {
		t.Errorf("describe-tasks: %v", up)
	}
	if got := at(t, c.ecs("list-tasks"), "taskArns", 0); got != arn {
		t.Errorf("list-tasks: %v", got)
	}
	if got := at(t, c.ecs("stop-task", "--task", arn, "--reason", "done"), "task", "desiredStatus"); got != "STOPPED" {
		t.Errorf("stop-task: %v", got)
	}
	c.ecs("wait", "tasks-stopped", "--tasks", arn)
	down := at(t, c.ecs("describe-tasks", "--tasks", arn), "tasks", 0)
	for name, want := range map[string]any{"stoppedReason": "done", "stopCode": "UserInitiated", "lastStatus": "STOPPED", "desiredStatus": "STOPPED"} {
		if got := at(t, down, name); got != want {
			t.Errorf("describe-tasks: %s is %v, want %v", name, got, want)
		}
	}
	for _, name := range []string{"createdAt", "startedAt", "pullStartedAt", "pullStoppedAt", "stoppingAt", "executionStoppedAt", "stoppedAt", "connectivityAt"} {
		if at(t, down, name) == nil {
			t.Errorf("describe-tasks: no %s", name)
		}
	}
	if at(t, down, "containers", 0, "exitCode") != 0.0 {
		t.Errorf("describe-tasks: exit code %v", at(t, down, "containers", 0, "exitCode"))
	}
}

// Every other operation once, and what the command line makes of errors.
func TestCLIOperations(t *testing.T) {
	l := lab.Start(t)
	c := cli{t, l, cliEnv(l, l.Key)}
	a := l.Agent(lab.Shape{})
	file := filepath.Join(t.TempDir(), "def.json")
	if err := os.WriteFile(file, []byte(`{"family":"b","containerDefinitions":[{"name":"c","image":"i","memory":64}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c.ecs("register-task-definition", "--cli-input-json", "file://"+file)
	}
	if list, _ := at(t, c.ecs("list-task-definitions", "--page-size", "1"), "taskDefinitionArns").([]any); len(list) != 3 {
		t.Errorf("list-task-definitions in pages of one: %v", list)
	}
	if got := at(t, c.ecs("list-task-definition-families"), "families", 0); got != "b" {
		t.Errorf("list-task-definition-families: %v", got)
	}
	if got := at(t, c.ecs("describe-task-definition", "--task-definition", "b:2"), "taskDefinition", "revision"); got != 2.0 {
		t.Errorf("describe-task-definition: %v", got)
	}
	c.ecs("deregister-task-definition", "--task-definition", "b:1")
	today := cli{t, l, append(c.env, newModel(t))}
	if got := at(t, today.ecs("delete-task-definitions", "--task-definitions", "b:1"), "taskDefinitions", 0, "status"); got != "DELETE_IN_PROGRESS" {
		t.Errorf("delete-task-definitions: %v", got)
	}
	if got := at(t, c.ecs("list-container-instances", "--filter", "agentConnected == true"), "containerInstanceArns", 0); got != a.ARN {
		t.Errorf("list-container-instances: %v", got)
	}
	if got := at(t, c.ecs("describe-container-instances", "--container-instances", a.ARN), "containerInstances", 0, "status"); got != "ACTIVE" {
		t.Errorf("describe-container-instances: %v", got)
	}
	if got := at(t, c.ecs("start-task", "--task-definition", "b", "--container-instances", a.ARN), "tasks", 0, "containerInstanceArn"); got != a.ARN {
		t.Errorf("start-task: %v", got)
	}
	c.ecs("put-attributes", "--attributes", "name=stack,value=prod,targetId="+a.ARN)
	if got := at(t, c.ecs("list-attributes", "--target-type", "container-instance", "--attribute-name", "stack"), "attributes", 0, "value"); got != "prod" {
		t.Errorf("list-attributes: %v", got)
	}
	c.ecs("run-task", "--task-definition", "b", "--count", "2", "--placement-constraints", "type=memberOf,expression=attribute:stack == prod",
		"--placement-strategy", "type=spread,field=instanceId", "--tags", "key=k,value=v", "--started-by", "cli")
	c.ecs("delete-attributes", "--attributes", "name=stack,targetId="+a.ARN)
	c.ecs("tag-resource", "--resource-arn", a.ARN, "--tags", "key=x,value=y")
	if got := at(t, c.ecs("list-tags-for-resource", "--resource-arn", a.ARN), "tags", 0, "key"); got != "x" {
		t.Errorf("list-tags-for-resource: %v", got)
	}
	c.ecs("untag-resource", "--resource-arn", a.ARN, "--tag-keys", "x")
	c.ecs("put-account-setting", "--name", "containerInsights", "--value", "enabled")
	c.ecs("put-account-setting-default", "--name", "containerInsights", "--value", "enabled")
	c.ecs("delete-account-setting", "--name", "containerInsights")
	if list, _ := at(t, c.ecs("list-account-settings", "--effective-settings"), "settings").([]any); len(list) < 8 {
		t.Errorf("list-account-settings: %d", len(list))
	}
	first := at(t, today.ecs("run-task", "--task-definition", "b", "--client-token", "once"), "tasks", 0, "taskArn")
	if again := at(t, today.ecs("run-task", "--task-definition", "b", "--client-token", "once"), "tasks", 0, "taskArn"); again != first {
		t.Errorf("run-task with one token: %v, then %v", first, again)
	}
	today.fails("ConflictException", "run-task", "--task-definition", "b", "--client-token", "once", "--count", "2")
	if got := at(t, c.ecs("update-container-instances-state", "--container-instances", a.ARN, "--status", "DRAINING"), "containerInstances", 0, "status"); got != "DRAINING" {
		t.Errorf("update-container-instances-state: %v", got)
	}
	if at(t, c.ecs("discover-poll-endpoint", "--container-instance", a.ARN), "endpoint") == nil {
		t.Error("discover-poll-endpoint: no endpoint")
	}
	c.fails("InvalidParameterException", "deregister-container-instance", "--container-instance", a.ARN)
	if got := at(t, c.ecs("deregister-container-instance", "--container-instance", a.ARN, "--force"), "containerInstance", "status"); got != "INACTIVE" {
		t.Errorf("deregister-container-instance: %v", got)
	}
	c.fails("ClusterNotFoundException", "list-tasks", "--cluster", "nowhere")
	c.fails("ClientException", "describe-task-definition", "--task-definition", "none")
	c.fails("UnknownOperationException", "list-services-by-namespace", "--namespace", "none")
	c.ecs("create-cluster", "--cluster-name", "spare")
	if got := at(t, c.ecs("delete-cluster", "--cluster", "spare"), "cluster", "status"); got != "INACTIVE" {
		t.Errorf("delete-cluster: %v", got)
	}
	wrong := l.Key
	wrong.SecretAccessKey = "wrong"
	cli{t, l, cliEnv(l, wrong)}.fails("InvalidSignatureException", "list-clusters")
	wrong.AccessKeyID = "AKIAXXXXXXXXXXXXXXXX"
	cli{t, l, cliEnv(l, wrong)}.fails("UnrecognizedClientException", "list-clusters")
}
