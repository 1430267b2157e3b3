// Package vpc is the cluster's record of networks: VPCs, subnets, security groups and
// their rules, and the network interfaces of tasks with the addresses that they lease.
// All of it works on the store's transactions; nobody is called.
//
// # Defaults
//
// There is always a default VPC with one subnet and its default security group, made the
// first time anybody asks. Every VPC has a group named default, whose members reach each
// other and everything outside.
//
// # Addresses
//
// A subnet leases its addresses one by one: a record per address, written in the
// transaction that writes the interface and the task, so that no address is ever given
// twice, whichever process of the cluster gives it. The first four addresses and the last
// are not given out (Amazon VPC guide, "Subnet sizing"); the first is the gateway's.
// Subnets do not overlap, also those of different VPCs, because hosts route between them.
package vpc
