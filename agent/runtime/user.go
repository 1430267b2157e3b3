package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"berth.dev/berth/agent/spec"
	"berth.dev/berth/agent/task"

	"github.com/containerd/containerd/v2/core/mount"
	continuityfs "github.com/containerd/continuity/fs"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// userKey is what a user's identity depends on: an image never changes.
type userKey struct{ digest, user, groups, dir string }

// person is what a container takes from the files of its image.
type person struct {
	user spec.User
	err  error // the user or directory is refused; asking again does not help
}

// maxID is the largest user or group id that the kernel takes (2^31-1, so that no
// program can read it as negative).
const maxID = 1<<31 - 1

// maxUserFile bounds how much is read of an image's passwd and group files.
const maxUserFile = 4 << 20

// identity resolves the user of a container with its groups and checks its working
// directory against links of the image. mounts are those of the container's snapshot, of
// which nothing runs yet. The answer is remembered per image.
func (c *Client) identity(ctx context.Context, p *planned, mounts []mount.Mount) (spec.User, error) {
	groups := p.in.Container.HostConfig.GroupAdd
	key := userKey{p.image.Digest, p.user, strings.Join(groups, "\x00"), p.dir}
	c.mu.Lock()
	known, ok := c.users[key]
	c.mu.Unlock()
	if ok {
		return known.user, known.err
	}
	var found person
	err := c.withRootfs(ctx, p.h.ID, mounts, func(root string) error {
		found.user, found.err = resolveUser(root, p.user)
		if found.err == nil {
			found.err = addGroups(root, &found.user, groups)
		}
		if found.err == nil {
			found.err = resolveDir(root, p.dir)
		}
		return nil
	})
	if err != nil {
		return spec.User{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.users) > 1024 {
		clear(c.users)
	}
	c.users[key] = found
	return found.user, found.err
}

// withRootfs mounts a snapshot for a moment.
func (c *Client) withRootfs(_ context.Context, id string, mounts []mount.Mount, fn func(root string) error) (err error) {
	root := c.rootfsDir(id)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	if err := unmountRootfs(root); err != nil { // of an earlier run
		return err
	}
	if err := mount.All(mounts, root); err != nil {
		return errors.Join(fmt.Errorf("mounting the root file system of container %s: %w", id, err), os.Remove(root))
	}
	defer func() { err = errors.Join(err, unmountRootfs(root), os.Remove(root)) }()
	return fn(root)
}

func (c *Client) rootfsDir(id string) string { return filepath.Join(c.cfg.StateDir, "rootfs", id) }

func unmountRootfs(root string) error {
	err := mount.UnmountAll(root, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// resolveDir refuses a working directory that the image's links lead into /proc.
func resolveDir(root, dir string) error {
	at, err := continuityfs.RootPath(root, dir)
	if err != nil {
		return task.Failf(task.Invalid, task.CannotStartContainer, "workingDirectory: %s: %w", dir, err)
	}
	rel, err := filepath.Rel(root, at)
	if err != nil {
		return err
	}
	return spec.CheckWorkdir(filepath.Join("/", rel))
}

// resolveUser reads "user", "user:group", or numbers for either, as Docker does: names
// from the image's own files, numbers as they are, supplementary groups of a user that
// is named there. Numbers that do not fit are refused, so that none becomes root.
func resolveUser(root, name string) (spec.User, error) {
	if name == "" {
		name = "0"
	}
	u, g, both := strings.Cut(name, ":")
	for _, part := range []string{u, g} {
		if err := checkID(part); err != nil {
			return spec.User{}, invalidUser(name, err)
		}
	}
	if u == "" || both && g == "" || strings.ContainsAny(name, " \t\n") {
		return spec.User{}, invalidUser(name, errors.New("expected user or user:group"))
	}
	passwd, err := readIn(root, "etc/passwd")
	if err != nil {
		return spec.User{}, invalidUser(name, err)
	}
	group, err := readIn(root, "etc/group")
	if err != nil {
		return spec.User{}, invalidUser(name, err)
	}
	x, err := user.GetExecUser(name, &user.ExecUser{Home: "/"}, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return spec.User{}, invalidUser(name, err)
	}
	// The primary group is also a supplementary one, so that a file which denies it by
	// group is denied (CVE-2022-36109).
	out := spec.User{UID: uint32(x.Uid), GID: uint32(x.Gid), AdditionalGIDs: []uint32{uint32(x.Gid)}}
	if x.Uid < 0 || x.Gid < 0 || x.Uid > maxID || x.Gid > maxID {
		return spec.User{}, invalidUser(name, errors.New("id out of range"))
	}
	for _, s := range x.Sgids {
		if s < 0 || s > maxID {
			return spec.User{}, invalidUser(name, errors.New("group id out of range"))
		}
		if uint32(s) != out.GID {
			out.AdditionalGIDs = append(out.AdditionalGIDs, uint32(s))
		}
	}
	return out, nil
}

// addGroups adds supplementary groups, by number or by name of the image.
func addGroups(root string, u *spec.User, groups []string) error {
	if len(groups) == 0 {
		return nil
	}
	for _, g := range groups {
		if err := checkID(g); err != nil || g == "" {
			return task.Failf(task.Invalid, task.CannotStartContainer, "GroupAdd: %q is no group", g)
		}
	}
	file, err := readIn(root, "etc/group")
	if err != nil {
		return err
	}
	ids, err := user.GetAdditionalGroups(groups, bytes.NewReader(file))
	if err != nil {
		return task.Failf(task.Invalid, task.CannotStartContainer, "GroupAdd: %w", err)
	}
	for _, id := range ids {
		if id < 0 || id > maxID {
			return task.Failf(task.Invalid, task.CannotStartContainer, "GroupAdd: group id %d is out of range", id)
		}
		if !slices.Contains(u.AdditionalGIDs, uint32(id)) {
			u.AdditionalGIDs = append(u.AdditionalGIDs, uint32(id))
		}
	}
	return nil
}

// checkID refuses what is a number but no id.
func checkID(s string) error {
	if s == "" || strings.Trim(s, "0123456789") != "" && s[0] != '-' && s[0] != '+' {
		return nil // a name
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > maxID || s[0] == '+' {
		return fmt.Errorf("%q is not an id between 0 and %d", s, maxID)
	}
	return nil
}

func invalidUser(name string, err error) error {
	return task.Failf(task.Invalid, task.CannotStartContainer, "user: unable to find user %s: %w: name a user and group of the image, or give their numbers", name, err)
}

// readIn reads a file of an image without leaving the image by links; no such file is
// an empty one.
func readIn(root, name string) ([]byte, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", root, err)
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("/%s of the image: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, nil
	}
	b, err := io.ReadAll(io.LimitReader(f, maxUserFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxUserFile {
		return nil, fmt.Errorf("/%s of the image is larger than %d bytes", name, maxUserFile)
	}
	return b, nil
}
