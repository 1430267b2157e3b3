package screen

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// Screen is where a verb writes its answer, as text or as JSON.
type Screen struct {
	Out  io.Writer
	Err  io.Writer // progress and remarks, so that Out stays clean for pipes
	JSON bool      // answers are JSON values, one a line where there are many

	mu   sync.Mutex
	live bool // a moving line stands on Err
}

// Colour wraps s in a colour when out is a terminal that shows it and NO_COLOR
// (no-color.org) is not set.
func (s *Screen) Colour(c Colour, text string) string {
	if text == "" || !s.Terminal(s.Out) || os.Getenv("NO_COLOR") != "" {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// Colour is an ECMA-48 graphic rendition.
type Colour string

// Colours, by what they say.
const (
	Good  Colour = "32"
	Warn  Colour = "33"
	Bad   Colour = "31"
	Faint Colour = "2"
	Bold  Colour = "1"
)

// Terminal reports whether w is a terminal that can move its cursor.
func (s *Screen) Terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

// Printf writes to Out.
func (s *Screen) Printf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	fmt.Fprintf(s.Out, format, args...)
}

// Note writes a remark to Err.
func (s *Screen) Note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	fmt.Fprintf(s.Err, format+"\n", args...)
}

// Table writes t to Out.
func (s *Screen) Table(t *Table) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	_, _ = t.WriteTo(s.Out) // a closed pipe is the reader's choice
}

// Value writes v as JSON to Out, indented.
func (s *Screen) Value(v any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	e := json.NewEncoder(s.Out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// Line writes v as one line of JSON to Out.
func (s *Screen) Line(v any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := json.NewEncoder(s.Out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

func (s *Screen) clear() {
	if s.live {
		fmt.Fprint(s.Err, "\r\x1b[K")
		s.live = false
	}
}

// Step is something that takes a while. On a terminal its line moves until it is
// done; elsewhere only the finished line is written.
type Step struct {
	s    *Screen
	name string
	stop chan struct{}
	done sync.WaitGroup

	mu   sync.Mutex
	text string
}

// nameWidth lines up the texts of steps.
const nameWidth = 12

// Begin starts a step.
func (s *Screen) Begin(name, text string) *Step {
	st := &Step{s: s, name: name, text: text, stop: make(chan struct{})}
	if !s.JSON && s.Terminal(s.Err) {
		st.done.Go(st.spin)
	}
	return st
}

// Say changes what the moving line says.
func (st *Step) Say(format string, args ...any) {
	st.mu.Lock()
	st.text = fmt.Sprintf(format, args...)
	st.mu.Unlock()
}

// Done ends the step with its result.
func (st *Step) Done(format string, args ...any) {
	st.end()
	if !st.s.JSON {
		st.s.Note("%s%s", pad(st.name), fmt.Sprintf(format, args...))
	}
}

// Fail ends the step without a result; the error is shown by whoever gets it.
func (st *Step) Fail() { st.end() }

func (st *Step) end() {
	close(st.stop)
	st.done.Wait()
	st.s.mu.Lock()
	st.s.clear()
	st.s.mu.Unlock()
}

func (st *Step) spin() {
	const frames = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	start := time.Now()
	for i := 0; ; i++ {
		select {
		case <-st.stop:
			return
		case <-tick.C:
		}
		st.mu.Lock()
		text := st.text
		st.mu.Unlock()
		st.s.mu.Lock()
		st.s.clear()
		fmt.Fprintf(st.s.Err, "%s%s %s %.1fs", pad(st.name), string([]rune(frames)[i%10]), text, time.Since(start).Seconds())
		st.s.live = true
		st.s.mu.Unlock()
	}
}

func pad(name string) string {
	return name + strings.Repeat(" ", max(1, nameWidth-Width(name)))
}

// Age is how long ago t was, in its two largest units at most; "-" for no time.
func Age(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return Span(now.Sub(t))
}

// Span is a duration in its two largest units at most.
func Span(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
	}
}

// Bytes is a size in binary units.
func Bytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for ; f >= 1024 && i < len(units)-1; i++ {
		f /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}
