// Package sched decides where tasks run. It holds no connection, file, clock or
// goroutine: a State is a value in memory that the caller fills from its records,
// and Place, Start and Query.Match are decisions over it that give the same answer
// for the same input.
//
// # Use
//
//	s := sched.NewState()
//	s.SetInstance(instance)            // register, re-register, drain, connect
//	s.Reserve(reservation)             // once for each task that already exists
//
//	need, err := sched.NeedOf(definition, overrides)
//	constraints, err := sched.Constraints(definition.PlacementConstraints, in.PlacementConstraints)
//	strategies, err := sched.Strategies(in.PlacementStrategy)
//	result, err := sched.Place(s, sched.Request{...})   // reserves what it places
//	...
//	s.Release(taskARN)                 // the task stopped, or its commit failed
//
// A State belongs to one goroutine at a time (the placer); it has no lock.
//
// # Order of a decision
//
// Candidates are the ACTIVE instances with a connected agent that have room for the
// task and its required attributes; constraints narrow them; strategies narrow them
// further one after the other; what is still tied is decided by the fewest tasks on
// the instance and then by the lower ARN. Without a strategy a task is spread over
// zones and inside a zone over instances (ECS API reference, "Placement").
//
// # Index
//
// Instances that are alike in status and attributes form a class. Attributes and
// constraints are decided once per class, and each class keeps its instances in the
// orders that strategies ask for, in chunks that know the most room any of their
// members has. So a decision looks at a few chunks and not at every instance. If
// attributes differ too much to form few classes, those with the most values are
// left out of the classes and looked at per instance.
package sched

import (
	"errors"
	"time"
)

// Instance states that matter to placement (ECS API, ContainerInstance.status).
const (
	StatusActive   = "ACTIVE"
	StatusDraining = "DRAINING"
)

// Attribute names with a meaning of their own (ECS API reference, "Placement").
const (
	AttributeZone         = "ecs.availability-zone"
	AttributeOSFamily     = "ecs.os-family"
	AttributeArchitecture = "ecs.cpu-architecture"
)

// Reasons of failures (ECS API reference, "failures[] semantics").
const (
	ReasonCPU       = "RESOURCE:CPU"
	ReasonMemory    = "RESOURCE:MEMORY"
	ReasonPorts     = "RESOURCE:PORTS"
	ReasonPortsUDP  = "RESOURCE:PORTS_UDP"
	ReasonGPU       = "RESOURCE:GPU"
	ReasonAgent     = "AGENT"
	ReasonAttribute = "ATTRIBUTE"
	ReasonMemberOf  = "MemberOf placement constraint unsatisfied."
	ReasonDistinct  = "distinctInstance placement constraint unsatisfied."
	ReasonMissing   = "MISSING"
	ReasonInactive  = "INACTIVE"
)

// ErrNoInstances is returned by Place when the cluster has no ACTIVE container
// instance at all, which the API answers with an error instead of failures.
var ErrNoInstances = errors.New("no container instances were found in your cluster")

// Instance is a container instance as placement sees it. Values are copied into the
// State except the map and the slices, which the caller must not change afterwards.
type Instance struct {
	ARN            string
	Status         string // StatusActive takes tasks, any other does not
	AgentConnected bool
	AgentVersion   string
	EC2InstanceID  string
	RegisteredAt   time.Time
	Attributes     map[string]string // an attribute without a value has ""
	Total          Resources         // registered resources
	ReservedTCP    []uint16          // host ports no task may have (registered PORTS)
	ReservedUDP    []uint16          // registered PORTS_UDP
}

// Resources is an amount of CPU and memory and a set of GPUs.
type Resources struct {
	CPU    int64    // CPU units, 1024 to a core
	Memory int64    // MiB
	GPUs   []string // device IDs
}

// Need is what one task takes from the instance it runs on.
type Need struct {
	CPU    int64    // CPU units
	Memory int64    // MiB
	GPUs   int      // number of devices
	TCP    []uint16 // fixed host ports
	UDP    []uint16
}

// Attribute is required of an instance; an empty Value accepts any value.
type Attribute struct{ Name, Value string }

// Request asks for one placement for each entry of Tasks.
type Request struct {
	Tasks       []string    // ARNs of the tasks to place, 1 to 10 in RunTask
	Group       string      // task group: what spread and distinctInstance count
	Need        Need        // of each task
	Attributes  []Attribute // required attributes of the task definition
	Constraints []Constraint
	Strategies  []Strategy // none: spread over zones, then over instances
	Seed        uint64     // with the task, decides the random strategy
}

// Reservation is what one task holds on an instance.
type Reservation struct {
	Task     string // ARN
	Instance string // ARN
	Group    string
	Need     Need
	GPUs     []string // devices held; chosen by Reserve when nil and Need.GPUs > 0
	Running  bool     // counts for runningTasksCount of the query language
}

// Placement is one task with the instance chosen for it.
type Placement struct {
	Task     string   // ARN
	Instance string   // ARN
	GPUs     []string // devices chosen, as many as Need.GPUs
}

// Failure says why one task was not placed, naming the instance that came closest.
type Failure struct {
	Task     string
	Instance string // ARN; what the API answers as failures[].arn
	Reason   string
}

// Result has one entry for each task of the request, in one list or the other, both
// in the order of Request.Tasks.
type Result struct {
	Placed []Placement
	Failed []Failure
}

// Remaining is what is left on an instance.
type Remaining struct {
	CPU, Memory int64 // may be negative after an instance re-registered with less
	TCP, UDP    []uint16
	GPUs        []string // free devices, in registered order
}
