package tmds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/tmds"
)

// Faults that a task can have in its own network (agent protocol, "Fault injection").
const (
	faultBlackhole = "network-blackhole-port"
	faultLatency   = "network-latency"
	faultLoss      = "network-packet-loss"
)

// faultEvery is how often one operation on one fault may be asked for.
const faultEvery = 5 * time.Second

// faults is what a task's fault injection has to remember; which faults there are, the
// kernel knows.
type faults struct {
	mu     sync.Mutex // held while rules are looked at or changed
	limits map[string]*rate.Limiter
}

func newFaults() *faults { return &faults{limits: make(map[string]*rate.Limiter)} }

func (f *faults) allow(route string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.limits[route]
	if l == nil {
		l = rate.NewLimiter(rate.Every(faultEvery), 1)
		f.limits[route] = l
	}
	return l.Allow()
}

// fault answers requests to disturb the task's own network.
func (q *request) fault(v *engine.View, found bool, route string) {
	kind, op, _ := strings.Cut(route, "/")
	known := (kind == faultBlackhole || kind == faultLatency || kind == faultLoss) && (op == "start" || op == "stop" || op == "status")
	refuse := func(status int, format string, args ...any) {
		q.json(status, tmds.FaultResponse{Error: fmt.Sprintf(format, args...)})
	}
	switch {
	case !known:
		q.notFound()
		return
	case q.r.Method != http.MethodPost:
		q.w.Header().Set("Allow", "POST")
		q.text(http.StatusMethodNotAllowed, "Method Not Allowed")
		return
	case !found:
		refuse(http.StatusNotFound, "unable to get task arn from request: unable to get task Arn from v3 endpoint ID")
		return
	}
	g := q.s.guest(q.taskID)
	if g == nil || !g.faults.allow(route) {
		q.text(http.StatusTooManyRequests, "You have reached maximum request limit")
		return
	}
	f, err := readFault(q.w, q.r, kind, op)
	mode := v.Task.NetworkMode
	switch {
	case err != nil:
		refuse(http.StatusBadRequest, "%s", err)
		return
	case !v.Task.FaultInjection:
		refuse(http.StatusBadRequest, "enableFaultInjection is not enabled for task: %s", v.Task.ARN)
		return
	case mode != task.NetworkHost && mode != task.NetworkAWSVPC:
		refuse(http.StatusBadRequest, "%s mode is not supported. Please use either host or awsvpc mode.", mode)
		return
	}
	ctx, cancel := context.WithTimeout(q.r.Context(), ioTimeout)
	defer cancel()
	g.faults.mu.Lock()
	defer g.faults.mu.Unlock()
	status, err := q.s.inject(ctx, q.taskID, f, op)
	switch {
	case errors.Is(err, errFaultRuns):
		refuse(http.StatusConflict, "There is already one %s fault running", strings.ReplaceAll(kind, "-", " "))
	case errors.Is(err, errNoNetem), errors.Is(err, errNoDevice), errors.Is(err, errQueues):
		q.s.log.Warn("fault injection", "task", q.taskID, "kind", kind, "verb", op, "err", err)
		refuse(http.StatusInternalServerError, "%s", err)
	case err != nil:
		q.s.log.Warn("fault injection", "task", q.taskID, "kind", kind, "verb", op, "err", err)
		refuse(http.StatusInternalServerError, "internal error")
	default:
		q.json(http.StatusOK, tmds.FaultResponse{Status: status})
	}
}

var errFaultRuns = errors.New("the fault is there already")

// fault is one that was asked for.
type fault struct {
	kind string
	tmds.FaultRequest
	sources, except []netip.Prefix
}

// chain is the name of the chain that is the fault.
func (f *fault) chain() string {
	if f.kind == faultBlackhole {
		return fmt.Sprintf("%s-%s-%d", *f.TrafficType, *f.Protocol, *f.Port)
	}
	return f.kind
}

// readFault reads and checks a request. Its errors are for the task to read.
func readFault(w http.ResponseWriter, r *http.Request, kind, op string) (*fault, error) {
	f := &fault{kind: kind}
	if kind != faultBlackhole && op != "start" {
		return f, nil
	}
	if err := decode(w, r, &f.FaultRequest); errors.Is(err, io.EOF) {
		return nil, errors.New("required request body is missing")
	} else if err != nil {
		return nil, errors.New("failed to decode the request body")
	}
	return f, f.check()
}

func (f *fault) check() error {
	missing := func(name string) error { return fmt.Errorf("required parameter %s is missing", name) }
	wrong := func(v any, name string) error { return fmt.Errorf("invalid value %v for parameter %s", v, name) }
	switch f.kind {
	case faultBlackhole:
		switch {
		case f.Port == nil:
			return missing("Port")
		case f.Protocol == nil:
			return missing("Protocol")
		case *f.Protocol != "tcp" && *f.Protocol != "udp":
			return wrong(clip(*f.Protocol), "Protocol")
		case f.TrafficType == nil:
			return missing("TrafficType")
		case *f.TrafficType != "ingress" && *f.TrafficType != "egress":
			return wrong(clip(*f.TrafficType), "TrafficType")
		}
		if *f.TrafficType == "egress" && *f.Port == wellKnownPort {
			f.SourcesToFilter = append(f.SourcesToFilter, wellKnown)
		}
	case faultLatency:
		switch {
		case f.DelayMilliseconds == nil:
			return missing("DelayMilliseconds")
		case f.JitterMilliseconds == nil:
			return missing("JitterMilliseconds")
		case *f.DelayMilliseconds == 0 && *f.JitterMilliseconds == 0:
			return errors.New("required either DelayMilliseconds or JitterMilliseconds to be non-zero")
		case *f.DelayMilliseconds > maxDelay:
			return wrong(*f.DelayMilliseconds, "DelayMilliseconds")
		case *f.JitterMilliseconds > maxDelay:
			return wrong(*f.JitterMilliseconds, "JitterMilliseconds")
		}
	case faultLoss:
		switch {
		case f.LossPercent == nil:
			return missing("LossPercent")
		case *f.LossPercent < 1 || *f.LossPercent > 100:
			return wrong(*f.LossPercent, "LossPercent")
		}
	}
	if f.kind != faultBlackhole {
		switch {
		case len(f.Sources) == 0:
			return missing("Sources")
		case f.FlowsPercent != nil && (*f.FlowsPercent < 1 || *f.FlowsPercent > 100):
			return wrong(*f.FlowsPercent, "FlowsPercent")
		}
	}
	var err error
	if f.sources, err = prefixes(f.Sources, "Sources"); err != nil {
		return err
	}
	f.except, err = prefixes(f.SourcesToFilter, "SourcesToFilter")
	return err
}

// maxSources bounds how many rules a fault makes.
const maxSources = 256

func prefixes(list []string, name string) ([]netip.Prefix, error) {
	if len(list) > maxSources {
		return nil, fmt.Errorf("parameter %s has more than %d entries", name, maxSources)
	}
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, err := netip.ParseAddr(s)
			if err != nil || a.Zone() != "" {
				return nil, fmt.Errorf("invalid value %s for parameter %s", clip(s), name)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p.Masked())
	}
	return out, nil
}
