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
	t.Parallel()
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

// TestManagedPolicies goes the way of Terraform's aws_iam_policy with its attachment: what
// the default version says counts at once, for keys that are out already.
func TestManagedPolicies(t *testing.T) {
	t.Parallel()
	l := lab.Start(t)
	env := cliEnv(l, l.Key)
	run := func(env []string, args ...string) (string, error) {
		return command(t, env, "/usr/bin/aws", append(args, "--endpoint-url", l.URL, "--output", "json")...)
	}
	aws := func(args ...string) string {
		t.Helper()
		out, err := run(env, args...)
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return out
	}
	refused := func(code string, args ...string) {
		t.Helper()
		if out, err := run(env, args...); err == nil || !strings.Contains(out, code) {
			t.Errorf("%v: want %s, got %v\n%s", args, code, err, out)
		}
	}
	document := func(action string) string {
		return `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"` + action + `","Resource":"*"}]}`
	}
	var made struct {
		Policy struct {
			Arn, DefaultVersionId string
			AttachmentCount       int
		}
	}
	parse := func(text string, v any) {
		t.Helper()
		if err := json.Unmarshal([]byte(text), v); err != nil {
			t.Fatal(err)
		}
	}
	parse(aws("iam", "create-policy", "--policy-name", "lists", "--path", "/team/", "--policy-document", document("ecs:ListClusters"), "--tags", "Key=team,Value=blue"), &made)
	arn := made.Policy.Arn
	if !strings.HasSuffix(arn, ":policy/team/lists") || made.Policy.DefaultVersionId != "v1" {
		t.Errorf("created: %+v", made)
	}
	refused("EntityAlreadyExists", "iam", "create-policy", "--policy-name", "lists", "--policy-document", document("ecs:*"))
	refused("MalformedPolicyDocument", "iam", "create-policy", "--policy-name", "bad", "--policy-document", "{}")
	trust := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ecs-tasks.amazonaws.com"},"Action":"sts:AssumeRole"}]}`
	aws("iam", "create-role", "--role-name", "web", "--assume-role-policy-document", trust)
	refused("NoSuchEntity", "iam", "attach-role-policy", "--role-name", "web", "--policy-arn", strings.Replace(arn, "lists", "none", 1))
	aws("iam", "attach-role-policy", "--role-name", "web", "--policy-arn", arn)
	var taken struct {
		Credentials struct{ AccessKeyId, SecretAccessKey, SessionToken string }
	}
	var role struct{ Role struct{ Arn string } }
	parse(aws("iam", "get-role", "--role-name", "web"), &role)
	parse(aws("sts", "assume-role", "--role-arn", role.Role.Arn, "--role-session-name", "test"), &taken)
	task := append(env[:len(env):len(env)], "AWS_ACCESS_KEY_ID="+taken.Credentials.AccessKeyId, "AWS_SECRET_ACCESS_KEY="+taken.Credentials.SecretAccessKey, "AWS_SESSION_TOKEN="+taken.Credentials.SessionToken)
	may := func(call string, want bool) {
		t.Helper()
		if out, err := run(task, "ecs", call); (err == nil) != want || !want && !strings.Contains(out, "AccessDenied") {
			t.Errorf("%s: allowed %t, want %t: %s", call, err == nil, want, out)
		}
	}
	may("list-clusters", true)
	may("list-task-definitions", false)
	aws("iam", "create-policy-version", "--policy-arn", arn, "--policy-document", document("ecs:ListTaskDefinitions"))
	may("list-task-definitions", false)
	aws("iam", "set-default-policy-version", "--policy-arn", arn, "--version-id", "v2")
	may("list-task-definitions", true)
	may("list-clusters", false)
	refused("DeleteConflict", "iam", "delete-policy-version", "--policy-arn", arn, "--version-id", "v2")
	refused("DeleteConflict", "iam", "delete-policy", "--policy-arn", arn)
	aws("iam", "delete-policy-version", "--policy-arn", arn, "--version-id", "v1")
	refused("NoSuchEntity", "iam", "get-policy-version", "--policy-arn", arn, "--version-id", "v1")
	parse(aws("iam", "get-policy", "--policy-arn", arn), &made)
	if made.Policy.AttachmentCount != 1 || made.Policy.DefaultVersionId != "v2" {
		t.Errorf("attached: %+v", made)
	}
	for want, args := range map[string][]string{
		"ecs:ListTaskDefinitions":  {"iam", "get-policy-version", "--policy-arn", arn, "--version-id", "v2"},
		`"IsDefaultVersion": true`: {"iam", "list-policy-versions", "--policy-arn", arn},
		`"RoleName": "web"`:        {"iam", "list-entities-for-policy", "--policy-arn", arn},
		"team/lists":               {"iam", "list-policies", "--scope", "Local"},
		"blue":                     {"iam", "list-policy-tags", "--policy-arn", arn},
		`"PolicyName": "lists"`:    {"iam", "list-attached-role-policies", "--role-name", "web"},
		"ecs:Describe*":            {"iam", "get-policy-version", "--policy-arn", "arn:aws:iam::aws:policy/ReadOnlyAccess", "--version-id", "v1"},
	} {
		if out := aws(args...); !strings.Contains(out, want) {
			t.Errorf("%v: no %s in\n%s", args, want, out)
		}
	}
	aws("iam", "detach-role-policy", "--role-name", "web", "--policy-arn", arn)
	may("list-task-definitions", false)
	aws("iam", "delete-policy", "--policy-arn", arn)
	refused("NoSuchEntity", "iam", "get-policy", "--policy-arn", arn)
}
