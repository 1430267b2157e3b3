// Package socket makes the Unix sockets by which programs of one host reach each other.
package socket

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
)

// Listen makes a socket at path that only its owner can open, from the moment in which it
// appears, in the place of one that a program before this one left.
//
// The process's umask is not touched: it belongs to all goroutines, and files that others
// make meanwhile, also other sockets, would get the wrong mode. Linux gives the file of a
// socket the mode that the socket itself has when it is bound (less the umask).
func Listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if cerr := raw.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	return c.Listen(context.Background(), "unix", path)
}
