package runtime

import (
	"context"
	"errors"
	"strings"
	"syscall"

	"berth.dev/berth/agent/task"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/status"
)

// classify maps an error of containerd to a class of the engine. code is the reason to
// show when it is final; "" leaves the reason to the caller. Nil stays nil.
func classify(err error, code task.Code) error {
	if err == nil {
		return nil
	}
	var known *task.Error
	if errors.As(err, &known) {
		return err
	}
	err = native(err)
	return fail(classOf(err), code, err)
}

func fail(class task.Class, code task.Code, err error) error {
	if code == "" {
		return &task.Error{Class: class, Err: err}
	}
	return task.Fail(class, code, err)
}

func classOf(err error) task.Class {
	err = native(err)
	switch {
	case errors.Is(err, context.Canceled), errdefs.IsCanceled(err):
		return task.Canceled
	case errors.Is(err, context.DeadlineExceeded), errdefs.IsDeadlineExceeded(err), errdefs.IsUnavailable(err), lostShim(err):
		return task.Unavailable
	case errdefs.IsNotFound(err):
		return task.NotFound
	case errdefs.IsAlreadyExists(err):
		return task.Exists
	case errdefs.IsResourceExhausted(err), noRoom(err):
		return task.Exhausted
	case errdefs.IsPermissionDenied(err):
		return task.Permission
	case errdefs.IsInvalidArgument(err):
		return task.Invalid
	default:
		return task.Unclassified
	}
}

// lostShim reports whether containerd lost its shim, or could not reach it: a group's
// first container failed, or the shim was killed. Only the text crosses the connection.
func lostShim(err error) bool {
	s := err.Error()
	for _, part := range []string{
		"ttrpc: closed", "connection refused", "connection reset by peer", "can't find shim for sandbox",
		"transport is closing", "broken pipe", "error reading from server: EOF", "context deadline exceeded",
	} {
		if strings.Contains(s, part) {
			return true
		}
	}
	return false
}

// noRoom reports whether the host ran out of something that may come back.
func noRoom(err error) bool {
	s := err.Error()
	for _, e := range []syscall.Errno{syscall.ENOSPC, syscall.EMFILE, syscall.ENFILE, syscall.EDQUOT} {
		if strings.Contains(s, e.Error()) {
			return true
		}
	}
	return false
}

func unavailable(err error) error { return fail(task.Unavailable, "", err) }

// native turns a gRPC status into containerd's own classes. Most of the client's
// services have done so already, and a second time would lose the class.
func native(err error) error {
	if s, ok := err.(interface{ GRPCStatus() *status.Status }); ok && s != nil {
		return errgrpc.ToNative(err)
	}
	return err
}

func isNotFound(err error) bool { return errdefs.IsNotFound(native(err)) }

func isExists(err error) bool { return errdefs.IsAlreadyExists(native(err)) }

func isPrecondition(err error) bool { return errdefs.IsFailedPrecondition(native(err)) }
