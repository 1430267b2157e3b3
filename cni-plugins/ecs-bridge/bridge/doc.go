// Package bridge connects network namespaces to the host through a Linux bridge, with
// addresses, masquerading and published ports. It is the code of the ecs-bridge CNI
// plugin and is called in process by the agent, so that both leave the same things on
// the host. It speaks netlink and nftables itself and executes nothing.
//
// # What is on the host
//
//	bridge          Config.Bridge with the first address of the subnet
//	host veth       brth<11 hex digits of a hash of bridge, container id, interface name>
//	inet table      Config.Table: map "published" (protocol . port -> address . port),
//	                set "hairpin", set "peers" (address . address), and the chains below
//	bridge table    Config.Table: which port may send from which MAC and address
//	<Dir>/<address> one reservation, JSON, written and fsynced before anything else of
//	                an attachment is made and removed after everything else is gone
//	<Dir>/host.json sysctls as they were before, for Teardown
//
// A reservation holds everything that an attachment consists of. It is the intent log
// and the stored CNI result in one: whatever a crash leaves behind can be found and
// removed from it, and the nftables sets can be rebuilt from all of them (Setup does).
// A file that does not decode (an empty one, after a power cut on a file system that
// reorders) belongs to nobody; it is treated as free and removed when it is found while
// no other process is adding.
//
// # Isolation
//
// A namespace gets its address as a /32 and reaches everything through the bridge's
// address. The bridge table lets no frame pass from port to port, and drops every
// frame whose interface, source MAC and source address (or ARP sender) do not belong
// together; the forward chain lets a namespace be reached only by replies, through
// published ports, and by namespaces of its own group (Request.Group: the containers of
// one task), which reach it directly, at every port and with their own addresses, routed
// by the host like all else. The set "peers" has every pair of a group; it has pairs and
// not group numbers because nftables compares no two values of a packet, and nft (1.0.6)
// aborts when it lists the rule that does so by a second lookup. The bridge needs route_localnet for ports on 127.0.0.1, so packets
// that arrive from it for 127.0.0.0/8 are dropped before anything else.
//
// The kernel's own port isolation flag is not used: where br_netfilter is active for
// bridges (sysctl net.bridge.bridge-nf-call-iptables, set by default and needed by other
// container tools), a packet for another namespace's published port is translated on
// the bridge and sent on from port to port, also back to the port that it came from
// (hence hairpin mode), which the flag would forbid. The rule of the bridge table lets
// pass what was translated, and works the same whether br_netfilter is active or not.
//
// # IPv6
//
// With Config.Subnet6 each attachment has an IPv6 address beside its IPv4 address, at the
// same place in its subnet, so that one reservation is for both. The sets with a 6 at the
// end of their names are to IPv6 what the others are to IPv4. Where ARP is checked by its
// sender, neighbour discovery is checked by its target: a namespace may advertise its own
// address only, and nothing that routers say. Ports are published on the host's IPv6
// addresses as well; a port is taken in both families or in none. The host forwards IPv6
// then; interfaces that learn routes from router advertisements are told to go on
// (accept_ra 2), and Teardown puts both back.
//
// # Published ports
//
// A port is one element of a map. Publishing and withdrawing are one nftables batch
// per attachment, whatever the number of ports and attachments. Translation applies to
// packets for any local address, from outside, from the host itself (also 127.0.0.1),
// from other namespaces and from the publishing namespace itself.
//
// There is no window in which a port could belong to two: a socket is bound and
// listening on 0.0.0.0:port before the element is committed, which fails if anybody else has
// the port, and is closed after it. From the commit on the kernel hands all IPv4 traffic for the port
// to the namespace, so that a process binding it later gets none; this needs no process
// of ours to be alive. With Config.Hold the socket stays open as long as the port is
// published and its Host is open (and is opened again by Setup), so that such a process
// gets EADDRINUSE instead of silence. A socket that cannot be opened again, because
// somebody took the port while the agent was down, is logged; traffic still goes to
// the namespace.
//
// # Other firewalls
//
// Only the two tables above are touched. nftables evaluates every table's chains of a
// hook: an accept of ours cannot overrule another table's drop. Where a firewall drops
// forwarded packets by policy, ForwardDrops names the chain, and the operator has to
// accept traffic from and to the bridge in it.
package bridge
