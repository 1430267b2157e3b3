package volumes

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/volumes/volumestest/efsserver"
)

func TestClientCertificateOfEFS(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	secret := func(id, token string) string { return "secret of " + id + token }
	for name, c := range map[string]struct {
		client client
		keys   *Keys
	}{
		"access point": {client{FileSystem: "fs-0123456789abcdef0", AccessPoint: "fsap-0123456789abcdef0", Region: "eu-west-1"}, nil},
		"role":         {client{FileSystem: "fs-0123456789abcdef0", Region: "eu-west-1", Task: "arn"}, &Keys{"AKID", "secret of AKIDtoken/+=", "token/+="}},
		"both":         {client{FileSystem: "fs-0123456789abcdef0", AccessPoint: "fsap-0123456789abcdef0", Region: "cn-north-1", Task: "arn"}, &Keys{"AKID", "secret of AKID", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			der, err := c.client.certificate(key, c.keys, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			got, err := efsserver.ReadClient(cert, c.client.Region, secret)
			want := efsserver.Client{FileSystem: c.client.FileSystem, AccessPoint: c.client.AccessPoint}
			if c.keys != nil {
				want.AccessKeyID = c.keys.AccessKeyID
			}
			if err != nil || got != want {
				t.Errorf("%+v, %v; want %+v", got, err, want)
			}
			if err := cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature); err != nil {
				t.Error(err)
			}
			if c.keys != nil {
				if _, err := efsserver.ReadClient(cert, "us-east-1", secret); err == nil {
					t.Error("a signature for another region was taken")
				}
			}
		})
	}
	if s := fmt.Sprintf("%v %+v %#v", Keys{"a", "b", "c"}, Keys{"a", "b", "c"}, Keys{"a", "b", "c"}); s != "keys keys keys" {
		t.Errorf("keys print as %q", s)
	}
}

// A certificate is made anew with the newest credentials and the same key, and one that
// cannot be is left as it is.
func TestClientCertificateIsRenewed(t *testing.T) {
	keys, fail := Keys{AccessKeyID: "first"}, error(nil)
	run := t.TempDir()
	e := NewEFS(EFSConfig{Dirs: Dirs{Run: run}, Keys: func(string) (Keys, error) { return keys, fail }})
	point := filepath.Join(run, "shared", "k", "mount")
	if err := e.identify(&client{FileSystem: "fs-01234567", Region: "r", Task: "arn"}, point); err != nil {
		t.Fatal(err)
	}
	read := func() (string, string) {
		pair, err := tls.LoadX509KeyPair(certificateFile(point), certificateFile(point))
		if err != nil {
			t.Fatal(err)
		}
		c, err := efsserver.ReadClient(pair.Leaf, "r", func(string, string) string { return keys.SecretAccessKey })
		if err != nil {
			t.Fatal(err)
		}
		return c.AccessKeyID, string(pair.Leaf.RawSubjectPublicKeyInfo)
	}
	id, public := read()
	if st, err := os.Stat(certificateFile(point)); err != nil || st.Mode().Perm() != 0o600 || id != "first" {
		t.Errorf("key %s, %v, %v", id, st, err)
	}
	keys.AccessKeyID = "second"
	if err := e.renew(time.Hour); err != nil {
		t.Error(err)
	}
	if id, _ := read(); id != "first" {
		t.Error("a certificate that is new was made again")
	}
	if err := e.renew(0); err != nil {
		t.Error(err)
	}
	if id, same := read(); id != "second" || same != public {
		t.Errorf("renewed with key %s, same key pair: %t", id, same == public)
	}
	fail = errors.New("none yet")
	if err := e.renew(0); err == nil || !strings.Contains(err.Error(), "none yet") {
		t.Errorf("without credentials: %v", err)
	}
	if id, _ := read(); id != "second" {
		t.Error("a certificate was lost")
	}
}
