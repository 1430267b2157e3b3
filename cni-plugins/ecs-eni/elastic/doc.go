// Package elastic gives network namespaces elastic network interfaces: it finds a device
// of the host by its MAC address, moves it into the namespace, and gives it its name,
// addresses and routes. A branch interface, which is a VLAN on a trunk, it makes first.
// It is the code of the CNI plugins ecs-eni and ecs-branch-eni, and is called in process
// by the agent, so that all leave the same things on the host. It speaks netlink and
// executes nothing.
//
// # What is on the host
//
//	<Dir>/<hash>   one record of an attachment, JSON, written and fsynced before anything
//	               else is changed and removed after everything else is gone
//
// The hash is of the container id and the interface's name. The record holds all that an
// attachment consists of, so it is intent log and stored CNI result in one: what a crash
// left can be found and undone by it. A record that does not decode belongs to nobody; a
// new attachment of the same key replaces it, and a collection removes it.
//
// # How an attachment ends
//
// A device that the plugin was given is brought down, renamed to eni<MAC address> and
// given back to the host, as hardware outlives a task. One that it made itself, or that
// the caller gave away (Request.Discard), is deleted.
package elastic
