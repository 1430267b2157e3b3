package cluster

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/join"
)

// call makes a signed call of one of the paths of package join.
func call(t testing.TB, s *Server, k Key, method, path, body string, into any) int {
	t.Helper()
	status, _, text := do(t, request(t, s, k, method, path, body, "ecs", time.Now()))
	if into != nil && status == http.StatusOK {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, text)
		}
	}
	return status
}

func redeem(t testing.TB, s *Server, tk join.Token) (int, join.Answer, string) {
	t.Helper()
	body, err := json.Marshal(join.Request{ID: tk.ID, Secret: tk.Secret, Host: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL()+join.RedeemPath, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	status, _, text := do(t, r)
	var a join.Answer
	if status == http.StatusOK {
		if err := json.Unmarshal([]byte(text), &a); err != nil {
			t.Fatal(err)
		}
	}
	return status, a, text
}

func newToken(t testing.TB, s *Server, request string) (join.TokenAnswer, join.Token) {
	t.Helper()
	var a join.TokenAnswer
	if status := call(t, s, s.OperatorKey(), "POST", join.TokensPath, request, &a); status != 200 {
		t.Fatalf("no token: %d", status)
	}
	tk, err := join.Parse(a.Token)
	if err != nil {
		t.Fatal(err)
	}
	return a, tk
}

func TestJoinTokens(t *testing.T) {
	s := start(t, Config{})
	made, tk := newToken(t, s, `{}`)
	if tk.Endpoint != s.URL() || made.Cluster != "default" || time.Until(made.ExpiresAt) > time.Hour || made.Left != 1 {
		t.Fatalf("token %v: %+v", tk, made.TokenInfo)
	}
	status, member, _ := redeem(t, s, tk)
	if status != 200 || member.Cluster != "default" || member.Region != "us-east-1" {
		t.Fatalf("joining: %d, %v", status, member)
	}
	// The key is an instance's.
	key := Key{member.AccessKeyID, member.SecretAccessKey}
	if _, err := client(s, key).ListClusters(t.Context(), &ecs.ListClustersInput{}); code(err) != "AccessDeniedException" {
		t.Errorf("an instance's key lists clusters: %v", err)
	}
	if status, _, text := redeem(t, s, tk); status != http.StatusForbidden || !strings.Contains(text, "has been used") {
		t.Errorf("a second time: %d %s", status, text)
	}
	guess := tk
	guess.Secret = strings.Repeat("A", len(tk.Secret))
	if status, _, text := redeem(t, s, guess); status != http.StatusForbidden || strings.Contains(text, "used") {
		t.Errorf("with another secret: %d %s", status, text)
	}
	_, revoked := newToken(t, s, `{"uses":2}`)
	if status := call(t, s, s.OperatorKey(), "DELETE", join.TokensPath+"/"+revoked.ID, "", nil); status != 200 {
		t.Errorf("revoking: %d", status)
	}
	if status, _, _ := redeem(t, s, revoked); status != http.StatusForbidden {
		t.Errorf("with a revoked token: %d", status)
	}
	_, old := newToken(t, s, `{}`)
	if err := s.store.Update(t.Context(), func(tx *store.Tx) error {
		r, _ := store.Get(tx, store.JoinTokens, old.ID)
		expired := *r
		expired.ExpiresAt = time.Now().Add(-time.Second)
		store.Put(tx, store.JoinTokens, old.ID, &expired)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if status, _, text := redeem(t, s, old); status != http.StatusForbidden || !strings.Contains(text, "expired") {
		t.Errorf("with an expired token: %d %s", status, text)
	}
	var list []join.TokenInfo
	if status := call(t, s, s.OperatorKey(), "GET", join.TokensPath, "", &list); status != 200 || len(list) != 2 {
		t.Errorf("list: %d %+v", status, list)
	}
	for _, i := range list {
		if i.ID == tk.ID && (i.Left != 0 || len(i.Hosts) != 1 || i.Hosts[0] != "node-1") {
			t.Errorf("of the used token the list says %+v", i)
		}
	}
	for name, c := range map[string]struct {
		key          Key
		method, body string
		want         int
	}{
		"an instance makes tokens": {key, "POST", `{}`, 403}, "an instance lists tokens": {key, "GET", "", 403},
		"no such cluster": {s.OperatorKey(), "POST", `{"cluster":"prod"}`, 400}, "too long": {s.OperatorKey(), "POST", `{"seconds":99999999}`, 400},
		"too many": {s.OperatorKey(), "POST", `{"uses":100000}`, 400}, "no JSON": {s.OperatorKey(), "POST", `x`, 400},
	} {
		if status := call(t, s, c.key, c.method, join.TokensPath, c.body, nil); status != c.want {
			t.Errorf("%s: %d, want %d", name, status, c.want)
		}
	}
}

// TestTokenIsForAsManyHosts has many hosts use a token at once.
func TestTokenIsForAsManyHosts(t *testing.T) {
	s := start(t, Config{})
	_, tk := newToken(t, s, `{"uses":3}`)
	var mu sync.Mutex
	keys := map[string]bool{}
	var g sync.WaitGroup
	for range 8 {
		g.Go(func() {
			a, err := s.redeem(t.Context(), join.Request{ID: tk.ID, Secret: tk.Secret})
			if err == nil {
				mu.Lock()
				keys[a.AccessKeyID] = true
				mu.Unlock()
			}
		})
	}
	g.Wait()
	if len(keys) != 3 {
		t.Errorf("%d hosts joined", len(keys))
	}
}

func TestNoTokenInTheStoreOrTheRecords(t *testing.T) {
	s := start(t, Config{})
	made, tk := newToken(t, s, `{}`)
	_, member, _ := redeem(t, s, tk)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(s.config.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, secret := range []string{tk.Secret, made.Token, member.SecretAccessKey} {
			if bytes.Contains(b, []byte(secret)) {
				t.Errorf("%s holds a secret", path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestInstanceKeysRotate(t *testing.T) {
	s := start(t, Config{})
	_, tk := newToken(t, s, `{}`)
	_, member, _ := redeem(t, s, tk)
	first := Key{member.AccessKeyID, member.SecretAccessKey}
	if status := call(t, s, first, "POST", join.RotatePath, "", nil); status != 400 {
		t.Errorf("a key without an instance is rotated: %d", status)
	}
	if _, err := client(s, s.OperatorKey()).CreateCluster(t.Context(), &ecs.CreateClusterInput{}); err != nil {
		t.Fatal(err)
	}
	register := func(k Key, arn *string) (*string, error) {
		out, err := client(s, k).RegisterContainerInstance(t.Context(), &ecs.RegisterContainerInstanceInput{ContainerInstanceArn: arn})
		if err != nil {
			return nil, err
		}
		return out.ContainerInstance.ContainerInstanceArn, nil
	}
	arn, err := register(first, nil)
	if err != nil {
		t.Fatal(err)
	}
	var lost, next Key
	if status := call(t, s, first, "POST", join.RotatePath, "", &lost); status != 200 {
		t.Fatalf("rotate: %d", status)
	}
	// That answer was lost: the old key is good, and asks again.
	if status := call(t, s, first, "POST", join.RotatePath, "", &next); status != 200 {
		t.Fatalf("rotate: %d", status)
	}
	if status := call(t, s, lost, "POST", join.ConfirmPath, "", nil); status == 200 {
		t.Error("a key that was made before the last is good")
	}
	if again, err := register(next, arn); err != nil || aws.ToString(again) != *arn {
		t.Errorf("with the new key: %v, %v", aws.ToString(again), err)
	}
	if status := call(t, s, next, "POST", join.ConfirmPath, "", nil); status != 200 {
		t.Errorf("confirm: %d", status)
	}
	if _, err := register(first, arn); err == nil {
		t.Error("the old key is good after the new one was confirmed")
	}
	if status := call(t, s, s.OperatorKey(), "POST", join.RotatePath, "", nil); status != 403 {
		t.Errorf("the operator's key is rotated: %d", status)
	}
}
