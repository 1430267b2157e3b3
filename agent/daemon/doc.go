// Package daemon puts the agent together: it opens the state, connects the adapters,
// starts the engine and the sessions with the cluster, and ends them in the reverse
// order. It is the only package that knows every concrete type.
//
// # Start
//
// The state comes first, because it says who this agent is. Registration with the
// cluster and the host's side (containerd, the bridge, the parent cgroup) are prepared
// at the same time; the engine starts when the host's side is there and takes every
// task up where it was left; then the agent is ready. The session with the cluster is
// opened last, when there is an engine to hand its messages to.
//
// # Stop
//
// The session ends first, then the engine, then the state is closed with the mark of a
// clean end. No container is stopped: tasks do not need the agent.
package daemon
