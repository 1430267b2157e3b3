package sigv4

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// signatureParameter is the one query parameter that a signature in the query cannot
// cover.
const signatureParameter = "X-Amz-Signature"

// maxExpires is how long a signature in a query may be good for, as at AWS.
const maxExpires = 7 * 24 * time.Hour

// Presigned tells whether a request carries its signature in the query of its URL.
func Presigned(r *http.Request) bool {
	return r.Header.Get("Authorization") == "" && strings.Contains(r.URL.RawQuery, signatureParameter+"=")
}

// parsePresigned reads the signature of a URL.
func parsePresigned(r *http.Request) (credentials, error) {
	var c credentials
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return c, refused("IncompleteSignatureException", "The query of the URL cannot be read.")
	}
	for _, name := range []string{"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", signatureParameter} {
		if v := q[name]; len(v) != 1 || v[0] == "" {
			return c, refused("IncompleteSignatureException", "AWS query-string parameters must include '%s' once.", name)
		}
	}
	if q.Get("X-Amz-Algorithm") != algorithm {
		return c, refused("IncompleteSignatureException", "X-Amz-Algorithm must be %s", algorithm)
	}
	seconds, err := strconv.Atoi(q.Get("X-Amz-Expires"))
	if err != nil || seconds < 1 || seconds > int(maxExpires/time.Second) {
		return c, refused("IncompleteSignatureException", "X-Amz-Expires must be between 1 and %d seconds.", int(maxExpires/time.Second))
	}
	c.date8601, c.expires = q.Get("X-Amz-Date"), time.Duration(seconds)*time.Second
	c.signature = q.Get(signatureParameter)
	return c, c.fill(r, q.Get("X-Amz-Credential"), q.Get("X-Amz-SignedHeaders"))
}

// fill takes the scope and the signed headers apart, and checks that the headers which
// decide the meaning of a request are among them.
func (c *credentials) fill(r *http.Request, credential, headers string) error {
	f := strings.Split(credential, "/")
	if len(f) != 5 || f[4] != terminator {
		return refused("IncompleteSignatureException", "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/%s", terminator)
	}
	c.scope = scope{f[0], f[1], f[2], f[3]}
	c.headers = strings.Split(headers, ";")
	if len(c.headers) > maxSignedHeaders {
		return refused("IncompleteSignatureException", "more than %d signed headers", maxSignedHeaders)
	}
	for _, must := range []string{"host", "x-amz-target"} {
		if (must == "host" || r.Header.Get(must) != "") && !slices.Contains(c.headers, must) {
			return refused("InvalidSignatureException", "'%s' must be a 'SignedHeader' in the AWS Authorization.", must)
		}
	}
	return nil
}
