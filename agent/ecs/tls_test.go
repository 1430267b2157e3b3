package ecs

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// authority signs certificates, as an operator's own does.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // BERTH_CA_FILE
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key, file: filepath.Join(t.TempDir(), "ca.pem")}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "an authority"}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// certificate is for a name or an address, and is valid until a time.
func (a *authority) certificate(name string, until time.Time) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: until, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if ip := net.ParseIP(name); ip != nil {
		c.IPAddresses = []net.IP{ip}
	} else {
		c.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestManInTheMiddle has somebody between agent and cluster answer in the cluster's place
// (reliability list, S8 and N10). The session of the agent has the same rules (package
// agent/acs, TestTLS and TestRedirectIsRefused).
func TestManInTheMiddle(t *testing.T) {
	trusted, stranger := newAuthority(t), newAuthority(t)
	var served atomic.Int64
	cluster := func(answer http.Handler, c *tls.Config) string {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			served.Add(1)
			answer.ServeHTTP(w, r)
		}))
		s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
		if c == nil {
			s.Start()
		} else {
			s.TLS = c
			s.StartTLS()
		}
		t.Cleanup(s.Close)
		return strings.TrimPrefix(strings.TrimPrefix(s.URL, "https://"), "http://")
	}
	with := func(a *authority, name string, until time.Time) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{a.certificate(name, until)}}
	}
	day := time.Now().Add(24 * time.Hour)
	honest := &api{t: t, answer: func(_ int, c call) (int, string) { return echo(c) }}
	old := with(trusted, "127.0.0.1", day)
	old.MaxVersion = tls.VersionTLS11
	elsewhere := cluster(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the agent sent a request without TLS") }), nil)
	for name, tt := range map[string]struct {
		host, proxy string
		want        string // in what the agent says; "" is success
		reaches     bool   // the request is sent
	}{
		"the cluster itself":      {host: cluster(honest, with(trusted, "127.0.0.1", day)), reaches: true},
		"expired":                 {host: cluster(honest, with(trusted, "127.0.0.1", time.Now().Add(-time.Hour))), want: "certificate has expired or is not yet valid"},
		"another name":            {host: cluster(honest, with(trusted, "elsewhere.example", day)), want: "doesn't contain any IP SANs"},
		"another address":         {host: cluster(honest, with(trusted, "192.0.2.1", day)), want: "certificate is valid for 192.0.2.1, not 127.0.0.1"},
		"an unknown authority":    {host: cluster(honest, with(stranger, "127.0.0.1", day)), want: "certificate signed by unknown authority"},
		"TLS 1.1":                 {host: cluster(honest, old), want: "protocol version"},
		"no TLS":                  {host: elsewhere, want: "server gave HTTP response to HTTPS client"},
		"a redirection":           {host: cluster(http.RedirectHandler("http://"+elsewhere, http.StatusTemporaryRedirect), with(trusted, "127.0.0.1", day)), want: " redirects to " + elsewhere + ", which is not followed", reaches: true},
		"a proxy that strips TLS": {host: "cluster.example", proxy: "http://" + stripper(t, &served), want: "server gave HTTP response to HTTPS client"},
	} {
		t.Run(name, func(t *testing.T) {
			served.Store(0)
			env := []string{"ECS_BACKEND_HOST=" + tt.host, "BERTH_CA_FILE=" + trusted.file}
			if tt.proxy != "" {
				env = append(env, "HTTPS_PROXY="+tt.proxy)
			}
			c := settings(t, env...)
			var said strings.Builder
			cl, err := New(c, host, Credentials(c), "v", slog.New(slog.NewTextHandler(&said, nil)))
			if err != nil {
				t.Fatal(err)
			}
			cl.wait = func(context.Context, time.Duration) error { return errors.New("no more") }
			_, err = cl.Register(t.Context(), "")
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil {
				t.Fatal("the agent has registered")
			}
			if text := said.String() + err.Error(); !strings.Contains(text, tt.want) || strings.Contains(text, "SKCANARY") {
				t.Errorf("the agent says %q, which does not tell %q", text, tt.want)
			}
			if n := served.Load(); (n > 0) != tt.reaches {
				t.Errorf("%d requests were sent", n)
			}
		})
	}
}

// stripper is a proxy that answers in the place of whom it should connect to, without TLS.
func stripper(t *testing.T, served *atomic.Int64) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) //nolint:errcheck // nobody uses it
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 4096)
				if _, err := c.Read(buf); err != nil {
					return
				}
				io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n") //nolint:errcheck // the client may have left
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				if strings.HasPrefix(string(buf[:n]), "POST ") {
					served.Add(1)
				}
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") //nolint:errcheck // as above
			}()
		}
	}()
	return l.Addr().String()
}
