// Package join makes this host a member of a cluster of Berth's: it exchanges a token for
// a key, writes what the agent reads, and renews the key from time to time.
package join

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"berth.dev/berth/wire/join"
)

// exchangeTimeout is for one exchange of messages, with all of its tries of addresses.
const exchangeTimeout = 30 * time.Second

// Member is what a host needs as a member of a cluster.
type Member struct {
	join.Answer
	Endpoint string
	// CA is the certificate, in PEM form, that the cluster's is checked against; empty for
	// a cluster without TLS.
	CA []byte
}

// Redeem exchanges a token for membership. host is what the host calls itself. The
// cluster's certificate has to come from the authority that the token names.
func Redeem(ctx context.Context, t join.Token, host string, proxy func(*http.Request) (*url.URL, error)) (Member, error) {
	m := Member{Endpoint: strings.TrimSuffix(t.Endpoint, "/")}
	u, err := url.Parse(m.Endpoint)
	if err != nil {
		return m, err
	}
	pin := &pinned{host: u.Hostname(), fingerprint: strings.ToLower(t.Fingerprint)}
	transport := &http.Transport{Proxy: proxy, DisableKeepAlives: true, TLSClientConfig: pin.config()}
	client := &http.Client{
		Transport: transport, Timeout: exchangeTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	body, err := json.Marshal(join.Request{ID: t.ID, Secret: t.Secret, Host: host})
	if err != nil {
		return m, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.Endpoint+join.RedeemPath, bytes.NewReader(body))
	if err != nil {
		return m, err
	}
	req.Header.Set("Content-Type", "application/json")
	if err := exchange(client, req, &m.Answer); err != nil {
		return m, fmt.Errorf("join the cluster at %s: %w", m.Endpoint, err)
	}
	if m.AccessKeyID == "" || m.SecretAccessKey == "" || m.Region == "" || m.Cluster == "" {
		return m, errors.New("the cluster's answer to a token lacks a key, a region or a cluster; are cluster and agent of the same version?")
	}
	if pin.ca != nil {
		m.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pin.ca.Raw})
	}
	return m, nil
}

// exchange sends a request and decodes the answer.
func exchange(client *http.Client, req *http.Request, into any) error {
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, join.MaxMessage))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		var refused struct{ Message string }
		if json.Unmarshal(answer, &refused) == nil && refused.Message != "" {
			return errors.New(strings.TrimSuffix(refused.Message, "."))
		}
		return fmt.Errorf("it answered %s; is it a cluster of Berth's?", resp.Status)
	}
	return json.Unmarshal(answer, into)
}

// pinned checks a server by the fingerprint of its authority, whose certificate the server
// sends beside its own.
type pinned struct {
	host, fingerprint string
	ca                *x509.Certificate // once a connection was verified
}

func (p *pinned) config() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // verify does it, with the one authority that is trusted
		VerifyConnection:   p.verify,
	}
}

func (p *pinned) verify(s tls.ConnectionState) error {
	for _, c := range s.PeerCertificates {
		sum := sha256.Sum256(c.Raw)
		if hex.EncodeToString(sum[:]) != p.fingerprint {
			continue
		}
		roots := x509.NewCertPool()
		roots.AddCert(c)
		if _, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: p.host}); err != nil {
			return fmt.Errorf("the cluster's certificate: %w", err)
		}
		p.ca = c
		return nil
	}
	return errors.New("the cluster's certificate is not from the authority that the token names: the token is another cluster's, or somebody is in between")
}
