package task

import (
	"encoding/json"
	"time"
)

// Verb is something that can be done to a resource.
type Verb string

// Verbs. Stop delivers the stop signal, Kill ends all processes at once; both return
// when the signal is delivered, and the end itself comes as an observation. Retire
// frees what an ended process still holds and keeps what people look at afterwards:
// the container's record, its files and its log.
const (
	VerbNone   Verb = ""
	VerbEnsure Verb = "Ensure"
	VerbStart  Verb = "Start"
	VerbStop   Verb = "Stop"
	VerbKill   Verb = "Kill"
	VerbRetire Verb = "Retire"
	VerbRemove Verb = "Remove"
	VerbProbe  Verb = "Probe"
	VerbCheck  Verb = "Check" // runs a container's health check once
)

// Resource kinds. The order in which a task's resources are made is in agent/plan.
const (
	KindAdmission = "admission" // the task's share of the host's CPU, memory and ports
	KindCgroup    = "cgroup"    // the parent cgroup of the task; one, named "task"
	KindNetwork   = "network"   // a network namespace: named as its container, or "task" where all share one
	KindImage     = "image"     // the image of one container; named as the container
	KindLogRouter = "logrouter" // the files of a task's log router; one, named "task"
	KindSecrets   = "secrets"   // the values of a task's secrets and environment files; one, named "task"
	KindVolume    = "volume"    // a volume that a driver makes; named as the volume
	KindEndpoint  = "endpoint"  // a metadata endpoint; named as the network that it serves
	KindStorage   = "storage"   // the limited storage of a task's layers and volumes; one, named "task"
	KindNamespace = "namespace" // namespaces that the containers of a task share; one, named "task"
	KindContainer = "container" // one container and its process; named as the container
)

// ResourceID names one resource of one task.
type ResourceID struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// String is "kind/name".
func (id ResourceID) String() string { return id.Kind + "/" + id.Name }

// Handle is what an adapter needs to find again what it made, as JSON of its own
// type. It is stored with the record and handed back unchanged.
type Handle = json.RawMessage

// Record is everything that is known of one resource, and is stored as it stands.
//
// A Verb that is set was intended and has not settled. After a restart of the agent
// it may or may not have happened, which a probe finds out.
type Record struct {
	Phase     Phase     `json:"phase"`
	Verb      Verb      `json:"verb,omitempty"`
	Attempts  int       `json:"attempts,omitempty"` // failures of the present verb in a row
	NotBefore time.Time `json:"notBefore,omitzero"` // when the verb may be tried again
	Handle    Handle    `json:"handle,omitempty"`
	Reason    *Reason   `json:"reason,omitempty"` // the first final failure; kept

	// For images: the resolved manifest digest and when bytes moved. PutOff says that an
	// early pull failed and the next waits for the container's dependencies.
	Digest      string    `json:"digest,omitempty"`
	PullStarted time.Time `json:"pullStarted,omitzero"`
	PullStopped time.Time `json:"pullStopped,omitzero"`
	PutOff      bool      `json:"putOff,omitempty"`

	// For networks: the published ports by container name.
	Bindings map[string][]Binding `json:"bindings,omitempty"`

	// For containers.
	RuntimeID   string    `json:"runtimeId,omitempty"`
	Created     time.Time `json:"created,omitzero"`
	StartIntent bool      `json:"startIntent,omitempty"` // a Start was committed at least once
	Started     time.Time `json:"started,omitzero"`
	StopSent    time.Time `json:"stopSent,omitzero"` // when the stop signal was delivered
	KillSent    time.Time `json:"killSent,omitzero"`
	Exit        *Exit     `json:"exit,omitempty"`
	Retired     bool      `json:"retired,omitempty"`

	// For containers with a restart policy. Everything above is of the present
	// incarnation: one making of the container, counted from 0.
	Incarnation int    `json:"incarnation,omitempty"`
	Restarts    int    `json:"restarts,omitempty"`
	Earlier     []Exit `json:"earlier,omitempty"` // ends of earlier incarnations, the last ones; never changed in place

	// Health is what the checks of the present incarnation have said; nil until the
	// first has. It is replaced, never changed.
	Health *Health `json:"health,omitempty"`

	// Unconfirmed is set on load: nothing is done on the strength of this record
	// until a probe has said what is there. It is never stored.
	Unconfirmed bool      `json:"-"`
	Probing     bool      `json:"-"` // a probe is in flight
	ProbeFailed int       `json:"-"` // probes in a row that could not ask
	ProbeAt     time.Time `json:"-"` // when to probe again
	Checking    bool      `json:"-"` // a health check is in flight
	CheckAt     time.Time `json:"-"` // when to check the health next
}

// LastExit is how the container's process ended last: the present one or, while a new
// one is not there yet, the one before.
func (r *Record) LastExit() *Exit {
	if r.Exit == nil && r.Started.IsZero() && len(r.Earlier) > 0 {
		return &r.Earlier[len(r.Earlier)-1]
	}
	return r.Exit
}

// Restarting reports whether a process has ended and another is to take its place.
func (r *Record) Restarting() bool {
	return r.Restarts > 0 && r.Exit == nil && r.Started.IsZero() && (r.Phase == Ensuring || r.Phase == Present)
}

// HealthStatus is what the cluster shows of health (API model, HealthStatus).
type HealthStatus string

// Health statuses. A container whose checks have not decided yet is UNKNOWN.
const (
	HealthUnknown   HealthStatus = "UNKNOWN"
	HealthHealthy   HealthStatus = "HEALTHY"
	HealthUnhealthy HealthStatus = "UNHEALTHY"
)

// Health is what a container's health checks say (agent protocol, "Health checks").
type Health struct {
	Status   HealthStatus `json:"status"`
	Since    time.Time    `json:"since,omitzero"`
	Output   string       `json:"output,omitempty"`   // of the last check, at most MaxHealthOutput bytes
	ExitCode int          `json:"exitCode,omitempty"` // of the last check; -1 when it could not end by itself
	Failures int          `json:"failures,omitempty"` // in a row, as far as they count
}

// MaxHealthOutput is how much of a check's output is kept, in bytes (agent protocol,
// "Health checks").
const MaxHealthOutput = 1024

// Check is the outcome of one health check.
type Check struct {
	Start    time.Time `json:"start"`
	ExitCode int       `json:"exitCode"` // 0 means healthy; -1 that it was killed or could not be run
	Output   string    `json:"output,omitempty"`
}

// Running reports whether a process was started and has not been seen to end.
func (r *Record) Running() bool {
	return !r.Started.IsZero() && r.Exit == nil && (r.Phase == Present || r.Phase == Stopping)
}

// Known is all that is known and wanted of one task besides the task itself.
type Known struct {
	Desired       Status    `json:"desired"`
	DesiredSeq    int64     `json:"desiredSeq,omitempty"`
	StopRequested time.Time `json:"stopRequested,omitzero"` // when desired became STOPPED

	Status Status `json:"status"`
	// Reason is the task's own reason, set only where the task itself failed and not
	// one of its containers (agent protocol, "Errors by transition").
	Reason *Reason `json:"reason,omitempty"`

	Received         time.Time `json:"received,omitzero"`
	ExecutionStopped time.Time `json:"executionStopped,omitzero"` // first essential container's end
	Stopped          time.Time `json:"stopped,omitzero"`          // when Status became STOPPED

	Sent           Status                     `json:"sent"` // highest status put into the outbox
	SentContainers map[string]ContainerStatus `json:"sentContainers,omitempty"`

	Resources map[ResourceID]*Record `json:"-"` // stored as one record each

	// Undelivered is set while the outbox still holds rows of this task; a stopped task
	// is not forgotten before the cluster has heard of it.
	Undelivered bool `json:"-"`
	// Rebooted is set when the host was restarted since the records were written.
	Rebooted bool `json:"-"`
}

// Resource returns the record of id, making an empty one when there is none.
func (k *Known) Resource(id ResourceID) *Record {
	if k.Resources == nil {
		k.Resources = make(map[ResourceID]*Record)
	}
	r := k.Resources[id]
	if r == nil {
		r = &Record{}
		k.Resources[id] = r
	}
	return r
}

// Observed is what a probe or a runtime event says exists now.
type Observed struct {
	// Exists is whether anything is there: for a container its record in the runtime,
	// whatever its process does.
	Exists bool `json:"exists"`
	// Process is what its process does; ProcessNone where there is none.
	Process ProcessState `json:"process,omitempty"`
	// Exit is set when Process is ProcessExited.
	Exit *Exit `json:"exit,omitempty"`
	// Unstarted says of a process that has ended that nothing of the container's program
	// ever ran: it was made, and a start of it was cut short.
	Unstarted bool `json:"unstarted,omitempty"`
	// Incarnation is which making of a container this is about.
	Incarnation int `json:"incarnation,omitempty"`
}

// ProcessState is what the runtime says of a container's process.
type ProcessState string

// Process states. A process record that is gone is ProcessNone, which says nothing
// about whether it ever ran.
const (
	ProcessNone    ProcessState = ""
	ProcessCreated ProcessState = "created" // made but not started
	ProcessRunning ProcessState = "running" // paused counts as running
	ProcessExited  ProcessState = "exited"  // ended, and no process is left in its cgroup
)

// Fact is one thing learnt about one resource: the outcome of an action, or an
// observation that nobody asked for.
type Fact struct {
	Resource ResourceID `json:"resource"`
	Verb     Verb       `json:"verb,omitempty"` // what was done; none for an observation
	At       time.Time  `json:"at"`
	// Incarnation is that of the container when the verb was begun.
	Incarnation int `json:"incarnation,omitempty"`

	// Class and Failure are set when the verb failed.
	Class   Class   `json:"class,omitempty"`
	Failure *Reason `json:"failure,omitempty"`

	Result   Result    `json:"result,omitzero"`
	Observed *Observed `json:"observed,omitempty"`
}

// Result is what a successful Ensure or Start returns besides success. An adapter
// fills what applies to its kind.
type Result struct {
	Handle      Handle               `json:"handle,omitempty"`
	RuntimeID   string               `json:"runtimeId,omitempty"`
	Digest      string               `json:"digest,omitempty"`
	PullStarted time.Time            `json:"pullStarted,omitzero"`
	PullStopped time.Time            `json:"pullStopped,omitzero"`
	Bindings    map[string][]Binding `json:"bindings,omitempty"`
	Check       *Check               `json:"check,omitempty"` // for VerbCheck
}

// Change is a state change to be reported to the cluster, complete in itself
// (agent protocol, SubmitTaskStateChange).
type Change struct {
	TaskARN          string            `json:"taskArn"`
	ClusterARN       string            `json:"clusterArn"`
	Status           Status            `json:"status"`
	Reason           string            `json:"reason,omitempty"`
	PullStarted      time.Time         `json:"pullStarted,omitzero"`
	PullStopped      time.Time         `json:"pullStopped,omitzero"`
	ExecutionStopped time.Time         `json:"executionStopped,omitzero"`
	Containers       []ContainerChange `json:"containers,omitempty"`

	// Attachments make it a change of these alone: there is nothing else in it.
	Attachments []AttachmentChange `json:"attachments,omitempty"`
}

// ContainerChange is one container's part of a Change.
type ContainerChange struct {
	Name      string          `json:"name"`
	Status    ContainerStatus `json:"status"`
	RuntimeID string          `json:"runtimeId,omitempty"`
	Digest    string          `json:"digest,omitempty"`
	Exit      *int            `json:"exit,omitempty"`
	Reason    string          `json:"reason,omitempty"`
	Bindings  []Binding       `json:"bindings,omitempty"`
}

// Event is one line of a task's event log.
type Event struct {
	At       time.Time  `json:"at"`
	Kind     EventKind  `json:"kind"`
	Resource ResourceID `json:"resource,omitzero"`
	Verb     Verb       `json:"verb,omitempty"`
	Text     string     `json:"text,omitempty"`
	Fact     *Fact      `json:"fact,omitempty"`
}

// EventKind says what a line of the event log is about.
type EventKind string

// Event kinds.
const (
	EventReceived      EventKind = "Received"
	EventDesired       EventKind = "Desired"
	EventIntent        EventKind = "Intent"
	EventActionDone    EventKind = "ActionDone"
	EventActionFailed  EventKind = "ActionFailed"
	EventObserved      EventKind = "Observed"
	EventExited        EventKind = "Exited"
	EventStatus        EventKind = "Status"
	EventHealth        EventKind = "Health"
	EventRestart       EventKind = "Restart"
	EventWaiting       EventKind = "Waiting"
	EventReported      EventKind = "Reported"
	EventReportAcked   EventKind = "ReportAcked"
	EventReportDropped EventKind = "ReportDropped"
	EventAdopted       EventKind = "Adopted"
	EventSwept         EventKind = "Swept"
)

// Owned is something that an adapter found on the host that carries our marks.
type Owned struct {
	Resource ResourceID
	TaskARN  string
	TaskID   string
	Handle   Handle
}

// Found is a task that the runtime tells of although no record of it is left.
type Found struct {
	Task       *Task
	Containers []FoundContainer // those that are there
}

// FoundContainer is one container of a task that was found, with what a record of it
// would hold.
type FoundContainer struct {
	Name        string
	Handle      Handle
	RuntimeID   string
	Created     time.Time
	Incarnation int    // which making of the container it is
	Image       Handle // of its image; nil when that is gone
	Digest      string // of its image
}

// Deps hands an Ensure what was stored of the resource itself and of those that it
// builds on: the records of the task's other resources, read-only.
type Deps struct {
	Handle Handle
	Since  time.Time // when the task was received
	Get    func(ResourceID) (Record, bool)
}
