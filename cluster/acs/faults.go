package acs

import (
	"time"

	"berth.dev/berth/wire/acs"
)

// Faults makes a server misbehave on purpose, for tests of agents. A nil member is off.
// The functions are called from several goroutines.
type Faults struct {
	// HoldAck says that the acknowledgement of a message never arrived.
	HoldAck func(messageID string) bool
	// Duplicate is how many times more a message is sent.
	Duplicate func(m acs.Message) int
	// Reorder holds a message back until after the next one.
	Reorder func(m acs.Message) bool
	// Alter changes a payload before it is sent, for example to shorten times that the API
	// does not let be so short.
	Alter func(m *acs.PayloadMessage)
	// AlterAttachment changes the announcement of a volume before it is sent.
	AlterAttachment func(m *acs.ConfirmAttachmentMessage)
	// AlterInterface changes an interface of a task before the agent is told of it.
	AlterInterface func(i *acs.ElasticNetworkInterface)
	// Drop loses a message on its way.
	Drop func(m acs.Message) bool
	// DropAfter cuts the connection of an instance once so many bytes were sent on it; 0
	// is never. It is asked once for each session.
	DropAfter func(instanceARN string) int64
}

// EntryKind says what an Entry tells of.
type EntryKind string

// The kinds of ledger entries.
const (
	EntryOpened   EntryKind = "opened"   // a session
	EntryRefused  EntryKind = "refused"  // a session
	EntryClosed   EntryKind = "closed"   // a session
	EntrySent     EntryKind = "sent"     // a message to the agent
	EntryReceived EntryKind = "received" // a message of the agent
	EntryGaveUp   EntryKind = "gave-up"  // on a task, until the next session
	// EntrySubmitted is a state change that an agent reported; the cluster adds it, as
	// it does not come over a session. Desired is the reported status.
	EntrySubmitted EntryKind = "submitted"
)

// Entry is one line of the ledger that validators read. It never holds a credential.
type Entry struct {
	At        time.Time
	Kind      EntryKind
	Instance  string // ARN
	Type      string // of the message, or the exception of a refusal
	MessageID string
	Tasks     []TaskEntry
	Detail    string
}

// TaskEntry is a task that a message names.
type TaskEntry struct {
	ARN     string
	Desired string
}

// entryOf describes a message.
func entryOf(kind EntryKind, instance string, m acs.Message) Entry {
	e := Entry{Kind: kind, Instance: instance, Type: m.TypeName()}
	identify := func(list []acs.TaskIdentifier) {
		for _, t := range list {
			e.Tasks = append(e.Tasks, TaskEntry{t.TaskARN, t.DesiredStatus})
		}
	}
	switch m := m.(type) {
	case *acs.PayloadMessage:
		e.MessageID = m.MessageID
		for i := range m.Tasks {
			e.Tasks = append(e.Tasks, TaskEntry{m.Tasks[i].ARN, m.Tasks[i].DesiredStatus})
		}
	case *acs.HeartbeatMessage:
		e.MessageID = m.MessageID
	case *acs.StageUpdateMessage:
		e.MessageID = m.MessageID
	case *acs.PerformUpdateMessage:
		e.MessageID = m.MessageID
	case *acs.HeartbeatAckRequest:
		e.MessageID = m.MessageID
	case *acs.AckRequest:
		e.MessageID = m.MessageID
	case *acs.NackRequest:
		e.MessageID, e.Detail = m.MessageID, m.Reason
	case *acs.IAMRoleCredentialsMessage:
		e.MessageID = m.MessageID
		e.Tasks = []TaskEntry{{ARN: m.TaskARN}}
	case *acs.IAMRoleCredentialsAckRequest:
		e.MessageID = m.MessageID
	case *acs.TaskManifestMessage:
		e.MessageID = m.MessageID
		identify(m.Tasks)
	case *acs.TaskStopVerificationMessage:
		e.MessageID = m.MessageID
		identify(m.StopCandidates)
	case *acs.TaskStopVerificationAck:
		e.MessageID = m.MessageID
		identify(m.StopTasks)
	}
	return e
}
