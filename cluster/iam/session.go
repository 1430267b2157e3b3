package iam

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// temporaryPrefix is what the ids of temporary keys begin with.
const temporaryPrefix = "ASIA"

// maxToken bounds a session token, in bytes.
const maxToken = 4096

// Session is who has a set of temporary keys. It is all in the token, under a signature
// with the cluster's root key: nothing is stored, and every node of the cluster accepts it.
type Session struct {
	Role    string    `json:"r"`
	RoleID  string    `json:"i"` // a role that was deleted and made again is another
	Name    string    `json:"n"`
	Expires time.Time `json:"e"`
}

// Keys are temporary keys.
type Keys struct {
	AccessKeyID     string
	SecretAccessKey string
	SessionToken    string
	Expires         time.Time
}

// String shows the id alone.
func (k Keys) String() string { return k.AccessKeyID + " (secret not shown)" }

// GoString keeps the secrets out of %#v too.
func (k Keys) GoString() string { return k.String() }

// Errors of Open.
var (
	errToken   = errors.New("the token is not one of this cluster's")
	errExpired = errors.New("the token has expired")
)

// issuer makes temporary keys and takes them apart.
type issuer struct{ root []byte }

func (k issuer) mac(what string, parts ...string) []byte {
	h := hmac.New(sha256.New, k.root)
	for _, p := range append([]string{"berth iam", what}, parts...) {
		fmt.Fprintf(h, "%d %s", len(p), p)
	}
	return h.Sum(nil)
}

// issue makes keys for a session.
func (k issuer) issue(s Session) (Keys, error) {
	var b [10]byte
	rand.Read(b[:]) //nolint:errcheck // never fails (crypto/rand)
	id := temporaryPrefix + base32.StdEncoding.EncodeToString(b[:])
	s.Expires = s.Expires.UTC().Truncate(time.Second)
	body, err := json.Marshal(s)
	if err != nil {
		return Keys{}, fmt.Errorf("make session token: %w", err)
	}
	token := base64.RawURLEncoding.EncodeToString(append(k.mac("token", id, string(body)), body...))
	return Keys{AccessKeyID: id, SecretAccessKey: k.secret(id, token), SessionToken: token, Expires: s.Expires}, nil
}

func (k issuer) secret(id, token string) string {
	return base64.RawStdEncoding.EncodeToString(k.mac("secret", id, token))[:40]
}

// open says whose a token is, which must belong to the key.
func (k issuer) open(id, token string, now time.Time) (Session, error) {
	var s Session
	if len(token) > maxToken || !strings.HasPrefix(id, temporaryPrefix) {
		return s, errToken
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(raw) <= sha256.Size {
		return s, errToken
	}
	sum, body := raw[:sha256.Size], raw[sha256.Size:]
	if !hmac.Equal(sum, k.mac("token", id, string(body))) {
		return s, errToken
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return s, errToken
	}
	if !now.Before(s.Expires) {
		return s, errExpired
	}
	return s, nil
}

// credentialsID names the credentials of one role of one task. It is the same each time
// they are sent, because the containers are started with it.
func (k issuer) credentialsID(taskARN, kind string) string {
	sum := k.mac("credentials id", taskARN, kind)
	return fmt.Sprintf("%s-%s-%s-%s-%s", hex.EncodeToString(sum[:4]), hex.EncodeToString(sum[4:6]),
		hex.EncodeToString(sum[6:8]), hex.EncodeToString(sum[8:10]), hex.EncodeToString(sum[10:16]))
}
