package stats

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

// GPU is what one GPU does now. A number that its driver does not tell is NaN.
type GPU struct {
	At          time.Time
	Utilization float64 // part of the time in which it computed, 0 to 1
	MemoryBusy  float64 // part of the time in which its memory was read or written, 0 to 1
	MemoryUsed  float64 // bytes
	MemoryTotal float64 // bytes
	Temperature float64 // °C
	Power       float64 // W
}

// gpuFields are asked of nvidia-smi (manual page nvidia-smi(1), --query-gpu), the id first,
// and what makes their unit ours.
var gpuFields = []struct {
	name string
	unit float64
	of   func(*GPU) *float64
}{
	{"utilization.gpu", 0.01, func(g *GPU) *float64 { return &g.Utilization }},
	{"utilization.memory", 0.01, func(g *GPU) *float64 { return &g.MemoryBusy }},
	{"memory.used", 1 << 20, func(g *GPU) *float64 { return &g.MemoryUsed }},
	{"memory.total", 1 << 20, func(g *GPU) *float64 { return &g.MemoryTotal }},
	{"temperature.gpu", 1, func(g *GPU) *float64 { return &g.Temperature }},
	{"power.draw", 1, func(g *GPU) *float64 { return &g.Power }},
}

// Limits of what is taken of the program.
const (
	maxGPUs      = 256
	maxGPULine   = 4 << 10
	maxGPUWords  = 512 // of what it says when it fails
	gpuSilence   = 15  // intervals without a line after which it is given up
	gpuFresh     = 5   // intervals for which a number is one of now
	gpuRetryMin  = time.Second
	gpuRetryMax  = 5 * time.Minute
	gpuKillDelay = 5 * time.Second
)

// GPUs reads the GPUs of a host by NVIDIA's program nvidia-smi, which comes with the
// driver's library and asks it. It is a process of its own, because the library cannot be
// part of a static program, and because a driver that hangs or a library that fails then
// takes nobody with it. It only runs while a container has a GPU: asking keeps GPUs awake.
type GPUs struct {
	program  string
	interval time.Duration
	log      *slog.Logger
	news     chan struct{} // wanted has changed

	mu     sync.Mutex
	wanted bool
	stop   context.CancelFunc // ends the program that runs, or nil
	failed bool               // and it was logged
	latest map[string]GPU     // by id
}

// NewGPUs makes a reader that runs a program, nvidia-smi or one like it, once for all
// samples; interval is the time between two, at least a second. Run makes it read.
func NewGPUs(program string, interval time.Duration, log *slog.Logger) *GPUs {
	return &GPUs{
		program: program, interval: max(interval, time.Second), log: log,
		news: make(chan struct{}, 1), latest: make(map[string]GPU),
	}
}

// Want says whether anybody wants to know of GPUs.
func (g *GPUs) Want(wanted bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.wanted == wanted {
		return
	}
	g.wanted = wanted
	if !wanted && g.stop != nil {
		g.stop()
	}
	select {
	case g.news <- struct{}{}:
	default:
	}
}

// Latest is what a GPU does now, if that is known.
func (g *GPUs) Latest(id string) (GPU, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now, known := g.latest[id]
	if !known || time.Since(now.At) > gpuFresh*g.interval {
		return GPU{}, false
	}
	return now, true
}

// Run reads until ctx ends, whenever that is wanted. A program that ends or says nothing is
// started again, at last every 5 min.
func (g *GPUs) Run(ctx context.Context) {
	wait := time.Duration(0)
	for {
		var retry <-chan time.Time
		if running, cancel := g.begin(ctx); running != nil {
			begin := time.Now()
			err := g.read(running)
			unwanted := running.Err() != nil
			cancel()
			if ctx.Err() != nil {
				return
			}
			if g.end(); !unwanted {
				g.complain(err)
				if time.Since(begin) > gpuRetryMax {
					wait = 0
				}
				wait = min(max(2*wait, gpuRetryMin), gpuRetryMax)
				retry = time.After(wait)
			}
		}
		select {
		case <-g.news:
		case <-retry:
		case <-ctx.Done():
			return
		}
	}
}

// begin is the context of a program that is wanted, or nil.
func (g *GPUs) begin(ctx context.Context) (context.Context, context.CancelFunc) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.wanted {
		return nil, nil
	}
	running, cancel := context.WithCancel(ctx)
	g.stop = cancel
	return running, cancel
}

// end forgets what a program said that has ended.
func (g *GPUs) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stop = nil
	clear(g.latest)
}

// complain says that the program failed, unless it is known.
func (g *GPUs) complain(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.failed {
		g.log.Warn("no statistics of GPUs; it is tried again", "err", err)
	}
	g.failed = true
}

var errGPUSilent = errors.New("it said nothing for a long time")

// read runs the program until it ends; it has no good end.
func (g *GPUs) read(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	names := "uuid"
	for _, f := range gpuFields {
		names += "," + f.name
	}
	cmd := exec.CommandContext(ctx, g.program, "--query-gpu="+names, "--format=csv,noheader,nounits", fmt.Sprintf("--loop=%d", int(math.Ceil(g.interval.Seconds()))))
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	cmd.WaitDelay = gpuKillDelay
	words := &head{room: maxGPUWords}
	cmd.Stderr = words
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", g.program, err)
	}
	silence := time.AfterFunc(gpuSilence*g.interval, func() { cancel(errGPUSilent) })
	defer silence.Stop()
	defer context.AfterFunc(ctx, func() { out.Close() })() //nolint:errcheck // whoever holds the other end is not waited for
	lines := bufio.NewScanner(out)
	lines.Buffer(make([]byte, 0, maxGPULine), maxGPULine)
	last := ""
	for lines.Scan() {
		if g.enter(lines.Text(), time.Now()) {
			silence.Reset(gpuSilence * g.interval)
		} else {
			last = lines.Text() // it says there what goes wrong
		}
	}
	cancel(nil)
	err = errors.Join(lines.Err(), cmd.Wait())
	if cause := context.Cause(ctx); errors.Is(cause, errGPUSilent) {
		err = cause
	}
	if last != "" && words.Len() == 0 {
		io.WriteString(words, last) //nolint:errcheck // it does not fail
	}
	if said := strings.TrimSpace(words.String()); said != "" {
		return fmt.Errorf("%s: %q: %w", g.program, said, err)
	}
	return fmt.Errorf("%s: %w", g.program, err)
}

// enter enters a line of the program; false means that it is none of numbers.
func (g *GPUs) enter(line string, now time.Time) bool {
	id, s, ok := parseGPU(line)
	if !ok {
		return false
	}
	s.At = now
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, known := g.latest[id]; known || len(g.latest) < maxGPUs {
		g.latest[id] = s
	}
	if g.failed {
		g.failed = false
		g.log.Info("statistics of GPUs are there again")
	}
	return true
}

// parseGPU reads a line of the program.
func parseGPU(line string) (id string, s GPU, ok bool) {
	parts := strings.Split(line, ",")
	id = strings.TrimSpace(parts[0])
	if len(parts) != 1+len(gpuFields) || id == "" || strings.ContainsAny(id, " []") {
		return "", s, false
	}
	for i, f := range gpuFields {
		// Something like [N/A] or [Unknown Error] is no number.
		v, err := strconv.ParseFloat(strings.TrimSpace(parts[1+i]), 64)
		if err != nil || v < 0 || math.IsInf(v, 0) {
			v = math.NaN()
		}
		*f.of(&s) = v * f.unit
	}
	return id, s, true
}

// head keeps the beginning of what is written to it.
type head struct {
	bytes.Buffer
	room int
}

func (h *head) Write(p []byte) (int, error) {
	h.Buffer.Write(p[:min(len(p), h.room-h.Len())])
	return len(p), nil
}
