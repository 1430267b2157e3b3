package volumes

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // what the key identifier of a certificate is (RFC 5280, 4.2.1.2)
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Keys sign in the name of a role. They print as nothing.
type Keys struct{ AccessKeyID, SecretAccessKey, SessionToken string }

// String hides the keys.
func (Keys) String() string { return "keys" }

// GoString hides the keys.
func (Keys) GoString() string { return "keys" }

// client is who a mount is for EFS: it is shown to the server by a certificate that the
// client signs itself, with extensions that name the file system, the access point and,
// for IAM authorization, a signature of the role (the protocol of amazon-efs-utils). It
// lies beside the mount, from where the proxy reads what is made of it for each
// connection.
type client struct {
	FileSystem  string `json:"fileSystem"`
	AccessPoint string `json:"accessPoint,omitempty"`
	Region      string `json:"region"`
	// Task is the ARN of the task whose role signs; empty without IAM.
	Task string `json:"task,omitempty"`
}

func clientFile(point string) string      { return filepath.Join(filepath.Dir(point), "client.json") }
func certificateFile(point string) string { return filepath.Join(filepath.Dir(point), "client.pem") }

// Times of a certificate, as amazon-efs-utils has them, and when it is made anew.
const (
	clientBefore = 15 * time.Minute
	clientAfter  = 3 * time.Hour
	clientRenew  = time.Hour
	clientCheck  = time.Minute
	clientBits   = 3072
)

// Object identifiers of the extensions.
var (
	oidAccessPoint = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 4843, 7, 1}
	oidClientAuth  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 4843, 7, 2}
	oidFileSystem  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 4843, 7, 3}
)

// clientAuth is the extension with the signature, which is the text of the hexadecimal
// number.
type clientAuth struct {
	AccessKeyID  string `asn1:"utf8"`
	Signature    []byte
	Date         time.Time `asn1:"utc"`
	SessionToken string    `asn1:"utf8,explicit,optional,tag:0"`
}

// certificate makes a certificate for a key. keys may be nil.
func (c *client) certificate(key *rsa.PrivateKey, keys *Keys, now time.Time) ([]byte, error) {
	public := x509.MarshalPKCS1PublicKey(&key.PublicKey)
	id := sha1.Sum(public) //nolint:gosec // as above
	name, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	now = now.UTC().Truncate(time.Second)
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name[:min(len(name), 64)]}, SubjectKeyId: id[:],
		NotBefore: now.Add(-clientBefore), NotAfter: now.Add(clientAfter), SignatureAlgorithm: x509.SHA256WithRSA,
	}
	add := func(oid asn1.ObjectIdentifier, value any, params string) error {
		der, err := asn1.MarshalWithParams(value, params)
		t.ExtraExtensions = append(t.ExtraExtensions, pkix.Extension{Id: oid, Value: der})
		return err
	}
	if c.AccessPoint != "" {
		if err := add(oidAccessPoint, c.AccessPoint, "utf8"); err != nil {
			return nil, err
		}
	}
	if keys != nil {
		auth := clientAuth{
			AccessKeyID: keys.AccessKeyID, Date: now, SessionToken: keys.SessionToken,
			Signature: []byte(c.sign(hex.EncodeToString(id[:]), keys, now)),
		}
		if err := add(oidClientAuth, auth, ""); err != nil {
			return nil, err
		}
	}
	if err := add(oidFileSystem, c.FileSystem, "utf8"); err != nil {
		return nil, err
	}
	return x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
}

// sign signs a request to connect, which names the key of the certificate, with Signature
// Version 4. The request differs from what HTTP would have in that no empty line follows
// its only header.
func (c *client) sign(publicKeyHash string, keys *Keys, now time.Time) string {
	const algorithm, service = "AWS4-HMAC-SHA256", "elasticfilesystem"
	day, at := now.Format("20060102"), now.Format("20060102T150405Z")
	scope := strings.Join([]string{day, c.Region, service, "aws4_request"}, "/")
	q := url.Values{
		"Action": {"Connect"}, "PublicKeyHash": {publicKeyHash}, "X-Amz-Algorithm": {algorithm}, "X-Amz-Date": {at},
		"X-Amz-Credential": {keys.AccessKeyID + "/" + scope}, "X-Amz-Expires": {"86400"}, "X-Amz-SignedHeaders": {"host"},
	}
	if keys.SessionToken != "" {
		q.Set("X-Amz-Security-Token", keys.SessionToken)
	}
	empty := sha256.Sum256(nil)
	request := sha256.Sum256([]byte(strings.Join([]string{
		"GET", "/", q.Encode(), "host:" + c.FileSystem, "host", hex.EncodeToString(empty[:]),
	}, "\n")))
	key := []byte("AWS4" + keys.SecretAccessKey)
	for _, part := range []string{day, c.Region, service, "aws4_request"} {
		key = keyed(key, part)
	}
	return hex.EncodeToString(keyed(key, strings.Join([]string{algorithm, at, scope, hex.EncodeToString(request[:])}, "\n")))
}

func keyed(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text)) //nolint:errcheck // a hash never fails
	return h.Sum(nil)
}

// identify writes down who a mount is, and makes its certificate.
func (e *EFS) identify(c *client, point string) error {
	if err := os.MkdirAll(filepath.Dir(point), 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := replace(clientFile(point), b); err != nil {
		return err
	}
	return e.certify(c, point)
}

// certify makes the certificate of a mount.
func (e *EFS) certify(c *client, point string) error {
	var keys *Keys
	if c.Task != "" {
		if e.c.Keys == nil {
			return failf(ErrInvalid, "efsVolumeConfiguration.authorizationConfig.iam: this agent has no credentials of roles")
		}
		k, err := e.c.Keys(c.Task)
		if err != nil {
			return fmt.Errorf("efsVolumeConfiguration.authorizationConfig.iam: %w", err)
		}
		keys = &k
	}
	key, err := e.clientKey()
	if err != nil {
		return err
	}
	der, err := c.certificate(key, keys, time.Now())
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	return replace(certificateFile(point), text)
}

// clientKey is the key of all certificates of this host, as amazon-efs-utils has one: it
// takes a processor's second to make.
func (e *EFS) clientKey() (*rsa.PrivateKey, error) {
	e.keyMu.Lock()
	defer e.keyMu.Unlock()
	name := filepath.Join(e.c.Dirs.Run, "efs.key")
	if b, err := os.ReadFile(name); err == nil {
		if block, _ := pem.Decode(b); block != nil {
			if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
				return key, nil
			}
		}
	}
	key, err := rsa.GenerateKey(rand.Reader, clientBits)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(e.c.Dirs.Run, 0o700); err != nil {
		return nil, err
	}
	return key, replace(name, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
}

// replace writes a file that only root reads.
func replace(name string, text []byte) error {
	if err := os.WriteFile(name+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// Renew makes the certificates of mounts anew before they expire, until ctx ends: a server
// asks for one with each connection. failed is called with what goes wrong.
func (e *EFS) Renew(ctx context.Context, failed func(error)) {
	tick := time.NewTicker(clientCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := e.renew(clientRenew); err != nil {
				failed(err)
			}
		}
	}
}

// renew makes those anew that are older than this.
func (e *EFS) renew(age time.Duration) error {
	files, err := filepath.Glob(filepath.Join(e.c.Dirs.Run, "shared", "*", "client.json"))
	for _, file := range files {
		point := filepath.Join(filepath.Dir(file), "mount")
		st, statErr := os.Stat(certificateFile(point))
		if statErr == nil && time.Since(st.ModTime()) < age {
			continue
		}
		var c client
		b, readErr := os.ReadFile(file)
		if readErr == nil {
			readErr = json.Unmarshal(b, &c)
		}
		if readErr == nil {
			readErr = e.certify(&c, point)
		}
		if !errors.Is(readErr, os.ErrNotExist) { // unmounted meanwhile
			err = errors.Join(err, readErr)
		}
	}
	return err
}
