package bridge

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// portKey is one port of the host.
type portKey struct {
	proto uint8 // unix.IPPROTO_TCP or IPPROTO_UDP
	port  uint16
}

func (k portKey) String() string { return fmt.Sprintf("%d/%s", k.port, protocolName(k.proto)) }

func protocolName(p uint8) string {
	if p == unix.IPPROTO_UDP {
		return "udp"
	}
	return "tcp"
}

func protocolNumber(name string) uint8 {
	if name == "udp" {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

// keys are the host ports of p.
func (p Port) keys() []portKey {
	out := make([]portKey, p.count())
	for i := range out {
		out[i] = portKey{protocolNumber(p.Protocol), p.HostPort + uint16(i)}
	}
	return out
}

func validatePorts(ports []Port) error {
	for _, p := range ports {
		switch {
		case p.Protocol != "tcp" && p.Protocol != "udp":
			return fail(Invalid, "port mapping of container port %d: protocol %q is neither tcp nor udp", p.ContainerPort, p.Protocol)
		case p.ContainerPort == 0:
			return fail(Invalid, "port mapping of host port %d: the container port is missing", p.HostPort)
		case int(p.ContainerPort)+p.count() > 1<<16 || int(p.HostPort)+p.count() > 1<<16:
			return fail(Invalid, "port mapping of container port %d: the range ends above 65535", p.ContainerPort)
		}
	}
	return nil
}

// sockets are the bound sockets that keep host ports from other processes, by port.
type sockets map[portKey]int

// families says whether a port is taken of IPv4 alone or of both.
type families int

const (
	onlyIPv4 families = unix.AF_INET
	both     families = unix.AF_INET6
)

// wildcard is the address that stands for all of them.
func (f families) wildcard(port uint16) unix.Sockaddr {
	if f == both {
		return &unix.SockaddrInet6{Port: int(port)}
	}
	return &unix.SockaddrInet4{Port: int(port)}
}

// bind takes one port, or says unix.EADDRINUSE. A TCP socket is made a listening one,
// because two sockets with SO_REUSEADDR of which none listens may share a port; without
// SO_REUSEADDR connections of an earlier server in TIME_WAIT would keep the port busy.
// Nothing is ever accepted: nftables takes the traffic before it gets to the socket.
func (s sockets) bind(k portKey, f families) error {
	kind := unix.SOCK_STREAM
	if k.proto == unix.IPPROTO_UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(int(f), kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	if f == both {
		// Whatever net.ipv6.bindv6only says.
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0))
	}
	if err == nil && k.proto == unix.IPPROTO_TCP {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, f.wildcard(k.port)))
	}
	if err == nil && k.proto == unix.IPPROTO_TCP {
		err = os.NewSyscallError("listen", unix.Listen(fd, 1))
	}
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	s[k] = fd
	return nil
}

// families are those that ports are published for.
func (h *Host) families() families {
	if h.cfg.Subnet6.IsValid() {
		return both
	}
	return onlyIPv4
}

// close gives ports back.
func (s sockets) close() error {
	var errs []error
	for k, fd := range s {
		errs = append(errs, os.NewSyscallError("close", unix.Close(fd)))
		delete(s, k)
	}
	return errors.Join(errs...)
}

// choosePorts gives every port of the request its host port and binds it. The caller
// holds h.mu and closes what was bound when it fails.
func (h *Host) choosePorts(want []Port) (ports []Port, bound sockets, err error) {
	bound = sockets{}
	for _, p := range want {
		p.Dynamic = p.HostPort == 0
		if p.Dynamic {
			err = h.bindDynamic(&p, bound)
		} else {
			err = h.bindStatic(p, bound)
		}
		if err != nil {
			return nil, nil, errors.Join(err, bound.close())
		}
		ports = append(ports, p)
	}
	return ports, bound, nil
}

func (h *Host) bindStatic(p Port, bound sockets) error {
	for _, k := range p.keys() {
		if owner, ok := h.ports[k]; ok {
			// It may be on its way out, so that asking again helps.
			return fail(Exhausted, "a host port is unavailable: %s is published by %s", k, owner.ID)
		}
		if _, twice := bound[k]; twice {
			return fail(Invalid, "a host port is unavailable: %s is asked for twice", k)
		}
		if err := bound.bind(k, h.families()); err != nil {
			if errors.Is(err, unix.EADDRINUSE) {
				return fail(PortTaken, "a host port is unavailable: %s is in use by another process on this host", k)
			}
			return fmt.Errorf("a host port is unavailable: %s: %w", k, err)
		}
	}
	return nil
}

// bindDynamic looks for free consecutive ports from the last assigned one on, wrapping
// once (agent protocol, "Ports").
func (h *Host) bindDynamic(p *Port, bound sockets) error {
	first, last := int(h.firstPort), int(h.lastPort)
	n := p.count()
	start := int(h.nextPort)
	if start < first || start > last {
		start = first
	}
	total := last - first + 1
	for tried := 0; tried < total; {
		at := first + (start-first+tried)%total
		if at+n-1 > last {
			tried++
			continue
		}
		p.HostPort = uint16(at)
		busy, err := h.bindRun(p.keys(), bound)
		if err != nil {
			return err
		}
		if busy < 0 {
			h.nextPort = uint16(at + n) // one past the last port wraps to 0, and so to the first
			return nil
		}
		tried += busy + 1
	}
	if n > 1 {
		return fail(Exhausted, "%d contiguous host ports are unavailable in %d-%d", n, first, last)
	}
	return fail(Exhausted, "a host port is unavailable: every %s port of %d-%d is in use", p.Protocol, first, last)
}

// bindRun binds all of keys or none, and returns the index of the first busy one, or -1.
func (h *Host) bindRun(keys []portKey, bound sockets) (busy int, err error) {
	f := h.families()
	run := sockets{}
	for i, k := range keys {
		_, ours := h.ports[k]
		_, twice := bound[k]
		if !ours && !twice {
			err = run.bind(k, f)
			if err == nil {
				continue
			}
			if !errors.Is(err, unix.EADDRINUSE) {
				return 0, errors.Join(fmt.Errorf("a host port is unavailable: %s: %w", k, err), run.close())
			}
		}
		return i, run.close()
	}
	for k, fd := range run {
		bound[k] = fd
	}
	return -1, nil
}
