// Package acs holds the messages of the agent communication service, the websocket
// over which a cluster gives work to an agent (agent protocol, "ACS websocket" and
// "PayloadMessage task model"). Both directions are here, so that agents and clusters
// share one definition. The package does no I/O and imports only the standard library.
//
// A frame is one JSON object {"type": "<name>", "message": {...}}. Decode checks a
// frame's size and shape before any value is built from it, so that what a frame costs
// in memory is bounded whatever its sender meant. No error text of this package holds
// more than 32 bytes of what was received.
package acs
