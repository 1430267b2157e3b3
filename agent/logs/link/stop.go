package link

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// StopShipper ends the shipper that serves a run directory, and waits until it has
// written down how far it got. It succeeds when there is none.
func StopShipper(run string, limit time.Duration) error {
	path := filepath.Join(run, Socket)
	conn, err := connect(path)
	if errors.Is(err, syscall.ECONNREFUSED) {
		err = os.Remove(path) // one that was killed has left it
	}
	if errors.Is(err, fs.ErrNotExist) || err == nil && conn == nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("shipper: %w", err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *syscall.Ucred
	var perr error
	err = raw.Control(func(fd uintptr) {
		peer, perr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(err, perr); err != nil {
		return fmt.Errorf("shipper: %w", err)
	}
	if err := syscall.Kill(int(peer.Pid), syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("shipper: %w", err)
	}
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		if errors.Is(syscall.Kill(int(peer.Pid), 0), syscall.ESRCH) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("shipper %d does not end", peer.Pid)
		}
	}
}
