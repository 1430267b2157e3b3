package stats

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace whose traffic is read. It holds a netlink socket that
// was opened inside, which goes on to speak for that namespace from anywhere.
type Namespace struct {
	fd  int
	seq uint32
}

// OpenNamespace opens the namespace that is bound to path.
func OpenNamespace(path string) (*Namespace, error) {
	target, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer target.Close()
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		// The thread enters the namespace and is never used for anything else again: a
		// goroutine that ends while locked takes its thread with it.
		runtime.LockOSThread()
		if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{-1, fmt.Errorf("enter network namespace %s: %w", path, err)}
			return
		}
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		done <- result{fd, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, r.err
	}
	// A kernel that does not answer must not hold up the others.
	if err := unix.SetsockoptTimeval(r.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}); err != nil {
		unix.Close(r.fd) //nolint:errcheck // nothing was sent
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	return &Namespace{fd: r.fd}, nil
}

// Close closes the socket.
func (ns *Namespace) Close() {
	unix.Close(ns.fd) //nolint:errcheck // nothing is in flight
}

// Layout of the messages (linux/if_link.h, linux/netlink.h, linux/rtnetlink.h).
const (
	rtmGetStats   = 94 // RTM_GETSTATS
	rtmNewStats   = 92 // RTM_NEWSTATS
	headerSize    = unix.SizeofNlMsghdr
	statsMsgSize  = 12 // struct if_stats_msg
	statsLink64   = 1  // IFLA_STATS_LINK_64
	link64Size    = 8 * 8
	loopbackIndex = 1 // the loopback is the first interface of every namespace
)

// Read sums the counters of all interfaces but the loopback, a veth's own end as much as
// a network card (kernel document networking/statistics).
func (ns *Namespace) Read(s *Sample, buf []byte) error {
	ns.seq++
	var req [headerSize + statsMsgSize]byte
	binary.NativeEndian.PutUint32(req[0:], uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], rtmGetStats)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(req[8:], ns.seq)
	binary.NativeEndian.PutUint32(req[headerSize+8:], 1<<(statsLink64-1)) // filter_mask
	if _, err := unix.Write(ns.fd, req[:]); err != nil {
		return fmt.Errorf("ask for interface counters: %w", err)
	}
	var total Network
	for {
		n, err := unix.Read(ns.fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("read interface counters: %w", err)
		}
		done, err := sumLinks(&total, buf[:n], ns.seq)
		if err != nil {
			return err
		}
		if done {
			s.Network = total
			s.Has |= HasNetwork
			return nil
		}
	}
}

// sumLinks adds the counters in one datagram of a dump and reports whether it is the last.
func sumLinks(total *Network, b []byte, seq uint32) (done bool, err error) {
	for len(b) >= headerSize {
		size := int(binary.NativeEndian.Uint32(b))
		if size < headerSize || size > len(b) {
			return false, fmt.Errorf("interface counters: a message of %d bytes in %d", size, len(b))
		}
		m := b[:size]
		b = b[min(len(b), (size+3)&^3):]
		if binary.NativeEndian.Uint32(m[8:]) != seq {
			continue // left over from a request that was given up
		}
		switch binary.NativeEndian.Uint16(m[4:]) {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if size >= headerSize+4 {
				if code := int32(binary.NativeEndian.Uint32(m[headerSize:])); code != 0 {
					return false, fmt.Errorf("interface counters: %w", unix.Errno(-code))
				}
			}
			return true, nil
		case rtmNewStats:
			addLink(total, m[headerSize:])
		}
	}
	return false, nil
}

func addLink(total *Network, m []byte) {
	if len(m) < statsMsgSize || binary.NativeEndian.Uint32(m[4:]) == loopbackIndex {
		return
	}
	for a := m[statsMsgSize:]; len(a) >= 4; {
		size, kind := int(binary.NativeEndian.Uint16(a)), binary.NativeEndian.Uint16(a[2:])
		if size < 4 || size > len(a) {
			return
		}
		if kind == statsLink64 && size >= 4+link64Size {
			at := func(i int) uint64 { return binary.NativeEndian.Uint64(a[4+8*i:]) }
			total.RxPackets += at(0)
			total.TxPackets += at(1)
			total.RxBytes += at(2)
			total.TxBytes += at(3)
			total.RxErrors += at(4)
			total.TxErrors += at(5)
			total.RxDropped += at(6)
			total.TxDropped += at(7)
		}
		a = a[min(len(a), (size+3)&^3):]
	}
}
