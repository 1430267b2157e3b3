package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster"
	"berth.dev/berth/integ/lab"
	"berth.dev/berth/integ/system"
)

// whole starts a system whose cluster is the whole program and not only what agents see
// of it.
func whole(t *testing.T, bin string, change func(*cluster.Config), env ...string) (*system.System, *lab.Lab) {
	t.Helper()
	l := lab.StartWith(t, change)
	k := l.InstanceKey()
	key := filepath.Join(t.TempDir(), "agent.key")
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", k.AccessKeyID, k.SecretAccessKey)
	if err := os.WriteFile(key, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := system.Start(t, system.Options{Programs: bin, AgentEnv: append([]string{"ECS_BACKEND_HOST=" + l.URL, "BERTH_KEY_FILE=" + key}, env...)})
	s.ECS = l.ECS
	return s, l
}

// sleeper is the definition of a task that does nothing.
func sleeper(family string) *ecs.RegisterTaskDefinitionInput {
	return &ecs.RegisterTaskDefinitionInput{Family: &family, NetworkMode: types.NetworkModeHost, ContainerDefinitions: []types.ContainerDefinition{{
		Name: aws.String("main"), Image: aws.String("busybox"), Command: []string{"/bin/sh", "-c", "trap exit TERM; while :; do sleep 0.1; done"}, Memory: aws.Int32(64),
		StopTimeout: aws.Int32(2),
	}}}
}

// program is a program of Debian's, which must be there in CI.
func program(t *testing.T, path string) string {
	t.Helper()
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && os.Getenv("CI") == "" {
		t.Skipf("%s is not installed: make test installs it", path)
	} else if err != nil {
		t.Fatal(err)
	}
	return path
}

func fetch(client *http.Client, target string) ([]byte, error) {
	resp, err := client.Get(target)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.200s", target, resp.Status, b)
	}
	return b, err
}

const (
	prometheusPort = "19090"
	agentPort      = "51680" // ECS_ENABLE_PROMETHEUS_METRICS
)

// openToOthers is how others see a system: by Prometheus, by OpenTelemetry and by its
// events.
func openToOthers(t *testing.T, bin string) {
	seen := &followed{receiver: newReceiver(t), file: filepath.Join(t.TempDir(), "events")}
	s, l := whole(t, bin, func(c *cluster.Config) {
		c.Events = cluster.Events{File: seen.file, Webhooks: []string{seen.receiver.URL + "/hook"}}
		c.OTLPEndpoint = seen.receiver.URL
	}, append(withGPU(t), "ECS_ENABLE_PROMETHEUS_METRICS=true", "BERTH_OTLP_ENDPOINT="+seen.receiver.URL)...)
	seen.watch(t, s, l)
	arn := s.Run(s.Register(sleeper("observed")), 1)[0]
	s.Wait("RUNNING", 30*time.Second, arn)
	task := filepath.Base(arn)
	t.Run("prometheus", func(t *testing.T) { prometheusDiscovers(t, l, task) })
	t.Run("opentelemetry", func(t *testing.T) { seen.receiver.waitFor(t, task) })
	t.Run("GPU", func(t *testing.T) { gpuOfTask(t, s) })
	t.Run("events", func(t *testing.T) { seen.events(t, s, arn) })
}

// prometheusDiscovers has Debian's Prometheus find the agents of the cluster by its
// discovery of EC2 instances, and scrape them and the cluster.
func prometheusDiscovers(t *testing.T, l *lab.Lab, task string) {
	prometheus, promtool := program(t, "/usr/bin/prometheus"), program(t, "/usr/bin/promtool")
	dir := t.TempDir()
	address, err := url.Parse(l.URL)
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`
global: {scrape_interval: 500ms, scrape_timeout: 500ms}
scrape_configs:
- job_name: cluster
  static_configs: [{targets: [%q]}]
- job_name: agents
  ec2_sd_configs: [{endpoint: %q, region: %s, access_key: %s, secret_key: %s, port: %s, refresh_interval: 1s}]
  relabel_configs:
  - {source_labels: [__meta_ec2_instance_id], target_label: instance_id}
  - {source_labels: [__meta_ec2_availability_zone], target_label: zone}
`, address.Host, l.URL, lab.Region, l.Key.AccessKeyID, l.Key.SecretAccessKey, agentPort)
	path := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.Command(prometheus, "--config.file="+path, "--storage.tsdb.path="+dir, "--web.listen-address=127.0.0.1:"+prometheusPort)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
		cmd.Wait()                          //nolint:errcheck // it was told to end
		if t.Failed() {
			t.Logf("prometheus printed:\n%s", out.String())
		}
	})

	list, err := l.ECS.ListContainerInstances(context.Background(), &ecs.ListContainerInstancesInput{})
	if err != nil {
		t.Fatal(err)
	}
	described, err := l.ECS.DescribeContainerInstances(context.Background(), &ecs.DescribeContainerInstancesInput{ContainerInstances: list.ContainerInstanceArns})
	if err != nil {
		t.Fatal(err)
	}
	id := aws.ToString(described.ContainerInstances[0].Ec2InstanceId)
	for _, q := range []string{
		fmt.Sprintf(`berth_container_cpu_usage_seconds_total{task_id=%q,instance_id=%q,zone="us-east-1a",instance="127.0.0.1:%s"} > 0`, task, id, agentPort),
		fmt.Sprintf(`berth_container_memory_used_bytes{task_id=%q,container_name="main"} > 0`, task),
		`ecs_cluster_running_tasks{cluster_name="default"} == 1`,
		`ecs_cluster_container_instances{cluster_name="default"} == 1`,
		`up{job="cluster"} == 1`,
	} {
		system.Until(t, 40*time.Second, q, func() error { return answered(q) })
	}

	for name, target := range map[string]string{"agent": "http://127.0.0.1:" + agentPort + "/metrics", "cluster": l.URL + "/metrics"} {
		text, err := fetch(http.DefaultClient, target)
		if err != nil {
			t.Fatal(err)
		}
		check := exec.Command(promtool, "check", "metrics")
		check.Stdin = bytes.NewReader(text)
		if said, err := check.CombinedOutput(); err != nil || len(bytes.TrimSpace(said)) > 0 {
			t.Errorf("promtool check metrics of the %s: %v\n%s", name, err, said)
		}
	}
}

// answered reports whether Prometheus has something for a query.
func answered(q string) error {
	b, err := fetch(http.DefaultClient, "http://127.0.0.1:"+prometheusPort+"/api/v1/query?query="+url.QueryEscape(q))
	if err != nil {
		return err
	}
	var answer struct {
		Data struct {
			Result []json.RawMessage `json:"result"`
		} `json:"data"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return err
	}
	if len(answer.Data.Result) != 1 {
		return fmt.Errorf("%d results: %s", len(answer.Data.Result), b)
	}
	return nil
}
