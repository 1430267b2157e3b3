package volumes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Work is the other side of Remote: what the program berth-volume does with "do". It
// reads one order from in, and returns the exit code and the error to print.
func Work(ctx context.Context, in io.Reader) (code int, err error) {
	var m remoteMount
	dec := json.NewDecoder(io.LimitReader(in, 1<<20))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return exitInvalid, fmt.Errorf("the order: %w", err)
	}
	switch m.Do {
	case "mount":
		err = mountNFS(ctx, &m)
	case "bind":
		err = bindPath(m.Source, m.Target)
	case "unmount":
		err = unmount(m.Target)
	default:
		return exitInvalid, fmt.Errorf("the order: %q is nothing to do", m.Do)
	}
	switch {
	case err == nil:
		return 0, nil
	case errors.Is(err, ErrInvalid):
		return exitInvalid, err
	case errors.Is(err, ErrLate):
		return exitLate, err
	case errors.Is(err, ErrUnavailable), errors.Is(err, unix.ETIMEDOUT), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return exitUnavailable, err
	}
	return 1, err
}

// mountNFS mounts a directory of an NFS server with the kernel's client. The kernel wants
// the addresses of both sides, which mount.nfs(8) otherwise finds out.
func mountNFS(ctx context.Context, m *remoteMount) error {
	host, _, ok := cutServer(m.Source)
	if !ok {
		return failf(ErrInvalid, "%.128q is not SERVER:/PATH", m.Source)
	}
	addr, err := lookUp(ctx, strings.Trim(host, "[]"))
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, time.Duration(m.Wait)*time.Millisecond)
	defer cancel()
	if err := ping(wait, net.JoinHostPort(addr.String(), portOf(m.Options))); err != nil {
		return err
	}
	options := slices.Clone(m.Options)
	options = append(options, "addr="+addr.String())
	if local, err := localAddress(addr); err == nil {
		options = append(options, "clientaddr="+local.String())
	}
	if !slices.ContainsFunc(options, isVersion) {
		options = append(options, "vers=4.1")
	}
	for i, o := range options {
		options[i] = strings.Replace(o, "nfsvers=", "vers=", 1)
	}
	if err := os.MkdirAll(m.Target, 0o700); err != nil {
		return err
	}
	if m.Client != "" {
		if err := callItself(m.Client); err != nil {
			return err
		}
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if m.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(m.Source, m.Target, "nfs4", flags, strings.Join(options, ",")); err != nil {
		return fmt.Errorf("mount %s at %s: %w", m.Source, filepath.Base(filepath.Dir(m.Target)), explain(err))
	}
	return unix.Mount("", m.Target, "", unix.MS_PRIVATE, "")
}

// portOf is the port of an NFS server among the options of its mount.
func portOf(options []string) string {
	for _, o := range options {
		if port, ok := strings.CutPrefix(o, "port="); ok {
			return port
		}
	}
	return nfsPort
}

func isVersion(o string) bool {
	return strings.HasPrefix(o, "vers=") || strings.HasPrefix(o, "nfsvers=")
}

// explain says what the kernel means.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.ENODEV):
		return failf(ErrInvalid, "this kernel has no NFS client (CONFIG_NFS_V4, module nfsv4): %w", err)
	case errors.Is(err, unix.ENOENT):
		return failf(ErrInvalid, "the server has no such directory: %w", err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return failf(ErrInvalid, "the server refuses access: %w", err)
	}
	return err
}

// Enter puts the calling process into the network namespace at a path and goes on as
// another program, so that all its threads are there. It returns only with an error.
func Enter(netns string, argv []string) error {
	runtime.LockOSThread()
	f, err := os.Open(netns)
	if err != nil {
		return err
	}
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("network namespace %s: %w", netns, errors.Join(err, f.Close()))
	}
	if err := identify(); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", argv, os.Environ())
}

// lookUp finds the address of a server, an IPv4 one where it has both.
func lookUp(ctx context.Context, host string) (net.IP, error) {
	if ip := net.ParseIP(host); ip != nil {
		return ip, nil
	}
	ips, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return nil, failf(ErrUnavailable, "looking up %s: %w", host, err)
	}
	for _, ip := range ips {
		if ip.IP.To4() != nil {
			return ip.IP, nil
		}
	}
	if len(ips) == 0 {
		return nil, failf(ErrUnavailable, "looking up %s: it has no address", host)
	}
	return ips[0].IP, nil
}

// localAddress is this side's address towards another. Nothing is sent.
func localAddress(to net.IP) (net.IP, error) {
	c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: to, Port: 2049})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	a, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return nil, errors.New("no UDP address")
	}
	return a.IP, nil
}
