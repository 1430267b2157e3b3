package sigv4

import (
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

// presign makes a URL as the SDK's signer does.
func presign(t *testing.T, at time.Time, expires string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://127.0.0.1:7700/?Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Expires="+expires, nil)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(nil)
	cr := aws.Credentials{AccessKeyID: keyID, SecretAccessKey: secret}
	url, _, err := v4.NewSigner().PresignHTTP(t.Context(), cr, r, hex.EncodeToString(sum[:]), "sts", "us-east-1", at)
	if err != nil {
		t.Fatal(err)
	}
	return url
}

func TestPresigned(t *testing.T) {
	now := time.Now()
	good := presign(t, now, "900")
	for name, tc := range map[string]struct{ url, code string }{
		"good":             {good, ""},
		"still good":       {presign(t, now.Add(-14*time.Minute), "900"), ""},
		"expired":          {presign(t, now.Add(-16*time.Minute), "900"), "InvalidSignatureException"},
		"of the future":    {presign(t, now.Add(10*time.Minute), "900"), "InvalidSignatureException"},
		"for ever":         {presign(t, now, "604801"), "IncompleteSignatureException"},
		"changed":          {strings.Replace(good, "GetCallerIdentity", "GetSessionToken", 1), "InvalidSignatureException"},
		"longer":           {strings.Replace(good, "Expires=900", "Expires=901", 1), "InvalidSignatureException"},
		"other signature":  {good[:len(good)-1] + "x", "InvalidSignatureException"},
		"second signature": {good + "&X-Amz-Signature=00", "IncompleteSignatureException"},
		"without date":     {strings.Replace(good, "X-Amz-Date", "X-Amz-Dat", 1), "IncompleteSignatureException"},
		"other algorithm":  {strings.Replace(good, "HMAC-SHA256", "HMAC-SHA1", 1), "IncompleteSignatureException"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", tc.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		id, err := verifier().Verify(r, nil, "sts")
		var refusal *Error
		switch {
		case tc.code == "" && (err != nil || id != keyID):
			t.Errorf("%s: %q, %v", name, id, err)
		case tc.code != "" && (!errors.As(err, &refusal) || refusal.Code != tc.code):
			t.Errorf("%s: %v, want %s", name, err, tc.code)
		}
	}
}
