package main

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// device is the task's interface.
const device = "eth0"

// Link is the task's interface as it sees it.
type Link struct {
	MAC       []byte
	Addresses []string
	Err       string
}

func link() Link {
	i, err := net.InterfaceByName(device)
	if err != nil {
		return Link{Err: err.Error()}
	}
	out := Link{MAC: i.HardwareAddr}
	addrs, err := i.Addrs()
	for _, a := range addrs {
		out.Addresses = append(out.Addresses, a.String())
	}
	out.Err = text(err)
	return out
}

// frames sends Ethernet frames as they are.
func frames(list [][]byte) error {
	i, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	defer unix.Close(fd)
	for _, f := range list {
		if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: i.Index}); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}

// ownAddress tries to give the task's interface the well-known address (netdevice(7)).
func ownAddress() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(device)
	if err != nil {
		return err
	}
	if err := req.SetInet4Addr([]byte{169, 254, 170, 2}); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCSIFADDR, req)
}
