package roles

import (
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/smithy-go"

	"berth.dev/berth/agent/creds"
	"berth.dev/berth/agent/task"
)

const arn = "arn:aws:ecs:eu-west-1:111122223333:task/lab/0123456789abcdef"

func set(t *testing.T, s *creds.Store, key string, ends time.Time) {
	t.Helper()
	err := s.Set(creds.Credentials{
		ID: "id", TaskARN: arn, Role: creds.Execution, RoleARN: "arn:aws:iam::111122223333:role/exec", Expiration: ends.UTC().Format(time.RFC3339),
		AccessKeyID: task.NewSecret(key), SecretAccessKey: task.NewSecret("secret-" + key), SessionToken: task.NewSecret("token-" + key),
	})
	if err != nil {
		t.Fatal(err)
	}
}

func newRoles(s *creds.Store) *Roles {
	return New(Config{Store: s, Region: "eu-west-1", Instance: credentials.NewStaticCredentialsProvider("INSTANCE", "s", "")})
}

// isolated keeps settings of the host that runs the test out of the SDK.
func isolated(t *testing.T) {
	for _, name := range []string{"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"} {
		t.Setenv(name, "/does/not/exist")
	}
	for _, name := range []string{"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SSM", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"} {
		t.Setenv(name, "")
	}
}

func TestTaskSignsWithItsExecutionRole(t *testing.T) {
	isolated(t)
	var s creds.Store
	r := newRoles(&s)
	tk := &task.Task{ARN: arn, ExecutionCredentialsID: "id"}
	if got := r.Role(tk); got != arn {
		t.Errorf("before its credentials it stands for %s, want itself", got)
	}
	set(t, &s, "FIRST", time.Now().Add(time.Hour))
	for region, want := range map[string]string{"": "eu-west-1", "us-east-2": "us-east-2"} {
		c, err := r.AsTask(t.Context(), tk, region)
		if err != nil || c.Region != want {
			t.Fatalf("region %q: %q, %v", region, c.Region, err)
		}
		k, err := c.Credentials.Retrieve(t.Context())
		if err != nil || k.AccessKeyID != "FIRST" || k.SecretAccessKey != "secret-FIRST" || k.SessionToken != "token-FIRST" {
			t.Errorf("signs with %q, %v", k.AccessKeyID, err)
		}
	}
	c, err := r.AsTask(t.Context(), tk, "")
	if err != nil {
		t.Fatal(err)
	}
	set(t, &s, "SECOND", time.Now().Add(2*time.Hour)) // a configuration follows its role
	if k, err := c.Credentials.Retrieve(t.Context()); err != nil || k.AccessKeyID != "SECOND" {
		t.Errorf("after a refresh it signs with %q, %v", k.AccessKeyID, err)
	}
	if got := r.Role(tk); got != "arn:aws:iam::111122223333:role/exec" {
		t.Errorf("the role is %s", got)
	}
	s.Drop(arn)
	if k, err := c.Credentials.Retrieve(t.Context()); err == nil {
		t.Errorf("after the end of the task it signs with %q", k.AccessKeyID)
	}
	c, err = r.AsInstance(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if k, err := c.Credentials.Retrieve(t.Context()); err != nil || k.AccessKeyID != "INSTANCE" || r.Region() != "eu-west-1" {
		t.Errorf("the instance signs with %q, %v", k.AccessKeyID, err)
	}
}

func TestTaskWithoutExecutionRole(t *testing.T) {
	_, err := newRoles(&creds.Store{}).AsTask(t.Context(), &task.Task{ARN: arn}, "")
	if !errors.Is(err, ErrNoExecutionRole) || task.ClassOf(err) != task.Invalid {
		t.Errorf("%v", err)
	}
}

// TestCredentialsThatAreOnTheirWay are waited for, but not for ever.
func TestCredentialsThatAreOnTheirWay(t *testing.T) {
	isolated(t)
	tk := &task.Task{ARN: arn, ExecutionCredentialsID: "id"}
	synctest.Test(t, func(t *testing.T) {
		var s creds.Store
		time.AfterFunc(40*time.Second, func() { set(t, &s, "LATE", time.Now().Add(time.Hour)) })
		c, err := newRoles(&s).AsTask(t.Context(), tk, "")
		if err != nil {
			t.Fatal(err)
		}
		if k, err := c.Credentials.Retrieve(t.Context()); err != nil || k.AccessKeyID != "LATE" {
			t.Errorf("%q, %v", k.AccessKeyID, err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		_, err := newRoles(&creds.Store{}).AsTask(t.Context(), tk, "")
		if task.ClassOf(err) != task.Unavailable || !strings.Contains(err.Error(), "unable to find execution role credentials") || time.Since(begin) != waitForRole {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	})
}

func TestOverridden(t *testing.T) {
	isolated(t)
	if Overridden("S3") {
		t.Error("nothing is set")
	}
	t.Setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
	if !Overridden("S3") || Overridden("SSM") {
		t.Error("the endpoint of one service is set")
	}
	t.Setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
	if !Overridden("SSM") {
		t.Error("the endpoint of all services is set")
	}
}

func TestExplain(t *testing.T) {
	const action = "ssm:GetParameters"
	api := func(code, words string) error {
		return &smithy.OperationError{ServiceID: "SSM", OperationName: "GetParameters", Err: &smithy.GenericAPIError{Code: code, Message: words}}
	}
	for name, tt := range map[string]struct {
		err  error
		want string
	}{
		"denied":           {api("AccessDeniedException", "no"), "AccessDeniedException: no; check that the execution role may do ssm:GetParameters"},
		"denied, named":    {api("AccessDenied", "not authorized to perform: ssm:GetParameters"), "AccessDenied: not authorized to perform: ssm:GetParameters; check the policies of the execution role"},
		"other":            {api("ThrottlingException", "slow down"), "ThrottlingException: slow down"},
		"many words":       {api("X", strings.Repeat("w", 2000)), "X: " + strings.Repeat("w", 512) + "…"},
		"cannot connect":   {&net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}, "the service cannot be reached: dial tcp: connection refused; check the network of the instance and the AWS_ENDPOINT_URL settings of the agent"},
		"something else":   {errors.New("odd"), "odd"},
		"a broken reading": {&net.OpError{Op: "read", Net: "tcp", Err: errors.New("reset")}, "read tcp: reset"},
	} {
		got := Explain(tt.err, action)
		if got.Error() != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
		var a smithy.APIError
		if errors.As(tt.err, &a) && !errors.As(got, &a) {
			t.Errorf("%s: the cause is lost", name)
		}
	}
}
