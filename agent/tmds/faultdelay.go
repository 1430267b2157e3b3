package tmds

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"berth.dev/berth/eni"
)

// A latency fault has two parts. On each interface by which the task leaves its network
// there is a queueing discipline with two ways out: one that delays (netem), and one that
// everything takes that nothing else is said of. And a chain of nftables, as the other
// faults have one, says of the packets to the sources that they take the first.
//
// delayMajor is the major number of the queueing discipline, by which it is known to be
// ours; delayed is the class of packets that are delayed.
const (
	delayMajor = 0xbe27
	delayed    = delayMajor<<16 | 1
)

// maxDelay is the longest delay and jitter in milliseconds.
const maxDelay = 60 * 60 * 1000

// Errors of latency faults that the task is told.
var (
	errNoNetem  = errors.New("this host's kernel cannot delay packets: it has no netem (sch_netem, sch_prio)")
	errNoDevice = errors.New("failed to resolve default host network interface")
	errQueues   = errors.New("the network interface has queueing rules of its own, which a latency fault would replace")
)

// routes gives fn a connection to the network at path; "" is the host's.
func routes(path string, fn func(h *netlink.Handle) error) (err error) {
	var h *netlink.Handle
	if path == "" {
		h, err = netlink.NewHandle()
	} else {
		var ns *eni.Namespace
		if ns, err = eni.OpenNamespace(path); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, ns.Close()) }()
		h, err = ns.Netlink()
	}
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(h)
}

// ways are the interfaces of the default routes.
func ways(h *netlink.Handle) ([]int, error) {
	var out []int
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := h.RouteList(nil, family)
		if err != nil {
			return nil, fmt.Errorf("routes: %w", err)
		}
		for _, r := range list {
			if ones, _ := maskOf(&r); ones == 0 && r.LinkIndex > 1 && !slices.Contains(out, r.LinkIndex) {
				out = append(out, r.LinkIndex)
			}
		}
	}
	if len(out) == 0 {
		return nil, errNoDevice
	}
	return out, nil
}

// maskOf is the length of a route's prefix; a default route may have none at all.
func maskOf(r *netlink.Route) (ones, bits int) {
	if r.Dst == nil {
		return 0, 0
	}
	return r.Dst.Mask.Size()
}

// addDelay makes the queueing disciplines, all or none.
func addDelay(path string, f *fault) error {
	return routes(path, func(h *netlink.Handle) error {
		links, err := ways(h)
		if err != nil {
			return err
		}
		for _, index := range links {
			if err := delayLink(h, index, f); err != nil {
				return errors.Join(err, removeQueues(h))
			}
		}
		return nil
	})
}

func delayLink(h *netlink.Handle, index int, f *fault) error {
	link, err := h.LinkByIndex(index)
	if err != nil {
		return err
	}
	there, err := h.QdiscList(link)
	if err != nil {
		return err
	}
	for _, q := range there {
		if a := q.Attrs(); a.Parent == netlink.HANDLE_ROOT && a.Handle != 0 { // the kernel's own have no number
			if a.Handle>>16 == delayMajor {
				return errFaultRuns
			}
			return errQueues
		}
	}
	root := netlink.NewPrio(netlink.QdiscAttrs{LinkIndex: index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(delayMajor, 0)})
	for i := range root.PriorityMap {
		root.PriorityMap[i] = 2 // the last way
	}
	if err := h.QdiscAdd(root); err != nil {
		return delayError(err)
	}
	return delayError(h.QdiscAdd(netlink.NewNetem(
		netlink.QdiscAttrs{LinkIndex: index, Parent: netlink.MakeHandle(delayMajor, 1), Handle: netlink.MakeHandle(delayMajor+1, 0)},
		netlink.NetemQdiscAttrs{Latency: uint32(*f.DelayMilliseconds) * 1000, Jitter: uint32(*f.JitterMilliseconds) * 1000, Limit: 10000},
	)))
}

// delayError names what a kernel without the modules answers.
func delayError(err error) error {
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EOPNOTSUPP) {
		return errNoNetem
	}
	return err
}

// removeDelay takes our queueing disciplines away; without any it does nothing.
func removeDelay(path string) error { return routes(path, removeQueues) }

func removeQueues(h *netlink.Handle) error {
	links, err := h.LinkList()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		list, err := h.QdiscList(l)
		errs = append(errs, err)
		for _, q := range list {
			if a := q.Attrs(); a.Parent == netlink.HANDLE_ROOT && a.Handle>>16 == delayMajor {
				errs = append(errs, h.QdiscDel(q))
			}
		}
	}
	return errors.Join(errs...)
}

// slow has packets take the way that delays.
func slow() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(delayed)},
		&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: 1},
	}
}
