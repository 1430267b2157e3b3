// Package report tells the cluster what became of the tasks. It sends the rows of the
// outbox, in order for each task and for at most ten tasks at once, until the cluster
// has accepted them; only then are they deleted. What the cluster refuses as invalid is
// dropped, with a line in the task's event log: sending it again would be refused again
// and hold up what follows.
//
// Rows of one task that wait together are sent as one, see merge. A row may be sent
// twice, when the agent dies between sending it and deleting it, and is never lost.
package report
