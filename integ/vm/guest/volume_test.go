package guest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/volumes"
	"berth.dev/berth/volumes/ephemeral/ephemeraltest"
	"berth.dev/berth/volumes/volumestest"
)

func TestMain(m *testing.M) { Main(m) }

// TestProjectQuota limits directories of an ext4 with project quotas.
func TestProjectQuota(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	img, at := filepath.Join(dir, "fs.img"), filepath.Join(dir, "fs")
	Run(t, "truncate", "-s", "512M", img)
	Run(t, "mke2fs", "-q", "-t", "ext4", "-O", "quota,project", "-E", "quotatype=prjquota", img)
	Run(t, "mkdir", at)
	Run(t, "mount", "-o", "loop,prjquota", img, at)
	t.Cleanup(func() { // a process that another test is just starting may hold a file for a moment
		Until(t, "unmounting", func() error { return exec.Command("umount", at).Run() })
	})
	Run(t, "rmdir", filepath.Join(at, "lost+found"))
	ephemeraltest.Run(t, at, "project")
}

var server sync.Once

// nfsServer starts the kernel's NFS server on this machine, once, and exports a new
// directory.
func nfsServer(t *testing.T) string {
	t.Helper()
	server.Do(func() {
		Run(t, "modprobe", "nfsd")
		Run(t, "mount", "-t", "tmpfs", "tmpfs", "/srv")
		Run(t, "mkdir", "-p", "/run/rpc_pipefs", "/var/lib/nfs/v4recovery")
		for _, d := range []string{"plain", "stopped", "gone", "tls"} {
			Run(t, "mkdir", "-m", "0777", "-p", "/srv/"+d)
		}
		if err := os.WriteFile("/etc/exports", []byte("/srv *(rw,fsid=0,no_root_squash,no_subtree_check,insecure,async)\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		Run(t, "mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
		// A new server does not make clients wait for those of the one before it.
		for _, name := range []string{"nfsv4gracetime", "nfsv4leasetime"} {
			if err := os.WriteFile("/proc/fs/nfsd/"+name, []byte("10"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		Run(t, "exportfs", "-ra")
		Run(t, "rpc.nfsd", "-N", "3", "-U", "2")
		Run(t, "rpc.mountd", "-N", "2", "-N", "3")
	})
	return "/" + strings.ToLower(strings.TrimPrefix(t.Name(), "TestNFS"))
}

func remote(t *testing.T, limit time.Duration) *volumes.Remote {
	program, err := exec.LookPath("berth-volume")
	if err != nil {
		t.Fatal(err)
	}
	return &volumes.Remote{Program: program, Limit: limit}
}

func nfsOptions(path, more string) map[string]string {
	return map[string]string{"type": "nfs", "device": ":" + path, "o": "addr=127.0.0.1,nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport" + more}
}

// TestNFSPlain runs the suite of all drivers with volumes of the kernel's NFS client.
func TestNFSPlain(t *testing.T) {
	t.Parallel()
	path := nfsServer(t)
	for _, scope := range []volumes.Scope{volumes.ScopeTask, volumes.ScopeShared} {
		t.Run(string(scope), func(t *testing.T) {
			dir := t.TempDir()
			d := volumes.Dirs{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")}
			volumestest.Run(t, volumestest.Subject{
				Dirs: d, Shared: true, Kept: true,
				New: func() volumes.Driver {
					return volumes.NewLocal(volumes.LocalConfig{Dirs: d, Remote: remote(t, Patience/2)})
				},
				Volume: func(task, name string) *volumes.Volume {
					return &volumes.Volume{Task: task, Name: name, Scope: scope, Autoprovision: scope == volumes.ScopeShared, Options: nfsOptions(path, "")}
				},
			})
		})
	}
}

// TestNFSGone mounts from a server that never answers: the task that asks fails in time,
// and others are not kept waiting.
func TestNFSGone(t *testing.T) {
	t.Parallel()
	nfsServer(t)
	Run(t, "ip", "netns", "add", "gone")
	t.Cleanup(func() { Run(t, "ip", "netns", "del", "gone") })
	Run(t, "ip", "link", "add", "gone0", "type", "veth", "peer", "name", "gone1", "netns", "gone")
	Run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "gone0")
	Run(t, "ip", "link", "set", "gone0", "up")
	Run(t, "ip", "-n", "gone", "link", "set", "gone1", "up") // nobody has the address 192.0.2.2
	Run(t, "ip", "neigh", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:02", "dev", "gone0")
	dir := t.TempDir()
	d := volumes.Dirs{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")}
	l := volumes.NewLocal(volumes.LocalConfig{Dirs: d, Remote: remote(t, 8*time.Second)})
	v := &volumes.Volume{Task: "a", Name: "v", Options: map[string]string{"type": "nfs", "device": "192.0.2.2:/x", "o": "nfsvers=4.1,hard,timeo=600,retrans=2,noresvport"}}
	waited := make(chan error, 1)
	begin := time.Now()
	go func() {
		_, err := l.Mount(t.Context(), v)
		waited <- err
	}()
	other := &volumes.Volume{Task: "b", Name: "v"}
	if _, err := l.Mount(t.Context(), other); err != nil {
		t.Error(err)
	}
	if len(waited) > 0 {
		t.Errorf("another task waited %v for a server that it does not use", time.Since(begin))
	}
	if err := l.Unmount(t.Context(), other); err != nil {
		t.Error(err)
	}
	if err := <-waited; !errors.Is(err, volumes.ErrLate) || time.Since(begin) > Patience {
		t.Errorf("after %v: %v", time.Since(begin), err)
	}
	if err := l.Unmount(t.Context(), v); err != nil {
		t.Error(err)
	}
	if left := volumestest.Mounts(t, d.Run); len(left) > 0 {
		t.Errorf("left mounted: %q", left)
	}
}

// TestNFSStopped stops the server of a mount that is in use, without transit encryption,
// for longer than the client waits for an answer: what was being written goes on; and it
// is unmounted while the server is away. TestTasks has one that is away for a minute, and
// for ever, under tasks.
func TestNFSStopped(t *testing.T) {
	t.Parallel()
	path := nfsServer(t)
	Run(t, "ip", "netns", "add", "client")
	t.Cleanup(func() { Run(t, "ip", "netns", "del", "client") })
	for _, args := range [][]string{
		{"link", "add", "nfs0", "type", "veth", "peer", "name", "nfs1", "netns", "client"}, {"addr", "add", "198.51.100.1/24", "dev", "nfs0"},
		{"link", "set", "nfs0", "up"}, {"-n", "client", "addr", "add", "198.51.100.2/24", "dev", "nfs1"}, {"-n", "client", "link", "set", "nfs1", "up"},
	} {
		Run(t, "ip", args...)
	}
	r := remote(t, Patience/2)
	at := filepath.Join(t.TempDir(), "nfs")
	if err := r.MountIn(t.Context(), "/run/netns/client", "198.51.100.1:"+path, at, "vers=4.1", "hard", "timeo=50", "retrans=2"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(at, "before"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	Run(t, "ip", "link", "set", "nfs0", "down")
	wrote := make(chan error, 1)
	begin := time.Now()
	go func() { wrote <- os.WriteFile(filepath.Join(at, "meanwhile"), []byte("y"), 0o644) }()
	back := time.After(25 * time.Second)
	select {
	case err := <-wrote:
		t.Fatalf("written without a server: %v", err)
	case <-back:
	}
	Run(t, "ip", "link", "set", "nfs0", "up")
	select {
	case err := <-wrote:
		if err != nil {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	case <-time.After(Patience):
		t.Error("the write did not go on")
	}
	Run(t, "ip", "link", "set", "nfs0", "down")
	begin = time.Now()
	if err := r.Unmount(t.Context(), at); err != nil && !errors.Is(err, volumes.ErrLate) {
		t.Error(err)
	}
	if took := time.Since(begin); took > Patience {
		t.Errorf("unmounting took %v", took)
	}
	if left := volumestest.Mounts(t, at); len(left) > 0 {
		t.Errorf("left mounted: %q", left)
	}
	Run(t, "ip", "link", "set", "nfs0", "up")
}
