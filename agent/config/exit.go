package config

import "errors"

// Exit codes of the agent (agent protocol, "Exit codes").
const (
	ExitOK       = 0
	ExitError    = 1  // start again
	ExitTerminal = 5  // starting again cannot help
	ExitUpdate   = 42 // start what the update directory names
)

// ErrUpdate ends an agent so that its supervisor starts the update that it has fetched.
var ErrUpdate = errors.New("the cluster has asked for an update")

// TerminalError is an error that starting the agent again cannot cure; a supervisor
// is told so by exit code 5.
type TerminalError struct{ Err error }

// Terminal marks err as terminal; nil stays nil.
func Terminal(err error) error {
	if err == nil {
		return nil
	}
	return &TerminalError{Err: err}
}

// Error is the text of the wrapped error.
func (e *TerminalError) Error() string { return e.Err.Error() }

// Unwrap returns the wrapped error.
func (e *TerminalError) Unwrap() error { return e.Err }

// ExitCode is the exit code for the error that ended the agent.
func ExitCode(err error) int {
	if err == nil {
		return ExitOK
	}
	if errors.Is(err, ErrUpdate) {
		return ExitUpdate
	}
	if _, ok := errors.AsType[*TerminalError](err); ok {
		return ExitTerminal
	}
	return ExitError
}
