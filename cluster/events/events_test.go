package events

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/cluster/store"
)

const patience = 2 * time.Minute

func openStore(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func openStream(t *testing.T, c Config) *Stream {
	t.Helper()
	c.Region, c.Account = "eu-west-1", "123456789012"
	c.Instance = func(_ store.Reader, i *store.Instance) types.ContainerInstance { return i.Instance }
	s, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// put writes a task in a version.
func put(t *testing.T, s *store.Store, cluster, id string, version int64, status string) {
	t.Helper()
	created := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	err := s.Update(t.Context(), func(tx *store.Tx) error {
		store.Put(tx, store.Tasks, store.Key(cluster, id), &store.Task{
			ClusterName: cluster, ID: id, Task: types.Task{
				TaskArn: aws.String("arn:aws:ecs:eu-west-1:123456789012:task/" + cluster + "/" + id), LastStatus: aws.String(status),
				CreatedAt: &created, Version: version, Tags: []types.Tag{{Key: aws.String("k")}},
				Attachments: []types.Attachment{{Type: aws.String("ElasticNetworkInterface")}},
				Overrides: &types.TaskOverride{ContainerOverrides: []types.ContainerOverride{{
					Environment: []types.KeyValuePair{{Name: aws.String("A"), Value: aws.String("hunter2")}},
				}}},
			},
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// told is what a test compares of an event.
type told struct {
	ID         string
	DetailType string `json:"detail-type"`
	Resources  []string
	Detail     struct {
		LastStatus string
		Version    int64
	}
}

func read(t *testing.T, line []byte) told {
	t.Helper()
	var out told
	if err := json.Unmarshal(line, &out); err != nil {
		t.Fatalf("%v in %s", err, line)
	}
	return out
}

func TestFileGetsEveryChangeOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events", "log")
	records := openStore(t)
	put(t, records, "c", "before", 1, "RUNNING")
	s := openStream(t, Config{Store: records, File: path})
	put(t, records, "c", "t1", 1, "PENDING")
	put(t, records, "c", "t1", 1, "PENDING") // the record changes, not the state
	put(t, records, "c", "t1", 2, "RUNNING")
	put(t, records, "d", "t2", 1, "PENDING")
	err := records.Update(t.Context(), func(tx *store.Tx) error {
		store.Delete(tx, store.Tasks, store.Key("c", "t1"))
		store.Put(tx, store.Instances, store.Key("c", "i"), &store.Instance{
			ClusterName: "c", ID: "i", Instance: types.ContainerInstance{ContainerInstanceArn: aws.String("inst"), Version: 4},
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := records.Close(); err != nil {
		t.Fatal(err)
	}
	s.Wait()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	ids := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		e := read(t, []byte(line))
		ids[e.ID] = true
		got = append(got, fmt.Sprintf("%s %s %s %d", e.DetailType, e.Resources[0][strings.LastIndexByte(e.Resources[0], '/')+1:], e.Detail.LastStatus, e.Detail.Version))
	}
	want := []string{
		"ECS Task State Change t1 PENDING 1", "ECS Task State Change t1 RUNNING 2", "ECS Task State Change t2 PENDING 1",
		"ECS Container Instance State Change inst  4",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(ids) != len(want) {
		t.Errorf("%d ids of %d events", len(ids), len(want))
	}
	if strings.Contains(string(b), "hunter2") {
		t.Error("an environment value is told")
	}
}

func TestShape(t *testing.T) {
	records := openStore(t)
	s := openStream(t, Config{Store: records})
	put(t, records, "c", "t", 3, "RUNNING")
	var place cursor
	list := next(t, s, &place, 1)
	var got map[string]any
	if err := json.Unmarshal(list[0].JSON(), &got); err != nil {
		t.Fatal(err)
	}
	arn := "arn:aws:ecs:eu-west-1:123456789012:task/c/t"
	detail := got["detail"].(map[string]any)
	updated, err := time.Parse(time.RFC3339, fmt.Sprint(detail["updatedAt"]))
	if err != nil || time.Since(updated) > time.Hour {
		t.Errorf("updatedAt %v", detail["updatedAt"])
	}
	delete(detail, "updatedAt")
	if _, err := time.Parse(time.RFC3339, fmt.Sprint(got["time"])); err != nil {
		t.Error(err)
	}
	delete(got, "time")
	want := map[string]any{
		"version": "0", "id": list[0].ID(), "detail-type": "ECS Task State Change", "source": "aws.ecs",
		"account": "123456789012", "region": "eu-west-1", "resources": []any{arn},
		"detail": map[string]any{
			"taskArn": arn, "lastStatus": "RUNNING", "version": 3.0, "createdAt": "2026-01-02T03:04:05.006Z", "enableExecuteCommand": false,
			"attachments": []any{map[string]any{"type": "eni"}},
			"overrides": map[string]any{"containerOverrides": []any{map[string]any{
				"environment": []any{map[string]any{"name": "A", "value": "HIDDEN_DUE_TO_SECURITY_REASONS"}},
			}}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// next takes n events, waiting for them.
func next(t *testing.T, s *Stream, c *cursor, n int) []*Event {
	t.Helper()
	var out []*Event
	timeout := time.After(patience)
	for {
		list, lost, wake := s.take(c)
		if lost > 0 {
			t.Fatalf("%d events lost", lost)
		}
		if out = append(out, list...); len(out) >= n {
			return out
		}
		select {
		case <-wake:
		case <-timeout:
			t.Fatalf("%d events of %d", len(out), n)
		}
	}
}

func TestPlaces(t *testing.T) {
	records := openStore(t)
	s := openStream(t, Config{Store: records, Keep: 4})
	first := cursor{}
	put(t, records, "c", "t", 1, "A")
	old := next(t, s, &first, 1)[0]
	var kept []*Event
	for v := int64(2); v <= 6; v++ {
		put(t, records, "c", "t", v, "A")
		kept = append(kept, next(t, s, &first, 1)...) // before more than are kept have come
	}
	kept = kept[1:] // the last four
	for name, c := range map[string]struct {
		after  *Position
		at     uint64
		missed bool
	}{
		"new":            {nil, 6, false},
		"all seen":       {&kept[3].Position, 6, false},
		"one left":       {&kept[2].Position, 5, false},
		"one not kept":   {&Position{kept[0].Position.Revision - 1, 0}, 2, false},
		"too old":        {&old.Position, 2, true},
		"before us":      {&Position{}, 2, true},
		"other process'": {&Position{kept[3].Position.Revision + 7, 0}, 6, false},
	} {
		got, missed := s.place(c.after)
		if got.at != c.at || missed != c.missed {
			t.Errorf("%s: place %d, missed %v; want %d, %v", name, got.at, missed, c.at, c.missed)
		}
	}
	slow := cursor{}
	list, lost, _ := s.take(&slow)
	if lost != 2 || len(list) != 4 {
		t.Errorf("slow follower lost %d and got %d; want 2 and 4", lost, len(list))
	}
	ahead, _ := s.place(&Position{kept[3].Position.Revision + 1, 0})
	put(t, records, "c", "t", 7, "A") // what the other process had told already
	put(t, records, "c", "t", 8, "A")
	if got := next(t, s, &ahead, 1); read(t, got[0].JSON()).Detail.Version != 8 {
		t.Errorf("told again: %s", got[0].JSON())
	}
}

func TestServe(t *testing.T) {
	records := openStore(t)
	s := openStream(t, Config{Store: records, Keep: 8})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.Serve(w, r, r.URL.Query().Get("cluster")); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	}))
	defer srv.Close()
	follow := func(cluster, last string) (*bufio.Scanner, func()) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+"?cluster="+cluster, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Last-Event-ID", last)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 1<<20)
		return lines, func() { cancel(); resp.Body.Close() } //nolint:errcheck // ends the test's request
	}
	line := func(lines *bufio.Scanner, prefix string) string {
		t.Helper()
		for lines.Scan() {
			if v, ok := strings.CutPrefix(lines.Text(), prefix); ok {
				return v
			}
		}
		t.Fatalf("no line %q: %v", prefix, lines.Err())
		return ""
	}
	lines, end := follow("c", "")
	line(lines, "retry:")
	put(t, records, "d", "other", 1, "A")
	put(t, records, "c", "t", 1, "A")
	id := line(lines, "id: ")
	if e := read(t, []byte(line(lines, "data: "))); !strings.HasSuffix(e.Resources[0], "/c/t") {
		t.Errorf("told of %v", e.Resources)
	}
	end()
	put(t, records, "c", "t", 2, "B")
	lines, end = follow("c", id)
	if e := read(t, []byte(line(lines, "data: "))); e.Detail.Version != 2 {
		t.Errorf("gone on with version %d", e.Detail.Version)
	}
	end()
	lines, end = follow("", "1-0")
	line(lines, "event: gap")
	line(lines, "id: ")
	s.EndReaders()
	for lines.Scan() {
	}
	if err := lines.Err(); err != nil {
		t.Errorf("stream ended with %v", err)
	}
	end()
	if resp, err := http.DefaultClient.Do(lastEvent(t, srv.URL, "x")); err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("bad id: %v %v", resp, err)
	} else if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
}

func lastEvent(t *testing.T, url, id string) *http.Request {
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Last-Event-ID", id)
	return r
}

func TestWebhook(t *testing.T) {
	var mu sync.Mutex
	var got []int64
	attempts, all := 0, make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		attempts++
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if sig := r.Header.Get("Berth-Signature"); !strings.HasPrefix(sig, "sha256=") || len(sig) != 7+64 {
			t.Errorf("signature %q", sig)
		}
		v := read(t, b).Detail.Version
		switch {
		case attempts == 1:
			w.WriteHeader(http.StatusServiceUnavailable) // the first again
			return
		case v == 2:
			w.WriteHeader(http.StatusBadRequest) // never again
			return
		}
		if got = append(got, v); v == 3 {
			close(all)
		}
	}))
	defer srv.Close()
	records := openStore(t)
	s := openStream(t, Config{Store: records, Webhooks: []string{srv.URL + "/hook"}, WebhookKey: []byte("a key of some length")})
	for v := int64(1); v <= 3; v++ {
		put(t, records, "c", "t", v, "A")
	}
	select {
	case <-all:
	case <-time.After(patience):
		t.Error("not all came")
	}
	if err := records.Close(); err != nil {
		t.Fatal(err)
	}
	s.Wait()
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff([]int64{1, 3}, got); diff != "" || attempts != 4 {
		t.Errorf("%d attempts\n%s", attempts, diff)
	}
}

// TestEndWithoutWebhook: a receiver that is away does not hold up the end for long.
func TestEndWithoutWebhook(t *testing.T) {
	srv := httptest.NewServer(nil)
	srv.Close()
	records := openStore(t)
	s := openStream(t, Config{Store: records, Webhooks: []string{srv.URL}})
	put(t, records, "c", "t", 1, "A")
	if err := records.Close(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	s.Wait()
	if d := time.Since(start); d > lastTime+5*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestBadTargets(t *testing.T) {
	for _, target := range []string{"", "ftp://x/", "http://", "http://user:word@host/", "%"} {
		if _, err := webhook(target, nil); err == nil || strings.Contains(err.Error(), "word@") {
			t.Errorf("%q: %v", target, err)
		}
	}
}

func FuzzParsePosition(f *testing.F) {
	f.Add("12-3")
	f.Add("-1-1")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePosition(s)
		if err != nil {
			return
		}
		if q, err := ParsePosition(p.String()); err != nil || q != p {
			t.Errorf("%q is %v, then %v, %v", s, p, q, err)
		}
	})
}
