package runtimetest

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
)

var _ engine.Checker = (*Fake)(nil)

// program is what a process does, step by step.
type program struct {
	steps []step
	trap  int // exit code after the stop signal; ignored when it is below 0
}

// step is one command of a program.
type step struct {
	verb string // exit, sleep, forever, print, touch, rm, test
	n    int    // exit code, or number of lines
	text string // file, or what is printed
	wait time.Duration
	// given says which file must be there for the step to be done; "" means always, and
	// a "!" before it that it must not be.
	given string
}

// ignored is the trap of a program that goes on after the stop signal, as every first
// process of a container does that has no handler for it.
const ignored = -1

// ends reports the exit code of a program that ends as soon as it is started.
func (p *program) ends() (code int, at bool) {
	if len(p.steps) == 1 && p.steps[0].verb == "exit" && p.steps[0].given == "" {
		return p.steps[0].n, true
	}
	return 0, false
}

// term is what the stop signal does to the program.
func (p *program) term() (code int, ends bool) { return p.trap, p.trap >= 0 }

// programOf is the program of a container.
func programOf(c *task.Container) (program, error) {
	if c == nil {
		return program{}, task.Failf(task.Invalid, task.CannotCreateContainer, "no such container")
	}
	p, err := parseCommand(c.Command)
	if err != nil {
		return p, task.Failf(task.Unclassified, task.CannotStartContainer, "exec: %q: %w", c.Command, err)
	}
	return p, nil
}

func parseCommand(args []string) (program, error) {
	if len(args) == 3 && strings.HasSuffix(args[0], "sh") && args[1] == "-c" {
		return parseScript(args[2])
	}
	if len(args) > 1 && strings.HasPrefix(args[0], "/") {
		args = args[1:]
	} else if len(args) == 1 {
		args = []string{strings.TrimPrefix(args[0], "/bin/")}
	}
	verb, arg := "", ""
	if len(args) > 0 {
		verb = args[0]
	}
	if len(args) > 1 {
		arg = args[1]
	}
	n, err := strconv.Atoi(arg)
	if err != nil && arg != "" {
		return program{}, err
	}
	switch verb {
	case "exit":
		return program{steps: []step{{verb: "exit", n: n}}, trap: 143}, nil
	case "true":
		return program{steps: []step{{verb: "exit"}}}, nil
	case "false":
		return program{steps: []step{{verb: "exit", n: 1}}}, nil
	case "sleep":
		return program{steps: []step{{verb: "forever"}}}, nil
	case "ignore-term":
		return program{steps: []step{{verb: "forever"}}, trap: ignored}, nil
	case "print":
		return program{steps: []step{{verb: "print", n: n}, {verb: "exit"}}, trap: ignored}, nil
	default:
		return program{}, fmt.Errorf("executable file not found")
	}
}

// forever is the loop by which a script waits for the stop signal.
const forever = "while :; do sleep 0.05; done"

// parseScript reads a script of a shell that has nothing but these commands, with "; "
// between them: "echo WORDS", "sleep SECONDS", "exit CODE", "kill -9 $$", "touch FILE",
// "rm FILE", "test -e FILE", the loop forever, and "trap 'exit CODE' TERM" or "trap ”
// TERM" at any place. A command may be preceded by "test -e FILE && " or "test -e FILE || ".
func parseScript(text string) (program, error) {
	p := program{trap: ignored}
	text = strings.ReplaceAll(text, forever, "forever")
	for _, command := range strings.Split(text, "; ") {
		var s step
		for _, op := range []string{" && ", " || "} {
			file, rest, found := strings.Cut(command, op)
			if !found {
				continue
			}
			s.given = strings.TrimPrefix(file, "test -e ")
			if op == " || " {
				s.given = "!" + s.given
			}
			command = rest
		}
		if code, found := strings.CutPrefix(command, "trap 'exit "); found {
			n, err := strconv.Atoi(strings.TrimSuffix(code, "' TERM"))
			if err != nil {
				return p, fmt.Errorf("script: %q: %w", command, err)
			}
			p.trap = n
			continue
		}
		if command == "trap '' TERM" {
			p.trap = ignored
			continue
		}
		if err := s.parse(command); err != nil {
			return p, fmt.Errorf("script: %q: %w", command, err)
		}
		p.steps = append(p.steps, s)
	}
	return p, nil
}

func (s *step) parse(command string) (err error) {
	verb, arg, _ := strings.Cut(command, " ")
	s.verb = verb
	switch verb {
	case "forever":
	case "exit":
		s.n, err = strconv.Atoi(arg)
	case "sleep":
		var seconds float64
		seconds, err = strconv.ParseFloat(arg, 64)
		s.wait = time.Duration(seconds * float64(time.Second))
	case "echo":
		s.verb, s.text = "print", arg+"\n"
	case "kill":
		s.verb, s.n = "exit", 137
		if arg != "-9 $$" {
			err = fmt.Errorf("another signal than 9")
		}
	case "touch", "rm":
		s.text = arg
	case "test":
		s.text = strings.TrimPrefix(arg, "-e ")
	default:
		err = fmt.Errorf("%s: not found", verb)
	}
	return err
}

// do does one step, and says with which code the program ends, if it does.
func (f *Fake) do(s step, files map[string]bool, halt <-chan struct{}, out *strings.Builder) (code int, ends bool) {
	f.mu.Lock()
	file, not := strings.CutPrefix(s.given, "!")
	skip := s.given != "" && files[file] == not
	f.mu.Unlock()
	if skip {
		return 0, false
	}
	switch s.verb {
	case "exit":
		return s.n, true
	case "forever":
		<-halt
		return 0, true
	case "sleep":
		timer := time.NewTimer(s.wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-halt:
			return 0, true
		}
	case "print":
		if s.text != "" {
			out.WriteString(s.text)
		}
		for i := range s.n {
			if out.Len() > task.MaxHealthOutput {
				break
			}
			fmt.Fprintf(out, "line %d\n", i)
		}
	case "touch", "rm", "test":
		f.mu.Lock()
		defer f.mu.Unlock()
		if s.verb == "test" {
			if !files[s.text] {
				return 1, true
			}
			break
		}
		files[s.text] = s.verb == "touch"
	}
	return 0, false
}

// interpret runs a container's program to its end.
func (f *Fake) interpret(c *container) {
	var out strings.Builder
	for _, s := range c.prog.steps {
		if code, ends := f.do(s, c.files, c.halt, &out); ends {
			f.endIfRunning(c, code)
			return
		}
	}
	f.endIfRunning(c, 0)
}

// Check runs a health check.
func (f *Fake) Check(ctx context.Context, t *task.Task, name string, _ task.Handle) (task.Check, error) {
	c, b := f.called(task.VerbCheck, t, name)
	if b.ProbeError != nil {
		return task.Check{}, b.ProbeError
	}
	f.mu.Lock()
	runs := c != nil && c.state == task.ProcessRunning
	f.mu.Unlock()
	if !runs {
		return task.Check{}, task.Failf(task.Unavailable, "", "no such process")
	}
	check := task.Check{Start: time.Now()}
	h := t.Container(name).Config.Healthcheck
	p, err := parseCommand(h.Args())
	if err != nil {
		check.ExitCode, check.Output = -1, fmt.Sprintf("exec: %q: %v", h.Args(), err)
		return check, nil
	}
	halt := make(chan struct{})
	limit, cancel := context.WithTimeout(ctx, h.Limit())
	defer cancel()
	ended := make(chan int, 1)
	var out strings.Builder
	go func() {
		for _, s := range p.steps {
			if code, ends := f.do(s, c.files, halt, &out); ends {
				ended <- code
				return
			}
		}
		ended <- 0
	}()
	select {
	case check.ExitCode = <-ended:
	case <-limit.Done():
		close(halt)
		<-ended
		check.ExitCode = -1
		if ctx.Err() != nil {
			return check, task.Fail(task.Canceled, "", ctx.Err())
		}
		check.Output = fmt.Sprintf("Health check exceeded timeout (%v): ", h.Limit())
	}
	text := out.String()
	check.Output += text[:min(len(text), task.MaxHealthOutput)]
	return check, nil
}

// Files lists what scripts have made in a container.
func (f *Fake) Files(taskID, name string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	if c := f.find(taskID, name); c != nil {
		for file, there := range c.files {
			if there {
				out = append(out, file)
			}
		}
	}
	slices.Sort(out)
	return out
}
