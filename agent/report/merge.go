package report

import (
	"cmp"
	"slices"

	"berth.dev/berth/agent/task"
)

// row is one change that waits to be sent. A Seq of 0 is not in the outbox: it was
// asked for by Resync.
type row struct {
	seq    uint64
	change task.Change
}

// group returns how many of the rows at the front may be sent as one: all of them, but
// RUNNING is not skipped, because the cluster learns only from it when a task started,
// and what tells of attachments goes alone.
func group(rows []row) int {
	for i := 1; i < len(rows); i++ {
		if len(rows[i-1].change.Attachments) > 0 || len(rows[i].change.Attachments) > 0 {
			return i
		}
		if rows[i-1].change.Status == task.StatusRunning && rows[i].change.Status > task.StatusRunning {
			return i
		}
	}
	return len(rows)
}

// mergeAll merges rows that are sent as one, in their order.
func mergeAll(rows []row) task.Change {
	c := rows[0].change
	c.Containers = slices.Clone(c.Containers)
	for _, r := range rows[1:] {
		c = merge(c, r.change)
	}
	return c
}

// merge adds a later change of the same task to an earlier one. What the later one says
// wins and what it does not say is kept; a status never falls and an exit code never
// goes away. The containers of a are changed in place.
func merge(a, b task.Change) task.Change {
	a.Status = max(a.Status, b.Status)
	a.TaskARN = cmp.Or(b.TaskARN, a.TaskARN)
	a.ClusterARN = cmp.Or(b.ClusterARN, a.ClusterARN)
	a.Reason = cmp.Or(b.Reason, a.Reason)
	if !b.PullStarted.IsZero() {
		a.PullStarted = b.PullStarted
	}
	if !b.PullStopped.IsZero() {
		a.PullStopped = b.PullStopped
	}
	if !b.ExecutionStopped.IsZero() {
		a.ExecutionStopped = b.ExecutionStopped
	}
	for _, c := range b.Containers {
		i := slices.IndexFunc(a.Containers, func(have task.ContainerChange) bool { return have.Name == c.Name })
		if i < 0 {
			a.Containers = append(a.Containers, c)
			continue
		}
		a.Containers[i] = mergeContainer(a.Containers[i], c)
	}
	return a
}

func mergeContainer(a, b task.ContainerChange) task.ContainerChange {
	a.Status = max(a.Status, b.Status)
	a.RuntimeID = cmp.Or(b.RuntimeID, a.RuntimeID)
	a.Digest = cmp.Or(b.Digest, a.Digest)
	a.Reason = cmp.Or(b.Reason, a.Reason)
	if b.Exit != nil {
		a.Exit = b.Exit
	}
	if len(b.Bindings) > 0 {
		a.Bindings = b.Bindings
	}
	return a
}
