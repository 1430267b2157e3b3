package metadata

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/system"
	"berth.dev/berth/wire/tmds"
)

const trustTasks = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ecs-tasks.amazonaws.com"},"Action":"sts:AssumeRole"}]}`

// role makes a role whose tasks may do these actions.
func (l *lab) role(t *testing.T, name string, actions ...string) string {
	t.Helper()
	list, err := json.Marshal(actions)
	if err != nil {
		t.Fatal(err)
	}
	policy := fmt.Sprintf(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":%s,"Resource":"*"}}`, list)
	for action, form := range map[string]url.Values{
		"CreateRole": {"RoleName": {name}, "AssumeRolePolicyDocument": {trustTasks}},
	} {
		if _, err := l.Cluster.API.IAM.Call(t.Context(), action, form); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Cluster.API.IAM.Call(t.Context(), "PutRolePolicy", url.Values{"RoleName": {name}, "PolicyName": {"p"}, "PolicyDocument": {policy}}); err != nil {
		t.Fatal(err)
	}
	return "arn:aws:iam::000000000000:role/" + name
}

func withRole(arn string) func(*ecs.RegisterTaskDefinitionInput) {
	return func(in *ecs.RegisterTaskDefinitionInput) { in.TaskRoleArn = &arn }
}

func (g *guest) credentialsURL() string {
	return "http://169.254.170.2" + g.env["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"]
}

// roles has tasks use the credentials of their roles, and ask for those of others.
func roles(t *testing.T, l *lab) {
	reader := l.role(t, "reader", "ecs:List*", "ecs:GetTaskProtection")
	a := l.guests(t, types.NetworkModeBridge, 1, withRole(reader))[0]
	b := l.guests(t, types.NetworkModeBridge, 1, withRole(l.role(t, "other", "ecs:*")))[0]
	var mine, again, theirs tmds.Credentials
	a.get(a.credentialsURL(), &mine)
	b.get(b.credentialsURL(), &theirs)
	if mine.RoleARN != reader || mine.AccessKeyID == "" || mine.Token == "" || mine.AccessKeyID == theirs.AccessKeyID {
		t.Errorf("credentials: %v and %v", mine, theirs)
	}
	// The id of the other task, known exactly, opens nothing.
	for _, path := range []string{b.env["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"], "/v1/credentials?id=" + strings.TrimPrefix(b.env["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"], "/v2/credentials/")} {
		if got := a.do(fetch{URL: "http://169.254.170.2" + path}); got.Status != http.StatusBadRequest || strings.Contains(got.Body, theirs.AccessKeyID) || !strings.Contains(got.Body, "Credentials not found") {
			t.Errorf("a task asked for the credentials of another: %+v", got)
		}
	}
	var sdk struct {
		AccessKeyID, Source, Err, CallErr string
		Families                          []string
	}
	call := func(g *guest, op string) {
		t.Helper()
		if err := g.ask("/sdk?op="+op+"&endpoint="+url.QueryEscape(l.reachable()), nil, &sdk); err != nil {
			t.Fatal(err)
		}
	}
	call(a, "list")
	if sdk.AccessKeyID != mine.AccessKeyID || sdk.Err != "" || sdk.CallErr != "" || len(sdk.Families) == 0 {
		t.Errorf("an SDK by its default chain: %+v", sdk)
	}
	call(a, "delete")
	if !strings.Contains(sdk.CallErr, "AccessDeniedException") || !strings.Contains(sdk.CallErr, "assumed-role/reader/") || !strings.Contains(sdk.CallErr, "because no identity-based policy allows the ecs:DeleteCluster action") {
		t.Errorf("what the role does not allow: %+v", sdk)
	}
	audit, err := os.ReadFile(filepath.Join(l.Dir, "log", "audit.log"))
	if err != nil || !strings.Contains(string(audit), " 200 169.254.170.2 \"/v2/credentials\" \"Go-http-client/1.1\" "+*a.task.TaskArn+" GetCredentials 2 default arn:") ||
		!strings.Contains(string(audit), " 400 169.254.170.2 \"/v2/credentials\" \"Go-http-client/1.1\" "+*a.task.TaskArn+" GetCredentialsInvalidRoleType 2 ") {
		t.Errorf("audit log: %v\n%s", err, audit)
	}
	// A new agent has no credentials until the cluster has sent them, under the same id.
	l.Agent.Kill()
	l.StartAgent()
	system.Until(t, 10*time.Second, "credentials after a restart", func() error {
		got := a.do(fetch{URL: a.credentialsURL()})
		if got.Status == http.StatusServiceUnavailable && !strings.Contains(got.Body, "CredentialsUninitialized") {
			t.Errorf("without credentials: %+v", got)
		}
		if got.Status != http.StatusOK {
			return fmt.Errorf("%+v", got)
		}
		return json.Unmarshal([]byte(got.Body), &again)
	})
	l.WaitConnected(10 * time.Second)
	if again.RoleARN != reader {
		t.Errorf("after a restart: %v", again)
	}
	// Nothing of it is on disk, in the agent's words or in the list of programs.
	for _, secret := range []string{mine.SecretAccessKey, mine.Token, again.SecretAccessKey, again.Token} {
		l.nowhere(t, secret)
	}
	// After its end a task's endpoint and credentials are gone.
	key := theirs.AccessKeyID
	l.On(t).Stop(*b.task.TaskArn)
	l.On(t).Wait("STOPPED", 20*time.Second, *b.task.TaskArn)
	var left answer
	if err := b.ask("/fetch", fetch{URL: b.credentialsURL()}, &left); err == nil {
		t.Errorf("after its end the task %s still answers: %+v", key, left)
	}
	unknown := guestDefinition(types.NetworkModeBridge, 30999)
	unknown.TaskRoleArn = aws.String("arn:aws:iam::000000000000:role/untrusting")
	if _, err := l.Cluster.API.IAM.Call(t.Context(), "CreateRole", url.Values{"RoleName": {"untrusting"}, "AssumeRolePolicyDocument": {strings.Replace(trustTasks, "ecs-tasks", "lambda", 1)}}); err != nil {
		t.Fatal(err)
	}
	def := l.On(t).Register(unknown)
	if _, err := l.ECS.RunTask(t.Context(), &ecs.RunTaskInput{TaskDefinition: &def}); err == nil || !strings.Contains(err.Error(), "ECS was unable to assume the role 'arn:aws:iam::000000000000:role/untrusting'") {
		t.Errorf("a role that does not trust tasks: %v", err)
	}
}

// hostRole has tasks in the host's network ask with and without their token.
func hostRole(t *testing.T, l *lab) {
	a := l.guests(t, types.NetworkModeHost, 1, withRole(l.role(t, "host-a", "ecs:List*")))[0]
	b := l.guests(t, types.NetworkModeHost, 1, withRole(l.role(t, "host-b", "ecs:List*")))[0]
	var token, foreign answer
	if err := a.ask("/read?path="+url.QueryEscape(a.env["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"]), nil, &token); err != nil || len(token.Body) < 32 {
		t.Fatalf("token: %+v, %v", token, err)
	}
	if err := b.ask("/read?path="+url.QueryEscape(b.env["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"]), nil, &foreign); err != nil || foreign.Body == token.Body {
		t.Fatalf("token of the other task: %v", err)
	}
	at := a.env["AWS_CONTAINER_CREDENTIALS_FULL_URI"]
	for name, tt := range map[string]struct {
		token string
		want  int
	}{"own token": {token.Body, 200}, "no token": {"", 403}, "another's token": {foreign.Body, 403}, "part of it": {token.Body[:10], 403}} {
		if got := b.do(fetch{URL: at, Header: map[string]string{"Authorization": tt.token}}); got.Status != tt.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
	var sdk struct{ AccessKeyID, Err string }
	if err := a.ask("/sdk", nil, &sdk); err != nil || sdk.AccessKeyID == "" {
		t.Errorf("an SDK by its default chain: %+v %v", sdk, err)
	}
}

// reachable is the cluster's address for a task in bridge mode: it listens on loopback,
// so it is handed on to an address of the host.
func (l *lab) reachable() string { return l.forward }

// nowhere looks for a secret in everything that outlives a request.
func (l *lab) nowhere(t *testing.T, secret string) {
	t.Helper()
	if strings.Contains(l.Agent.Output(), secret) || strings.Contains(l.Containerd.Output(), secret) {
		t.Error("a secret is in what the agent or containerd printed")
	}
	for _, dir := range []string{"agent", "log", "run", "cd-root"} {
		err := filepath.WalkDir(filepath.Join(l.Dir, dir), func(path string, e os.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() || strings.Contains(path, "/snapshots/") {
				return nil //nolint:nilerr // files come and go
			}
			if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), secret) {
				t.Errorf("a secret is in %s", path)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), secret) {
			t.Errorf("a secret is in %s", p)
		}
	}
}
