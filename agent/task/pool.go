package task

// PoolOrderKind is what is to be done with a volume or snapshot of the host's pool. The
// values are the words of the wire.
type PoolOrderKind string

// What there is to do.
const (
	PoolDeleteVolume   PoolOrderKind = "DeleteVolume"
	PoolCreateSnapshot PoolOrderKind = "CreateSnapshot"
	PoolDeleteSnapshot PoolOrderKind = "DeleteSnapshot"
)

// PoolOrder is something that the cluster wants done in the host's pool of block volumes.
// To do it again changes nothing.
type PoolOrder struct {
	Kind     PoolOrderKind
	Volume   string // vol-…
	Snapshot string // snap-…
	TaskID   string // of CreateSnapshot: whose volume it is,
	Name     string // and what it is called there
}
