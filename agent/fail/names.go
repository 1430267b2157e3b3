package fail

import "fmt"

// Name is one failpoint. Its values are the constants below and nothing else.
type Name uint8

// The failpoints, in the order in which a task passes them.
const (
	IntakeBeforeCommit Name = iota
	IntakeAfterCommit
	IntakeAfterAck
	IntentBeforeCommit
	IntentAfterCommit
	CgroupAfterCreate
	VolumeBeforeMount
	VolumeAfterMount
	SecretAfterFetch
	NetnsAfterCreate
	CNIBeforeAdd
	CNIBetweenPlugins
	CNIAfterAdd
	ENIAfterMove
	ImageAfterResolve
	ImageMidPull
	ImageAfterPull
	ContainerBeforeCreate
	ContainerAfterSnapshot
	ContainerAfterCreate
	ProcessAfterCreate
	ProcessAfterStart
	ProcessAfterStartCommit
	TMDSAfterListen
	CredsAfterSet
	ExitObserved
	ExitAfterCommit
	StopAfterTerm
	StopAfterKill
	DeleteAfterProcess
	DeleteAfterContainer
	DeleteAfterSnapshot
	CNIBeforeDel
	CNIAfterDel
	VolumeAfterUmount
	ReportBeforeSubmit
	ReportAfterSubmit
	RetentionBeforeDelete
	SweepBeforeRemove
	MigrateMid

	count
)

var names = [count]string{
	IntakeBeforeCommit:      "intake.before-commit",
	IntakeAfterCommit:       "intake.after-commit",
	IntakeAfterAck:          "intake.after-ack",
	IntentBeforeCommit:      "intent.before-commit",
	IntentAfterCommit:       "intent.after-commit",
	CgroupAfterCreate:       "cgroup.after-create",
	VolumeBeforeMount:       "volume.before-mount",
	VolumeAfterMount:        "volume.after-mount",
	SecretAfterFetch:        "secret.after-fetch",
	NetnsAfterCreate:        "netns.after-create",
	CNIBeforeAdd:            "cni.before-add",
	CNIBetweenPlugins:       "cni.between-plugins",
	CNIAfterAdd:             "cni.after-add",
	ENIAfterMove:            "eni.after-move",
	ImageAfterResolve:       "image.after-resolve",
	ImageMidPull:            "image.mid-pull",
	ImageAfterPull:          "image.after-pull",
	ContainerBeforeCreate:   "container.before-create",
	ContainerAfterSnapshot:  "container.after-snapshot",
	ContainerAfterCreate:    "container.after-create",
	ProcessAfterCreate:      "process.after-create",
	ProcessAfterStart:       "process.after-start",
	ProcessAfterStartCommit: "process.after-start-commit",
	TMDSAfterListen:         "tmds.after-listen",
	CredsAfterSet:           "creds.after-set",
	ExitObserved:            "exit.observed",
	ExitAfterCommit:         "exit.after-commit",
	StopAfterTerm:           "stop.after-term",
	StopAfterKill:           "stop.after-kill",
	DeleteAfterProcess:      "delete.after-process",
	DeleteAfterContainer:    "delete.after-container",
	DeleteAfterSnapshot:     "delete.after-snapshot",
	CNIBeforeDel:            "cni.before-del",
	CNIAfterDel:             "cni.after-del",
	VolumeAfterUmount:       "volume.after-umount",
	ReportBeforeSubmit:      "report.before-submit",
	ReportAfterSubmit:       "report.after-submit",
	RetentionBeforeDelete:   "retention.before-delete",
	SweepBeforeRemove:       "sweep.before-remove",
	MigrateMid:              "migrate.mid",
}

// Names lists every failpoint, in the order in which a task passes them.
func Names() []Name {
	all := make([]Name, count)
	for i := range all {
		all[i] = Name(i)
	}
	return all
}

// String is the name used in settings.
func (n Name) String() string {
	if n >= count {
		return fmt.Sprintf("Name(%d)", uint8(n))
	}
	return names[n]
}

// Parse finds the failpoint with the given name.
func Parse(s string) (Name, error) {
	for i, name := range names {
		if name == s {
			return Name(i), nil
		}
	}
	return 0, fmt.Errorf("no failpoint is called %q", s)
}
