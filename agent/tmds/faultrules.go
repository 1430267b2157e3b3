package tmds

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"berth.dev/berth/eni"
)

// faultTable begins the name of the nftables table that holds a task's faults, in the
// task's own network, or in the host's for a task that uses that.
const faultTable = "berth_fault_"

// inject carries out one operation. The faults are chains, each with a hook of its own, so
// that there is nothing to remember: a new agent finds them, and they go with the network.
func (s *Server) inject(ctx context.Context, taskID string, f *fault, op string) (status string, err error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	s.mu.Lock()
	e := s.endpoints[keyOf(taskID, hostName)]
	s.mu.Unlock()
	if e == nil {
		return "", errors.New("the task has no endpoint")
	}
	t := &nftables.Table{Name: faultTable + taskID, Family: nftables.TableFamilyINet}
	err = inNamespace(e.namespace, func(c *nftables.Conn) error {
		chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
		if err != nil {
			return err
		}
		running, others, elsewhere := false, 0, false
		for _, ch := range chains {
			if ch.Name == faultLatency && ch.Table.Name != t.Name && strings.HasPrefix(ch.Table.Name, faultTable) {
				elsewhere = true // of another task in the host's network
			}
			if ch.Table.Name != t.Name {
				continue
			}
			if ch.Name == f.chain() {
				running = true
			} else {
				others++
			}
		}
		switch op {
		case "status":
			status = "not-running"
			if running {
				status = "running"
			}
			return nil
		case "stop":
			status = "stopped"
			if !running {
				return nil
			}
			if others == 0 {
				c.DelTable(t)
			} else {
				ch := &nftables.Chain{Name: f.chain(), Table: t}
				c.FlushChain(ch)
				c.DelChain(ch)
			}
			if err := c.Flush(); err != nil || f.kind != faultLatency {
				return err
			}
			return removeDelay(e.namespace)
		}
		status = "running"
		switch {
		case running && f.kind != faultBlackhole:
			return errFaultRuns
		case running:
			return nil
		}
		if f.kind == faultLatency {
			if elsewhere {
				return errFaultRuns
			}
			// An agent that ended in between has left queues without a chain.
			if err := removeDelay(e.namespace); err != nil {
				return err
			}
			if err := addDelay(e.namespace, f); err != nil {
				return err
			}
		}
		c.AddTable(t)
		f.add(c, t)
		if err := c.Flush(); err != nil {
			if f.kind == faultLatency {
				err = errors.Join(err, removeDelay(e.namespace))
			}
			return err
		}
		return nil
	})
	return status, err
}

// inNamespace gives fn a connection to nftables in the network at path; "" is the host's.
func inNamespace(path string, fn func(c *nftables.Conn) error) (err error) {
	var options []nftables.ConnOption
	if path != "" {
		ns, err := eni.OpenNamespace(path)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, ns.Close()) }()
		options = append(options, nftables.WithNetNSFd(ns.Fd()))
	}
	c, err := nftables.New(options...)
	if err != nil {
		return err
	}
	return fn(c)
}

// add adds the chain of a fault.
func (f *fault) add(c *nftables.Conn, t *nftables.Table) {
	hook, far := nftables.ChainHookOutput, addressTo
	if f.kind == faultBlackhole && *f.TrafficType == "ingress" {
		hook, far = nftables.ChainHookInput, addressFrom
	}
	ch := c.AddChain(&nftables.Chain{Name: f.chain(), Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter})
	rule := func(parts ...[]expr.Any) {
		var all []expr.Any
		for _, p := range parts {
			all = append(all, p...)
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: all})
	}
	accept, drop := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}, []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	for _, p := range f.except {
		rule(far(p), accept)
	}
	if f.kind == faultBlackhole {
		rule(f.port(), drop)
		return
	}
	if f.kind == faultLatency {
		for _, p := range f.sources {
			rule(far(p), f.flows(p), slow())
		}
		return
	}
	for _, p := range f.sources {
		rule(far(p), f.flows(p), percent(uint32(*f.LossPercent)), drop)
	}
}

// port matches the port of a blackhole.
func (f *fault) port() []expr.Any {
	proto := byte(unix.IPPROTO_TCP)
	if *f.Protocol == "udp" {
		proto = unix.IPPROTO_UDP
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, *f.Port)},
	}
}

// flows matches a part of the flows, always the same: those whose ports and addresses
// hash to it.
func (f *fault) flows(p netip.Prefix) []expr.Any {
	if f.FlowsPercent == nil || *f.FlowsPercent == 100 {
		return nil
	}
	offset, size := uint32(12), uint32(8) // source and destination
	if p.Addr().Is6() {
		offset, size = 8, 32
	}
	registers := (size + 3) / 4
	return []expr.Any{
		&expr.Payload{DestRegister: unix.NFT_REG32_00, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Payload{DestRegister: unix.NFT_REG32_00 + registers, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 4},
		&expr.Hash{SourceRegister: unix.NFT_REG32_00, DestRegister: unix.NFT_REG32_15, Length: size + 4, Modulus: 100, Seed: 0x62657274, Type: expr.HashTypeJenkins},
		&expr.Byteorder{SourceRegister: unix.NFT_REG32_15, DestRegister: unix.NFT_REG32_15, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: unix.NFT_REG32_15, Data: binary.BigEndian.AppendUint32(nil, uint32(*f.FlowsPercent))},
	}
}

// percent matches that part of all packets, at random.
func percent(n uint32) []expr.Any {
	if n >= 100 {
		return nil
	}
	return []expr.Any{
		&expr.Numgen{Register: 1, Modulus: 100, Type: unix.NFT_NG_RANDOM},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binary.BigEndian.AppendUint32(nil, n)},
	}
}

func addressTo(p netip.Prefix) []expr.Any   { return addressAt(p, 16, 24) }
func addressFrom(p netip.Prefix) []expr.Any { return addressAt(p, 12, 8) }

// addressAt matches an address at its offset in the header of its family.
func addressAt(p netip.Prefix, offset4, offset6 uint32) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), offset4
	if p.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, offset6
	}
	n := uint32(p.Addr().BitLen() / 8)
	mask := make([]byte, n)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: n, Mask: mask, Xor: make([]byte, n)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Addr().AsSlice()},
	}
}

// hostFaults lists the tasks that have faults in the host's network.
func hostFaults() ([]string, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, t := range tables {
		if id, ours := strings.CutPrefix(t.Name, faultTable); ours {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// removeHostFaults takes away the faults of a task in the host's network.
func removeHostFaults(taskID string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: faultTable + taskID, Family: nftables.TableFamilyINet}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return err
	}
	for _, ch := range chains {
		if ch.Table.Name == t.Name && ch.Name == faultLatency {
			if err := removeDelay(""); err != nil {
				return err
			}
		}
	}
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	return c.Flush()
}
