package api

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// page is one page of a list that is walked in key order.
type page struct {
	// after is the last key of the page before; empty on the first page.
	after  string
	limit  int
	filter [sha256.Size]byte
	taken  int
	last   string
	more   bool
}

// filterBytes is how much of the filter digest a token carries.
const filterBytes = 12

// newPage starts the page that a request asks for. The token is bound to the
// operation and to its filters: one from another list is refused.
func newPage(token *string, maxResults *int32, most, usual int, operation string, filters ...any) (*page, error) {
	p := &page{limit: usual}
	if maxResults != nil {
		if *maxResults < 1 || int(*maxResults) > most {
			return nil, invalidParameter("maxResults must be between 1 and %d, inclusive", most)
		}
		p.limit = int(*maxResults)
	}
	text, err := json.Marshal(append([]any{operation}, filters...))
	if err != nil {
		return nil, err
	}
	p.filter = sha256.Sum256(text)
	if aws.ToString(token) == "" {
		return p, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(*token)
	if err != nil || len(b) <= filterBytes || string(b[:filterBytes]) != string(p.filter[:filterBytes]) {
		return nil, invalidParameter("Invalid token")
	}
	p.after = string(b[filterBytes:])
	return p, nil
}

// take counts an item; false means that it is not on this page any more and
// the walk may stop.
func (p *page) take(key string) bool {
	if p.taken == p.limit {
		p.more = true
		return false
	}
	p.taken++
	p.last = key
	return true
}

// next is the nextToken of the answer: nil on the last page.
func (p *page) next() *string {
	if !p.more {
		return nil
	}
	b := append(append([]byte(nil), p.filter[:filterBytes]...), p.last...)
	return aws.String(base64.RawURLEncoding.EncodeToString(b))
}
