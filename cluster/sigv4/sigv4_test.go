package sigv4

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	keyID  = "AKIDEXAMPLE"
	secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
)

func verifier() *Verifier {
	return &Verifier{Region: "us-east-1", Secret: func(id string) (string, bool) { return secret, id == keyID }}
}

// TestVanilla is "get-vanilla" of AWS's Signature Version 4 test suite.
func TestVanilla(t *testing.T) {
	r, err := http.NewRequestWithContext(t.Context(), "GET", "https://example.amazonaws.com/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Amz-Date", "20150830T123600Z")
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31")
	v := verifier()
	v.Now = func() time.Time { return time.Date(2015, 8, 30, 12, 40, 0, 0, time.UTC) }
	if id, err := v.Verify(r, nil, "service"); err != nil || id != keyID {
		t.Errorf("%q, %v", id, err)
	}
}

// TestSDKRequests verifies what the SDK's signer signs, also of websocket
// URLs as agents open them.
func TestSDKRequests(t *testing.T) {
	v := verifier()
	for _, tc := range []struct{ method, url, body string }{
		{"POST", "http://127.0.0.1:7700/", "{}"},
		{"POST", "http://127.0.0.1:7700", "{}"},
		{"GET", "ws://127.0.0.1:7700/ws?agentHash=abc&clusterArn=default&containerInstanceArn=arn%3Aaws%3Aecs%3Aus-east-1%3A0%3Acontainer-instance%2Fdefault%2F01&dockerVersion=a+b&seqNum=1&sendCredentials=true", ""},
		{"GET", "http://h/ws?b=2&a=1&a=0&empty&x=%20~%7E", ""},
		{"GET", "http://h/a%20b/c", ""},
	} {
		r, err := http.NewRequestWithContext(t.Context(), tc.method, tc.url, strings.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(tc.body))
		cr := aws.Credentials{AccessKeyID: keyID, SecretAccessKey: secret}
		if err := v4.NewSigner().SignHTTP(t.Context(), cr, r, hex.EncodeToString(sum[:]), "ecs", "us-east-1", time.Now()); err != nil {
			t.Fatal(err)
		}
		if r.Host == "" {
			r.Host = r.URL.Host // as a server sees it
		}
		if _, err := v.Verify(r, []byte(tc.body), "ecs"); err != nil {
			t.Errorf("%s: %v", tc.url, err)
		}
		r.URL.RawQuery += "&more=1"
		if _, err := v.Verify(r, []byte(tc.body), "ecs"); err == nil {
			t.Errorf("%s: accepted with another query", tc.url)
		}
	}
}

func TestKeysAreBounded(t *testing.T) {
	v := verifier()
	for i := range 3 * maxCached {
		v.signingKey(scope{id: string(rune(i))}, secret)
	}
	if len(v.keys) > maxCached {
		t.Errorf("%d keys are remembered", len(v.keys))
	}
}

func FuzzVerify(f *testing.F) {
	f.Add("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/ecs/aws4_request, SignedHeaders=host;x-amz-date, Signature=00", "20150830T123600Z", "a=b&c")
	f.Add("AWS4-HMAC-SHA256 Credential=////, SignedHeaders=;, Signature=", "", "%zz")
	v := verifier()
	v.Now = func() time.Time { return time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC) }
	f.Fuzz(func(t *testing.T, authorization, date, query string) {
		r, err := http.NewRequestWithContext(t.Context(), "POST", "http://h/", bytes.NewReader(nil))
		if err != nil {
			t.Fatal(err)
		}
		r.URL.RawQuery = query
		r.Header.Set("Authorization", authorization)
		r.Header.Set("X-Amz-Date", date)
		_, err = v.Verify(r, nil, "ecs")
		var refused *Error
		if !errors.As(err, &refused) {
			t.Fatalf("a request that nobody signed: %v", err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	body := []byte(`{"cluster":"default"}`)
	r, err := http.NewRequestWithContext(b.Context(), "POST", "http://127.0.0.1:7700/", nil)
	if err != nil {
		b.Fatal(err)
	}
	r.Header.Set("X-Amz-Target", "AmazonEC2ContainerServiceV20141113.RunTask")
	sum := sha256.Sum256(body)
	if err := v4.NewSigner().SignHTTP(b.Context(), aws.Credentials{AccessKeyID: keyID, SecretAccessKey: secret}, r, hex.EncodeToString(sum[:]), "ecs", "us-east-1", time.Now()); err != nil {
		b.Fatal(err)
	}
	v := verifier()
	for b.Loop() {
		if _, err := v.Verify(r, body, "ecs"); err != nil {
			b.Fatal(err)
		}
	}
}
