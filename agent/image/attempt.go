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
	// patience is after how long no further attempt begins when the last one could not
	// even ask; 0 means never. Attempts that wait for a connection are long themselves.
	patience time.Duration
}

// A registry that cannot be reached is given up after 13.6 s (agent protocol, "State
// changes": 13.4 s were seen, which is nine attempts).
var (
	manifestBackoff = backoff{retries: 8, first: 10 * time.Millisecond, max: 5 * time.Second, factor: 3, patience: 13 * time.Second}
	pullBackoff     = backoff{retries: 5, first: 1100 * time.Millisecond, max: 5 * time.Second, factor: 2, jitter: 0.2}
)

// attempts calls do until it succeeds, fails for good, or the series is over.
func attempts(ctx context.Context, b backoff, do func(context.Context) error) error {
	delay, begin := b.first, time.Now()
	for i := 0; ; i++ {
		err := do(ctx)
		if err == nil || i >= b.retries || !task.ClassOf(err).Retriable() || ctx.Err() != nil {
			return err
		}
		if b.patience > 0 && task.ClassOf(err) == task.Unavailable && time.Since(begin) >= b.patience {
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

// Sentences that lead a pull error (agent protocol, "Error names and texts").
const (
	checkRole    = "The task can’t pull the image. Check that the role has the permissions to pull images from the registry. "
	checkImage   = "The task can’t pull the image. Check whether the image exists. "
	checkNetwork = "The task can’t pull the image. Check your network configuration. "
)

// advice is what to do about a failure, by what it says.
var advice = []struct{ text, lead, then string }{
	{text: "ecr:BatchGetImage", lead: checkRole},
	{text: "requested access to the resource is denied", lead: checkImage},
	{text: "request canceled while waiting for connection", lead: checkNetwork},
	{text: "connection refused", lead: checkNetwork},
	{text: "no such host", lead: checkNetwork},
	{text: "network is unreachable", lead: checkNetwork},
	{text: "no route to host", lead: checkNetwork},
	{text: "manifest unknown", lead: checkImage},
	{text: "429 Too Many Requests", then: "; the registry limits how often it is asked: wait, give the task repositoryCredentials, or use a mirror"},
	{text: "no space left on device", then: "; make room on the disk of containerd, or have images cleaned up earlier"},
	{text: "server gave HTTP response to HTTPS client", then: "; a registry without TLS has to be named in the directory of BERTH_REGISTRY_HOSTS_DIR"},
	{text: "certificate signed by unknown authority", then: "; name the registry's authority in the directory of BERTH_REGISTRY_HOSTS_DIR"},
}

// final gives the error the name and words that the cluster shows. It is not tried
// again by the engine: the attempts have been made here. code is the name for a step
// that failed and gave none itself.
func final(err error, code task.Code) error {
	if given := task.ReasonOf(err, code); given.Code == task.CannotPullECRContainer || given.Code == task.CannotPullContainerAuth {
		return task.Fail(task.Unclassified, given.Code, err)
	}
	text := err.Error()
	var limit *timeoutError
	if errors.As(err, &limit) {
		text = limit.Error()
		if limit.cause != nil && task.ClassOf(limit.cause) == task.Unavailable {
			text = limit.cause.Error() // what kept it from ending says more than the limit
		} else {
			code = task.DockerTimeout
		}
	}
	for _, a := range advice {
		if strings.Contains(text, a.text) {
			text = a.lead + text + a.then
			break
		}
	}
	class := task.ClassOf(err)
	if class.Retriable() {
		class = task.Unclassified
	}
	return &task.Error{Class: class, Reason: task.Reason{Code: code, Detail: text}, Err: err}
}
