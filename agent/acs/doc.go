// Package acs is the agent's side of the agent communication service: it opens the
// websocket to the cluster, keeps it open, opens it again when it ends, and hands each
// message to the handler (agent protocol, "ACS websocket").
//
// One goroutine of a session reads and calls the handler, one message at a time and in
// order; another one writes what the handler answers. Frames that cannot be decoded
// are logged, without their content, and passed over.
package acs
