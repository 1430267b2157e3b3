package volumes

import (
	"context"
	"errors"
	"fmt"
	"regexp"
)

// Volume is one volume as one task asks for it.
type Volume struct {
	Task string // the task's ID
	Name string // the volume's name in its task

	// Data is a directory for the data of a volume that lives as long as its task; "" means
	// the driver's own.
	Data string

	// Source is the path of the host for the driver "host".
	Source string

	// Scope, Autoprovision, Options and Labels are those of a Docker volume (ECS API model,
	// DockerVolumeConfiguration).
	Scope         Scope
	Autoprovision bool
	Options       map[string]string
	Labels        map[string]string

	FileSystem *FileSystem  // for the driver "efs"
	Block      *BlockDevice // for the driver "block"
}

// Scope says how long a volume lives.
type Scope string

// Scopes (ECS API model, Scope).
const (
	ScopeTask   Scope = "task"
	ScopeShared Scope = "shared"
)

// Mounted is a volume that is there.
type Mounted struct {
	// Path is the directory or file to give to containers.
	Path string `json:"path"`
	// Populate is set when the first container that uses the volume is to fill it with
	// what its image has at that place, as Docker does with volumes that are empty. It
	// names a file that is to exist while that is done.
	Populate string `json:"populate,omitempty"`
	// Group, when it is not 0, is a group that the containers' processes must be in to use
	// the volume.
	Group uint32 `json:"group,omitempty"`
	// ReadOnly and NoExec say what the volume is limited to for every container.
	ReadOnly bool `json:"readOnly,omitempty"`
	NoExec   bool `json:"noExec,omitempty"`
}

// Driver makes volumes of one kind. Its methods may be called at the same time for
// different volumes, and any of them may have been cut short by a crash before.
type Driver interface {
	// Name is what task definitions call the driver.
	Name() string

	// Mount makes a volume available, or finds that it is. It returns by the end of ctx,
	// whatever a server or a disk does.
	Mount(ctx context.Context, v *Volume) (Mounted, error)

	// Unmount takes away all that Mount may have left for this task, and the data of a
	// volume that lives only as long as its task. Nothing there is success.
	Unmount(ctx context.Context, v *Volume) error

	// Check reports whether what Mount made is there now. An error means that it could
	// not be asked.
	Check(ctx context.Context, v *Volume) (bool, error)
}

// Kinds of failure. Everything else that a driver returns is final, too.
var (
	// ErrInvalid is what the task definition asks for and can never be had.
	ErrInvalid = errors.New("invalid volume")
	// ErrRefused is what this host's operator does not allow.
	ErrRefused = errors.New("refused")
	// ErrUnavailable is what may work later.
	ErrUnavailable = errors.New("unavailable")
	// ErrLate is a server that was waited for long enough.
	ErrLate = errors.New("late")
	// ErrMissing is a volume that has to exist and does not.
	ErrMissing = errors.New("missing")
)

// failure has one of the kinds above and words of its own.
type failure struct {
	kind error
	err  error
}

func (f *failure) Error() string        { return f.err.Error() }
func (f *failure) Unwrap() error        { return f.err }
func (f *failure) Is(target error) bool { return target == f.kind }

// failf makes an error of a kind whose text is only its own.
func failf(kind error, format string, args ...any) error {
	return &failure{kind, fmt.Errorf(format, args...)}
}

// names become parts of paths.
var safeName = regexp.MustCompile(`^[0-9A-Za-z_-][0-9A-Za-z_.-]{0,254}$`)

// check refuses a volume whose names could not be parts of paths.
func (v *Volume) check() error {
	for field, name := range map[string]string{"task": v.Task, "name": v.Name} {
		if !SafeName(name) {
			return failf(ErrInvalid, "volume: the %s %.64q must be of letters, digits, dots, hyphens and underscores", field, name)
		}
	}
	return nil
}

// SafeName reports whether a name can be that of a volume or a driver.
func SafeName(name string) bool { return safeName.MatchString(name) }
