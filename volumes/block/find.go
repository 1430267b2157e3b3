package block

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Finder finds block devices of the host by their serial numbers.
type Finder struct {
	Sys string // where sysfs is; "" means /sys
	Dev string // where the devices' nodes are; "" means /dev
}

// ErrAbsent is that no device has the serial number.
var ErrAbsent = errors.New("no disk of this host has the serial number")

// Serial is the serial number that the device of a volume has: its id without hyphens
// (agent protocol, "Volumes and EBS").
func Serial(volumeID string) string { return strings.ReplaceAll(volumeID, "-", "") }

// Find returns the path of the device with a serial number. NVMe shows it in
// device/serial, virtio in serial.
func (f Finder) Find(serial string) (string, error) {
	sys, dev := f.Sys, f.Dev
	if sys == "" {
		sys = "/sys"
	}
	if dev == "" {
		dev = "/dev"
	}
	names, err := os.ReadDir(filepath.Join(sys, "block"))
	if err != nil {
		return "", err
	}
	for _, n := range names {
		dir := filepath.Join(sys, "block", n.Name())
		if one(filepath.Join(dir, "hidden")) == "1" {
			continue // a path of a device that has several
		}
		for _, attr := range []string{"device/serial", "serial"} {
			if s := one(filepath.Join(dir, attr)); s != "" && strings.ReplaceAll(s, "-", "") == serial {
				return filepath.Join(dev, n.Name()), nil
			}
		}
	}
	return "", fmt.Errorf("%w %s", ErrAbsent, serial)
}

// one reads an attribute of sysfs; one that is missing is empty.
func one(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return strings.Trim(string(b), " \n\x00")
}

// lookAgain is how often devices are looked at although the kernel has said nothing: it
// may have said it before we listened, or more than the socket holds.
const lookAgain = 2 * time.Second

// Await returns the path of the device with a serial number once it is there and its
// node can be opened. The kernel tells of devices that come (uevents); it ends with ctx.
func (f Finder) Await(ctx context.Context, serial string) (string, error) {
	events, err := listen()
	if err != nil {
		return "", fmt.Errorf("listening for devices: %w", err)
	}
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { events.SetReadDeadline(time.Unix(1, 0)) }) //nolint:errcheck // then the next look ends it
	defer stop()
	for {
		device, err := f.Find(serial)
		if err == nil {
			if err = openable(device); err == nil {
				return device, nil
			}
		} else if !errors.Is(err, ErrAbsent) {
			return "", err
		}
		if ctx.Err() != nil {
			return "", fmt.Errorf("%w: %w", err, context.Cause(ctx))
		}
		if err := events.SetReadDeadline(time.Now().Add(lookAgain)); err != nil {
			return "", err
		}
		if ctx.Err() == nil {
			untilBlock(events)
		}
	}
}

// openable reports whether the device's node is there; it is made a moment after the
// device where a device manager makes it.
func openable(device string) error {
	d, err := os.Open(device)
	if err != nil {
		return err
	}
	return d.Close()
}

// listen opens a socket that hears of devices (netlink(7), NETLINK_KOBJECT_UEVENT; group
// 1 is the kernel's).
func listen() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "uevents"), nil
}

// untilBlock returns when the kernel tells of a block device, when something was missed,
// and at the socket's deadline.
func untilBlock(events *os.File) {
	buf := make([]byte, 8<<10)
	for {
		n, err := events.Read(buf)
		if err != nil || isBlock(buf[:n]) {
			return
		}
	}
}

// isBlock reports whether a uevent is of a block device: words, each ended by a zero byte.
func isBlock(event []byte) bool {
	for word := range bytes.SplitSeq(event, []byte{0}) {
		if string(word) == "SUBSYSTEM=block" {
			return true
		}
	}
	return false
}
