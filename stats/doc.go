// Package stats reads what containers use of a host: CPU, memory, processes and block
// I/O from their cgroups (version 1 and 2), and network traffic from their namespaces.
//
// One Collector reads all containers in one loop. Files and sockets are opened once per
// container and read into one buffer, so that a sample costs a few system calls and no
// memory. What is read is folded at once into sets of minimum, maximum, sum and count,
// which a publisher takes every 20 s; no history of samples is kept.
//
// Counters never go back: where the kernel starts again from zero, because a container
// was restarted or its cgroup made anew, the collector goes on from the last value.
package stats
