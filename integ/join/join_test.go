package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/google/go-cmp/cmp"

	agent "berth.dev/berth/agent/join"
	"berth.dev/berth/cluster"
	wire "berth.dev/berth/wire/join"
)

func start(t *testing.T, listen string) *cluster.Server {
	t.Helper()
	s, err := cluster.Open(t.Context(), cluster.Config{Dir: t.TempDir(), Listen: listen, Advertise: "127.0.0.1"})
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

func token(t *testing.T, s *cluster.Server) wire.Token {
	t.Helper()
	a, err := s.JoinToken(t.Context(), wire.TokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	tk, err := wire.Parse(a.Token)
	if err != nil {
		t.Fatal(err)
	}
	return tk
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestJoin makes a host a member over TLS, has it register, and renews its key.
func TestJoin(t *testing.T) {
	s := start(t, "0.0.0.0:0")
	dir := t.TempDir()
	p := agent.Place{KeyFile: filepath.Join(dir, "agent", "credentials"), CAFile: filepath.Join(dir, "ca.pem"), Settings: filepath.Join(dir, "ecs.config")}
	if err := os.WriteFile(p.Settings, []byte("# mine\nECS_CLUSTER=old\nECS_RESERVED_MEMORY=64"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Prepare(); err != nil {
		t.Fatal(err)
	}
	m, err := agent.Redeem(t.Context(), token(t, s), "node-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Write(m, time.Now()); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("# mine\nECS_RESERVED_MEMORY=64\nECS_BACKEND_HOST=%s\nAWS_DEFAULT_REGION=us-east-1\nECS_EXTERNAL=true\nBERTH_CA_FILE=%s\n", s.URL(), p.CAFile)
	if d := cmp.Diff(want, read(t, p.Settings)); d != "" {
		t.Errorf("settings (-want +got):\n%s", d)
	}
	for path, mode := range map[string]os.FileMode{p.KeyFile: 0o600, p.CAFile: 0o644, p.Settings: 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, st, err)
		}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(read(t, p.CAFile))) {
		t.Fatal("no certificate was written")
	}
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	t.Cleanup(h.CloseIdleConnections)
	file := aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
		var id, secret string
		for line := range strings.Lines(read(t, p.KeyFile)) {
			_, value, _ := strings.Cut(strings.TrimSpace(line), " = ")
			if strings.Contains(line, "secret") {
				secret = value
			} else {
				id = value
			}
		}
		return credentials.NewStaticCredentialsProvider(id, secret, "").Retrieve(ctx)
	})
	api := ecs.New(ecs.Options{Region: m.Region, BaseEndpoint: aws.String(s.URL()), HTTPClient: h, Credentials: file})
	operator := credentials.NewStaticCredentialsProvider(s.OperatorKey().AccessKeyID, s.OperatorKey().SecretAccessKey, "")
	if _, err := ecs.New(ecs.Options{Region: m.Region, BaseEndpoint: aws.String(s.URL()), HTTPClient: h, Credentials: operator}).CreateCluster(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	out, err := api.RegisterContainerInstance(t.Context(), &ecs.RegisterContainerInstanceInput{})
	if err != nil {
		t.Fatal(err)
	}
	before, changed := read(t, p.KeyFile), 0
	k := agent.Keys{Place: p, Region: m.Region, Client: h, Credentials: file, Changed: func() { changed++ }, Log: slog.New(slog.DiscardHandler)}
	if err := k.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if read(t, p.KeyFile) == before || changed != 1 {
		t.Error("the key is the old one")
	}
	again, err := api.RegisterContainerInstance(t.Context(), &ecs.RegisterContainerInstanceInput{ContainerInstanceArn: out.ContainerInstance.ContainerInstanceArn})
	if err != nil || *again.ContainerInstance.ContainerInstanceArn != *out.ContainerInstance.ContainerInstanceArn {
		t.Errorf("with the new key: %v", err)
	}
	if r, err := p.ReadRecord(); err != nil || r == nil || !r.Unconfirmed || r.Endpoint != s.URL() {
		t.Errorf("record %+v, %v", r, err)
	}
}

// TestJoinRefuses has a token lead to a server that is not its cluster's.
func TestJoinRefuses(t *testing.T) {
	s, other := start(t, "0.0.0.0:0"), start(t, "0.0.0.0:0")
	to := token(t, s)
	elsewhere := to
	elsewhere.Endpoint = other.URL()
	byName := to
	byName.Endpoint = strings.Replace(to.Endpoint, "127.0.0.1", "127.0.0.2", 1) // not in the certificate
	nobody := to
	nobody.Endpoint = "https://127.0.0.1:1"
	for name, c := range map[string]struct {
		token wire.Token
		want  string
	}{
		"another cluster": {elsewhere, "not from the authority that the token names"},
		"another name":    {byName, "certificate"},
		"nobody":          {nobody, "refused"},
	} {
		if _, err := agent.Redeem(t.Context(), c.token, "x", nil); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), to.Secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := agent.Redeem(t.Context(), to, "x", nil); err != nil {
		t.Errorf("refusals used the token: %v", err)
	}
	if _, err := agent.Redeem(t.Context(), to, "x", nil); err == nil || !strings.Contains(err.Error(), "has been used") {
		t.Errorf("a second time: %v", err)
	}
}

// TestNothingIsLeft has the last file be one that cannot be written.
func TestNothingIsLeft(t *testing.T) {
	dir := t.TempDir()
	p := agent.Place{KeyFile: filepath.Join(dir, "credentials"), CAFile: filepath.Join(dir, "ca.pem"), Settings: filepath.Join(dir, "missing", "ecs.config")}
	if err := os.WriteFile(p.CAFile, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := p.Write(agent.Member{CA: []byte("new")}, time.Now()); err == nil {
		t.Fatal("a file was written into a folder that is missing")
	}
	if got := read(t, p.CAFile); got != "old" {
		t.Errorf("the certificate is %q", got)
	}
	if _, err := os.Stat(p.KeyFile); !os.IsNotExist(err) {
		t.Errorf("the key is there: %v", err)
	}
}
