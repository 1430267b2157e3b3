package cluster

import (
	"bufio"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
)

func TestEventsAreForTheOperator(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events")
	s := start(t, Config{Events: Events{File: file}})
	if _, err := client(s, s.OperatorKey()).CreateCluster(t.Context(), &ecs.CreateClusterInput{}); err != nil {
		t.Fatal(err)
	}
	const path = "/berth/v1/events"
	unsigned, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	instance, err := s.keys.issue(t.Context(), s.store, store.KeyInstance)
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]*http.Request{
		"unsigned":        unsigned,
		"instance":        request(t, s, instance, http.MethodGet, path, "", "ecs", time.Now()),
		"unknown cluster": request(t, s, s.OperatorKey(), http.MethodGet, path+"?cluster=other", "", "ecs", time.Now()),
		"bad id":          request(t, s, s.OperatorKey(), http.MethodGet, path, "", "ecs", time.Now(), "Last-Event-ID", "x"),
	} {
		if code, _, body := do(t, r); code < 400 || code >= 500 {
			t.Errorf("%s: %d %s", name, code, body)
		}
	}
	resp, err := http.DefaultClient.Do(request(t, s, s.OperatorKey(), http.MethodGet, path+"?cluster=default", "", "ecs", time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || kind != "text/event-stream" {
		t.Fatalf("%s, %s", resp.Status, kind)
	}
	err = s.store.Update(t.Context(), func(tx *store.Tx) error {
		store.Put(tx, store.Tasks, store.Key("default", "t"), &store.Task{
			ClusterName: "default", ID: "t", Task: types.Task{TaskArn: aws.String("arn-of-the-task"), Version: 1},
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(resp.Body)
	told := false
	for !told && lines.Scan() {
		told = strings.HasPrefix(lines.Text(), "data: ") && strings.Contains(lines.Text(), "arn-of-the-task")
	}
	if !told {
		t.Fatalf("not told: %v", lines.Err())
	}
	begin := time.Now()
	if err := s.Close(); err != nil { // with the client still there
		t.Error(err)
	}
	if d := time.Since(begin); d > closeTimeout {
		t.Errorf("the end took %v", d)
	}
	if b, err := os.ReadFile(file); err != nil || strings.Count(string(b), "arn-of-the-task") < 1 {
		t.Errorf("file: %q, %v", b, err)
	}
}

func TestWebhookKey(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		text string
		ok   bool
	}{"good": {"0123456789abcdef\n", true}, "short": {"0123\n", false}, "long": {strings.Repeat("x", maxWebhookKey+2), false}} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		key, err := (&Events{WebhookKeyFile: path}).key()
		if (err == nil) != c.ok || c.ok && string(key) != strings.TrimSpace(c.text) {
			t.Errorf("%s: %q, %v", name, key, err)
		}
		if list, err := (&Events{Webhooks: []string{"http://a/", "@" + path}}).webhooks(); err != nil || list[0] != "http://a/" || c.ok && list[1] != strings.TrimSpace(c.text) {
			t.Errorf("%s: %q, %v", name, list, err)
		}
	}
}
