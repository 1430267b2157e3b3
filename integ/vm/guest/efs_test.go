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
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"berth.dev/berth/volumes"
	"berth.dev/berth/volumes/volumestest"
)

// tlsServer listens with a certificate for a name and passes everything on to the NFS
// server of this machine. It returns its address and the file of its certificate.
func tlsServer(t *testing.T, name string) (address, ca string) {
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
	ca = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp4", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) //nolint:errcheck // the test is over
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				s, err := net.Dial("tcp4", "127.0.0.1:2049")
				if err != nil {
					return
				}
				defer s.Close()
				go io.Copy(s, c) //nolint:errcheck // ends with the connection
				io.Copy(c, s)    //nolint:errcheck // likewise
			}()
		}
	}()
	return l.Addr().String(), ca
}

// TestNFSTLS mounts an EFS file system with transit encryption by Berth's own proxy, which
// is killed under the mount and started again.
func TestNFSTLS(t *testing.T) {
	t.Parallel()
	path := nfsServer(t)
	const id = "fs-0123456789abcdef0"
	address, ca := tlsServer(t, id+".efs.eu-west-1.amazonaws.com")
	dir := t.TempDir()
	d := volumes.Dirs{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")}
	r := remote(t, 0)
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
	ctx, stop := context.WithCancel(t.Context())
	supervised := make(chan struct{})
	go func() {
		defer close(supervised)
		d.Supervise(ctx, r.Program, func(err error) { t.Error(err) })
	}()
	files, err := filepath.Glob(filepath.Join(d.Run, "shared", "*", "proxy.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("proxies: %v, %v", files, err)
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
	case <-time.After(2 * time.Minute):
		t.Error("the mount did not outlive its proxy")
	}
	stop()
	<-supervised
	if err := e.Unmount(t.Context(), v); err != nil {
		t.Error(err)
	}
}
