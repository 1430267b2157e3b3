package volumes

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// proxy encrypts what goes to one server: it listens on loopback and speaks TLS to the
// other side. It is a process of its own, which outlives the agent as the mount behind it
// does; its file, beside the mount, says what it is and where, so that one that has ended
// is started again on the port that the mount knows.
type proxy struct {
	Listen int    `json:"listen"` // port on 127.0.0.1; 0 until it is known
	Server string `json:"server"`
	Name   string `json:"name"` // that the server's certificate must be for
	CAFile string `json:"caFile,omitempty"`
	Client string `json:"client,omitempty"` // file of the certificate to show, and its key
	Netns  string `json:"netns,omitempty"`
	PID    int    `json:"pid,omitempty"`
}

const (
	proxyStart = 20 * time.Second
	proxyCheck = 2 * time.Second
)

// proxyFile is where the proxy of a shared mount is written down.
func proxyFile(point string) string { return filepath.Join(filepath.Dir(point), "proxy.json") }

func readProxy(file string) (proxy, error) {
	var p proxy
	b, err := os.ReadFile(file)
	if err != nil {
		return p, err
	}
	return p, json.Unmarshal(b, &p)
}

func (p *proxy) write(file string) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// ensure starts the proxy, or finds that it runs, and returns its port.
func (p *proxy) ensure(ctx context.Context, program, file string) (int, error) {
	if have, err := readProxy(file); err == nil && have.alive(file) {
		return have.Listen, nil
	} else if err == nil && have.Listen != 0 {
		p.Listen = have.Listen // a mount may know it
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return 0, err
	}
	if err := p.write(file); err != nil {
		return 0, err
	}
	return p.start(ctx, program, file)
}

// start starts the process and waits for the port that it prints.
func (p *proxy) start(ctx context.Context, program, file string) (int, error) {
	args := []string{"proxy", file}
	if p.Netns != "" {
		args = append([]string{"in", p.Netns}, args...)
	}
	cmd := exec.Command(program, args...) // not with ctx: it outlives this
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("%s: %w", program, err)
	}
	said := make(chan string, 1)
	go func() {
		line := make([]byte, 256)
		n, _ := out.Read(line) // nothing read is no port
		said <- strings.TrimSpace(string(line[:n]))
		cmd.Wait() //nolint:errcheck // the supervisor sees that it is gone
	}()
	select {
	case line := <-said:
		port, err := strconv.Atoi(line)
		if err != nil {
			return 0, failf(ErrUnavailable, "the TLS proxy to %s did not start: %s", p.Server, line)
		}
		p.Listen, p.PID = port, cmd.Process.Pid
		return port, p.write(file)
	case <-ctx.Done():
	case <-time.After(proxyStart):
	}
	return 0, errors.Join(failf(ErrUnavailable, "the TLS proxy to %s did not start", p.Server), cmd.Process.Kill())
}

// alive reports whether the process runs: one with its id that was started with its file.
func (p *proxy) alive(file string) bool {
	if p.PID <= 0 {
		return false
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
	return err == nil && strings.HasSuffix(string(line), "proxy\x00"+file+"\x00")
}

// endProxy ends the proxy of a mount, if it has one.
func endProxy(file string) error {
	p, err := readProxy(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && p.alive(file) {
		err = syscall.Kill(p.PID, syscall.SIGKILL)
	}
	return errors.Join(err, ignoreMissing(os.Remove(file)))
}

// Supervise starts the proxies of all mounts again that have ended, until ctx ends. failed
// is called with what goes wrong.
func (d Dirs) Supervise(ctx context.Context, program string, failed func(error)) {
	tick := time.NewTicker(proxyCheck)
	defer tick.Stop()
	for {
		files, err := filepath.Glob(filepath.Join(d.Run, "shared", "*", "proxy.json"))
		if err != nil {
			failed(err)
		}
		for _, file := range files {
			p, err := readProxy(file)
			if err != nil || p.Listen == 0 || p.alive(file) {
				continue // gone since, or being started
			}
			if _, err := p.start(ctx, program, file); err != nil {
				failed(err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Proxy is what the program berth-volume does with "proxy FILE": it prints its port and
// serves until it is ended.
func Proxy(file string) error {
	p, err := readProxy(file)
	if err != nil {
		return err
	}
	c := &tls.Config{ServerName: p.Name, MinVersion: tls.VersionTLS12}
	if p.CAFile != "" {
		pem, err := os.ReadFile(p.CAFile)
		if err != nil {
			return err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s has no certificate", p.CAFile)
		}
	}
	if p.Client != "" {
		// Read for each connection: it is made anew from time to time.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(p.Client, p.Client)
			return &cert, err
		}
	}
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", p.Listen))
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return err
	}
	fmt.Println(port)
	if err := os.Stdout.Close(); err != nil {
		return err
	}
	for {
		local, err := l.Accept()
		if err != nil {
			return err
		}
		go p.carry(local, c)
	}
}

// proxyDial is how long a server may take to accept a connection. The NFS client tries
// again after it.
const proxyDial = 15 * time.Second

// carry joins a connection with one to the server.
func (p *proxy) carry(local net.Conn, c *tls.Config) {
	defer local.Close()
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: proxyDial, KeepAlive: 15 * time.Second}, Config: c}
	server, err := d.Dial("tcp", p.Server)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer server.Close()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{local, server}, {server, local}} {
		both.Go(func() {
			io.Copy(way[0], way[1]) //nolint:errcheck // either end of it ends both
			local.Close()           //nolint:errcheck // likewise
			server.Close()          //nolint:errcheck // likewise
		})
	}
	both.Wait()
}
