package api

import (
	"fmt"
	"net/http"

	"berth.dev/berth/cluster/awsjson"
)

// An Error is an answer other than success, as the ECS API gives it.
type Error struct {
	// Code is the shape name of the error, as InvalidParameterException.
	Code string
	// Message is shown to the caller.
	Message string
	// Status is the HTTP status: 400 for the caller's fault, 500 for ours.
	Status int
	// ResourceIDs is only of a ConflictException.
	ResourceIDs []string
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Write answers a request with the error in the form of AWS JSON 1.1.
func (e *Error) Write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("X-Amzn-Errortype", e.Code)
	w.WriteHeader(e.Status)
	w.Write(e.body()) //nolint:errcheck // the caller is gone then
}

// body is the error as it is sent.
func (e *Error) body() []byte {
	b := append([]byte(`{"__type":`), awsjson.Quote(e.Code)...)
	b = append(b, `,"message":`...)
	b = append(b, awsjson.Quote(e.Message)...)
	if len(e.ResourceIDs) > 0 {
		b = append(b, `,"resourceIds":[`...)
		for i, id := range e.ResourceIDs {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, awsjson.Quote(id)...)
		}
		b = append(b, ']')
	}
	return append(b, '}')
}

func failure(code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Status: http.StatusBadRequest}
}

func invalidParameter(format string, args ...any) *Error {
	return failure("InvalidParameterException", format, args...)
}

func clientException(format string, args ...any) *Error {
	return failure("ClientException", format, args...)
}

func accessDenied(format string, args ...any) *Error {
	return failure("AccessDeniedException", format, args...)
}

func clusterNotFound() *Error {
	return failure("ClusterNotFoundException", "Cluster not found.")
}

func unsupportedFeature(format string, args ...any) *Error {
	return failure("UnsupportedFeatureException", format, args...)
}

func resourceNotFound(format string, args ...any) *Error {
	return failure("ResourceNotFoundException", format, args...)
}

func targetNotFound(format string, args ...any) *Error {
	return failure("TargetNotFoundException", format, args...)
}

func conflict(resourceIDs []string, format string, args ...any) *Error {
	e := failure("ConflictException", format, args...)
	e.ResourceIDs = resourceIDs
	return e
}
