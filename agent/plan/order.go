package plan

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"berth.dev/berth/agent/task"
)

// Validate reports why a task could never be carried out: a container name that is
// missing or used twice, or dependencies or links that lead nowhere or in a circle.
func Validate(t *task.Task) error {
	if len(t.Containers) == 0 {
		return task.Failf(task.Invalid, task.TaskDependency, "task has no containers, taskArn: %s", t.ARN)
	}
	index := make(map[string]int, len(t.Containers))
	for i := range t.Containers {
		name := t.Containers[i].Name
		if name == "" {
			return task.Failf(task.Invalid, task.TaskDependency, "containers[%d].name is empty, taskArn: %s", i, t.ARN)
		}
		if _, twice := index[name]; twice {
			return task.Failf(task.Invalid, task.TaskDependency, "container name %q is used twice, taskArn: %s", name, t.ARN)
		}
		index[name] = i
	}
	const open, closed = 1, 2
	mark := make([]int, len(t.Containers))
	var visit func(i int) bool
	visit = func(i int) bool {
		switch mark[i] {
		case open:
			return false
		case closed:
			return true
		}
		mark[i] = open
		for _, name := range needs(&t.Containers[i]) {
			j, known := index[name]
			if !known || !visit(j) {
				return false
			}
		}
		mark[i] = closed
		return true
	}
	for i := range t.Containers {
		if !visit(i) {
			// The words are the protocol's ("Adding a task").
			return task.Failf(task.Invalid, task.TaskDependency, "Task dependencies cannot be resolved, taskArn: %s", t.ARN)
		}
	}
	return nil
}

// needs lists the containers that c waits for with anything.
func needs(c *task.Container) []string {
	var names []string
	for _, dep := range conditions(c) {
		names = append(names, dep.Container)
	}
	return names
}

// conditionCreate is the condition that volumesFrom stands for: the other container has
// been created (agent protocol, "Dependencies").
const conditionCreate task.Condition = "CREATE"

// conditions lists what a container waits for: its dependsOn, that what it links to has
// started, and that what it takes volumes from has been created.
func conditions(c *task.Container) []task.Dependency {
	deps := slices.Clone(c.DependsOn)
	for _, name := range linked(c) {
		deps = append(deps, task.Dependency{Container: name, Condition: task.ConditionStart})
	}
	for _, v := range c.VolumesFrom {
		deps = append(deps, task.Dependency{Container: v.Container, Condition: conditionCreate})
	}
	return deps
}

// linked lists the containers that c links to, each as NAME or NAME:ALIAS.
func linked(c *task.Container) []string {
	var names []string
	for _, l := range c.Links {
		name, _, _ := strings.Cut(l, ":")
		names = append(names, name)
	}
	return names
}

// linksPresent reports whether the networks are there whose addresses c's network needs.
func (d *decision) linksPresent(c *task.Container) bool {
	if !ownNetworks(d.t) {
		return true
	}
	for _, name := range linked(c) {
		if !d.present(Network(d.t, name)) {
			return false
		}
	}
	return true
}

// links fails the networks that can never be made, because one that they need failed.
func (d *decision) links() {
	if d.k.Desired == task.StatusStopped || !ownNetworks(d.t) {
		return
	}
	for again := true; again; { // a failure may go on along a chain of links
		again = false
		for i := range d.t.Containers {
			again = d.failLinking(&d.t.Containers[i]) || again
		}
	}
}

func (d *decision) failLinking(c *task.Container) bool {
	id := Network(d.t, c.Name)
	r := d.rec(id)
	if r.Phase != task.Absent && r.Phase != task.Ensuring || r.Verb != task.VerbNone || r.Unconfirmed {
		return false
	}
	for _, name := range linked(c) {
		if d.rec(Network(d.t, name)).Phase != task.Failed {
			continue
		}
		r := d.touch(id)
		r.Phase, r.NotBefore = task.Failed, time.Time{}
		r.Reason = &task.Reason{Code: task.ContainerNetworking, Detail: fmt.Sprintf("container %s links to container %s, which has no network", c.Name, name)}
		d.event(task.EventActionFailed, id, task.VerbNone, r.Reason.String())
		return true
	}
	return false
}

// dependenciesMet reports whether everything that a container waits for has come
// about (agent protocol, "Dependencies").
func (d *decision) dependenciesMet(c *task.Container) bool {
	for _, dep := range conditions(c) {
		if met, _ := d.condition(dep); !met {
			return false
		}
	}
	return true
}

// condition reports whether a dependency is met, and if it never will be, why.
func (d *decision) condition(dep task.Dependency) (met bool, never string) {
	r := d.rec(Container(dep.Container))
	stopped := ContainerStatus(d.t, d.k, dep.Container) == task.ContainerStopped
	exit := r.LastExit()
	if stopped && r.Started.IsZero() && (exit == nil || r.Phase == task.Failed) {
		return false, "dependency did not start"
	}
	switch dep.Condition {
	case conditionCreate:
		return r.Phase == task.Present || r.Phase == task.Stopping || r.Restarts > 0 || stopped, ""
	case task.ConditionStart:
		return r.Running() || r.Restarts > 0 || stopped, ""
	case task.ConditionComplete:
		if stopped && exit == nil {
			return false, "how the container ended is not known"
		}
		return stopped, ""
	case task.ConditionSuccess:
		switch {
		case stopped && exit == nil:
			return false, "how the container ended is not known"
		case stopped && exit.Code != 0:
			return false, fmt.Sprintf("container exited with code %d", exit.Code)
		}
		return stopped, ""
	case task.ConditionHealthy:
		return d.conditionHealthy(dep.Container, r, stopped)
	default:
		return false, fmt.Sprintf("unknown condition %q", dep.Condition)
	}
}

func (d *decision) conditionHealthy(name string, r *task.Record, stopped bool) (met bool, never string) {
	switch {
	case healthcheck(d.t.Container(name), d.s) == nil:
		return false, "container has no health check"
	case r.Health != nil && r.Health.Status == task.HealthHealthy:
		return true, ""
	case stopped:
		return false, "container stopped before it was healthy"
	default:
		return false, ""
	}
}

// dependencies fails the containers whose dependencies can no longer be met.
func (d *decision) dependencies() {
	if d.k.Desired == task.StatusStopped {
		return
	}
	for again := true; again; { // a failure may go on along a chain of dependencies
		again = false
		for i := range d.t.Containers {
			again = d.failDepending(&d.t.Containers[i]) || again
		}
	}
}

func (d *decision) failDepending(c *task.Container) bool {
	r := d.rec(Container(c.Name))
	if r.Phase != task.Absent || r.Verb != task.VerbNone || r.Unconfirmed || d.rec(Network(d.t, c.Name)).Phase == task.Failed {
		return false
	}
	for _, dep := range conditions(c) {
		if why := d.failedDependency(dep); why != "" {
			d.failDependent(c, dep, why)
			return true
		}
	}
	return false
}

func (d *decision) failedDependency(dep task.Dependency) string {
	met, never := d.condition(dep)
	if met || never != "" {
		return never
	}
	on := d.t.Container(dep.Container)
	started := d.rec(Container(dep.Container)).Started
	if dep.Condition == task.ConditionStart || dep.Condition == conditionCreate || on.StartTimeout <= 0 || started.IsZero() {
		return ""
	}
	if end := started.Add(on.StartTimeout); d.now.Before(end) {
		d.wake(end)
		return ""
	}
	return fmt.Sprintf("dependency on container %s with condition %s has timed out.", dep.Container, dep.Condition)
}

func (d *decision) failDependent(c *task.Container, dep task.Dependency, why string) {
	id := Container(c.Name)
	r := d.touch(id)
	r.Phase = task.Failed
	r.Exit = &task.Exit{Code: exitDependency, At: d.now}
	r.Reason = &task.Reason{
		Code:   task.CannotStartContainer,
		Detail: fmt.Sprintf("dependency graph: container %s: dependency on %s with condition %s not resolved: %s", c.Name, dep.Container, dep.Condition, why),
	}
	d.event(task.EventActionFailed, id, task.VerbNone, r.Reason.String())
}

// dependentsStopped reports whether every container that depends on name has ended,
// so that a task is stopped in the reverse of the order in which it was started.
func (d *decision) dependentsStopped(name string) bool {
	for i := range d.t.Containers {
		c := &d.t.Containers[i]
		if slices.Contains(needs(c), name) && ContainerStatus(d.t, d.k, c.Name) != task.ContainerStopped {
			return false
		}
	}
	return true
}

// confirm asks the runtime about everything that is recorded but not confirmed,
// which after a restart of the agent is everything.
func (d *decision) confirm() {
	for i := range d.bases {
		d.confirmBase(&d.bases[i])
	}
	for _, id := range resources(d.t) {
		r, recorded := d.k.Resources[id]
		if !recorded || !r.Unconfirmed {
			continue
		}
		if !needsProbe(id, r) {
			r.Unconfirmed = false // Ensure and Remove may be repeated, whatever became of them
			continue
		}
		d.probe(id, r)
	}
}

func (d *decision) probe(id task.ResourceID, r *task.Record) {
	if r.Probing {
		return
	}
	if d.now.Before(r.ProbeAt) {
		d.wake(r.ProbeAt)
		return
	}
	r.Probing = true
	d.step.Do = append(d.step.Do, Action{Resource: id, Verb: task.VerbProbe, Attempt: r.ProbeFailed, Incarnation: r.Incarnation, Deadline: probeTimeout})
}

// needsProbe reports whether a record says something that only the world can confirm.
func needsProbe(id task.ResourceID, r *task.Record) bool {
	switch id.Kind {
	case task.KindContainer:
		return r.Phase == task.Present || r.Phase == task.Stopping || r.Phase == task.Ensuring
	case task.KindAdmission, task.KindImage:
		return false
	default:
		return r.Phase == task.Present
	}
}

// relist has every running process probed now and then, because an event may have
// been missed without anybody noticing.
func (d *decision) relist() {
	if d.s.Relist <= 0 {
		return
	}
	for i := range d.t.Containers {
		id := Container(d.t.Containers[i].Name)
		r := d.rec(id)
		if !r.Running() || r.Verb != task.VerbNone || r.Probing || r.Unconfirmed {
			continue
		}
		if r.ProbeAt.IsZero() {
			r.ProbeAt = d.now.Add(d.s.Relist/2 + spread(d.s.Relist, d.t.ARN, i))
		}
		d.probe(id, r)
	}
}

// resources lists every resource of a task, in the order in which they are made.
func resources(t *task.Task) []task.ResourceID {
	ids := make([]task.ResourceID, 0, 2+3*len(t.Containers))
	ids = append(ids, Admission, Cgroup)
	ids = append(ids, networks(t)...)
	for _, b := range bases(t) {
		ids = append(ids, b.id)
	}
	for i := range t.Containers {
		ids = append(ids, Image(t.Containers[i].Name))
	}
	for i := range t.Containers {
		ids = append(ids, Container(t.Containers[i].Name))
	}
	return ids
}

// Suspect marks what runs of a task as unconfirmed: events may have been missed.
func Suspect(k *task.Known) {
	for id, r := range k.Resources {
		if id.Kind == task.KindContainer && r.Running() && r.Verb == task.VerbNone {
			r.Unconfirmed = true
			r.ProbeAt = time.Time{}
		}
	}
}
