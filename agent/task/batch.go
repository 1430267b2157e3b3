package task

import "time"

// Batch is one atomic change of what is stored of one task. Members that are zero
// are left as they are.
type Batch struct {
	TaskID  string
	Task    *Task  // stored once, when the task is accepted
	Known   *Known // without its Resources
	Records map[ResourceID]*Record
	Events  []Event  // appended to the task's ring
	Changes []Change // appended to the outbox, in order
	Delete  bool     // forget the task; its rows in the outbox stay
}

// Message is a message of the cluster that was acted on, remembered so that a
// repeated delivery is answered and not acted on again.
type Message struct {
	ID string    `json:"id"`
	At time.Time `json:"at"`
}

// Commit is what is made durable in one transaction: all of it or nothing.
type Commit struct {
	Message *Message
	// Sequence raises the highest payload or manifest sequence number seen; 0 leaves it.
	Sequence int64
	Batches  []Batch
	// Attachments are stored by ARN; nil forgets one.
	Attachments map[string]*Attachment
}

// Stored is one task as it was loaded.
type Stored struct {
	Task  *Task
	Known *Known // with its Resources, every one of them Unconfirmed
}
