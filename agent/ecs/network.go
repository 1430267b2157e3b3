package ecs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"

	"berth.dev/berth/agent/config"
)

// Limits of one request (agent protocol, "Transport").
const (
	dialTimeout  = 30 * time.Second
	keepAlive    = 30 * time.Second
	tlsTimeout   = 10 * time.Second
	roundTrip    = 42 * time.Second
	idleTimeout  = 90 * time.Second
	idlePerHost  = 10 // as many tasks as report at once
	neverProxied = "169.254.169.254,169.254.170.2"
)

// TLS is how the cluster's certificates are checked.
func TLS(c *config.Config) (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.Berth.CAFile == "" {
		return out, nil
	}
	pem, err := os.ReadFile(c.Berth.CAFile)
	if err != nil {
		return nil, fmt.Errorf("BERTH_CA_FILE: %w", err)
	}
	out.RootCAs, err = x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("certificates of the system: %w", err)
	}
	if !out.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("BERTH_CA_FILE: %s holds no certificate in PEM form", c.Berth.CAFile)
	}
	return out, nil
}

// Proxy is which proxy a request to the cluster takes.
func Proxy(c *config.Config) func(*http.Request) (*url.URL, error) {
	p := httpproxy.Config{HTTPProxy: c.Cluster.HTTPProxy, HTTPSProxy: c.Cluster.HTTPSProxy, NoProxy: c.Cluster.NoProxy}
	if p.NoProxy == "" {
		p.NoProxy = neverProxied
	}
	find := p.ProxyFunc()
	return func(r *http.Request) (*url.URL, error) {
		u := *r.URL
		// A websocket takes the proxy of the request that it is made from.
		switch u.Scheme {
		case "ws":
			u.Scheme = "http"
		case "wss":
			u.Scheme = "https"
		}
		return find(&u)
	}
}

// doer sends requests with the agent's User-Agent, which is not part of the signature.
type doer struct {
	client *http.Client
	agent  string
}

func newDoer(c *config.Config, agent string) (*doer, error) {
	tlsConfig, err := TLS(c)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlive}
	return &doer{agent: agent, client: &http.Client{
		Timeout: roundTrip,
		Transport: &http.Transport{
			Proxy: Proxy(c), DialContext: dialer.DialContext, TLSClientConfig: tlsConfig, TLSHandshakeTimeout: tlsTimeout,
			MaxIdleConnsPerHost: idlePerHost, IdleConnTimeout: idleTimeout, ForceAttemptHTTP2: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Do sends one request. It follows no redirection: whoever answers so is not the cluster.
func (d *doer) Do(r *http.Request) (*http.Response, error) {
	r.Header.Set("User-Agent", d.agent)
	resp, err := d.client.Do(r)
	if err != nil || resp.StatusCode < 300 || resp.StatusCode > 399 {
		return resp, err
	}
	to := "nowhere"
	if u, err := resp.Location(); err == nil {
		to = u.Host
	}
	err = fmt.Errorf("%s redirects to %s, which is not followed: is ECS_BACKEND_HOST the cluster's address?", r.URL.Host, to)
	return nil, errors.Join(err, resp.Body.Close())
}

// baseEndpoint is ECS_BACKEND_HOST with a scheme; empty means the region's endpoint.
func baseEndpoint(host string) (string, error) {
	if host == "" {
		return "", nil
	}
	if !strings.Contains(host, "://") {
		host = "https://" + host
	}
	u, err := url.Parse(host)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", fmt.Errorf("ECS_BACKEND_HOST: want host, host:port, or either after http:// or https://")
	}
	return strings.TrimSuffix(host, "/"), nil
}

// UserAgent is what the agent calls itself (agent protocol, "Transport").
func UserAgent(version, osFamily string) string {
	system := "linux"
	if osFamily != "" {
		system += "; " + osFamily
	}
	return fmt.Sprintf("%s (%s) (+https://berth.dev/)", version, system)
}
