package router

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
)

var update = flag.Bool("update", false, "rewrite testdata")

// definition is a task with a router and two containers that send to it.
func definition(kind, mode string) *task.Task {
	logs := func(o map[string]string) task.HostConfig {
		return task.HostConfig{LogConfig: task.LogConfig{Type: Driver, Config: o}}
	}
	key := "Name"
	if kind == Fluentd {
		key = "@type"
	}
	return &task.Task{
		ARN: "arn:aws:ecs:us-east-1:123456789012:task/prod/0123456789abcdef", Family: "web", Version: "3", NetworkMode: mode,
		Containers: []task.Container{
			{Name: "router", Memory: 100, Router: &task.LogRouter{Type: kind, Options: map[string]string{}}},
			{Name: "app", HostConfig: logs(map[string]string{
				key: "es", "host": "search.example.com", "port": "9200", "include-pattern": "^GET", "exclude-pattern": "health", "log-driver-buffer-limit": "2097152",
			}), Secrets: []task.SecretRef{{Name: "password", Use: task.UseLogRouter}}},
			{Name: "quiet", HostConfig: logs(nil)},
		},
	}
}

func TestConfig(t *testing.T) {
	for name, tk := range map[string]*task.Task{
		"fluentbit-bridge":  definition(FluentBit, task.NetworkBridge),
		"fluentbit-host":    definition(FluentBit, task.NetworkHost),
		"fluentbit-awsvpc":  definition(FluentBit, task.NetworkAWSVPC),
		"fluentd-bridge":    definition(Fluentd, task.NetworkBridge),
		"fluentd-host":      definition(Fluentd, task.NetworkHost),
		"fluentbit-include": definition(FluentBit, task.NetworkHost),
		"fluentd-include":   definition(Fluentd, task.NetworkHost),
	} {
		t.Run(name, func(t *testing.T) {
			switch name {
			case "fluentbit-include":
				tk.Containers[0].Router.Options = map[string]string{fileType: "file", fileValue: "/extra.conf", logMetadata: "false"}
				tk.Containers[0].Memory = 0
			case "fluentd-include":
				tk.Containers[0].Router.Options = map[string]string{fileType: "s3", fileValue: "arn:aws:s3:::b/k"}
			}
			got, err := Config(tk, "prod")
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".conf")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestConfigRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		edit func(tk *task.Task)
		want string
	}{
		"no output": {func(tk *task.Task) { delete(tk.Containers[1].HostConfig.LogConfig.Config, "Name") },
			"missing output key Name which is required for firelens configuration of type fluentbit"},
		"a line break":         {func(tk *task.Task) { tk.Containers[1].HostConfig.LogConfig.Config["host"] = "x\n[OUTPUT]" }, "line breaks"},
		"a wrong type of file": {func(tk *task.Task) { tk.Containers[0].Router.Options[fileType] = "ftp" }, "must be s3 or file"},
		"no file":              {func(tk *task.Task) { tk.Containers[0].Router.Options[fileType] = "file" }, "config-file-value"},
	} {
		t.Run(name, func(t *testing.T) {
			tk := definition(FluentBit, task.NetworkHost)
			tc.edit(tk)
			if _, err := Config(tk, "prod"); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestFilesOfARouter(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "firelens")
	asked := ""
	r := New(Settings{Dir: dir, Cluster: "prod", Fetch: func(_ context.Context, _ *task.Task, arn string) ([]byte, error) {
		asked = arn
		return []byte("[FILTER]\n"), nil
	}})
	tk := definition(FluentBit, task.NetworkHost)
	tk.Containers[0].Router.Options = map[string]string{fileType: "s3", fileValue: "arn:aws:s3:::b/k"}
	res, err := r.Ensure(t.Context(), tk, "task", engine.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	var h Handle
	if err := json.Unmarshal(res.Handle, &h); err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, m := range h.Mounts {
		paths = append(paths, m.Path)
	}
	if diff := cmp.Diff([]string{"/fluent-bit/etc/fluent-bit.conf", "/var/run", "/fluent-bit/etc/external.conf"}, paths); diff != "" || asked != "arn:aws:s3:::b/k" {
		t.Errorf("asked for %q; %s", asked, diff)
	}
	o, err := r.Probe(t.Context(), tk, "task", res.Handle)
	if err != nil || !o.Exists {
		t.Errorf("probe: %+v, %v", o, err)
	}
	owned, err := r.Owned(t.Context())
	if err != nil || len(owned) != 1 || owned[0].TaskID != tk.ID() {
		t.Errorf("owned: %+v, %v", owned, err)
	}
	for range 2 {
		if err := r.Remove(t.Context(), tk, "task", res.Handle); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("left: %v", err)
	}
	r = New(Settings{Dir: dir, Fetch: func(context.Context, *task.Task, string) ([]byte, error) { return nil, errors.New("access denied") }})
	if _, err := r.Ensure(t.Context(), tk, "task", engine.Deps{}); err == nil || !strings.Contains(err.Error(), "unable to download firelens s3 config file: access denied") {
		t.Errorf("got %v", err)
	}
}
