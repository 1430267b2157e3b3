// Package sigv4 verifies AWS Signature Version 4, in a header or in the query of a URL.
package sigv4

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	algorithm  = "AWS4-HMAC-SHA256"
	terminator = "aws4_request"
	dateForm   = "20060102T150405Z"
	// maxSkew is how far a request's date may be from ours, as at AWS.
	maxSkew = 5 * time.Minute
	// maxCached bounds the derived signing keys that are remembered.
	maxCached = 4096
	// maxSignedHeaders bounds the work a request can ask for.
	maxSignedHeaders = 64
)

// An Error is a request that is not accepted. Code is AWS's name of it in
// the JSON protocol, Message its text.
type Error struct{ Code, Message string }

func (e *Error) Error() string { return e.Code + ": " + e.Message }

func refused(code, format string, args ...any) error {
	return &Error{code, fmt.Sprintf(format, args...)}
}

// A Verifier checks signatures. It may be used by many goroutines.
type Verifier struct {
	// Region is the only one that requests may be signed for; "" takes any.
	Region string
	// Secret finds the secret of an access key id.
	Secret func(accessKeyID string) (secret string, ok bool)
	// Session finds the secret of a temporary key by its id and session token; expired
	// is set for one that was valid once. Nil means that there are none.
	Session func(accessKeyID, token string) (secret string, expired, ok bool)
	// Now is the clock; nil means time.Now.
	Now func() time.Time

	mu   sync.Mutex
	keys map[scope][]byte
}

// scope is what a signing key is derived for.
type scope struct{ id, date, region, service string }

// credentials is a parsed Authorization header.
type credentials struct {
	scope
	headers   []string
	signature string

	// Of a signature in a query: its date, and how long it is good for.
	date8601 string
	expires  time.Duration
}

// Scope is the region and the service that a request says it was signed for, which only
// Verify can confirm; both are "" for a request without a signature.
func Scope(r *http.Request) (region, service string) {
	c, err := parse(r)
	if err != nil {
		return "", ""
	}
	return c.region, c.service
}

// Verify checks that r, whose body has been read into body, was signed for
// the service, and returns the access key id. A refusal is an *Error.
func (v *Verifier) Verify(r *http.Request, body []byte, service string) (string, error) {
	c, err := parse(r)
	if err != nil {
		return "", err
	}
	secret, known, err := v.secret(r, c.id)
	if err != nil {
		return "", err
	}
	if !known {
		return "", refused("UnrecognizedClientException", "The security token included in the request is invalid.")
	}
	date, err := v.checkScope(r, c, service)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(canonical(r, body, c)))
	text := strings.Join([]string{
		algorithm, date,
		strings.Join([]string{c.date, c.region, c.service, terminator}, "/"),
		hex.EncodeToString(sum[:]),
	}, "\n")
	want := hex.EncodeToString(sign(v.signingKey(c.scope, secret), text))
	if !hmac.Equal([]byte(want), []byte(c.signature)) {
		return "", refused("InvalidSignatureException", "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	}
	return c.id, nil
}

// Token is the session token that a request carries with a temporary key; "" with others.
func Token(r *http.Request) string {
	if Presigned(r) {
		return r.URL.Query().Get("X-Amz-Security-Token")
	}
	return r.Header.Get("X-Amz-Security-Token")
}

// secret finds the secret that a request was signed with.
func (v *Verifier) secret(r *http.Request, id string) (secret string, known bool, err error) {
	token := Token(r)
	if token == "" || v.Session == nil {
		secret, known = v.Secret(id)
		return secret, known, nil
	}
	secret, expired, known := v.Session(id, token)
	if expired {
		return "", false, refused("ExpiredTokenException", "The security token included in the request is expired")
	}
	return secret, known, nil
}

func parse(r *http.Request) (credentials, error) {
	var c credentials
	if Presigned(r) {
		return parsePresigned(r)
	}
	header := r.Header.Get("Authorization")
	if header == "" {
		return c, refused("MissingAuthenticationTokenException", "Missing Authentication Token")
	}
	rest, ok := strings.CutPrefix(header, algorithm+" ")
	if !ok {
		return c, refused("IncompleteSignatureException", "Authorization header must begin with %s", algorithm)
	}
	var credential, headers string
	for part := range strings.SplitSeq(rest, ",") {
		k, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch k {
		case "Credential":
			credential = value
		case "SignedHeaders":
			headers = value
		case "Signature":
			c.signature = value
		}
	}
	for _, p := range []struct{ name, value string }{
		{"Credential", credential}, {"Signature", c.signature}, {"SignedHeaders", headers},
	} {
		if p.value == "" {
			return c, refused("IncompleteSignatureException", "Authorization header requires '%s' parameter.", p.name)
		}
	}
	return c, c.fill(r, credential, headers)
}

// checkScope checks date, region and service, and returns the date text.
func (v *Verifier) checkScope(r *http.Request, c credentials, service string) (string, error) {
	var at time.Time
	text, validity := r.Header.Get("X-Amz-Date"), maxSkew
	switch {
	case c.expires > 0:
		t, err := time.Parse(dateForm, c.date8601)
		if err != nil {
			return "", refused("IncompleteSignatureException", "Date must be in ISO-8601 'basic format'. Got '%.32s'.", c.date8601)
		}
		at, text, validity = t, c.date8601, c.expires
	case text != "":
		if !slices.Contains(c.headers, "x-amz-date") {
			return "", refused("InvalidSignatureException", "'x-amz-date' must be a 'SignedHeader' in the AWS Authorization.")
		}
		t, err := time.Parse(dateForm, text)
		if err != nil {
			return "", refused("IncompleteSignatureException", "Date must be in ISO-8601 'basic format'. Got '%.32s'.", text)
		}
		at = t
	default:
		t, err := http.ParseTime(r.Header.Get("Date"))
		if err != nil || !slices.Contains(c.headers, "date") {
			return "", refused("IncompleteSignatureException", "Authorization header requires existence of either a signed 'X-Amz-Date' or a 'Date' header.")
		}
		at, text = t.UTC(), t.UTC().Format(dateForm)
	}
	if c.date != text[:8] {
		return "", refused("InvalidSignatureException", "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '%.16s' != '%s', from '%s'.", c.date, text[:8], text)
	}
	if c.service != service {
		return "", refused("InvalidSignatureException", "Credential should be scoped to correct service: '%s'.", service)
	}
	// IAM and STS are one for all regions at AWS, and clients sign for the first one.
	global := (service == "iam" || service == "sts") && c.region == "us-east-1"
	if v.Region != "" && c.region != v.Region && !global {
		return "", refused("InvalidSignatureException", "Credential should be scoped to a valid region, not '%.64s'; this cluster is in '%s'.", c.region, v.Region)
	}
	now := time.Now
	if v.Now != nil {
		now = v.Now
	}
	n := now().UTC()
	if limit := n.Add(-validity); at.Before(limit) {
		return "", refused("InvalidSignatureException", "Signature expired: %s is now earlier than %s (%s - %g min.)", text, limit.Format(dateForm), n.Format(dateForm), validity.Minutes())
	}
	if limit := n.Add(maxSkew); at.After(limit) {
		return "", refused("InvalidSignatureException", "Signature not yet current: %s is still later than %s (%s + 5 min.)", text, limit.Format(dateForm), n.Format(dateForm))
	}
	return text, nil
}

// signingKey derives the key of a scope, or remembers it.
func (v *Verifier) signingKey(s scope, secret string) []byte {
	v.mu.Lock()
	key, ok := v.keys[s]
	v.mu.Unlock()
	if ok {
		return key
	}
	key = []byte("AWS4" + secret)
	for _, part := range []string{s.date, s.region, s.service, terminator} {
		key = sign(key, part)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.keys == nil || len(v.keys) >= maxCached {
		v.keys = make(map[scope][]byte)
	}
	v.keys[s] = key
	return key
}

func sign(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// canonical is the canonical request. Paths are escaped twice for every service but S3.
func canonical(r *http.Request, body []byte, c credentials) string {
	var b strings.Builder
	headers, path := c.headers, cmp.Or(r.URL.EscapedPath(), "/")
	if c.service != "s3" {
		path = escape(path, true)
	}
	b.WriteString(r.Method)
	b.WriteByte('\n')
	b.WriteString(path)
	b.WriteByte('\n')
	b.WriteString(canonicalQuery(r.URL.RawQuery, c.expires > 0))
	b.WriteByte('\n')
	for _, h := range headers {
		b.WriteString(h)
		b.WriteByte(':')
		b.WriteString(headerValue(r, h))
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	b.WriteString(strings.Join(headers, ";"))
	b.WriteByte('\n')
	sum := sha256.Sum256(body)
	b.WriteString(hex.EncodeToString(sum[:]))
	return b.String()
}

func headerValue(r *http.Request, name string) string {
	if name == "host" {
		return strings.TrimSpace(r.Host) // as received, not as we call ourselves
	}
	values := r.Header.Values(name)
	if len(values) == 0 && name == "content-length" && r.ContentLength >= 0 {
		return fmt.Sprint(r.ContentLength)
	}
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = strings.Join(strings.Fields(v), " ")
	}
	return strings.Join(out, ",")
}

func canonicalQuery(raw string, presigned bool) string {
	if raw == "" {
		return ""
	}
	var pairs [][2]string
	for part := range strings.SplitSeq(raw, "&") {
		if part == "" {
			continue
		}
		k, v, _ := strings.Cut(part, "=")
		if presigned && k == signatureParameter {
			continue
		}
		pairs = append(pairs, [2]string{escape(unescape(k), false), escape(unescape(v), false)})
	}
	slices.SortFunc(pairs, func(a, b [2]string) int {
		return cmp.Or(strings.Compare(a[0], b[0]), strings.Compare(a[1], b[1]))
	})
	var b strings.Builder
	for i, p := range pairs {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(p[0] + "=" + p[1])
	}
	return b.String()
}

// unescape undoes URL escaping; text that is not validly escaped stands for
// itself, and the signature then decides.
func unescape(s string) string {
	if u, err := url.QueryUnescape(s); err == nil {
		return u
	}
	return s
}

// escape is AWS's URI encoding: everything but the unreserved characters of
// RFC 3986, and the slash in paths.
func escape(s string, path bool) string {
	const hexUpper = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c >= '0' && c <= '9',
			c == '-', c == '_', c == '.', c == '~', c == '/' && path:
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(hexUpper[c>>4])
			b.WriteByte(hexUpper[c&15])
		}
	}
	return b.String()
}
