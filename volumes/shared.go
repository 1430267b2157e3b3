package volumes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// removeEmpty removes a directory unless something is in it.
func removeEmpty(dir string) error {
	err := os.Remove(dir)
	if isNotEmpty(err) {
		return nil
	}
	return ignoreMissing(err)
}

func isNotEmpty(err error) bool {
	return errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST)
}

// shares are mounts that several volumes of tasks use. Each use is a file, made before
// the mount and removed after the last bind of it is gone, so that after a crash the
// files say who may still need the mount: too many perhaps, never too few.
type shares struct {
	dir string

	mu    sync.Mutex
	locks map[string]*keyLock
}

// keyLock is held while one shared mount is changed. Who waits for it can give up.
type keyLock struct {
	held    chan struct{}
	waiters int
}

func newShares(run string) *shares {
	return &shares{dir: filepath.Join(run, "shared"), locks: make(map[string]*keyLock)}
}

// key names a shared mount by all that makes it what it is.
func key(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil)[:12])
}

// user names one use of a shared mount.
func (v *Volume) user() string { return v.Task + "." + key(v.Name) }

func (s *shares) point(key string) string { return filepath.Join(s.dir, key, "mount") }

func (s *shares) users(key string) string { return filepath.Join(s.dir, key, "users") }

// lock takes the lock of a key, unless ctx ends first.
func (s *shares) lock(ctx context.Context, key string) (unlock func(), err error) {
	s.mu.Lock()
	l := s.locks[key]
	if l == nil {
		l = &keyLock{held: make(chan struct{}, 1)}
		s.locks[key] = l
	}
	l.waiters++
	s.mu.Unlock()
	done := func() {
		s.mu.Lock()
		if l.waiters--; l.waiters == 0 {
			delete(s.locks, key)
		}
		s.mu.Unlock()
	}
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; done() }, nil
	case <-ctx.Done():
		done()
		return nil, failf(ErrUnavailable, "another task is still waiting for the same mount: %w", context.Cause(ctx))
	}
}

// acquire makes the shared mount of key with mount, if it is not there, and enters v as
// one that uses it. It returns where it is mounted.
func (s *shares) acquire(ctx context.Context, key string, v *Volume, mount func(point string) error) (string, error) {
	unlock, err := s.lock(ctx, key)
	if err != nil {
		return "", err
	}
	defer unlock()
	if err := s.enter(key, v); err != nil {
		return "", err
	}
	point := s.point(key)
	there, err := mounted(point)
	if err == nil && !there {
		err = mount(point)
	}
	return point, err
}

// enter makes the file that says that v uses the mount. Tidy may take away the directory
// meanwhile, in which nothing was.
func (s *shares) enter(key string, v *Volume) (err error) {
	const tries = 8
	for range tries {
		if err = os.MkdirAll(s.users(key), 0o700); err != nil {
			return err
		}
		err = os.WriteFile(filepath.Join(s.users(key), v.user()), nil, 0o600)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}

// release takes v off the users of key and, with the last one, has unmount take the
// mount away.
func (s *shares) release(ctx context.Context, key string, v *Volume, unmount func(point string) error) error {
	unlock, err := s.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	return leaveKey(filepath.Join(s.dir, key), v.user(), unmount)
}

// leaveKey takes a user off a shared mount, and takes the mount away first where it is the
// last one: what is mounted has a user until it is not mounted any more.
func leaveKey(dir, user string, unmount func(point string) error) error {
	users := filepath.Join(dir, "users")
	entries, err := os.ReadDir(users)
	if err := ignoreMissing(err); err != nil {
		return err
	}
	if slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() != user }) {
		return ignoreMissing(os.Remove(filepath.Join(users, user)))
	}
	if err := unmount(filepath.Join(dir, "mount")); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// keysOf lists the shared mounts that v uses.
func (s *shares) keysOf(v *Volume) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(s.dir, "*", "users", v.user()))
	keys := make([]string, 0, len(files))
	for _, f := range files {
		keys = append(keys, filepath.Base(filepath.Dir(filepath.Dir(f))))
	}
	return keys, err
}
