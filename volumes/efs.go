package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// EFS mounts Amazon's Elastic File System, or any NFS 4.1 server that an operator puts in
// its place. Where the host has mount.efs (package amazon-efs-utils) that is used, except
// for IAM authorization, whose credentials it could not ask for; otherwise the kernel's
// client, for transit encryption through a proxy of Berth's own.
type EFS struct {
	c      EFSConfig
	shares *shares
	keyMu  sync.Mutex // held while the key of certificates is made
}

// EFSConfig is what an EFS is made of.
type EFSConfig struct {
	Dirs   Dirs
	Remote *Remote
	Region string
	// Targets are the mount targets of file systems, HOST or HOST:PORT by file system id,
	// where they are not found by the file system's DNS name.
	Targets map[string]string
	// CAFile has the certificates that a server's is checked against; "" means the system's.
	CAFile string
	// Keys are those of the role that authorizes what a task mounts, by the task's ARN;
	// nil refuses IAM authorization.
	Keys func(taskARN string) (Keys, error)
	// Helper finds mount.efs; nil looks on the search path. It returns "" where there is
	// none.
	Helper func() string
}

// FileSystem is the part of a Volume for EFS (ECS API model, EFSVolumeConfiguration).
type FileSystem struct {
	ID          string
	Root        string // directory; "" means /
	Encrypted   bool   // in transit
	Port        int    // of the proxy; 0 means any
	AccessPoint string
	IAM         bool
	TaskARN     string // whose role authorizes with IAM
	// Netns is the network namespace of the task, which its mount belongs to; "" means
	// the host's.
	Netns string
}

var _ Driver = (*EFS)(nil)

// NewEFS makes the driver. It changes nothing on the host.
func NewEFS(c EFSConfig) *EFS {
	if c.Helper == nil {
		c.Helper = func() string {
			name, err := exec.LookPath("mount.efs")
			if err != nil {
				return ""
			}
			return name
		}
	}
	return &EFS{c: c, shares: newShares(c.Dirs.Run)}
}

// Name is "efs".
func (e *EFS) Name() string { return "efs" }

var (
	fileSystemID = regexp.MustCompile(`^fs-[0-9a-f]{8,40}$`)
	accessPoint  = regexp.MustCompile(`^fsap-[0-9a-f]{8,40}$`)
)

// efsOptions are those that Amazon recommends (EFS user guide, "NFS mount settings").
const efsOptions = "nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport"

const nfsPort = "2049"

// check refuses what cannot be mounted, before anything is done.
func (e *EFS) check(v *Volume) error {
	f := v.FileSystem
	switch {
	case f == nil || !fileSystemID.MatchString(f.ID):
		return failf(ErrInvalid, "efsVolumeConfiguration.fileSystemId must be that of an EFS file system, fs-…")
	case f.AccessPoint != "" && !accessPoint.MatchString(f.AccessPoint):
		return failf(ErrInvalid, "efsVolumeConfiguration.authorizationConfig.accessPointId must be that of an access point, fsap-…")
	case strings.ContainsAny(f.Root, "\x00\n,") || f.Root != "" && !path.IsAbs(f.Root):
		return failf(ErrInvalid, "efsVolumeConfiguration.rootDirectory must be an absolute path without commas")
	case (f.IAM || f.AccessPoint != "") && !f.Encrypted:
		return failf(ErrInvalid, "efsVolumeConfiguration: IAM authorization and access points need transitEncryption")
	case f.IAM && f.TaskARN == "":
		return failf(ErrInvalid, "efsVolumeConfiguration.authorizationConfig.iam: it is not known for which task")
	case e.c.Remote == nil:
		return failf(ErrInvalid, "this host mounts no network file systems")
	}
	return v.check()
}

// key names the mount: tasks whose options are equal share it. What a role authorizes is
// one task's.
func (e *EFS) key(v *Volume) string {
	f := v.FileSystem
	if f.IAM {
		return key("efs", "iam", v.Task, v.Name, f.Netns)
	}
	return key("efs", f.ID, path.Clean("/"+f.Root), strconv.FormatBool(f.Encrypted), strconv.Itoa(f.Port), f.AccessPoint, f.Netns)
}

// target is the server of a file system.
func (e *EFS) target(id string) (host, port string) {
	if t := e.c.Targets[id]; t != "" {
		if i := strings.LastIndexByte(t, ':'); i > 0 && !strings.HasSuffix(t, "]") {
			return t[:i], t[i+1:]
		}
		return t, nfsPort
	}
	return e.dnsName(id), nfsPort
}

// dnsName is what the file system's mount targets are found by (EFS user guide, "DNS
// names"), and what their certificate is for.
func (e *EFS) dnsName(id string) string {
	suffix := "amazonaws.com"
	if strings.HasPrefix(e.c.Region, "cn-") {
		suffix = "amazonaws.com.cn"
	}
	return fmt.Sprintf("%s.efs.%s.%s", id, e.c.Region, suffix)
}

// Mount mounts the file system once for all tasks that want it so, and binds it for this
// one.
func (e *EFS) Mount(ctx context.Context, v *Volume) (Mounted, error) {
	if err := e.check(v); err != nil {
		return Mounted{}, err
	}
	return bindShared(ctx, e.shares, e.c.Dirs, e.key(v), v, func(point string) error {
		if helper := e.c.Helper(); helper != "" && !v.FileSystem.IAM {
			return e.help(ctx, helper, v.FileSystem, point)
		}
		return e.mount(ctx, v.FileSystem, point)
	}, e.c.Remote.bind)
}

// mount mounts with the kernel's client.
func (e *EFS) mount(ctx context.Context, f *FileSystem, point string) error {
	host, port := e.target(f.ID)
	server := host + ":" + port
	m := remoteMount{Target: point, Netns: f.Netns, Options: strings.Split(efsOptions, ",")}
	if f.Encrypted {
		p := proxy{Listen: f.Port, Server: server, Name: e.dnsName(f.ID), CAFile: e.c.CAFile, Netns: f.Netns}
		if f.IAM || f.AccessPoint != "" {
			c := &client{FileSystem: f.ID, AccessPoint: f.AccessPoint, Region: e.c.Region}
			if f.IAM {
				c.Task = f.TaskARN
			}
			if err := e.identify(c, point); err != nil {
				return err
			}
			p.Client = certificateFile(point)
		}
		local, err := p.ensure(ctx, e.c.Remote.Program, proxyFile(point))
		if err != nil {
			return err
		}
		host, port = "127.0.0.1", strconv.Itoa(local)
		m.Client = filepath.Base(filepath.Dir(point))
	}
	m.Source = host + ":" + path.Clean("/"+f.Root)
	if port != nfsPort {
		m.Options = append(m.Options, "port="+port)
	}
	if err := e.c.Remote.mount(ctx, m); err != nil {
		return fmt.Errorf("file system %s by %s: %w", f.ID, server, err)
	}
	return nil
}

// help has mount.efs mount: it is called as mount(8) calls it.
func (e *EFS) help(ctx context.Context, helper string, f *FileSystem, point string) error {
	if err := os.MkdirAll(point, 0o700); err != nil {
		return err
	}
	options := []string{"rw", "nosuid", "nodev"}
	if f.Encrypted {
		options = append(options, "tls")
	}
	if f.Port != 0 {
		options = append(options, "tlsport="+strconv.Itoa(f.Port))
	}
	if f.AccessPoint != "" {
		options = append(options, "accesspoint="+f.AccessPoint)
	}
	if f.Netns != "" {
		options = append(options, "netns="+f.Netns)
	}
	source := f.ID + ":" + path.Clean("/"+f.Root)
	if err := e.c.Remote.exec(ctx, helper, source, point, "-o", strings.Join(options, ",")); err != nil {
		return fmt.Errorf("mount.efs %s: %w", source, err)
	}
	there, err := mounted(point)
	if err == nil && !there {
		err = fmt.Errorf("mount.efs said that it mounted %s and did not", source)
	}
	return err
}

// Unmount takes the task's bind away, and the mount and its proxy with the last one.
func (e *EFS) Unmount(ctx context.Context, v *Volume) error {
	if err := v.check(); err != nil {
		return err
	}
	if e.c.Remote == nil {
		return e.c.Dirs.leave(v)
	}
	gone := func(point string) error { return e.c.Remote.unmount(ctx, point) }
	if err := gone(e.c.Dirs.point(v)); err != nil {
		return err
	}
	if err := e.c.Dirs.leave(v); err != nil {
		return err
	}
	// Which mount it was is asked of the files beside the mounts: a network namespace,
	// which is part of its key, need not be known any more.
	keys, err := e.shares.keysOf(v)
	for _, key := range keys {
		err = errors.Join(err, e.shares.release(ctx, key, v, func(point string) error {
			if err := gone(point); err != nil {
				return err
			}
			return endProxy(proxyFile(point))
		}))
	}
	return err
}

// Check looks for the task's bind.
func (e *EFS) Check(_ context.Context, v *Volume) (bool, error) { return mounted(e.c.Dirs.point(v)) }
