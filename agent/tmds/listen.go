package tmds

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"

	"berth.dev/berth/eni"
)

// wellKnown is where tasks expect the endpoints (agent protocol, "Server").
const wellKnown = "169.254.170.2"

const (
	wellKnownPort = 80
	// listenPort is the port of the reference agent; another is used where a task has it.
	listenPort = 51679
	// tableName is the nftables table inside a task's namespace.
	tableName = "berth_metadata"
)

// listen opens the endpoint's socket inside the namespace at path and makes the
// well-known address lead there. A socket that was kept there from an agent before this one
// is taken again; one of another namespace is closed. It reports whether it was kept.
func listen(path string, old net.Listener) (l net.Listener, kept bool, err error) {
	ns, err := eni.OpenNamespace(path)
	if err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	if err := address(ns); err != nil {
		return nil, false, fmt.Errorf("address of the metadata endpoint: %w", err)
	}
	if old != nil {
		if kept, err = listensIn(ns, old); err != nil || !kept {
			err = errors.Join(err, old.Close())
		}
		if err != nil {
			return nil, false, fmt.Errorf("kept socket of the metadata endpoint: %w", err)
		}
	}
	if l = old; !kept {
		err = ns.Do(func() error {
			l, err = listenHere(listenPort)
			if errors.Is(err, unix.EADDRINUSE) {
				l, err = listenHere(0)
			}
			return err
		})
	}
	if err != nil {
		return nil, false, fmt.Errorf("listen for metadata requests: %w", err)
	}
	if err := rewrite(ns, uint16(l.Addr().(*net.TCPAddr).Port)); err != nil {
		return nil, false, errors.Join(fmt.Errorf("nftables in the task's network: %w", err), l.Close())
	}
	return l, kept, nil
}

// listensIn reports whether a listener is one of listenHere in that namespace. A path may
// lead to another namespace than when the socket was made.
func listensIn(ns *eni.Namespace, l net.Listener) (bool, error) {
	tcp, ok := l.(*net.TCPListener)
	if !ok || tcp.Addr().(*net.TCPAddr).IP.String() != wellKnown {
		return false, nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false, err
	}
	var of, here unix.Stat_t
	var inner error
	err = raw.Control(func(fd uintptr) {
		var own int
		if own, inner = unix.IoctlRetInt(int(fd), unix.SIOCGSKNS); inner == nil {
			inner = errors.Join(unix.Fstat(own, &of), unix.Close(own))
		}
	})
	err = errors.Join(err, inner, unix.Fstat(ns.Fd(), &here))
	return err == nil && of.Ino == here.Ino && of.Dev == here.Dev, err
}

// listenHere listens in the namespace of the calling thread.
func listenHere(port int) (net.Listener, error) {
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var inner error
		err := raw.Control(func(fd uintptr) { inner = unix.BindToDevice(int(fd), "lo") })
		return errors.Join(err, inner)
	}}
	return c.Listen(context.Background(), "tcp4", net.JoinHostPort(wellKnown, strconv.Itoa(port)))
}

// address gives the loopback device the well-known address.
func address(ns *eni.Namespace) error {
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByIndex(1)
	if err != nil {
		return err
	}
	a := netip.MustParseAddr(wellKnown)
	err = h.AddrReplace(lo, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	if err != nil {
		return err
	}
	return h.LinkSetUp(lo)
}

// rewrite makes packets to the well-known port go to port, and the answers come from the
// well-known port. It tracks no connections, which would cost every packet of the task. A
// table is there already when the agent was restarted. It is replaced only if it is for
// another port: when one goes the kernel waits for all processors, 20 ms as a rule.
func rewrite(ns *eni.Namespace, port uint16) error {
	c, err := nftables.New(nftables.WithNetNSFd(ns.Fd()))
	if err != nil {
		return err
	}
	err = makeTable(c, port, false)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name == tableName && c.Name == chainName(port) }) {
		return nil // with its rules, since they were made at once
	}
	return makeTable(c, port, true)
}

// chainName is the name of the chain that rewrites to port.
func chainName(port uint16) string { return fmt.Sprintf("output_%d", port) }

func makeTable(c *nftables.Conn, port uint16, replace bool) error {
	t := &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4}
	if replace {
		c.DelTable(t)
	}
	c.CreateTable(t)
	chain := c.AddChain(&nftables.Chain{
		Name: chainName(port), Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityMangle,
	})
	const destination, source = 16, 12 // of the address in the IPv4 header
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: translate(destination, 2, wellKnownPort, port)})
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: translate(source, 0, port, wellKnownPort)})
	return c.Flush()
}

// translate changes a TCP port of packets that have the well-known address at offset
// addr of the network header and the port from at offset at of the transport header.
func translate(addr, at uint32, from, to uint16) []expr.Any {
	ip := netip.MustParseAddr(wellKnown).As4()
	const checksum = 16 // of the TCP header
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: addr, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ip[:]},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: at, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, from)},
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(to)},
		&expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: at, Len: 2,
			CsumType: expr.CsumTypeInet, CsumOffset: checksum,
		},
	}
}

// hostListener is the listener for tasks in the host's network, at one address or, where that
// was taken, at another for the tasks that came then.
type hostListener struct {
	kept Kept
	log  *slog.Logger
	mu   sync.Mutex
	at   string // where new tasks are sent
	http map[string]*http.Server
}

// open opens the listener at an address, or at the one for new tasks with "", and returns
// which it is. A port that another program has is replaced by a free one.
func (h *hostListener) open(addr, preferred string, server func() *http.Server) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fixed := addr != ""
	if !fixed {
		addr = cmp.Or(h.at, preferred)
	}
	if h.http[addr] != nil {
		return addr, nil
	}
	l, kept := h.kept.Take(hostKey(addr))
	var err error
	if !kept {
		l, err = net.Listen("tcp4", addr)
	}
	if !fixed && errors.Is(err, unix.EADDRINUSE) {
		l, err = net.Listen("tcp4", "127.0.0.1:0")
	}
	if err != nil {
		return "", fmt.Errorf("metadata endpoint of tasks in the host's network: %w", err)
	}
	addr = l.Addr().String()
	if !kept {
		if err := h.kept.Keep(hostKey(addr), l); err != nil {
			h.log.Warn("the metadata endpoint of tasks in the host's network will be closed while the agent is restarted", "err", err)
		}
	}
	s := server()
	if h.http == nil {
		h.http = make(map[string]*http.Server)
	}
	h.http[addr] = s
	if h.at == "" {
		h.at = addr
	}
	go s.Serve(netutil.LimitListener(l, maxConns)) //nolint:errcheck // ends with Close
	return addr, nil
}

// close returns the servers, which the caller ends.
func (h *hostListener) close() []*http.Server {
	h.mu.Lock()
	defer h.mu.Unlock()
	servers := slices.Collect(maps.Values(h.http))
	h.http = nil
	return servers
}
