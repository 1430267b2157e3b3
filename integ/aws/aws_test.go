package aws

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Debian's boto3 and aws CLI are clients that nobody here wrote.
func TestStockClients(t *testing.T) {
	s := Start(t)
	s.Allow(Key{ID: "ASIATASK", Secret: "hush", Token: "session", Role: "exec"})
	s.Allow(Key{ID: "AKIADENIED", Secret: "d", Role: "weak", Denied: []string{"ssm:GetParameters", "s3:GetObject"}})
	s.SetParameter("us-east-1", "/app/db", "pw")
	s.SetSecret("us-east-1", "app", "old")
	arn, _ := s.SetSecret("us-east-1", "app", "new")
	s.SetObject("eu-west-1", "conf", "a/b c+d.env", []byte("A=1\n"))
	s.SetToken(Account, Token{Password: "tok", Expires: time.Unix(2000000000, 0), Endpoint: "http://127.0.0.1:1"})
	env := []string{
		"PATH=/usr/bin:/bin", "HOME=" + t.TempDir(), "LC_ALL=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1", "BERTH_URL=" + s.URL, "BERTH_SECRET_ARN=" + arn,
		"AWS_ACCESS_KEY_ID=ASIATASK", "AWS_SECRET_ACCESS_KEY=hush", "AWS_SESSION_TOKEN=session", "AWS_EC2_METADATA_DISABLED=true",
		"AWS_DEFAULT_REGION=us-east-1", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_PAGER=",
	}
	run := func(name string, args ...string) string {
		t.Helper()
		if _, err := os.Stat(name); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%s is not installed: make test installs it", name)
			}
			t.Skipf("%s is not installed: make test installs it", name)
		}
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		return string(out)
	}
	run("/usr/bin/python3", "testdata/conformance.py")
	out := run("/usr/bin/aws", "--endpoint-url", s.URL, "--output", "text", "--query", "SecretString", "secretsmanager", "get-secret-value", "--secret-id", "app")
	if strings.TrimSpace(out) != "new" {
		t.Errorf("aws CLI printed %q", out)
	}
	if n := len(s.Calls("secretsmanager")); n != 5 {
		t.Errorf("%d calls of Secrets Manager recorded", n)
	}
}
