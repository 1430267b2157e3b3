package guest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth.dev/berth/volumes"
	"berth.dev/berth/volumes/volumestest"
)

// front is the side of EFS that clients of transit encryption see: it has a certificate,
// and passes everything on to the NFS server of this machine while it is open.
type front struct {
	port, ca string
	shown    chan *x509.Certificate // by clients; those that nobody takes are dropped
	peers    chan string            // addresses of clients, likewise

	mu   sync.Mutex
	gate chan struct{} // closed while it is open
}

func newFront(t *testing.T, name string, ask tls.ClientAuthType) *front {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	f := &front{ca: filepath.Join(t.TempDir(), "ca.pem"), shown: make(chan *x509.Certificate, 16), peers: make(chan string, 16), gate: make(chan struct{})}
	close(f.gate)
	if err := os.WriteFile(f.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp4", ":0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, ClientAuth: ask})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) //nolint:errcheck // the test is over
	if _, f.port, err = net.SplitHostPort(l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f.carry(c)
		}
	}()
	return f
}

// stop has nothing pass any more, without closing what is open.
func (f *front) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gate = make(chan struct{})
}

// start has everything pass again.
func (f *front) start() {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.gate: // it is open
	default:
		close(f.gate)
	}
}

func (f *front) wait() {
	f.mu.Lock()
	gate := f.gate
	f.mu.Unlock()
	<-gate
}

func (f *front) carry(c net.Conn) {
	defer c.Close()
	f.wait()
	if t, ok := c.(*tls.Conn); ok && t.Handshake() == nil && len(t.ConnectionState().PeerCertificates) > 0 {
		select {
		case f.shown <- t.ConnectionState().PeerCertificates[0]:
		default:
		}
	}
	select {
	case f.peers <- c.RemoteAddr().String():
	default:
	}
	s, err := net.Dial("tcp4", "127.0.0.1:2049")
	if err != nil {
		return
	}
	defer s.Close()
	pass := func(to, from net.Conn) {
		b := make([]byte, 64<<10)
		for {
			n, err := from.Read(b)
			f.wait()
			if n > 0 {
				if _, err := to.Write(b[:n]); err != nil {
					break
				}
			}
			if err != nil {
				break
			}
		}
		to.Close()   //nolint:errcheck // either end of it ends both
		from.Close() //nolint:errcheck // likewise
	}
	go pass(s, c)
	pass(c, s)
}

// TestNFSTLS mounts an EFS file system with transit encryption by Berth's own proxy, which
// is killed under the mount and started again.
func TestNFSTLS(t *testing.T) {
	t.Parallel()
	path := nfsServer(t)
	const id = "fs-0123456789abcdef0"
	f := newFront(t, id+".efs.eu-west-1.amazonaws.com", tls.NoClientCert)
	address, ca := "127.0.0.1:"+f.port, f.ca
	dir := t.TempDir()
	d := volumes.Dirs{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")}
	r := remote(t, Patience/2)
	driver := func() volumes.Driver {
		return volumes.NewEFS(volumes.EFSConfig{
			Dirs: d, Remote: r, Region: "eu-west-1", Targets: map[string]string{id: address}, CAFile: ca, Helper: func() string { return "" },
		})
	}
	volume := func(task, name string) *volumes.Volume {
		return &volumes.Volume{Task: task, Name: name, FileSystem: &volumes.FileSystem{ID: id, Root: path, Encrypted: true}}
	}
	volumestest.Run(t, volumestest.Subject{Dirs: d, Shared: true, Kept: true, New: driver, Volume: volume})

	e, v := driver(), volume("killed", "v")
	m, err := e.Mount(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	// Another proxy to the same server has a client of its own, which stays when the
	// first one's goes.
	other := volume("other", "v")
	other.FileSystem.AccessPoint = "fsap-0123456789abcdef0"
	o, err := e.Mount(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(filepath.Join(o.Path, "y"), []byte("y"), 0o644); err != nil {
			t.Error(err)
		}
		if err := e.Unmount(t.Context(), other); err != nil {
			t.Error(err)
		}
	}()
	ctx, stop := context.WithCancel(t.Context())
	supervised := make(chan struct{})
	go func() {
		defer close(supervised)
		d.Supervise(ctx, r.Program, func(err error) { t.Error(err) })
	}()
	files, err := filepath.Glob(filepath.Join(d.Run, "shared", "*", "proxy.json"))
	if err != nil || len(files) != 2 {
		t.Fatalf("proxies: %v, %v", files, err)
	}
	if mine, err := filepath.Glob(filepath.Join(d.Run, "shared", "*", "users", "killed.*")); err != nil || len(mine) != 1 {
		t.Fatalf("users: %v, %v", mine, err)
	} else {
		files[0] = filepath.Join(filepath.Dir(filepath.Dir(mine[0])), "proxy.json")
	}
	var p struct{ PID int }
	b, err := os.ReadFile(files[0])
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err == nil {
		err = syscall.Kill(p.PID, syscall.SIGKILL)
	}
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() { wrote <- os.WriteFile(filepath.Join(m.Path, "x"), []byte("x"), 0o644) }()
	select {
	case err := <-wrote:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(Patience):
		t.Error("the mount did not outlive its proxy")
	}
	stop()
	<-supervised
	if err := e.Unmount(t.Context(), v); err != nil {
		t.Error(err)
	}
}
