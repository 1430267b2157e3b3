package plan

import (
	"slices"
	"time"

	"berth.dev/berth/agent/task"
)

// base is one resource that containers stand on besides what every task has (admission,
// cgroup, networks, images): a volume, secrets, a metadata endpoint. A kind becomes part
// of the graph by a function that lists its bases for a task, called in bases, and by an
// adapter in agent/daemon; everything else (order, recovery, failure, removal) follows
// from the members here.
type base struct {
	id    task.ResourceID
	after []task.ResourceID // must be Present before it is made; gone after it
	users []string          // containers that stand on it; nil means all
	limit time.Duration     // of one Ensure; 0 means never
	life  life
	where where
}

// life says when a base is taken away again.
type life int

const (
	asProcesses life = iota // as soon as no process of a stopped task is left
	asRecords               // with the containers' records, after the retention time
)

// where says what a restart of the agent does to a base.
type where int

const (
	// onHost: it outlives the agent. A restart probes it; where it is gone, what uses it
	// is ended, because a process would run on with less than was promised to it.
	onHost where = iota
	// forCreation: it lives in the agent's memory and is used up when its containers are
	// created. A restart makes it again only while one is still to be created.
	forCreation
	// inAgent: it lives in the agent and serves running processes. A restart makes it
	// again as long as the task is to run or processes of it are still ending; a process
	// is never ended for the want of it.
	inAgent
)

// bases lists the bases of a task in the order in which they are made: one that comes
// after another stands behind it in the list.
func bases(t *task.Task) []base {
	return slices.Concat(
		storageBases(t),
		namespaceBases(t),
		volumeBases(t),
		endpointBases(t),
		secretBases(t),
		routerBases(t),
	)
}

// namespaceBases is the holder of the namespaces that a task's containers share.
func namespaceBases(t *task.Task) []base {
	if t.PidMode != "task" && t.IpcMode != "task" {
		return nil
	}
	return []base{{
		id: task.ResourceID{Kind: task.KindNamespace, Name: "task"}, after: []task.ResourceID{Cgroup}, limit: setupTimeout,
	}}
}

// endpointBases lists the metadata endpoints, one for each network.
func endpointBases(t *task.Task) []base {
	var out []base
	for _, network := range networks(t) {
		b := base{
			id:    task.ResourceID{Kind: task.KindEndpoint, Name: network.Name},
			after: []task.ResourceID{network}, limit: setupTimeout, where: inAgent,
		}
		if ownNetworks(t) {
			b.users = []string{network.Name}
		}
		out = append(out, b)
	}
	return out
}

// Storage is the resource of a task's limited storage.
var Storage = task.ResourceID{Kind: task.KindStorage, Name: "task"}

// storageBases lists the limited storage of a task that has one. The containers' layers
// are in it, so it stays as long as their records.
func storageBases(t *task.Task) []base {
	if t.Storage <= 0 {
		return nil
	}
	return []base{{id: Storage, limit: setupTimeout, life: asRecords}}
}

// volumeBases lists the volumes of a task. One whose data goes with the task stays as
// long as the records of the containers, which people may still want to look at.
func volumeBases(t *task.Task) []base {
	out := make([]base, 0, len(t.Volumes))
	for i := range t.Volumes {
		v := &t.Volumes[i]
		b := base{id: task.ResourceID{Kind: task.KindVolume, Name: v.Name}, users: []string{}, limit: setupTimeout}
		if v.OfTask() {
			b.life = asRecords
			if t.Storage > 0 {
				b.after = []task.ResourceID{Storage}
			}
		}
		if v.Type == task.VolumeBlock {
			b.limit = deviceTimeout
		}
		if v.Type == task.VolumeEFS {
			b.limit = remoteTimeout
		}
		if v.Type == task.VolumeEFS && t.NetworkMode == task.NetworkAWSVPC {
			b.after = []task.ResourceID{sharedNetwork} // the mount belongs to it
		}
		for j := range t.Containers {
			c := t.Containers[j].Name
			if slices.ContainsFunc(t.MountsOf(c), func(m task.Mount) bool { return m.Volume == v.Name }) {
				b.users = append(b.users, c)
			}
		}
		out = append(out, b)
	}
	return out
}

// secretBases lists the values that a task's definition only refers to. One resource
// fetches those of all containers, because the services answer many at a time.
func secretBases(t *task.Task) []base {
	b := base{id: Secrets, limit: secretsTimeout, where: forCreation}
	for i := range t.Containers {
		if c := &t.Containers[i]; len(c.Secrets) > 0 || len(c.EnvFiles) > 0 {
			b.users = append(b.users, c.Name)
		}
	}
	if b.users == nil {
		return nil
	}
	// The log router is given the secret log options of all containers.
	if r := t.LogRouter(); r != nil && !slices.Contains(b.users, r.Name) {
		b.users = append(b.users, r.Name)
	}
	return []base{b}
}

// routerBases lists the files of a task's log router.
func routerBases(t *task.Task) []base {
	r := t.LogRouter()
	if r == nil {
		return nil
	}
	return []base{{id: LogRouter, users: []string{r.Name}, limit: setupTimeout}}
}

// uses reports whether a container stands on the base.
func (b *base) uses(container string) bool {
	return b.users == nil || slices.Contains(b.users, container)
}

// usersOf lists the containers that stand on the base.
func (b *base) usersOf(t *task.Task) []task.Container {
	if b.users == nil {
		return t.Containers
	}
	return slices.DeleteFunc(slices.Clone(t.Containers), func(c task.Container) bool { return !b.uses(c.Name) })
}

// baseOf returns the base with this id, or nil.
func baseOf(t *task.Task, id task.ResourceID) *base {
	for _, b := range bases(t) {
		if b.id == id {
			return &b
		}
	}
	return nil
}

// makeBases makes the bases whose own footing is there.
func (d *decision) makeBases() {
	for _, b := range d.bases {
		if b.where != inAgent && !d.wanted(&b) {
			continue
		}
		if !slices.ContainsFunc(b.after, func(id task.ResourceID) bool { return !d.present(id) }) {
			d.ensure(b.id, b.limit)
		}
	}
}

// serveEnding makes again what lived in an agent that has ended, for the processes of a
// stopping task: they may need it for as long as they take to end.
func (d *decision) serveEnding() {
	for _, b := range d.bases {
		if b.where != inAgent || d.rec(b.id).Phase != task.Ensuring {
			continue
		}
		runs := slices.ContainsFunc(b.usersOf(d.t), func(c task.Container) bool { return d.rec(Container(c.Name)).Running() })
		if runs && !slices.ContainsFunc(b.after, func(id task.ResourceID) bool { return !d.present(id) }) {
			d.ensure(b.id, b.limit)
		}
	}
}

// basesPresent reports whether everything is there that a container is created on.
func (d *decision) basesPresent(container string) bool {
	return !slices.ContainsFunc(d.bases, func(b base) bool { return b.uses(container) && !d.present(b.id) })
}

// wanted reports whether a container that stands on the base is still to be created.
func (d *decision) wanted(b *base) bool {
	return slices.ContainsFunc(b.usersOf(d.t), func(c task.Container) bool {
		r := d.rec(Container(c.Name))
		return r.Phase == task.Absent || r.Phase == task.Ensuring
	}) || len(b.usersOf(d.t)) == 0
}

// confirmBase settles a base that lived in the memory of an agent that has ended.
func (d *decision) confirmBase(b *base) {
	r := d.rec(b.id)
	if !r.Unconfirmed || b.where == onHost {
		return
	}
	r.Unconfirmed = false
	if r.Phase == task.Present {
		r.Phase = task.Ensuring
	}
}

// failedBase returns the reason of a base whose failure ends the task, if one failed.
func (d *decision) failedBase() (id task.ResourceID, reason *task.Reason, failed bool) {
	for _, b := range d.bases {
		r := d.rec(b.id)
		if r.Phase == task.Failed && (b.where != inAgent || d.wanted(&b)) {
			return b.id, r.Reason, true
		}
	}
	return task.ResourceID{}, nil, false
}

// removeBases takes away the bases of one life, the last made first, and reports
// whether they are gone.
func (d *decision) removeBases(l life) bool {
	gone := true
	held := make(map[task.ResourceID]bool) // what one that is still there stands on
	for _, b := range slices.Backward(d.bases) {
		switch {
		case b.life != l:
			continue
		case held[b.id]:
			gone = false
		case d.remove(b.id):
			continue
		default:
			gone = false
		}
		for _, id := range b.after {
			held[id] = true
		}
	}
	return gone
}
