// Package fdstore keeps listening sockets in the descriptor store of the service manager,
// so that they outlive the agent: who connects while one agent ends and the next starts
// waits in the kernel's queue and is answered late, not refused (sd_notify(3), FDSTORE;
// sd_listen_fds(3); systemd.service(5), FileDescriptorStoreMax).
//
// Without a service manager that has a store nothing is kept, and nothing fails.
package fdstore

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
)

// Store is the store of this service. Its methods may be called at the same time.
type Store struct {
	socket string // of the service manager; empty is none

	mu   sync.Mutex
	kept map[string]net.Listener // handed over at the start, and not taken yet
}

// Open takes over what the service manager kept for this program. It is called once, before
// another program is started.
func Open() (*Store, error) {
	s := &Store{socket: os.Getenv("NOTIFY_SOCKET"), kept: make(map[string]net.Listener)}
	var errs []error
	for _, f := range activation.Files(true) {
		given := f.Name()
		l, err := net.FileListener(f)
		err = errors.Join(err, f.Close())
		if old := s.kept[given]; old != nil && err == nil {
			err = errors.Join(fmt.Errorf("there are two of the name %s", given), l.Close())
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("descriptor %s of the service manager: %w", given, err))
			continue
		}
		s.kept[given] = l
	}
	return s, errors.Join(errs...)
}

// name is the name in the store of what key stands for. All names are equally short,
// because systemd hands all of them over in one variable of the environment, which the
// kernel limits to 128 KiB (execve(2), MAX_ARG_STRLEN).
func name(key string) string {
	sum := sha256.Sum256([]byte(key))
	return "m-" + base64.RawURLEncoding.EncodeToString(sum[:16])
}

// Take returns the listener that was kept under a key; it is the caller's then. It stays in
// the store until it is dropped.
func (s *Store) Take(key string) (net.Listener, bool) { return s.take(name(key)) }

func (s *Store) take(name string) (net.Listener, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.kept[name]
	delete(s.kept, name)
	return l, ok
}

// Keep hands a listener to the store under a key that has none.
func (s *Store) Keep(key string, l net.Listener) error {
	if s.socket == "" {
		return nil
	}
	c, ok := l.(syscall.Conn)
	if !ok {
		return fmt.Errorf("keep %s: not possible for a listener of type %T", key, l)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("keep %s: %w", key, err)
	}
	var sent error
	// The descriptor is used where it is: a copy of Go's would have all of them block.
	err = raw.Control(func(fd uintptr) { sent = s.tell("FDSTORE=1\nFDNAME="+name(key), int(fd)) })
	if err := errors.Join(err, sent); err != nil {
		return fmt.Errorf("keep %s: %w", key, err)
	}
	return nil
}

// Drop removes what is in the store under a key, and closes it if nobody has taken it.
func (s *Store) Drop(key string) error {
	if err := s.drop(name(key)); err != nil {
		return fmt.Errorf("drop %s: %w", key, err)
	}
	return nil
}

func (s *Store) drop(name string) error {
	if l, ok := s.take(name); ok {
		if err := l.Close(); err != nil {
			return err
		}
	}
	if s.socket == "" {
		return nil
	}
	return s.tell("FDSTOREREMOVE=1\nFDNAME=" + name)
}

// Retain drops everything that nobody has taken, except what is under these keys, and
// returns how much that was.
func (s *Store) Retain(keys []string) (dropped int, err error) {
	wanted := make(map[string]bool, len(keys))
	for _, key := range keys {
		wanted[name(key)] = true
	}
	s.mu.Lock()
	names := slices.DeleteFunc(slices.Collect(maps.Keys(s.kept)), func(name string) bool { return wanted[name] })
	s.mu.Unlock()
	for _, name := range names {
		if err := s.drop(name); err != nil {
			return dropped, fmt.Errorf("drop %s: %w", name, err)
		}
		dropped++
	}
	return dropped, nil
}

// tellTimeout is how long the service manager may take to make room for a message.
const tellTimeout = 5 * time.Second

// tell sends a message of sd_notify(3), with descriptors.
func (s *Store) tell(state string, fds ...int) error {
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
	if err != nil {
		return err
	}
	if err := c.SetWriteDeadline(time.Now().Add(tellTimeout)); err != nil {
		return errors.Join(err, c.Close())
	}
	var rights []byte
	if len(fds) > 0 {
		rights = syscall.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix([]byte(state), rights, &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	return errors.Join(err, c.Close())
}
