package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/smithy-go"
	"github.com/coder/websocket"
)

func start(t testing.TB, c Config) *Server {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	s, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func client(s *Server, k Key) *ecs.Client {
	return ecs.New(ecs.Options{
		Region: s.config.Region, BaseEndpoint: aws.String(s.URL()), RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(k.AccessKeyID, k.SecretAccessKey, ""),
	})
}

// request makes a request signed for a service at a time.
func request(t testing.TB, s *Server, k Key, method, path, body, service string, at time.Time, headers ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, s.URL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	sum := sha256.Sum256([]byte(body))
	cr := aws.Credentials{AccessKeyID: k.AccessKeyID, SecretAccessKey: k.SecretAccessKey}
	if err := v4.NewSigner().SignHTTP(t.Context(), cr, r, hex.EncodeToString(sum[:]), service, s.config.Region, at); err != nil {
		t.Fatal(err)
	}
	return r
}

func do(t testing.TB, r *http.Request) (int, http.Header, string) {
	t.Helper()
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

func instanceKey(t testing.TB, s *Server) Key {
	t.Helper()
	status, _, body := do(t, request(t, s, s.OperatorKey(), "POST", "/berth/v1/instance-keys", "{}", "ecs", time.Now()))
	var k Key
	if err := json.Unmarshal([]byte(body), &k); err != nil || status != 200 || k.SecretAccessKey == "" {
		t.Fatalf("instance key: %d %s", status, body)
	}
	return k
}

func code(err error) string {
	var e smithy.APIError
	if errors.As(err, &e) {
		return e.ErrorCode()
	}
	return fmt.Sprint(err)
}

func TestServerServes(t *testing.T) {
	began := time.Now()
	s := start(t, Config{})
	t.Logf("serving after %v", time.Since(began))
	for _, path := range []string{"/health", "/metrics"} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", s.URL()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if status, _, body := do(t, r); status != 200 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	b, err := os.ReadFile(filepath.Join(s.config.Dir, "operator.json"))
	if err != nil {
		t.Fatal(err)
	}
	var f operatorFile
	if err := json.Unmarshal(b, &f); err != nil {
		t.Fatal(err)
	}
	if f.Key != s.OperatorKey() || f.Endpoint != s.URL() || f.Region != "us-east-1" || f.Account != "000000000000" {
		t.Errorf("operator.json is for %v at %s", f.AccessKeyID, f.Endpoint)
	}
	for _, name := range []string{"operator.json", "root.key"} {
		st, err := os.Stat(filepath.Join(s.config.Dir, name))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", name, st.Mode(), err)
		}
	}
	if got := fmt.Sprintf("%v %+v %#v", s.operator, s.operator, s.operator); strings.Contains(got, s.operator.SecretAccessKey) {
		t.Error("a key prints its secret")
	}
}

func TestNoSecretInTheStore(t *testing.T) {
	s := start(t, Config{})
	k := instanceKey(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	err := filepath.Walk(filepath.Join(s.config.Dir, "etcd"), func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, secret := range []string{k.SecretAccessKey, s.operator.SecretAccessKey, string(s.keys.root)} {
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

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	s := start(t, Config{Dir: dir})
	k := instanceKey(t, s)
	if _, err := client(s, s.OperatorKey()).CreateCluster(t.Context(), &ecs.CreateClusterInput{}); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: dir, Listen: "127.0.0.1:0"}); err == nil || !strings.Contains(err.Error(), "in use by another cluster") {
		t.Fatalf("a second cluster on the directory: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]Config{
		"region":  {Dir: dir, Listen: "127.0.0.1:0", Region: "eu-west-1"},
		"account": {Dir: dir, Listen: "127.0.0.1:0", Account: "123456789012"},
	} {
		if _, err := Open(t.Context(), c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	again := start(t, Config{Dir: dir})
	if again.OperatorKey() != s.OperatorKey() {
		t.Error("the operator has another key after the restart")
	}
	out, err := client(again, again.OperatorKey()).DescribeClusters(t.Context(), &ecs.DescribeClustersInput{})
	if err != nil || len(out.Clusters) != 1 {
		t.Fatalf("clusters after the restart: %v %v", out, err)
	}
	if _, err := client(again, k).CreateCluster(t.Context(), &ecs.CreateClusterInput{}); err != nil {
		t.Errorf("instance key after the restart: %v", err)
	}
}

func TestBadConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"directory": {}, "account": {Dir: "x", Account: "1"}, "region": {Dir: "x", Region: "US"},
	} {
		if _, err := Open(t.Context(), c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestInstanceKeysAreConfined(t *testing.T) {
	s := start(t, Config{})
	k := instanceKey(t, s)
	c := client(s, k)
	if _, err := c.ListClusters(t.Context(), &ecs.ListClustersInput{}); code(err) != "AccessDeniedException" {
		t.Errorf("list-clusters: %v", err)
	}
	if _, err := c.CreateCluster(t.Context(), &ecs.CreateClusterInput{ClusterName: aws.String("mine")}); code(err) != "AccessDeniedException" {
		t.Errorf("create-cluster of another name: %v", err)
	}
	if status, _, body := do(t, request(t, s, k, "POST", "/berth/v1/instance-keys", "", "ecs", time.Now())); status != 403 {
		t.Errorf("key by instance key: %d %s", status, body)
	}
	r, err := http.NewRequestWithContext(t.Context(), "POST", s.URL()+"/berth/v1/instance-keys", nil)
	if err != nil {
		t.Fatal(err)
	}
	if status, _, body := do(t, r); status != 400 || !strings.Contains(body, "MissingAuthenticationTokenException") {
		t.Errorf("key without signature: %d %s", status, body)
	}
}

func TestSignatures(t *testing.T) {
	s := start(t, Config{})
	good := s.OperatorKey()
	target := []string{"Content-Type", "application/x-amz-json-1.1", "X-Amz-Target", "AmazonEC2ContainerServiceV20141113.ListClusters"}
	now := time.Now()
	tests := map[string]struct {
		request func() *http.Request
		code    string
		text    string
	}{
		"good": {func() *http.Request { return request(t, s, good, "POST", "/", "{}", "ecs", now, target...) }, "", ""},
		"no signature": {func() *http.Request {
			r := request(t, s, good, "POST", "/", "{}", "ecs", now, target...)
			r.Header.Del("Authorization")
			return r
		}, "MissingAuthenticationTokenException", "Missing Authentication Token"},
		"garbled header": {func() *http.Request {
			r := request(t, s, good, "POST", "/", "{}", "ecs", now, target...)
			r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=x")
			return r
		}, "IncompleteSignatureException", "Signature"},
		"unknown key": {func() *http.Request {
			return request(t, s, Key{"AKIANOSUCH", "x"}, "POST", "/", "{}", "ecs", now, target...)
		}, "UnrecognizedClientException", "The security token included in the request is invalid."},
		"wrong secret": {func() *http.Request {
			return request(t, s, Key{good.AccessKeyID, "wrong"}, "POST", "/", "{}", "ecs", now, target...)
		}, "InvalidSignatureException", "does not match the signature you provided"},
		"stale": {func() *http.Request {
			return request(t, s, good, "POST", "/", "{}", "ecs", now.Add(-6*time.Minute), target...)
		}, "InvalidSignatureException", "Signature expired: "},
		"in the future": {func() *http.Request {
			return request(t, s, good, "POST", "/", "{}", "ecs", now.Add(6*time.Minute), target...)
		}, "InvalidSignatureException", "Signature not yet current: "},
		"within the skew": {func() *http.Request {
			return request(t, s, good, "POST", "/", "{}", "ecs", now.Add(-4*time.Minute), target...)
		}, "", ""},
		"other service": {func() *http.Request { return request(t, s, good, "POST", "/", "{}", "s3", now, target...) }, "InvalidSignatureException", "correct service: 'ecs'"},
		"other body": {func() *http.Request {
			r := request(t, s, good, "POST", "/", "{}", "ecs", now, target...)
			r.Body = io.NopCloser(strings.NewReader("[]"))
			return r
		}, "InvalidSignatureException", "does not match"},
		"other target": {func() *http.Request {
			r := request(t, s, good, "POST", "/", "{}", "ecs", now, target...)
			r.Header.Set("X-Amz-Target", "AmazonEC2ContainerServiceV20141113.DeleteCluster")
			return r
		}, "InvalidSignatureException", "does not match"},
		"unsigned target": {func() *http.Request {
			r := request(t, s, good, "POST", "/", "{}", "ecs", now)
			r.Header.Set("X-Amz-Target", target[3])
			return r
		}, "InvalidSignatureException", "'x-amz-target' must be a 'SignedHeader'"},
		"other date": {func() *http.Request {
			r := request(t, s, good, "POST", "/", "{}", "ecs", now, target...)
			r.Header.Set("X-Amz-Date", now.Add(24*time.Hour).UTC().Format("20060102T150405Z"))
			return r
		}, "InvalidSignatureException", "Date in Credential scope"},
		"date garbled": {func() *http.Request {
			r := request(t, s, good, "POST", "/", "{}", "ecs", now, target...)
			r.Header.Set("X-Amz-Date", "yesterday")
			return r
		}, "IncompleteSignatureException", "ISO-8601"},
		"other host": {func() *http.Request {
			r := request(t, s, good, "POST", "/", "{}", "ecs", now, target...)
			r.Host = "elsewhere"
			return r
		}, "InvalidSignatureException", "does not match"},
		"a proxy's host": {func() *http.Request {
			r, err := http.NewRequestWithContext(t.Context(), "POST", s.URL()+"/", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			r.Host = "ecs.example.com"
			r.Header.Set("X-Amz-Target", target[3])
			sum := sha256.Sum256([]byte("{}"))
			if err := v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: good.AccessKeyID, SecretAccessKey: good.SecretAccessKey}, r, hex.EncodeToString(sum[:]), "ecs", "us-east-1", now); err != nil {
				t.Fatal(err)
			}
			return r
		}, "", ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			status, h, body := do(t, tc.request())
			if h.Get("X-Amzn-Requestid") == "" {
				t.Error("no request id")
			}
			if tc.code == "" {
				if status != 200 {
					t.Fatalf("%d %s", status, body)
				}
				return
			}
			if status != 400 || h.Get("X-Amzn-Errortype") != tc.code || !strings.Contains(body, tc.text) || !strings.Contains(body, `"__type":"`+tc.code+`"`) {
				t.Fatalf("%d %s %s", status, h.Get("X-Amzn-Errortype"), body)
			}
		})
	}
	wrongRegion := ecs.New(ecs.Options{Region: "eu-west-1", BaseEndpoint: aws.String(s.URL()), RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(good.AccessKeyID, good.SecretAccessKey, "")})
	if _, err := wrongRegion.ListClusters(t.Context(), &ecs.ListClustersInput{}); code(err) != "InvalidSignatureException" || !strings.Contains(err.Error(), "us-east-1") {
		t.Errorf("other region: %v", err)
	}
}

func TestSTS(t *testing.T) {
	s := start(t, Config{})
	form := []string{"Content-Type", "application/x-www-form-urlencoded; charset=utf-8"}
	const call = "Action=GetCallerIdentity&Version=2011-06-15"
	status, h, body := do(t, request(t, s, s.OperatorKey(), "POST", "/", call, "sts", time.Now(), form...))
	if status != 200 || h.Get("Content-Type") != "text/xml" || !strings.Contains(body, "<Account>000000000000</Account>") ||
		!strings.Contains(body, "<Arn>arn:aws:iam::000000000000:user/berth-operator</Arn>") {
		t.Errorf("%d %s", status, body)
	}
	for name, tc := range map[string]struct {
		r    *http.Request
		code string
	}{
		"signed for ecs": {request(t, s, s.OperatorKey(), "POST", "/", call, "ecs", time.Now(), form...), "SignatureDoesNotMatch"},
		"unknown key":    {request(t, s, Key{"AKIANO", "x"}, "POST", "/", call, "sts", time.Now(), form...), "InvalidClientTokenId"},
		"other action":   {request(t, s, s.OperatorKey(), "POST", "/", "Action=AssumeRole<", "sts", time.Now(), form...), "InvalidAction"},
	} {
		if status, _, body := do(t, tc.r); status < 400 || !strings.Contains(body, "<Code>"+tc.code+"</Code>") {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
}

func TestHostileRequests(t *testing.T) {
	s := start(t, Config{})
	k := s.OperatorKey()
	target := func(op string) []string {
		return []string{"Content-Type", "application/x-amz-json-1.1", "X-Amz-Target", "AmazonEC2ContainerServiceV20141113." + op}
	}
	for name, tc := range map[string]struct {
		method, body, op string
		status           int
		code             string
	}{
		"not JSON":          {"POST", "{", "ListClusters", 400, "SerializationException"},
		"wrong type":        {"POST", `{"clusters":"a"}`, "DescribeClusters", 400, "SerializationException"},
		"deep":              {"POST", `{"a":` + strings.Repeat("[", 50000), "ListClusters", 400, "SerializationException"},
		"too large":         {"POST", `{"a":"` + strings.Repeat("x", 1<<20) + `"}`, "ListClusters", 413, "RequestEntityTooLargeException"},
		"not offered":       {"POST", "{}", "CreateService", 400, "UnknownOperationException"},
		"no such operation": {"POST", "{}", "FlyToTheMoon", 400, "UnknownOperationException"},
		"GET":               {"GET", "", "ListClusters", 405, "UnknownOperationException"},
		"enum":              {"POST", `{"taskDefinition":"a","launchType":"MOON"}`, "RunTask", 400, "InvalidParameterException"},
		"null body":         {"POST", "null", "ListClusters", 400, "SerializationException"},
	} {
		t.Run(name, func(t *testing.T) {
			status, h, body := do(t, request(t, s, k, tc.method, "/", tc.body, "ecs", time.Now(), target(tc.op)...))
			if status != tc.status || h.Get("X-Amzn-Errortype") != tc.code {
				t.Errorf("%d %.300s", status, body)
			}
		})
	}
}

func TestTelemetry(t *testing.T) {
	s := start(t, Config{})
	dial := func(k Key, query string) (*websocket.Conn, error) {
		r := request(t, s, k, "GET", "/tcs/ws?"+query, "", "ecs", time.Now())
		conn, _, err := websocket.Dial(t.Context(), r.URL.String(), &websocket.DialOptions{HTTPHeader: r.Header})
		return conn, err
	}
	arn := url.QueryEscape("arn:aws:ecs:us-east-1:000000000000:container-instance/default/0123")
	if _, err := dial(instanceKey(t, s), "containerInstance="+arn); err == nil {
		t.Error("a key of no instance opened a session")
	}
	if _, err := dial(s.OperatorKey(), "cluster=default"); err == nil {
		t.Error("a session without instance was opened")
	}
	conn, err := dial(s.OperatorKey(), "cluster=default&containerInstance="+arn)
	if err != nil {
		t.Fatal(err)
	}
	for send, want := range map[string]string{
		"Authorization: x\r\nHost: y\r\n\r\n" + `{"type":"PublishMetricsRequest","message":{"metadata":{}}}`: `{"type":"AckPublishMetric","message":{"message":""}}`,
		"A: b\r\n\r\n" + `{"type":"PublishHealthRequest","message":{}}`:                                      `{"type":"AckPublishHealth","message":{"message":""}}`,
		`{"type":"PublishInstanceStatusRequest","message":{}}`:                                               `{"type":"AckPublishInstanceStatus","message":{"message":""}}`,
		"A: b\r\n\r\nnot json": `{"type":"BadRequestException","message":{"message":"The frame is not understood: tcs: the frame is not valid JSON"}}`,
		"no end":               `{"type":"BadRequestException","message":{"message":"The frame is not understood: tcs: no end of the header block"}}`,
		`{"type":"Nonsense"}`:  `{"type":"BadRequestException","message":{"message":"The frame is not understood: tcs: unknown message type \"Nonsense\""}}`,
	} {
		if err := conn.Write(t.Context(), websocket.MessageText, []byte(send)); err != nil {
			t.Fatal(err)
		}
		_, got, err := conn.Read(t.Context())
		if err != nil || string(got) != want {
			t.Errorf("%q: %s, %v", send, got, err)
		}
	}
	second, err := dial(s.OperatorKey(), "cluster=default&containerInstance="+arn)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := conn.Read(t.Context()); err == nil {
		t.Error("the first session lives on beside the second")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := second.Read(t.Context()); err == nil {
		t.Error("the session outlived the cluster")
	}
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	s := start(t, Config{Dir: dir, Listen: "0.0.0.0:0", Advertise: "127.0.0.1"})
	if !strings.HasPrefix(s.URL(), "https://127.0.0.1:") || len(s.Fingerprint()) != 64 {
		t.Fatalf("serves at %s, fingerprint %q", s.URL(), s.Fingerprint())
	}
	ca, err := os.ReadFile(filepath.Join(dir, "tls", "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	t.Cleanup(h.CloseIdleConnections)
	c := ecs.New(ecs.Options{Region: "us-east-1", BaseEndpoint: aws.String(s.URL()), HTTPClient: h,
		Credentials: credentials.NewStaticCredentialsProvider(s.operator.AccessKeyID, s.operator.SecretAccessKey, "")})
	if _, err := c.ListClusters(t.Context(), &ecs.ListClustersInput{}); err != nil {
		t.Fatal(err)
	}
	plain, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), "GET", strings.Replace(s.URL(), "https", "http", 1)+"/health", nil)
	if err != nil {
		t.Fatal(err)
	}
	if status, _, _ := do(t, plain); status == 200 {
		t.Error("plain HTTP is served beside TLS")
	}
	fp := s.Fingerprint()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cert, err := os.ReadFile(filepath.Join(dir, "tls", "server.pem"))
	if err != nil {
		t.Fatal(err)
	}
	again := start(t, Config{Dir: dir, Listen: "0.0.0.0:0", Advertise: "127.0.0.1"})
	same, err := os.ReadFile(filepath.Join(dir, "tls", "server.pem"))
	if err != nil || !bytes.Equal(cert, same) || again.Fingerprint() != fp {
		t.Error("the certificates changed with a restart")
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	other := start(t, Config{Dir: dir, Listen: "0.0.0.0:0", Advertise: "berth.example.com"})
	if changed, err := os.ReadFile(filepath.Join(dir, "tls", "server.pem")); err != nil || bytes.Equal(cert, changed) || other.Fingerprint() != fp {
		t.Error("a new name did not give a new certificate of the same CA")
	}
}

func BenchmarkListClusters(b *testing.B) {
	s := start(b, Config{})
	c := client(s, s.OperatorKey())
	for b.Loop() {
		if _, err := c.ListClusters(b.Context(), &ecs.ListClustersInput{}); err != nil {
			b.Fatal(err)
		}
	}
}
