// Package join has the messages by which a host becomes a member of a cluster of Berth's:
// the token that an operator hands over, and what is exchanged for it.
package join

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Paths of a cluster, below its endpoint. All but Redeem are signed requests.
const (
	TokensPath  = "/berth/v1/join-tokens"          // POST makes one, GET lists; DELETE of a path below it revokes
	RedeemPath  = "/berth/v1/join"                 // POST, a Request
	RotatePath  = "/berth/v1/instance-keys/rotate" // POST, signed with the key that is to be replaced
	ConfirmPath = "/berth/v1/instance-keys/confirm"
)

const (
	// prefix tells a token from other secrets, and its version.
	prefix = "berth1."
	// MaxToken bounds a token, and MaxMessage the messages, in bytes.
	MaxToken   = 4 << 10
	MaxMessage = 16 << 10
)

// A Token is all that a host needs to become a member. It prints without its secret.
type Token struct {
	// Endpoint is the URL of the cluster's API.
	Endpoint string `json:"e"`
	// Fingerprint is the SHA-256 of the certificate of the cluster's authority, in
	// hexadecimal; empty for a cluster that serves plain HTTP on its own host.
	Fingerprint string `json:"f,omitempty"`
	// ID names the token in lists; Secret is exchanged for a key.
	ID     string `json:"i"`
	Secret string `json:"s"`
}

// Encode returns the token in the form that people hand over.
func (t Token) Encode() string {
	b, err := json.Marshal(t)
	if err != nil {
		panic("wire/join: strings cannot be encoded: " + err.Error())
	}
	return prefix + base64.RawURLEncoding.EncodeToString(b)
}

func (t Token) String() string { return "token " + t.ID + " of " + t.Endpoint }

// GoString keeps the secret out of %#v too.
func (t Token) GoString() string { return "join.Token{" + t.String() + "}" }

// Parse reads a token. Its errors hold nothing of it.
func Parse(text string) (Token, error) {
	text = strings.TrimSpace(text)
	body, ok := strings.CutPrefix(text, prefix)
	if !ok || len(text) > MaxToken {
		return Token{}, fmt.Errorf("a join token begins with %s and has %d characters at most; make one with: berth token create", prefix, MaxToken)
	}
	damaged := errors.New("the join token is damaged; copy it again, as a whole")
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil {
		return Token{}, damaged
	}
	var t Token
	if err := json.Unmarshal(b, &t); err != nil || t.ID == "" || t.Secret == "" {
		return Token{}, damaged
	}
	return t, t.Check()
}

// Check reports what is wrong with where the token leads.
func (t Token) Check() error {
	u, err := url.Parse(t.Endpoint)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return errors.New("the join token's endpoint is no URL such as https://cluster.example.com:7700")
	}
	sum, err := hex.DecodeString(t.Fingerprint)
	switch {
	case u.Scheme == "http" && t.Fingerprint == "":
		return nil
	case u.Scheme == "https" && err == nil && len(sum) == 32:
		return nil
	}
	return errors.New("the join token's endpoint is https with the fingerprint of an authority, 64 hexadecimal digits, or http without one")
}

// A TokenRequest asks for a token.
type TokenRequest struct {
	// Cluster is the name of the ECS cluster that hosts join; empty means "default".
	Cluster string `json:"cluster,omitempty"`
	// Seconds is how long the token lives; 0 means an hour.
	Seconds int64 `json:"seconds,omitempty"`
	// Uses is how many hosts may join with it; 0 means one.
	Uses int `json:"uses,omitempty"`
}

// A TokenInfo is a token without its secret.
type TokenInfo struct {
	ID        string    `json:"id"`
	Cluster   string    `json:"cluster"`
	CreatedAt time.Time `json:"createdAt"`
	ExpiresAt time.Time `json:"expiresAt"`
	// Left is how many hosts may still join with it.
	Left int `json:"left"`
	// Hosts are those that have joined with it, as they called themselves.
	Hosts []string `json:"hosts,omitempty"`
}

// A TokenAnswer has a new token; it is the only message with its secret.
type TokenAnswer struct {
	TokenInfo
	Token string `json:"token"`
}

// A Request exchanges a token's secret for a key.
type Request struct {
	ID     string `json:"id"`
	Secret string `json:"secret"`
	// Host is what the host calls itself, for people who list tokens.
	Host string `json:"host,omitempty"`
}

// An Answer makes a host a member.
type Answer struct {
	AccessKeyID     string `json:"accessKeyId"`
	SecretAccessKey string `json:"secretAccessKey"`
	Region          string `json:"region"`
	Cluster         string `json:"cluster"`
}

func (a Answer) String() string { return "key " + a.AccessKeyID + " (secret not shown)" }

// GoString keeps the secret out of %#v too.
func (a Answer) GoString() string { return "join.Answer{" + a.String() + "}" }
