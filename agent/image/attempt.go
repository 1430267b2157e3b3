package image

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"berth.dev/berth/agent/task"
)

// backoff is a series of attempts (agent protocol, "Transition details").
type backoff struct {
	retries    int // attempts after the first one
	first, max time.Duration
	factor     float64
	jitter     float64 // share of a delay that is random
}

var (
	manifestBackoff = backoff{retries: 9, first: 10 * time.Millisecond, max: 5 * time.Second, factor: 3}
	pullBackoff     = backoff{retries: 5, first: 1100 * time.Millisecond, max: 5 * time.Second, factor: 2, jitter: 0.2}
)

// attempts calls do until it succeeds, fails for good, or the series is over.
func attempts(ctx context.Context, b backoff, do func(context.Context) error) error {
	delay := b.first
	for i := 0; ; i++ {
		err := do(ctx)
		if err == nil || i >= b.retries || !task.ClassOf(err).Retriable() || ctx.Err() != nil {
			return err
		}
		wait := delay + time.Duration(b.jitter*rand.Float64()*float64(delay))
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
		delay = min(time.Duration(float64(delay)*b.factor), b.max)
	}
}

// timeoutError is a limit of the agent that ran out.
type timeoutError struct {
	step  string
	limit time.Duration
	cause error
}

func (e *timeoutError) Error() string {
	return fmt.Sprintf("Could not transition to %s; timed out after waiting %s", e.step, e.limit)
}

func (e *timeoutError) Unwrap() error { return e.cause }

func timedOut(step string, limit time.Duration, _ time.Time, cause error) error {
	return &timeoutError{step, limit, cause}
}

// Sentences that lead a pull error, with the texts that call for them (agent protocol,
// "Error names and texts").
var advice = []struct{ text, lead string }{
	{"ecr:BatchGetImage", "The task can’t pull the image. Check that the role has the permissions to pull images from the registry. "},
	{"requested access to the resource is denied", "The task can’t pull the image. Check whether the image exists. "},
	{"request canceled while waiting for connection", "The task can’t pull the image. Check your network configuration. "},
}

// final gives the error the name and words that the cluster shows. It is not tried
// again by the engine: the attempts have been made here.
func final(err error) error {
	code, text := task.CannotPullContainer, err.Error()
	var limit *timeoutError
	if errors.As(err, &limit) {
		code, text = task.DockerTimeout, limit.Error()
		if limit.cause != nil && task.ClassOf(limit.cause) == task.Unavailable {
			// What kept it from ending says more than the limit.
			code, text = task.CannotPullContainer, limit.cause.Error()
		}
	}
	for _, a := range advice {
		if strings.Contains(text, a.text) {
			text = a.lead + text
			break
		}
	}
	class := task.ClassOf(err)
	if class.Retriable() {
		class = task.Unclassified
	}
	return &task.Error{Class: class, Reason: task.Reason{Code: code, Detail: text}, Err: err}
}
