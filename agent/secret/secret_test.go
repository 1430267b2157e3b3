package secret_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/creds"
	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/roles"
	"berth.dev/berth/agent/secret"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/integ/aws"
)

const arn = "arn:aws:ecs:us-east-1:123456789012:task/default/0123456789abcdef"

// lab is the services, and an adapter with an execution role that they know.
type lab struct {
	*aws.Server
	secrets *secret.Secrets
	dir     string
}

func start(t *testing.T) *lab {
	t.Helper()
	l := &lab{Server: aws.Start(t), dir: filepath.Join(t.TempDir(), "secrets")}
	t.Setenv("AWS_ENDPOINT_URL", l.URL)
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	l.Allow(aws.Key{ID: "ASIAROLE", Secret: "hush", Token: "session", Role: "exec"})
	store := &creds.Store{}
	if err := store.Set(creds.Credentials{
		ID: "c", TaskARN: arn, Role: creds.Execution, AccessKeyID: task.NewSecret("ASIAROLE"),
		SecretAccessKey: task.NewSecret("hush"), SessionToken: task.NewSecret("session"), Expiration: "2100-01-01T00:00:00Z",
	}); err != nil {
		t.Fatal(err)
	}
	r := roles.New(roles.Config{Store: store, Region: "us-east-1", Wait: 100 * time.Millisecond})
	l.secrets = secret.New(secret.Config{Roles: r, Dir: l.dir, Log: slog.New(slog.DiscardHandler)})
	return l
}

func taskOf(cs ...task.Container) *task.Task {
	return &task.Task{ARN: arn, ExecutionCredentialsID: "c", Containers: cs}
}

func ssm(name, from string) task.SecretRef {
	return task.SecretRef{Name: name, From: from, Region: "us-east-1", Provider: task.ProviderSSM, Use: task.UseEnvironment}
}

func asm(name, from string) task.SecretRef {
	return task.SecretRef{Name: name, From: from, Region: "us-east-1", Provider: task.ProviderSecretsManager, Use: task.UseEnvironment}
}

func (l *lab) ensure(t *testing.T, tk *task.Task) error {
	t.Helper()
	_, err := l.secrets.Ensure(t.Context(), tk, "task", engine.Deps{})
	return err
}

func reveal(m map[string]task.Secret) map[string]string {
	out := map[string]string{}
	for k, v := range m {
		out[k] = v.Reveal()
	}
	return out
}

func TestValues(t *testing.T) {
	l := start(t)
	l.SetParameter("us-east-1", "/app/db", "pw")
	l.SetParameter("us-east-1", "plain", "one")
	l.SetParameter("eu-west-1", "plain", "eins")
	_, first := l.SetSecret("us-east-1", "app", `{"user":"old"}`)
	l.SetSecret("us-east-1", "app", `{"user":"new","port":1000000,"none":null,"list":[1, "a"]}`)
	id, _ := l.SetSecret("us-east-1", "text", "a\nb=c")
	app := strings.Replace(id, "text", "app", 1)
	app = app[:strings.LastIndexByte(app, '-')] // without the random suffix
	l.SetObject("us-east-1", "conf", "a/one.env", []byte("# comment\nA=1\nB=two=2\n=x\nnothing\n C = 3 \nQ=\"q\"\r\nA=last\n"))
	l.SetObject("eu-west-1", "konf", "two.env", []byte("B=zwei\nD=4"))
	eu := ssm("EU", "plain")
	eu.Region = "eu-west-1"
	option := ssm("splunk-token", "plain")
	option.Use = task.UseLogOption
	tk := taskOf(
		task.Container{
			Name:     "a",
			Secrets:  []task.SecretRef{ssm("DB", "/app/db"), ssm("ARN", aws.ParameterARN("us-east-1", "/app/db")), eu, option, asm("TEXT", id)},
			EnvFiles: []string{"arn:aws:s3:::conf/a/one.env", "arn:aws:s3:::konf/two.env"},
		},
		task.Container{Name: "b", Secrets: []task.SecretRef{
			asm("USER", app+":user::"), asm("PORT", app+":port:AWSCURRENT:"), asm("OLD", app+":user:AWSPREVIOUS:"),
			asm("VERSION", app+":user::"+first), asm("LIST", app+":list::"), asm("WHOLE", app),
		}},
		task.Container{Name: "c"},
	)
	if _, err := l.secrets.Given(tk, "a"); err == nil {
		t.Error("values before they are fetched")
	}
	if err := l.ensure(t, tk); err != nil {
		t.Fatal(err)
	}
	a, errA := l.secrets.Given(tk, "a")
	b, errB := l.secrets.Given(tk, "b")
	if _, err := l.secrets.Given(tk, "c"); err != nil || errA != nil || errB != nil {
		t.Fatal(errA, errB, err)
	}
	for what, diff := range map[string]string{
		"environment of a": cmp.Diff(map[string]string{"DB": "pw", "ARN": "pw", "EU": "eins", "TEXT": "a\nb=c"}, reveal(a.Environment)),
		"options of a":     cmp.Diff(map[string]string{"splunk-token": "one"}, reveal(a.LogOptions)),
		"files of a":       cmp.Diff(map[string]string{"A": "last", "B": "two=2", " C ": " 3 ", "Q": `"q"`, "D": "4"}, reveal(a.Defaults)),
		"environment of b": cmp.Diff(map[string]string{
			"USER": "new", "PORT": "1000000", "OLD": "old", "VERSION": "old", "LIST": `[1, "a"]`,
			"WHOLE": `{"user":"new","port":1000000,"none":null,"list":[1, "a"]}`,
		}, reveal(b.Environment)),
	} {
		if diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	// Each version of a secret is fetched once, whatever it is used for.
	if n := len(l.Calls("secretsmanager")); n != 5 {
		t.Errorf("Secrets Manager was asked %d times, want 5", n)
	}
	if n := len(l.Calls("ssm")); n != 2 {
		t.Errorf("SSM was asked %d times, want once a region", n)
	}
	if err := l.secrets.Remove(t.Context(), tk, "task", nil); err != nil {
		t.Error(err)
	}
	if _, err := l.secrets.Given(tk, "a"); err == nil {
		t.Error("values after the end of the task")
	}
	// Nothing of it can be printed by accident.
	if text := fmt.Sprintf("%v %+v %#v", a, a, a); strings.Contains(text, "eins") || strings.Contains(text, "zwei") {
		t.Errorf("printed: %s", text)
	}
}

func TestParametersAreAskedForTenAtATime(t *testing.T) {
	l := start(t)
	c := task.Container{Name: "a"}
	for i := range 23 {
		name := fmt.Sprintf("p%02d", i)
		l.SetParameter("us-east-1", name, name)
		c.Secrets = append(c.Secrets, ssm(strings.ToUpper(name), name))
	}
	if err := l.ensure(t, taskOf(c)); err != nil {
		t.Fatal(err)
	}
	if n := len(l.Calls("ssm")); n != 3 {
		t.Errorf("%d calls, want 3", n)
	}
}

func TestAThrottledServiceIsAskedAgain(t *testing.T) {
	l := start(t)
	l.SetParameter("us-east-1", "p", "v")
	n := 0
	l.SetBefore(func(aws.Call) error {
		if n++; n < 3 {
			return aws.Faultf("ThrottlingException", "Rate exceeded")
		}
		return nil
	})
	if err := l.ensure(t, taskOf(task.Container{Name: "a", Secrets: []task.SecretRef{ssm("P", "p")}})); err != nil {
		t.Error(err)
	}
}

func TestFailuresNameCauseAndRemedy(t *testing.T) {
	l := start(t)
	l.Allow(aws.Key{ID: "ASIAROLE", Secret: "hush", Token: "session", Role: "exec", Denied: []string{"s3:GetObject"}})
	id, _ := l.SetSecret("us-east-1", "app", `{"user":"canary-1"}`)
	text, _ := l.SetSecret("us-east-1", "text", "canary-2")
	nul, _ := l.SetSecret("us-east-1", "nul", "canary-3\x00")
	l.SetObject("us-east-1", "conf", "a.env", []byte("A=1"))
	for _, tc := range []struct {
		name  string
		refs  []task.SecretRef
		files []string
		want  string
	}{
		{"missing parameters", []task.SecretRef{ssm("A", "/b"), ssm("B", "/a")}, nil,
			"unable to pull secrets: fetching secret data from SSM Parameter Store in us-east-1: invalid parameters: /a,/b"},
		{"not an ARN", []task.SecretRef{asm("A", "app")}, nil, "an invalid ARN format for the AWS Secrets Manager secret was specified. Specify a valid ARN and try again."},
		{"unknown secret", []task.SecretRef{asm("A", id[:len(id)-7]+"x-abcdef")}, nil, "ResourceNotFoundException: Secrets Manager can't find the specified secret."},
		{"unknown stage", []task.SecretRef{asm("A", id+":user:NONE:")}, nil, "can't find the specified secret value for staging label: NONE"},
		{"unknown key", []task.SecretRef{asm("A", id+":none::")}, nil, "secret A: retrieved secret from Secrets Manager did not contain json key none"},
		{"not JSON", []task.SecretRef{asm("A", text+":key::")}, nil, "is no JSON object, of which json key key could be taken"},
		{"zero byte", []task.SecretRef{asm("A", nul)}, nil, "secret A: the value has a zero byte in it"},
		{"denied", nil, []string{"arn:aws:s3:::conf/a.env"}, "AccessDenied: User: arn:aws:sts::123456789012:assumed-role/exec/berth is not authorized to perform: s3:GetObject"},
		{"no such bucket", nil, []string{"arn:aws:s3:::none/a.env"}, "unable to download env file arn:aws:s3:::none/a.env: location of bucket none: NoSuchBucket"},
		{"no object", nil, []string{"arn:aws:s3:::conf"}, "not the ARN of an S3 object, such as arn:aws:s3:::bucket/path/app.env"},
		{"two at once", []task.SecretRef{ssm("A", "/b"), asm("B", id+":none:NONE:")}, nil, "staging label: NONE; fetching secret data from SSM"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := l.ensure(t, taskOf(task.Container{Name: "web", Secrets: tc.refs, EnvFiles: tc.files}))
			r := task.ReasonOf(err, "")
			if r.Code != task.ResourceInitialization || !strings.Contains(r.Detail, tc.want) || strings.Contains(r.Detail, "canary") {
				t.Errorf("got %q, want %q in it", r, tc.want)
			}
			if task.ClassOf(err).Retriable() {
				t.Error("it would be tried for ever")
			}
		})
	}
	t.Run("no execution role", func(t *testing.T) {
		tk := taskOf(task.Container{Name: "web", Secrets: []task.SecretRef{ssm("A", "a")}})
		tk.ExecutionCredentialsID = ""
		if err := l.ensure(t, tk); !strings.Contains(fmt.Sprint(err), "ssm secret resource: unable to find execution role credentials: the task definition names no executionRoleArn") {
			t.Error(err)
		}
	})
	t.Run("credentials that never come", func(t *testing.T) {
		tk := taskOf(task.Container{Name: "web", Secrets: []task.SecretRef{ssm("A", "a")}})
		tk.ARN += "0"
		if err := l.ensure(t, tk); !strings.Contains(fmt.Sprint(err), "unable to find execution role credentials") {
			t.Error(err)
		}
	})
}

func TestAServiceThatCannotBeReachedIsNamedSoon(t *testing.T) {
	l := start(t)
	t.Setenv("AWS_ENDPOINT_URL_SSM", "http://127.0.0.1:1")
	begin := time.Now()
	err := l.ensure(t, taskOf(task.Container{Name: "web", Secrets: []task.SecretRef{ssm("A", "a")}}))
	if text := fmt.Sprint(err); !strings.Contains(text, "the service cannot be reached: dial tcp 127.0.0.1:1") || time.Since(begin) > 15*time.Second {
		t.Errorf("after %s: %s", time.Since(begin), text)
	}
}

func TestFilesAreInATmpfsOfTheTask(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	l := start(t)
	l.SetParameter("us-east-1", "key", "in a file")
	ref := ssm("KEY", "key")
	ref.Use, ref.Dir = task.UseFile, "/run/secrets"
	tk := taskOf(task.Container{Name: "web", Secrets: []task.SecretRef{ref}})
	for range 2 { // a repetition finds what is there
		if err := l.ensure(t, tk); err != nil {
			t.Fatal(err)
		}
	}
	g, err := l.secrets.Given(tk, "web")
	if err != nil || len(g.Mounts) != 1 || g.Mounts[0].Path != "/run/secrets" || len(g.Environment) != 0 {
		t.Fatalf("%+v, %v", g, err)
	}
	data, err := os.ReadFile(filepath.Join(g.Mounts[0].Source, "KEY"))
	if err != nil || string(data) != "in a file" {
		t.Errorf("%q, %v", data, err)
	}
	if st, err := os.Stat(filepath.Join(l.dir, tk.ID())); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	mounts := func() bool {
		text, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(text), "tmpfs "+filepath.Join(l.dir, tk.ID())+" tmpfs ")
	}
	if !mounts() {
		t.Error("no tmpfs")
	}
	owned, err := l.secrets.Owned(t.Context())
	if err != nil || len(owned) != 1 || owned[0].TaskID != tk.ID() {
		t.Errorf("owned %+v, %v", owned, err)
	}
	for range 2 {
		if err := l.secrets.Remove(t.Context(), tk, "task", nil); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(l.dir, tk.ID())); mounts() || err == nil {
		t.Error("something is left")
	}
}
