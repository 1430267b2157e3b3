// Package tmds holds the documents of the task metadata endpoints, versions 2, 3 and 4,
// of the credentials, task protection and fault injection endpoints, and of the agent's
// introspection API (agent protocol, "Task metadata server" and "Introspection API").
// Names of members are those that clients of the reference agent read.
package tmds
