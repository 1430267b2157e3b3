// Package join tests how a host becomes a member of a cluster, with the cluster and the
// agent's side of it in one process.
package join
