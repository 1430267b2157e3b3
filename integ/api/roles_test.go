package api

import (
	"encoding/json"
	"strings"
	"testing"

	"berth.dev/berth/integ/lab"
)

// TestRoles goes the way of Terraform's aws_iam_role and aws_iam_role_policy, and of the
// CLI, with the stock client.
func TestRoles(t *testing.T) {
	l := lab.Start(t)
	env := cliEnv(l, l.Key)
	aws := func(args ...string) string {
		t.Helper()
		out, err := command(t, env, "/usr/bin/aws", append(args, "--endpoint-url", l.URL, "--output", "json")...)
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return out
	}
	refused := func(code string, args ...string) {
		t.Helper()
		out, err := command(t, env, "/usr/bin/aws", append(args, "--endpoint-url", l.URL)...)
		if err == nil || !strings.Contains(out, code) {
			t.Errorf("%v: want %s, got %v\n%s", args, code, err, out)
		}
	}
	const trust = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ecs-tasks.amazonaws.com"},"Action":"sts:AssumeRole"}]}`
	const policy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ecs:ListClusters","Resource":"*"}]}`
	aws("iam", "create-role", "--role-name", "web", "--assume-role-policy-document", trust, "--tags", "Key=team,Value=blue", "--description", "a <role>")
	refused("EntityAlreadyExists", "iam", "create-role", "--role-name", "web", "--assume-role-policy-document", trust)
	refused("MalformedPolicyDocument", "iam", "create-role", "--role-name", "bad", "--assume-role-policy-document", "{}")
	aws("iam", "put-role-policy", "--role-name", "web", "--policy-name", "p", "--policy-document", policy)
	aws("iam", "attach-role-policy", "--role-name", "web", "--policy-arn", "arn:aws:iam::aws:policy/service-role/AmazonECSTaskExecutionRolePolicy")
	var got struct {
		Role struct {
			Arn, Description         string
			AssumeRolePolicyDocument struct{ Version string }
			Tags                     []struct{ Key, Value string }
			MaxSessionDuration       int
		}
	}
	if err := json.Unmarshal([]byte(aws("iam", "get-role", "--role-name", "web")), &got); err != nil {
		t.Fatal(err)
	}
	if r := got.Role; !strings.HasSuffix(r.Arn, ":role/web") || r.Description != "a <role>" || r.AssumeRolePolicyDocument.Version != "2012-10-17" || len(r.Tags) != 1 || r.MaxSessionDuration != 3600 {
		t.Errorf("get-role: %+v", r)
	}
	for want, args := range map[string][]string{
		`"p"`:            {"iam", "list-role-policies", "--role-name", "web"},
		"AmazonECSTask":  {"iam", "list-attached-role-policies", "--role-name", "web"},
		"ecs:ListCluste": {"iam", "get-role-policy", "--role-name", "web", "--policy-name", "p"},
		"blue":           {"iam", "list-role-tags", "--role-name", "web"},
		":role/web":      {"iam", "list-roles"},
		"[]":             {"iam", "list-instance-profiles-for-role", "--role-name", "web"},
	} {
		if out := aws(args...); !strings.Contains(out, want) {
			t.Errorf("%v: no %s in\n%s", args, want, out)
		}
	}
	// Keys of the role do what its policy says, and nothing else.
	var taken struct {
		Credentials struct{ AccessKeyId, SecretAccessKey, SessionToken string }
	}
	if err := json.Unmarshal([]byte(aws("sts", "assume-role", "--role-arn", got.Role.Arn, "--role-session-name", "test")), &taken); err != nil {
		t.Fatal(err)
	}
	operator := env
	env = append(env[:len(env):len(env)], "AWS_ACCESS_KEY_ID="+taken.Credentials.AccessKeyId, "AWS_SECRET_ACCESS_KEY="+taken.Credentials.SecretAccessKey, "AWS_SESSION_TOKEN="+taken.Credentials.SessionToken)
	if out := aws("sts", "get-caller-identity"); !strings.Contains(out, ":assumed-role/web/test") {
		t.Errorf("who am I: %s", out)
	}
	aws("ecs", "list-clusters")
	refused("AccessDenied", "ecs", "list-task-definitions")
	refused("AccessDenied", "iam", "list-roles")
	refused("AccessDenied", "sts", "assume-role", "--role-arn", got.Role.Arn, "--role-session-name", "again")
	env = operator
	refused("DeleteConflict", "iam", "delete-role", "--role-name", "web")
	aws("iam", "delete-role-policy", "--role-name", "web", "--policy-name", "p")
	aws("iam", "detach-role-policy", "--role-name", "web", "--policy-arn", "arn:aws:iam::aws:policy/service-role/AmazonECSTaskExecutionRolePolicy")
	aws("iam", "delete-role", "--role-name", "web")
	refused("NoSuchEntity", "iam", "get-role", "--role-name", "web")
	// The keys have gone with the role.
	env = append(env[:len(env):len(env)], "AWS_ACCESS_KEY_ID="+taken.Credentials.AccessKeyId, "AWS_SECRET_ACCESS_KEY="+taken.Credentials.SecretAccessKey, "AWS_SESSION_TOKEN="+taken.Credentials.SessionToken)
	refused("UnrecognizedClientException", "ecs", "list-clusters")
}
