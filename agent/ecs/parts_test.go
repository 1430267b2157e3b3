package ecs

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	sdk "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/google/go-cmp/cmp"
)

func newAPI(o sdk.Options) *sdk.Client { return sdk.New(o) }

func certificatePEM(s *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

func names(attributes []Attribute) []string {
	var out []string
	for _, a := range attributes {
		if a.Value != "" {
			a.Name += "=" + a.Value
		}
		out = append(out, a.Name)
	}
	return out
}

func TestAttributes(t *testing.T) {
	got := names(Attributes(settings(t), host, true))
	want := []string{
		"ecs.capability.private-registry-authentication.secretsmanager",
		"ecs.capability.secrets.ssm.environment-variables",
		"ecs.capability.secrets.ssm.bootstrap.log-driver",
		"ecs.capability.ecr-endpoint",
		"ecs.capability.secrets.asm.environment-variables",
		"ecs.capability.secrets.asm.bootstrap.log-driver",
		"ecs.capability.container-ordering",
		"ecs.capability.full-sync",
		"ecs.capability.env-files.s3",
		"ecs.capability.network.container-port-range",
		"ecs.capability.container-restart-policy",
		"com.amazonaws.ecs.capability.privileged-container",
	}
	for _, v := range dockerVersions() {
		want = append(want, "com.amazonaws.ecs.capability.docker-remote-api."+v)
	}
	for _, d := range []string{"json-file", "syslog", "journald", "gelf", "fluentd", "splunk", "awslogs", "none"} {
		want = append(want, "com.amazonaws.ecs.capability.logging-driver."+d)
	}
	want = append(want,
		"com.amazonaws.ecs.capability.task-iam-role",
		"ecs.capability.task-cpu-mem-limit", "ecs.capability.increased-task-cpu-limit",
		"ecs.capability.task-eni", "ecs.capability.task-eni.ipv6", "berth.capability.interface-pool",
		"com.amazonaws.ecs.capability.ecr-auth",
		"ecs.capability.execution-role-ecr-pull",
		"ecs.capability.container-health-check",
		"ecs.capability.execution-role-awslogs",
		"ecs.capability.docker-plugin.local",
		"ecs.capability.pid-ipc-namespace-sharing",
		"ecs.capability.firelens.fluentd", "ecs.capability.firelens.fluentbit", "com.amazonaws.ecs.capability.logging-driver.awsfirelens",
		"ecs.capability.logging-driver.awsfirelens.log-driver-buffer-limit", "ecs.capability.firelens.non-root-user",
		"ecs.capability.efs", "ecs.capability.efsAuth",
		"ecs.capability.firelens.options.config.file", "ecs.capability.firelens.options.config.s3",
		"ecs.capability.storage.ebs-task-volume-attach", "ecs.capability.storage.ebsta-non-root-user", "berth.capability.volume-pool",
		"ecs.capability.external", "ecs.capability.fault-injection", "ecs.capability.ipv6-only",
		"ecs.os-type=linux", "ecs.os-family=LINUX", "ecs.os-type-detailed=debian_12", "ecs.cpu-architecture=x86_64",
	)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestAttributesFollowSettings(t *testing.T) {
	for _, c := range []struct {
		env, attribute string
		want           bool
	}{
		{"ECS_DISABLE_PRIVILEGED=true", "com.amazonaws.ecs.capability.privileged-container", false},
		{"ECS_ENABLE_TASK_CPU_MEM_LIMIT=false", "ecs.capability.task-cpu-mem-limit", false},
		{"ECS_ENABLE_TASK_CPU_MEM_LIMIT=false", "ecs.capability.increased-task-cpu-limit", false},
		{`ECS_AVAILABLE_LOGGING_DRIVERS=["none","awslogs"]`, "com.amazonaws.ecs.capability.logging-driver.json-file", false},
		{`ECS_AVAILABLE_LOGGING_DRIVERS=["none","awslogs"]`, "com.amazonaws.ecs.capability.logging-driver.awslogs", true},
		{"ECS_ENABLE_AWSLOGS_EXECUTIONROLE_OVERRIDE=false", "ecs.capability.execution-role-awslogs", false},
		{"ECS_EXTERNAL=false", "ecs.capability.external", false},
		{"ECS_EXTERNAL=false", "ecs.cpu-architecture=x86_64", false},
		{"ECS_DETAILED_OS_FAMILY=mine_1", "ecs.os-type-detailed=mine_1", true},
		{"ECS_ENABLE_TASK_IAM_ROLE=false", "com.amazonaws.ecs.capability.task-iam-role", false},
		{"ECS_ENABLE_TASK_IAM_ROLE_NETWORK_HOST=true", "com.amazonaws.ecs.capability.task-iam-role-network-host", true},
		{"BERTH_VOLUME_POOL=none", "berth.capability.volume-pool", false},
		{"BERTH_VOLUME_POOL=none", "ecs.capability.storage.ebs-task-volume-attach", false},
		{"ECS_EBSTA_SUPPORTED=false", "ecs.capability.storage.ebs-task-volume-attach", false},
		{"ECS_DISABLE_DOCKER_HEALTH_CHECK=true", "ecs.capability.container-health-check", false},
	} {
		if got := slices.Contains(names(Attributes(settings(t, c.env), host, true)), c.attribute); got != c.want {
			t.Errorf("%s: %s claimed: %v", c.env, c.attribute, got)
		}
	}
}

func TestAttributesFollowTheHost(t *testing.T) {
	c := settings(t, "ECS_EXTERNAL=false", "ECS_ENABLE_TASK_ENI=true")
	for _, k := range []struct {
		attribute string
		with      HostFacts
	}{
		{"ecs.capability.ipv6-only", HostFacts{IPv6: true}},
		{"ecs.capability.task-eni.ipv6", HostFacts{IPv6: true}},
		{"ecs.capability.task-eni-trunking", HostFacts{VLAN: true}},
	} {
		if !slices.Contains(names(Attributes(c, k.with, true)), k.attribute) {
			t.Errorf("%s is not claimed", k.attribute)
		}
		if slices.Contains(names(Attributes(c, HostFacts{}, true)), k.attribute) {
			t.Errorf("%s is claimed for a host that has not what it takes", k.attribute)
		}
	}
}

func TestParseHost(t *testing.T) {
	stat := "cpu  1 2 3\ncpu0 1 2\ncpu1 1 2\ncpu12 1\nintr 1\ncpufreq 1\n"
	if n := parseCPUs([]byte(stat)); n != 3 {
		t.Errorf("%d processors", n)
	}
	if m, err := parseMemory([]byte("MemFree: 1 kB\nMemTotal:        8000000 kB\n")); m != 7812 || err != nil {
		t.Errorf("memory %d, %v", m, err)
	}
	for _, bad := range []string{"", "MemTotal:", "MemTotal: x kB", "MemTotal: 5 MB", "MemTotal: -1 kB"} {
		if m, err := parseMemory([]byte(bad)); err == nil {
			t.Errorf("%q gives %d", bad, m)
		}
	}
	for in, want := range map[string]string{"ID=debian\nVERSION_ID=\"12\"\n": "debian_12", "ID=arch\n": "arch", "": ""} {
		if got := parseOSFamily([]byte(in)); got != want {
			t.Errorf("%q gives %q", in, got)
		}
	}
}

func TestGather(t *testing.T) {
	h, err := Gather()
	if err != nil {
		t.Fatal(err)
	}
	if h.CPUs < 1 || h.MemoryMiB < 64 || h.Architecture == "" {
		t.Errorf("got %+v", h)
	}
}

func TestKeyFile(t *testing.T) {
	const text = "# made by berth\n[other]\naws_access_key_id=X\naws_secret_access_key=Y\n\n[default]\naws_access_key_id = AKID\nAWS_SECRET_ACCESS_KEY = a=b\naws_session_token=T\n"
	path := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := settings(t, "AWS_ACCESS_KEY_ID=", "AWS_SECRET_ACCESS_KEY=", "BERTH_KEY_FILE="+path)
	got, err := Credentials(c).Retrieve(t.Context())
	if err != nil || got.AccessKeyID != "AKID" || got.SecretAccessKey != "a=b" || got.SessionToken != "T" || !got.CanExpire {
		t.Errorf("got key %q, expires %v, %v", got.AccessKeyID, got.CanExpire, err)
	}
	c.Cluster.Profile = "other"
	if got, err := Credentials(c).Retrieve(t.Context()); err != nil || got.AccessKeyID != "X" {
		t.Errorf("other profile: %q, %v", got.AccessKeyID, err)
	}
	c.Cluster.Profile = "missing"
	if _, err := Credentials(c).Retrieve(t.Context()); err == nil {
		t.Error("a profile that is not there was found")
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	c.Cluster.Profile = "default"
	if _, err := Credentials(c).Retrieve(t.Context()); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key file that others can read: %v", err)
	}
}

func TestSettingsBeatTheKeyFile(t *testing.T) {
	c := settings(t, "BERTH_KEY_FILE=/nonexistent", "AWS_SESSION_TOKEN=T")
	got, err := Credentials(c).Retrieve(t.Context())
	if err != nil || got.AccessKeyID != "AKID" || got.SessionToken != "T" {
		t.Errorf("got %q, %v", got.AccessKeyID, err)
	}
}

func TestProxy(t *testing.T) {
	c := settings(t, "HTTPS_PROXY=http://proxy.example:3128", "NO_PROXY=lab.example")
	for in, want := range map[string]string{
		"https://ecs.example/": "http://proxy.example:3128", "wss://acs.example/ws": "http://proxy.example:3128",
		"https://lab.example/": "", "http://ecs.example/": "", "https://127.0.0.1/": "",
	} {
		r, err := http.NewRequest(http.MethodGet, in, nil)
		if err != nil {
			t.Fatal(err)
		}
		u, err := Proxy(c)(r)
		got := ""
		if u != nil {
			got = u.String()
		}
		if got != want || err != nil {
			t.Errorf("%s: proxy %q, %v", in, got, err)
		}
	}
}

func FuzzParseKeyFile(f *testing.F) {
	f.Add([]byte("[default]\naws_access_key_id=a\naws_secret_access_key=b\n"), "default")
	f.Fuzz(func(t *testing.T, text []byte, profile string) {
		got, err := parseKeyFile(text, profile)
		if err == nil && (got.AccessKeyID == "" || got.SecretAccessKey == "") {
			t.Error("half a key was taken")
		}
	})
}

func TestCutKeepsCharactersWhole(t *testing.T) {
	if got := cut("aéb", 2); got != "a" {
		t.Errorf("got %q", got)
	}
}
