// Package cni connects network namespaces to networks of the operator's, by other
// people's CNI plugins: those of a configuration list (macvlan, ptp, portmap, bandwidth,
// ...) run one after the other through the CNI project's own library.
//
// # What is on the host
//
//	<ConfigDir>/*.conflist, *.conf, *.json   the networks, as the operator wrote them
//	<Dir>/records/<hash>        one record of an attachment, JSON
//	<Dir>/records/<hash>.lock   held by whoever works on the attachment, plugins included
//	<Dir>/results/              results of plugins, written by the CNI library
//
// The hash is of the container id and the interface's name. A record is written and
// fsynced before the first plugin is executed, and removed after the last one has undone
// its part; results are fsynced before anybody uses them. The record holds the
// configuration as it was then, so that an attachment is undone by the plugins that made
// it, whatever the operator has changed since. A failed ADD is followed by its DEL at
// once, one that a crash interrupted by the DEL that comes with the removal of its task.
//
// # Plugins
//
// A plugin gets of the environment only what CNI says and PATH, so none of the agent's
// keys. It is ended with all that it started when its time is over, and with the agent.
// Should something of it live on after a crash, the next agent waits for it, by the lock
// that it has inherited, before it undoes the attachment.
package cni
