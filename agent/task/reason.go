package task

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Code names why something failed. The list is closed: the cluster shows these
// names, and tools match them (agent protocol, "Error names and texts").
type Code string

// Reason codes.
const (
	CannotPullContainer       Code = "CannotPullContainerError"
	CannotPullImageManifest   Code = "CannotPullImageManifestError"
	CannotPullContainerAuth   Code = "CannotPullContainerAuthError"
	CannotPullECRContainer    Code = "CannotPullECRContainerError"
	CannotCreateContainer     Code = "CannotCreateContainerError"
	CannotStartContainer      Code = "CannotStartContainerError"
	CannotStopContainer       Code = "CannotStopContainerError"
	CannotInspectContainer    Code = "CannotInspectContainerError"
	CannotCreateVolume        Code = "CannotCreateVolumeError"
	ContainerNetworking       Code = "ContainerNetworkingError"
	ContainerVanished         Code = "ContainerVanishedError"
	DockerTimeout             Code = "DockerTimeoutError" // the name that tools know, whatever the runtime
	HostConfigInvalid         Code = "HostConfigError"
	OutOfMemory               Code = "OutOfMemoryError"
	ResourceInitialization    Code = "ResourceInitializationError"
	CgroupFailed              Code = "CgroupError"
	TaskDependency            Code = "TaskDependencyError"
	TaskStateInvalid          Code = "TaskStateError"
	TaskStoppedBeforePull     Code = "TaskStoppedBeforePullBeginError"
	UnrecognizedTask          Code = "UnrecogniedTaskError" // spelled so in the protocol
	HostResourcesExhausted    Code = "HostResourcesExhausted"
	HostRebooted              Code = "HostRebooted"
	RuntimeLost               Code = "RuntimeLost"
	StateLost                 Code = "StateLost"
	EssentialContainerExited  Code = "EssentialContainerExited"
	TaskFailedToStart         Code = "TaskFailedToStart"
	DependencyContainerFailed Code = "DependencyContainerFailed"
)

// Reason is a code with the words that say what went wrong and what to do.
type Reason struct {
	Code   Code   `json:"code"`
	Detail string `json:"detail,omitempty"`
}

// String is the form shown by the cluster: "<Code>: <detail>".
func (r Reason) String() string {
	if r.Detail == "" {
		return string(r.Code)
	}
	return string(r.Code) + ": " + r.Detail
}

// Exit is how a process ended, as the kernel and the runtime report it.
type Exit struct {
	Code      int       `json:"code"`             // 0..255; 128+n when ended by signal n
	Signal    int       `json:"signal,omitempty"` // n when ended by signal n, else 0
	OOMKilled bool      `json:"oomKilled,omitempty"`
	At        time.Time `json:"at"`
}

// LogValue makes the exit a group of a log line.
func (e *Exit) LogValue() slog.Value {
	if e == nil {
		return slog.StringValue("unknown")
	}
	attrs := []slog.Attr{slog.Int("code", e.Code)}
	if e.Signal != 0 {
		attrs = append(attrs, slog.Int("signal", e.Signal))
	}
	if e.OOMKilled {
		attrs = append(attrs, slog.Bool("oomKilled", true))
	}
	return slog.GroupValue(attrs...)
}

// Class sorts errors by what the caller may do about them. Adapters map the errors
// of the outside world into a class where they enter; only Unavailable and Exhausted
// are tried again automatically.
type Class string

// Error classes.
const (
	Unclassified Class = ""
	NotFound     Class = "not found"
	Exists       Class = "already exists"
	Unavailable  Class = "unavailable" // could not ask; says nothing about the thing itself
	Invalid      Class = "invalid"
	Permission   Class = "permission denied"
	Exhausted    Class = "exhausted"
	Canceled     Class = "canceled"
)

// Error is an error with a class, and with the reason to show when it is final.
type Error struct {
	Class  Class
	Reason Reason
	Err    error
}

// Fail wraps err with a class and the reason code to show for it; the reason's
// words are those of err.
func Fail(class Class, code Code, err error) error {
	return &Error{Class: class, Reason: Reason{Code: code, Detail: err.Error()}, Err: err}
}

// Failf is Fail with a formatted error.
func Failf(class Class, code Code, format string, args ...any) error {
	return Fail(class, code, fmt.Errorf(format, args...))
}

// Error is the text of the wrapped error, or of the reason when there is none.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Err.Error()
	}
	return e.Reason.String()
}

// Unwrap returns the wrapped error.
func (e *Error) Unwrap() error { return e.Err }

// ClassOf returns the class of the nearest Error in err's chain.
func ClassOf(err error) Class {
	var e *Error
	if errors.As(err, &e) {
		return e.Class
	}
	return Unclassified
}

// ReasonOf returns the reason carried by err, or one with the given code and err's
// words when it carries none.
func ReasonOf(err error, fallback Code) Reason {
	var e *Error
	if errors.As(err, &e) && e.Reason.Code != "" {
		return e.Reason
	}
	return Reason{Code: fallback, Detail: err.Error()}
}

// Retriable reports whether trying the same again may help.
func (c Class) Retriable() bool { return c == Unavailable || c == Exhausted }
