// Package runtime is the adapter to containerd and the only importer of its client. It
// works with containerd 1.6.20 and later; what a daemon can do is asked once per
// connection.
//
// It uses containerd's basic services and as few metadata transactions as it can: a
// container costs one snapshot and one record. There is no lease per container; the
// snapshot carries the label that makes it a root of garbage collection until Remove
// takes it away. All identifiers derive from the task, so that whatever a crash leaves
// is found again: a create that meets its own remains adopts them.
//
// On containerd 2.x the containers of a task share one shim. The first one, the leader,
// is created alone; its sandbox record then lets the others join its shim. The leader's
// process is deleted last, because the others are found through it. Every container has
// a sandbox record there, for another reason too: see keep.
//
// Container output goes to a logger process by a "binary://" URI, so that nothing
// depends on the agent being alive.
//
// What containerd calls a task is called a process here.
package runtime
