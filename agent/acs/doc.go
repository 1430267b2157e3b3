// Package acs is the agent's side of the agent communication service: it hands each
// message of the cluster to the handler, one at a time and in order, and sends what the
// handler answers (agent protocol, "ACS websocket"). The connection itself is kept by
// agent/session. Frames that cannot be decoded are logged, without their content, and
// passed over.
package acs
