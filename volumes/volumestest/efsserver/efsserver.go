// Package efsserver is the side of EFS that tests need: it reads what clients show of
// themselves.
package efsserver

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // what the key identifier of a certificate is
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"time"
)

// Client is what a client's certificate says to EFS.
type Client struct {
	FileSystem, AccessPoint string
	AccessKeyID             string // empty without IAM authorization
}

// ReadClient is EFS's side of a client's certificate: it reads the extensions and
// checks the signature, whose secret is looked up by access key and session token.
func ReadClient(cert *x509.Certificate, region string, secret func(id, token string) string) (Client, error) {
	var c Client
	var auth *struct {
		AccessKeyID  string `asn1:"utf8"`
		Signature    []byte
		Date         time.Time `asn1:"utc"`
		SessionToken string    `asn1:"utf8,explicit,optional,tag:0"`
	}
	for _, e := range cert.Extensions {
		var err error
		switch e.Id.String() {
		case "1.3.6.1.4.1.4843.7.1":
			_, err = asn1.UnmarshalWithParams(e.Value, &c.AccessPoint, "utf8")
		case "1.3.6.1.4.1.4843.7.2":
			auth = new(struct {
				AccessKeyID  string `asn1:"utf8"`
				Signature    []byte
				Date         time.Time `asn1:"utc"`
				SessionToken string    `asn1:"utf8,explicit,optional,tag:0"`
			})
			_, err = asn1.Unmarshal(e.Value, auth)
		case "1.3.6.1.4.1.4843.7.3":
			_, err = asn1.UnmarshalWithParams(e.Value, &c.FileSystem, "utf8")
		}
		if err != nil {
			return c, fmt.Errorf("extension %s: %w", e.Id, err)
		}
	}
	if now := time.Now(); now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return c, errors.New("the certificate is not valid now")
	}
	if auth == nil {
		return c, nil
	}
	c.AccessKeyID = auth.AccessKeyID
	var info struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(cert.RawSubjectPublicKeyInfo, &info); err != nil {
		return c, err
	}
	day, at := auth.Date.UTC().Format("20060102"), auth.Date.UTC().Format("20060102T150405Z")
	scope := day + "/" + region + "/elasticfilesystem/aws4_request"
	query := fmt.Sprintf("Action=Connect&PublicKeyHash=%x&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=%s&X-Amz-Date=%s&X-Amz-Expires=86400",
		sha1.Sum(info.Key.Bytes), url.QueryEscape(auth.AccessKeyID+"/"+scope), at) //nolint:gosec // as above
	if auth.SessionToken != "" {
		query += "&X-Amz-Security-Token=" + url.QueryEscape(auth.SessionToken)
	}
	query += "&X-Amz-SignedHeaders=host"
	request := "GET\n/\n" + query + "\nhost:" + c.FileSystem + "\nhost\n" + fmt.Sprintf("%x", sha256.Sum256(nil))
	text := "AWS4-HMAC-SHA256\n" + at + "\n" + scope + "\n" + fmt.Sprintf("%x", sha256.Sum256([]byte(request)))
	mac := []byte("AWS4" + secret(auth.AccessKeyID, auth.SessionToken))
	for _, part := range []string{day, region, "elasticfilesystem", "aws4_request", text} {
		h := hmac.New(sha256.New, mac)
		h.Write([]byte(part)) //nolint:errcheck // a hash never fails
		mac = h.Sum(nil)
	}
	if fmt.Sprintf("%x", mac) != string(auth.Signature) {
		return c, errors.New("the signature is not that of the role")
	}
	return c, nil
}
