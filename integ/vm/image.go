package vm

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// recipe is the version of what this file makes; raise it when that changes.
const recipe = "3"

const suite = "bookworm"

// Image is a disk with a kernel to boot it.
type Image struct{ Disk, Kernel, Initrd string }

// Packages lists the packages of a purpose in packaging/packages.txt.
func Packages(file, purpose string) ([]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) >= 2 && !strings.HasPrefix(f[0], "#") && f[1] == purpose {
			names = append(names, f[0])
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// runner starts the tests: it is the last thing that systemd starts in the machine.
const runner = `[Unit]
Description=Tests of Berth
After=basic.target
[Service]
Type=oneshot
StandardOutput=journal+console
ExecStart=/usr/local/sbin/berth-guest
`

const runnerScript = `#!/bin/sh
until [ -e /dev/virtio-ports/berth.result ]; do sleep 0.1; done
mkdir -p /berth && tar -xf /dev/vdb -C /berth
touch /etc/berth-guest
cd /berth && sh ./run > /dev/virtio-ports/berth.result 2>&1
sync
sleep 0.3
systemctl poweroff --force --force
`

// Build makes the image, or finds it in the cache.
func Build(cache string, packages []string, log io.Writer) (Image, error) {
	sum := sha256.Sum256([]byte(recipe + "\n" + suite + "\n" + strings.Join(packages, "\n") + runner + runnerScript))
	dir := filepath.Join(cache, hex.EncodeToString(sum[:8]))
	img := Image{Disk: filepath.Join(dir, "disk.raw"), Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd")}
	if _, err := os.Stat(dir); err == nil {
		return img, nil
	}
	fresh, err := filepath.Abs(dir + ".new")
	if err != nil {
		return img, err
	}
	if err := errors.Join(os.RemoveAll(fresh), os.MkdirAll(fresh, 0o755)); err != nil {
		return img, err
	}
	defer os.RemoveAll(fresh) //nolint:errcheck // what is left is removed by the next
	if err := makeImage(fresh, packages, log); err != nil {
		return img, err
	}
	return img, os.Rename(fresh, dir)
}

func makeImage(dir string, packages []string, log io.Writer) error {
	root := filepath.Join(dir, "root")
	if err := Bootstrap(root, packages, log); err != nil {
		return err
	}
	if err := furnish(root); err != nil {
		return err
	}
	for name, pattern := range map[string]string{"vmlinuz": "vmlinuz-*", "initrd": "initrd.img-*"} {
		found, err := filepath.Glob(filepath.Join(root, "boot", pattern))
		if err != nil || len(found) == 0 {
			return fmt.Errorf("the image has no %s: %w", pattern, err)
		}
		if err := os.Rename(found[len(found)-1], filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	disk := filepath.Join(dir, "disk.raw")
	if err := run(log, "mke2fs", "-q", "-t", "ext4", "-d", root, "-O", "^has_journal", disk, "4G"); err != nil {
		return err
	}
	return os.RemoveAll(root)
}

// Bootstrap makes the files of a Debian system with some packages.
func Bootstrap(root string, packages []string, log io.Writer) error {
	sources, err := filepath.Glob("/etc/apt/sources.list.d/*.sources")
	if err != nil {
		return err
	}
	if _, err := os.Stat("/etc/apt/sources.list"); err == nil {
		sources = append(sources, "/etc/apt/sources.list")
	}
	args := append([]string{"--quiet", "--variant=minbase", "--aptopt=DPkg::Lock::Timeout \"600\"", "--include=" + strings.Join(packages, ","), suite, root}, sources...)
	return run(log, "mmdebstrap", args...)
}

// furnish puts what starts the tests into the image and keeps its services from starting.
func furnish(root string) error {
	put := func(name, text string, mode os.FileMode) error {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, []byte(text), mode)
	}
	err := errors.Join(
		put("etc/systemd/system/berth-guest.service", runner, 0o644),
		put("usr/local/sbin/berth-guest", runnerScript, 0o755),
		put("etc/hostname", "guest\n", 0o644),
		put("etc/hosts", "127.0.0.1 localhost guest\n", 0o644),
	)
	for _, unit := range []string{
		"containerd", "nfs-server", "nfs-blkmap", "nfs-mountd", "nfs-idmapd", "rpcbind", "rpc-statd", "rpc-statd-notify", "nfsdcld",
		"apt-daily", "apt-daily-upgrade", "e2scrub_all", "fstrim", "systemd-timesyncd", "nftables", "getty@tty1",
	} {
		for _, kind := range []string{".service", ".timer", ".socket"} {
			path := filepath.Join(root, "etc/systemd/system", unit+kind)
			if rmErr := os.Remove(path); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
				err = errors.Join(err, rmErr)
			}
			err = errors.Join(err, os.Symlink("/dev/null", path))
		}
	}
	wants := filepath.Join(root, "etc/systemd/system/multi-user.target.wants")
	return errors.Join(err, os.MkdirAll(wants, 0o755), os.Symlink("../berth-guest.service", filepath.Join(wants, "berth-guest.service")))
}

func run(log io.Writer, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
