package config

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write docs/settings.md anew")

// load reads settings with nothing of this machine in them.
func load(t *testing.T, env []string, userFile, jsonFile string) (*Config, error) {
	t.Helper()
	dir := t.TempDir()
	src := Sources{Environ: env, EnvFiles: []string{filepath.Join(dir, "ecs.config")}, JSONFile: filepath.Join(dir, "config.json")}
	for path, text := range map[string]string{src.EnvFiles[0]: userFile, src.JSONFile: jsonFile} {
		if text != "" {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return Load(src)
}

func mustLoad(t *testing.T, env []string, userFile, jsonFile string) *Config {
	t.Helper()
	c, err := load(t, env, userFile, jsonFile)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDefaults(t *testing.T) {
	c := mustLoad(t, nil, "", "")
	if len(c.Warnings) != 0 {
		t.Errorf("warnings: %q", c.Warnings)
	}
	for name, ok := range map[string]bool{
		"cluster":     c.Cluster.Name == "",
		"ports":       cmp.Equal(c.Host.ReservedPorts, []uint16{22, 2375, 2376, 51678, 51679}),
		"udp":         len(c.Host.ReservedPortsUDP) == 0,
		"stop":        c.Engine.StopTimeout == 30*time.Second,
		"cleanup":     c.Engine.CleanupWait == 3*time.Hour,
		"limits":      c.Host.TaskLimits && !c.Explicit("ECS_ENABLE_TASK_CPU_MEM_LIMIT"),
		"drivers":     len(c.Logging.Drivers) == 8 && c.Logging.AwslogsRole,
		"pull":        c.Images.PullBehavior == "default" && c.Images.PullTimeout == 2*time.Hour,
		"rates":       c.Metadata.Rates == Rates{40, 60},
		"ipv6":        c.Network.ExcludeIPv6Bindings,
		"state":       c.Berth.StateDir == "/var/lib/berth/agent",
		"source":      c.Source("ECS_CLUSTER") == "default" && c.Source("NO_SUCH") == "",
		"cpu period":  c.Host.CgroupCPUPeriod == 100*time.Millisecond,
		"dyn. ports":  c.Network.DynamicPorts == PortRange{},
		"concurrency": c.Berth.StartConcurrency == 0,
	} {
		if !ok {
			t.Errorf("default of %s is wrong", name)
		}
	}
}

func TestPrecedence(t *testing.T) {
	user := "  ECS_CLUSTER=user  \n# ECS_CLUSTER=comment\nno equals sign\nECS_RESERVED_MEMORY=32\nECS_INSTANCE_ATTRIBUTES={\"a\":\"b=c\"}\n"
	file := `{"cluster":"json","ClusterArn":"old","APIEndpoint":"json:1","ReservedMemory":64,"DockerStopTimeout":45000000000,"ImagePullBehavior":2,"PrivilegedDisabled":null}`
	c := mustLoad(t, []string{"ECS_CLUSTER=env", "ECS_BACKEND_HOST="}, user, file)
	got := []any{c.Cluster.Name, c.Cluster.BackendHost, c.Host.ReservedMemory, c.Engine.StopTimeout, c.Images.PullBehavior, c.Cluster.Attributes["a"], c.Roles.NoPrivileged}
	want := []any{"env", "json:1", int64(32), 45 * time.Second, "once", "b=c", false}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if c.Source("ECS_CLUSTER") != "environment" || filepath.Base(c.Source("ECS_RESERVED_MEMORY")) != "ecs.config" || filepath.Base(c.Source("ECS_BACKEND_HOST")) != "config.json" {
		t.Error("sources are wrong")
	}
	if c := mustLoad(t, nil, "ECS_CLUSTER=a\nECS_CLUSTER=b\n", ""); c.Cluster.Name != "b" {
		t.Errorf("of a repeated name %q counts, want the last", c.Cluster.Name)
	}
}

func TestJSONPathFromEnvironmentFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "other.json")
	if err := os.WriteFile(path, []byte(`{"Cluster":"other"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	c := mustLoad(t, nil, "ECS_AGENT_CONFIG_FILE_PATH="+path+"\n", `{"Cluster":"standard place"}`)
	if c.Cluster.Name != "other" || len(c.Warnings) != 0 {
		t.Errorf("cluster %q, warnings %q", c.Cluster.Name, c.Warnings)
	}
}

func TestLenientValues(t *testing.T) {
	for _, c := range []struct {
		env     string
		ok      func(*Config) bool
		warning string
	}{
		{"ECS_CONTAINER_STOP_TIMEOUT=10ms", func(c *Config) bool { return c.Engine.StopTimeout == time.Second }, "is taken as 1s"},
		{"ECS_CONTAINER_START_TIMEOUT=1s", func(c *Config) bool { return c.Engine.StartTimeout == 45*time.Second }, "is taken as 45s"},
		{"ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION=10ms", func(c *Config) bool { return c.Engine.CleanupWait == 3*time.Hour }, "is ignored"},
		{"ECS_ENGINE_TASK_CLEANUP_WAIT_DURATION=999ms", func(c *Config) bool { return c.Engine.CleanupWait == 3*time.Hour }, "is ignored"},
		{"ECS_IMAGE_CLEANUP_INTERVAL=1m", func(c *Config) bool { return c.Images.CleanupInterval == 30*time.Minute }, "is below 10m and is ignored"},
		{"ECS_NUM_IMAGES_DELETE_PER_CYCLE=0", func(c *Config) bool { return c.Images.DeletePerCycle == 5 }, "is ignored"},
		{"ECS_POLLING_METRICS_WAIT_DURATION=1h", func(c *Config) bool { return c.Metadata.PollInterval == 20*time.Second }, "is taken as 20s"},
		{"ECS_POLLING_METRICS_WAIT_DURATION=1s", func(c *Config) bool { return c.Metadata.PollInterval == 5*time.Second }, "is taken as 5s"},
		{"ECS_EXTERNAL=yes please", func(c *Config) bool { return !c.Cluster.External && !c.Explicit("ECS_EXTERNAL") }, "counts as not set"},
		{"ECS_CLUSTRE=typo", func(c *Config) bool { return c.Cluster.Name == "" }, "ECS_CLUSTRE (environment) is not a setting"},
		{"ECS_AGENT_LABELS={}", func(*Config) bool { return true }, "has no effect"},
	} {
		t.Run(c.env, func(t *testing.T) {
			got := mustLoad(t, []string{c.env}, "", "")
			if !c.ok(got) {
				t.Error("value is wrong")
			}
			if len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], c.warning) {
				t.Errorf("warnings %q, want one with %q", got.Warnings, c.warning)
			}
		})
	}
}

func TestBadValuesAreAllNamed(t *testing.T) {
	env := []string{
		"ECS_RESERVED_PORTS=[70000]", "ECS_RESERVED_PORTS_UDP=22", "ECS_RESERVED_MEMORY=65536", "ECS_TASK_PIDS_LIMIT=-1",
		"ECS_CONTAINER_STOP_TIMEOUT=30", "ECS_IMAGE_PULL_BEHAVIOR=never", "ECS_INSTANCE_ATTRIBUTES={", "ECS_CONTAINER_INSTANCE_TAGS=[]",
		"ECS_DYNAMIC_HOST_PORT_RANGE=9-8", "ECS_TASK_METADATA_RPS_LIMIT=60,40", "ECS_CGROUP_CPU_PERIOD=1s", "ECS_LOG_MAX_FILE_SIZE_MB=big",
		"BERTH_BRIDGE_SUBNET=fd00::/64", "BERTH_BRIDGE_SUBNET_IPV6=10.0.0.0/8", "BERTH_START_CONCURRENCY=many", "ECS_LOGLEVEL=loud",
	}
	_, err := load(t, env, "", `{"DataDir":["x"],"ImageCleanupInterval":"soon"}`)
	if err == nil {
		t.Fatal("no error")
	}
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		line := regexp.MustCompile(`(?m)^.*\b` + name + ` .*$`).FindString(err.Error())
		if line == "" || !strings.Contains(line, fmt.Sprintf("%q", value)) || !strings.Contains(line, "allowed: ") {
			t.Errorf("%s: setting, value and what is allowed should be in %q", name, line)
		}
	}
	if !strings.Contains(err.Error(), "ECS_IMAGE_CLEANUP_INTERVAL (") {
		t.Errorf("value of the JSON file is not named: %v", err)
	}
	if _, ok := errors.AsType[*ValueError](err); !ok {
		t.Error("no ValueError in the chain")
	}
}

func TestBadFiles(t *testing.T) {
	if _, err := load(t, nil, "", `{"Cluster":`); err == nil {
		t.Error("broken JSON was taken")
	}
	if _, err := load(t, nil, "A="+strings.Repeat("x", maxFile), ""); err == nil {
		t.Error("a file of more than a megabyte was taken")
	}
	if c := mustLoad(t, nil, "", `{"Colour":1}`); len(c.Warnings) != 1 {
		t.Errorf("warnings %q", c.Warnings)
	}
	if _, err := Load(Sources{EnvFiles: []string{t.TempDir()}, JSONFile: "/nonexistent"}); err == nil {
		t.Error("a directory was read as a file")
	}
}

func TestExternal(t *testing.T) {
	c := mustLoad(t, []string{"ECS_EXTERNAL=true", "AWS_DEFAULT_REGION=eu-west-1", "ECS_ENABLE_TASK_ENI=true"}, "", "")
	if !c.Cluster.NoIID || c.Network.TaskENI {
		t.Error("an external instance has no identity document and no task interfaces")
	}
	if _, err := load(t, []string{"ECS_EXTERNAL=true"}, "", ""); err == nil || !strings.Contains(err.Error(), "AWS_DEFAULT_REGION") {
		t.Errorf("a missing region gives %v", err)
	}
}

func TestSecretsStayHidden(t *testing.T) {
	c := mustLoad(t, []string{"AWS_SECRET_ACCESS_KEY=CANARY"}, "", `{"EngineAuthData":{"reg":{"auth":"CANARY"}}}`)
	if c.Cluster.SecretAccessKey.Reveal() != "CANARY" || c.Images.AuthData.Reveal() != `{"reg":{"auth":"CANARY"}}` {
		t.Error("secrets were not read")
	}
	if text := fmt.Sprintf("%v %+v %#v", c, c, c); strings.Contains(text, "CANARY") {
		t.Error("a secret is shown")
	}
}

func TestTableIsConsistent(t *testing.T) {
	names, keys := map[string]bool{}, map[string]bool{}
	for _, section := range Settings() {
		for _, s := range section.Settings {
			if s.Name == "" && s.Key == "" || s.Text == "" {
				t.Errorf("%+v lacks a name or a text", s)
			}
			if s.Name != "" && names[s.Name] || s.Key != "" && keys[strings.ToLower(s.Key)] {
				t.Errorf("%s is there twice", s.id())
			}
			names[s.Name], keys[strings.ToLower(s.Key)] = true, true
			if s.Default == "" {
				continue
			}
			if warning, err := s.assign(&Config{}, s.Default); err != nil || warning != "" {
				t.Errorf("default of %s: %v %s", s.id(), err, warning)
			}
		}
	}
	if len(names) < 100 {
		t.Errorf("only %d settings", len(names))
	}
}

func TestExitCode(t *testing.T) {
	for want, err := range map[int]error{
		ExitOK: nil, ExitUpdate: fmt.Errorf("x: %w", ErrUpdate), ExitError: errors.New("x"), ExitTerminal: fmt.Errorf("register: %w", Terminal(errors.New("x"))),
	} {
		if got := ExitCode(err); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
	if Terminal(nil) != nil {
		t.Error("nothing became an error")
	}
}

func TestSettingsDocument(t *testing.T) {
	const path = "../../docs/settings.md"
	var b bytes.Buffer
	if err := WriteMarkdown(&b); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(have), b.String()); d != "" {
		t.Errorf("docs/settings.md is not what the table says; run this test with -update\n%s", d)
	}
}

func FuzzLoad(f *testing.F) {
	for _, s := range Settings() {
		for _, e := range s.Settings {
			f.Add(e.Name+"="+e.Default, `{"`+e.Key+`":1}`)
		}
	}
	f.Fuzz(func(t *testing.T, envFile, jsonFile string) {
		l := &loader{byName: map[string]*Setting{}, config: &Config{origin: map[string]string{}}}
		for _, section := range sections() {
			for i := range section.Settings {
				l.byName[section.Settings[i].Name] = &section.Settings[i]
				_ = section.Settings[i].fromJSON([]byte(jsonFile))
			}
		}
		l.apply(layer{from: "fuzz", values: parseEnviron(ParseEnvFile([]byte(envFile)))})
	})
}
