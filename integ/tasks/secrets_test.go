package tasks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"berth.dev/berth/agent/runtime"
	"berth.dev/berth/cluster/store"
	services "berth.dev/berth/integ/aws"
	wire "berth.dev/berth/wire/acs"
)

const region = "us-east-1"

// Keys of the execution roles.
const (
	roleSecret = "canary-of-the-roles-secret"
	roleToken  = "canary-of-the-roles-token"
)

// Names of rows whose task has no execution role, or one that may do nothing.
const (
	roleless = "no execution role"
	denied   = "role that may not"
)

// startServices starts the services of AWS with what the rows refer to.
func startServices(t *testing.T) *services.Server {
	s := services.Start(t)
	s.Allow(services.Key{ID: "ASIAEXECUTION", Secret: roleSecret, Token: roleToken, Role: "exec"})
	s.Allow(services.Key{ID: "ASIAWEAK", Secret: roleSecret, Token: roleToken, Role: "weak", Denied: []string{
		"ssm:GetParameters", "secretsmanager:GetSecretValue", "s3:GetBucketLocation", "ecr:GetAuthorizationToken",
	}})
	s.SetParameter(region, "/app/db", "parameter-value")
	s.SetParameter("eu-west-1", "/app/db", "far-value")
	s.SetSecret(region, "app", `{"user":"old-user"}`)
	s.SetSecret(region, "app", `{"user":"new-user","port":5432}`)
	s.SetSecret(region, "text", "not json")
	s.SetObject(region, "conf", "a.env", []byte("# first\nONE=file one\nTWO=file=two\nIMAGE=file\n"))
	s.SetObject("eu-west-1", "konf", "dir/b.env", []byte("ONE=second\nTHREE=\"3\"\n"))
	return s
}

// executionRole issues the credentials of a task's execution role.
func executionRole(_ context.Context, t *store.Task) (_, execution *wire.IAMRoleCredentials, err error) {
	c := &wire.IAMRoleCredentials{
		CredentialsID: "exec-" + t.ID, RoleARN: "arn:aws:iam::000000000000:role/exec", AccessKeyID: "ASIAEXECUTION",
		SecretAccessKey: roleSecret, SessionToken: roleToken, Expiration: time.Now().Add(time.Hour).UTC().Format(time.RFC3339),
	}
	switch group := aws.ToString(t.Task.Group); {
	case strings.HasSuffix(group, strings.ReplaceAll(roleless, " ", "-")):
		return nil, nil, nil
	case strings.Contains(group, strings.ReplaceAll(denied, " ", "-")):
		c.AccessKeyID, c.RoleARN = "ASIAWEAK", "arn:aws:iam::000000000000:role/weak"
	}
	return nil, c, nil
}

// secretARN is the ARN of a secret without the suffix that it gets by chance.
func secretARN(name, more string) string {
	return "arn:aws:secretsmanager:" + region + ":" + services.Account + ":secret:" + name + more
}

// secret gives a container a secret.
func secret(name, from string) func(c *types.ContainerDefinition) {
	return func(c *types.ContainerDefinition) {
		c.Secrets = append(c.Secrets, types.Secret{Name: aws.String(name), ValueFrom: aws.String(from)})
	}
}

// envFile gives a container an environment file.
func envFile(arn string) func(c *types.ContainerDefinition) {
	return func(c *types.ContainerDefinition) {
		c.EnvironmentFiles = append(c.EnvironmentFiles, types.EnvironmentFile{Value: aws.String(arn), Type: types.EnvironmentFileTypeS3})
	}
}

func variable(name, value string) func(c *types.ContainerDefinition) {
	return func(c *types.ContainerDefinition) {
		c.Environment = append(c.Environment, types.KeyValuePair{Name: aws.String(name), Value: aws.String(value)})
	}
}

func filesLabel(v string) func(c *types.ContainerDefinition) {
	return func(c *types.ContainerDefinition) { c.DockerLabels = map[string]string{"berth.secret-files": v} }
}

func edited(c types.ContainerDefinition, edits ...func(c *types.ContainerDefinition)) types.ContainerDefinition {
	for _, e := range edits {
		e(&c)
	}
	return c
}

func withRole(in *ecs.RegisterTaskDefinitionInput) {
	in.ExecutionRoleArn = aws.String("arn:aws:iam::000000000000:role/exec")
}

// secrets are about values that definitions only refer to.
func secrets() []scenario {
	ok := exited(end{"main", 0, ""})
	// shows is a row whose container prints variables.
	shows := func(name string, output []string, script string, edits ...func(c *types.ContainerDefinition)) scenario {
		return scenario{name: name, want: ok, output: output, define: task(withRole, edited(shell(script), edits...))}
	}
	// fails is a row whose task cannot start for a reason.
	fails := func(name, reason string, edits ...func(c *types.ContainerDefinition)) scenario {
		return scenario{
			name: name, want: neverStarted("ResourceInitializationError: unable to pull secrets: "+reason, end{"main", noExit, ""}),
			define: task(withRole, edited(shell("echo started"), edits...)),
		}
	}
	const notAllowed = " is not authorized to perform: "
	weak := "User: arn:aws:sts::" + services.Account + ":assumed-role/weak/berth" + notAllowed
	because := func(action string) string {
		return action + " because no identity-based policy allows the " + action + " action; check the policies of the execution role"
	}
	ssmIn := "fetching secret data from SSM Parameter Store in " + region + ": "
	asmIn := func(name string) string {
		return "fetching secret data from AWS Secrets Manager in region " + region + ": secret " + secretARN(name, "") + ": "
	}
	files := shell("cat /run/secrets/DB; echo; stat -c '%a %u' /run/secrets/DB; echo \"[$DB]\"; grep -c ' /run/secrets tmpfs ro,' /proc/mounts; touch /run/secrets/x 2>/dev/null || echo read-only")
	rows := []scenario{
		{
			name: "no trace of secrets", want: stopped(end{"main", 0, ""}), running: noTrace,
			define: task(withRole, edited(shell(waits(0)), secret("DB", "/app/db"), secret("USR", secretARN("app", ":user::")), filesLabel("/run/secrets:DB"), envFile("arn:aws:s3:::conf/a.env"))),
		},
		shows("parameter by name", []string{"parameter-value"}, "echo $DB", secret("DB", "/app/db")),
		shows("parameter by ARN", []string{"parameter-value"}, "echo $DB", secret("DB", services.ParameterARN(region, "/app/db"))),
		shows("parameter of another region", []string{"far-value"}, "echo $DB", secret("DB", services.ParameterARN("eu-west-1", "/app/db"))),
		shows("whole secret", []string{`{"user":"new-user","port":5432}`}, "echo $APP", secret("APP", secretARN("app", ""))),
		shows("keys of a secret", []string{"new-user 5432"}, "echo $USR $PORT", secret("USR", secretARN("app", ":user::")), secret("PORT", secretARN("app", ":port::"))),
		shows("stage of a secret", []string{"old-user"}, "echo $USR", secret("USR", secretARN("app", ":user:AWSPREVIOUS:"))),
		shows("environment files", []string{"file one,file=two,\"3\",file"}, "echo $ONE,$TWO,$THREE,$IMAGE", envFile("arn:aws:s3:::conf/a.env"), envFile("arn:aws:s3:::konf/dir/b.env")),
		shows("environment before environment file", []string{"definition"}, "echo $ONE", variable("ONE", "definition"), envFile("arn:aws:s3:::conf/a.env")),
		shows("secret before environment file", []string{"parameter-value"}, "echo $ONE", secret("ONE", "/app/db"), envFile("arn:aws:s3:::conf/a.env")),
		{
			name: "secret files", want: ok, output: []string{"parameter-value", "444 0", "[]", "1", "read-only"},
			define: task(withRole, edited(files, secret("DB", "/app/db"), filesLabel("/run/secrets"))),
		},
		{
			name: "secret file of some user", want: ok, output: []string{"parameter-value", "new-user"},
			define: task(withRole, edited(shell("cat /etc/app/DB; echo; echo $USR"), secret("DB", "/app/db"), secret("USR", secretARN("app", ":user::")), filesLabel("/etc/app:DB"),
				func(c *types.ContainerDefinition) { c.User = aws.String("app") })),
		},
		fails("missing parameters", ssmIn+"invalid parameters: /app/none,/app/other", secret("A", "/app/other"), secret("B", "/app/none")),
		fails("no ARN of a secret", "an invalid ARN format for the AWS Secrets Manager secret was specified. Specify a valid ARN and try again.", secret("A", secretARN("app", ":user"))),
		fails("missing secret", asmIn("none")+"ResourceNotFoundException: Secrets Manager can't find the specified secret.", secret("A", secretARN("none", ""))),
		fails("missing stage", asmIn("app")+"ResourceNotFoundException: Secrets Manager can't find the specified secret value for staging label: NONE", secret("A", secretARN("app", ":user:NONE:"))),
		fails("missing environment file", "unable to download env file arn:aws:s3:::conf/none.env: NoSuchKey: The specified key does not exist.", envFile("arn:aws:s3:::conf/none.env")),
		fails("missing bucket", "unable to download env file arn:aws:s3:::none/a.env: location of bucket none: NoSuchBucket: The specified bucket does not exist", envFile("arn:aws:s3:::none/a.env")),
		fails(denied+" read parameters", ssmIn+"AccessDeniedException: "+weak+because("ssm:GetParameters"), secret("A", "/app/db")),
		fails(denied+" read secrets", asmIn("app")+"AccessDeniedException: "+weak+because("secretsmanager:GetSecretValue"), secret("A", secretARN("app", ""))),
		fails(denied+" read files", "unable to download env file arn:aws:s3:::conf/a.env: location of bucket conf: AccessDenied: "+weak+because("s3:GetBucketLocation"), envFile("arn:aws:s3:::conf/a.env")),
		fails(roleless, "ssm secret resource: unable to find execution role credentials: the task definition names no executionRoleArn; set one that may read what it refers to", secret("A", "/app/db")),
	}
	key := "ResourceInitializationError: container main: secret A: retrieved secret from Secrets Manager "
	for name, of := range map[string][2]string{
		"missing key of a secret": {secretARN("app", ":none::"), "did not contain json key none"},
		"key of a text":           {secretARN("text", ":user::"), "is no JSON object, of which json key user could be taken"},
	} {
		rows = append(rows, scenario{
			name: name, want: neverStarted(key+of[1], end{"main", noExit, ""}),
			define: task(withRole, edited(shell("echo started"), secret("A", of[0]))),
		})
	}
	return rows
}

// noTrace looks for values of secrets, which all begin alike or are known, where they
// must not be: the state database, what the agent prints and tells, what it labels, and
// the arguments of processes.
func noTrace(t *testing.T, l *lab, tk types.Task) {
	canaries := []string{roleSecret, roleToken, "parameter-value", "far-value", "new-user", "old-user", "file one", "secret-password", "other-password", "known-password", "ecr-token"}
	l.printed(t, tk, "main", "ready")
	searched := 0
	search := func(where string, data []byte) {
		searched += len(data)
		for _, c := range canaries {
			if bytes.Contains(data, []byte(c)) {
				t.Errorf("%s holds %q", where, c)
			}
		}
	}
	search("what the agent printed", []byte(l.Agent.Output()))
	for _, dir := range []string{"agent", "run/network/files"} {
		err := filepath.WalkDir(filepath.Join(l.Dir, dir), func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil // of a task that has ended
			}
			search(path, data)
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	if searched < 1<<15 {
		t.Errorf("only %d bytes of files and output were searched, which cannot be all", searched)
	}
	for _, path := range []string{"/v1/state", "/v1/tasks", "/v1/health", "/v1/events?task=" + taskID(tk), "/metrics"} {
		resp, err := l.Debug().Get("http://agent" + path)
		if err != nil {
			t.Error(err)
			continue
		}
		data, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != http.StatusOK || len(data) == 0 {
			t.Errorf("%s: %s, %d bytes, %v", path, resp.Status, len(data), err)
		}
		search("the debug socket's "+path, data)
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(lines) == 0 {
		t.Fatal(err)
	}
	for _, path := range lines {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		search(path, data)
	}
	cd, err := containerd.New(l.Containerd.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer cd.Close()
	list, err := cd.ContainerService().List(namespaces.WithNamespace(context.Background(), runtime.DefaultNamespace))
	if err != nil || len(list) == 0 {
		t.Errorf("%d containers, %v", len(list), err)
	}
	for _, c := range list {
		search("the labels of a container", fmt.Append(nil, c.Labels))
		if c.Labels[runtime.LabelTaskARN] == *tk.TaskArn && bytes.Contains(c.Spec.GetValue(), []byte("parameter-value")) {
			t.Error("a secret that is a file is in the container's specification")
		}
	}
}
