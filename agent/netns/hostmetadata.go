package netns

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"berth.dev/berth/cni-plugins/ecs-bridge/bridge"
)

// Group is a version 2 cgroup: its directory, and how many levels it is below the root.
type Group struct {
	Dir   string
	Level int
}

// metadataTable is the nftables table in the host's network that keeps tasks there from the
// host's metadata.
func (n *Network) metadataTable() *nftables.Table {
	return &nftables.Table{Name: n.host.Config().Table + "_metadata", Family: nftables.TableFamilyINet}
}

// KeepFromMetadata keeps programs in the host's network from the metadata and credentials of
// the host, if they are in the cgroup of tasks, as those in mode bridge are kept from it. With
// nil all may ask. A rule for the same group is left as it is.
func (n *Network) KeepFromMetadata(tasks *Group) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := n.metadataTable()
	chains, err := c.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	chains = slices.DeleteFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name != t.Name })
	if tasks == nil {
		if len(chains) == 0 {
			return nil
		}
		c.DelTable(t)
		return c.Flush()
	}
	// The inode of a cgroup is its id (kernel, cgroup_id).
	var st unix.Stat_t
	if err := unix.Stat(tasks.Dir, &st); err != nil {
		return fmt.Errorf("cgroup of tasks %s: %w", tasks.Dir, err)
	}
	name := fmt.Sprintf("output_%x_%d", st.Ino, tasks.Level)
	if slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return c.Name == name }) {
		return nil // with its rules, since they were made at once
	}
	c.AddTable(t)
	if len(chains) > 0 {
		c.DelTable(t)
		c.AddTable(t)
	}
	ch := c.AddChain(&nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter})
	for _, p := range bridge.HostMetadata() {
		to := toAddress(p.Addr())
		from := []expr.Any{
			&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: uint32(tasks.Level), Register: 1}, //nolint:gosec // a few
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint64(nil, st.Ino)},
		}
		tcp := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: slices.Concat(to, from, tcp)})
		rest := &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: append(slices.Concat(to, from), rest)})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables rules for the cgroup of tasks: %w", err)
	}
	return nil
}

// toAddress matches packets to an address.
func toAddress(a netip.Addr) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(16)
	if a.Is6() {
		family, offset = unix.NFPROTO_IPV6, 24
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(a.AsSlice()))}, //nolint:gosec // 4 or 16
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
	}
}
