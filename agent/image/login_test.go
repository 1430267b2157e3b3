package image_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/agent/creds"
	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/image"
	"berth.dev/berth/agent/roles"
	"berth.dev/berth/agent/runtime"
	"berth.dev/berth/agent/runtime/containerdtest"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/integ/aws"
	"berth.dev/berth/integ/testimage"
)

const (
	ecrHost = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
	taskARN = "arn:aws:ecs:us-east-1:123456789012:task/default/0123456789abcdef"
)

// A registry that stands for those of ECR and others, by containerd's own host
// configuration, and asks for a password.
func TestLogins(t *testing.T) {
	svc := aws.Start(t)
	t.Setenv("AWS_ENDPOINT_URL", svc.URL)
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	svc.Allow(aws.Key{ID: "ASIAROLE", Secret: "hush", Token: "session", Role: "exec"})
	svc.SetToken(aws.Account, aws.Token{Password: "tok", Expires: time.Now().Add(12 * time.Hour)})
	good, _ := svc.SetSecret("us-east-1", "registry", `{"username":"AWS","password":"tok"}`)
	bad, _ := svc.SetSecret("us-east-1", "odd", `{"username":"canary"}`)

	reg := testimage.NewRegistry()
	t.Cleanup(reg.Close)
	push(t, reg, "team/app:1", layered(t, 1, "private"))
	reg.SetBefore(func(w http.ResponseWriter, q *http.Request) bool {
		if user, password, ok := q.BasicAuth(); ok && user == "AWS" && password == "tok" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	hosts := t.TempDir()
	for _, name := range []string{ecrHost, "registry.example.com"} {
		if err := os.Mkdir(filepath.Join(hosts, name), 0o755); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("server = \"http://%s\"\n", reg.Host)
		if err := os.WriteFile(filepath.Join(hosts, name, "hosts.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := containerdtest.Start(t, containerdtest.Embedded)
	c, err := runtime.Open(t.Context(), runtime.Config{
		Address: d.Address, StateDir: d.Dir + "/run", LogDir: d.Dir + "/logs", HostsDir: hosts, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	store := &creds.Store{}
	if err := store.Set(creds.Credentials{
		ID: "c", TaskARN: taskARN, Role: creds.Execution, RoleARN: "role", AccessKeyID: task.NewSecret("ASIAROLE"),
		SecretAccessKey: task.NewSecret("hush"), SessionToken: task.NewSecret("session"),
	}); err != nil {
		t.Fatal(err)
	}
	logins := image.NewLogins(roles.New(roles.Config{Store: store, Region: "us-east-1", Wait: time.Millisecond}), nil)
	s := images(t, c, image.Config{Policy: image.Always, Auth: logins.Auth})
	pull := func(ctx context.Context, ref string, r *task.RegistryAuth) error {
		tk := &task.Task{ARN: taskARN, ExecutionCredentialsID: "c", Containers: []task.Container{{Name: "c", Image: ref, Registry: r}}}
		_, err := s.Ensure(ctx, tk, "c", engine.Deps{})
		return err
	}
	ecr := &task.RegistryAuth{Region: "us-east-1", RegistryID: aws.Account, UseExecutionRole: true}

	t.Run("twenty tasks fetch one token", func(t *testing.T) {
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if err := pull(t.Context(), ecrHost+"/team/app:1", ecr); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := len(svc.Calls("ecr")); n != 1 {
			t.Errorf("%d calls of GetAuthorizationToken", n)
		}
	})
	t.Run("a secret of Secrets Manager", func(t *testing.T) {
		if err := pull(t.Context(), "registry.example.com/team/app:1", &task.RegistryAuth{Region: "us-east-1", Secret: good}); err != nil {
			t.Error(err)
		}
	})
	for _, tc := range []struct {
		name, ref string
		r         *task.RegistryAuth
		want      string
	}{
		{"no credentials", "registry.example.com/team/app:1", nil, "CannotPullImageManifestError: The task can’t pull the image. Check whether the image exists. pull access denied for registry.example.com/team/app:1"},
		{"no such registry", ecrHost + "/team/app:1", &task.RegistryAuth{Region: "us-east-1", RegistryID: "999999999999", UseExecutionRole: true}, "CannotPullECRContainerError: engine ecr credentials: InvalidParameterException"},
		{"a secret without password", "registry.example.com/team/app:1", &task.RegistryAuth{Region: "us-east-1", Secret: bad}, "CannotPullContainerAuthError: engine docker private registry credentials: secret " + bad + `: its value must be {"username"`},
		{"no such secret", "registry.example.com/team/app:1", &task.RegistryAuth{Region: "us-east-1", Secret: good + "x"}, "CannotPullContainerAuthError: engine docker private registry credentials: secret " + good + "x: ResourceNotFoundException"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := pull(t.Context(), tc.ref, tc.r)
			if got := task.ReasonOf(err, "").String(); !strings.HasPrefix(got, tc.want) || strings.Contains(got, "canary") {
				t.Errorf("got %q\nwant %q…", got, tc.want)
			}
		})
	}
}
