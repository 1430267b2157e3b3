package eni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// rescan is how often all links are looked at while a device is waited for, because an
// event can be lost (agent protocol, "ENI watcher").
const rescan = 30 * time.Second

// ErrNoDevice says that no interface on the host has the MAC address.
var ErrNoDevice = errors.New("no interface has this MAC address")

// ParseMAC reads a MAC address of six bytes.
func ParseMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("MAC address %q: must be six bytes as 02:00:00:00:00:01", s)
	}
	return mac, nil
}

// derived kinds of links have the MAC address of the device that they are made on.
var derived = []string{"bridge", "vlan", "bond", "team", "ipvlan"}

// FindByMAC returns the device with a MAC address. Links that borrow the address of
// another, as a bridge does of its port, are passed over.
func FindByMAC(h *netlink.Handle, mac net.HardwareAddr) (netlink.Link, error) {
	links, err := h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		if isDevice(l, mac) {
			return l, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return nil, fmt.Errorf("%w: %s", ErrNoDevice, mac)
}

// FindVLAN returns the VLAN interface with a MAC address of its own.
func FindVLAN(h *netlink.Handle, mac net.HardwareAddr) (netlink.Link, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		if l.Type() == "vlan" && bytes.Equal(l.Attrs().HardwareAddr, mac) {
			return l, nil
		}
	}
	return nil, fmt.Errorf("%w: %s", ErrNoDevice, mac)
}

func isDevice(l netlink.Link, mac net.HardwareAddr) bool {
	a := l.Attrs()
	return bytes.Equal(a.HardwareAddr, mac) && a.Flags&net.FlagLoopback == 0 && !slices.Contains(derived, l.Type())
}

// Await returns the name of the device with a MAC address on this host as soon as the
// kernel has it. It ends with ctx.
func Await(ctx context.Context, mac net.HardwareAddr) (name string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return "", fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	events := make(chan netlink.LinkUpdate, 64)
	lost := make(chan struct{}, 1)
	// Events first and then a look at what is there, so that nothing falls in between.
	err = netlink.LinkSubscribeWithOptions(events, ctx.Done(), netlink.LinkSubscribeOptions{ErrorCallback: func(error) {
		select {
		case lost <- struct{}{}:
		default:
		}
	}})
	if err != nil {
		return "", fmt.Errorf("watch interfaces: %w", err)
	}
	defer drain(events)
	defer cancel()
	tick := time.NewTicker(rescan)
	defer tick.Stop()
	for {
		l, err := FindByMAC(h, mac)
		if err == nil {
			return l.Attrs().Name, nil
		}
		if !errors.Is(err, ErrNoDevice) {
			return "", err
		}
		if err := awaitEvent(ctx, events, lost, tick.C, mac); err != nil {
			return "", fmt.Errorf("%w: %w", ErrNoDevice, err)
		}
	}
}

// awaitEvent returns when it is worth looking again.
func awaitEvent(ctx context.Context, events <-chan netlink.LinkUpdate, lost <-chan struct{}, tick <-chan time.Time, mac net.HardwareAddr) error {
	for {
		select {
		case e, open := <-events:
			if !open {
				events = nil // the ticker goes on
				continue
			}
			if e.Header.Type == unix.RTM_NEWLINK && isDevice(e.Link, mac) {
				return nil
			}
		case <-lost:
			return nil
		case <-tick:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// drain lets the goroutine of a subscription end, which may be about to send.
func drain(events <-chan netlink.LinkUpdate) {
	go func() {
		for range events {
			continue
		}
	}()
}
