package fail

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Terms say what happens at a failpoint, one after the other.
type Terms []Term

// Term is one action, done Count times; a Count of 0 is for ever.
type Term struct {
	Count  int
	Action Action
	Text   string        // of ActionError and ActionPanic
	Delay  time.Duration // of ActionDelay
}

// Action is what is done at a failpoint.
type Action string

// Actions.
const (
	ActionOff   Action = "off"
	ActionError Action = "error"
	ActionDelay Action = "delay"
	ActionPanic Action = "panic"
	ActionExit  Action = "exit"
)

// Bounds of the grammar: terms of one point, characters of one setting, longest delay.
const (
	maxTerms = 64
	maxText  = 4096
	maxDelay = time.Hour
)

// ParseTerms reads terms such as "2*off->1*error(no disk)->delay(20)".
func ParseTerms(s string) (Terms, error) {
	if len(s) > maxText {
		return nil, fmt.Errorf("terms are longer than %d bytes", maxText)
	}
	var terms Terms
	for rest, more := s, true; more; {
		var part string
		part, rest, more = cutTerm(rest)
		t, err := parseTerm(part)
		if err != nil {
			return nil, err
		}
		if len(terms) == maxTerms {
			return nil, fmt.Errorf("more than %d terms", maxTerms)
		}
		if n := len(terms); n > 0 && terms[n-1].Count == 0 {
			return nil, fmt.Errorf("term %q is never reached: the one before it has no count", part)
		}
		terms = append(terms, t)
	}
	return terms, nil
}

// cutTerm splits at the first "->" that is not inside parentheses.
func cutTerm(s string) (part, rest string, more bool) {
	inside := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '(':
			inside = true
		case s[i] == ')':
			inside = false
		case !inside && strings.HasPrefix(s[i:], "->"):
			return s[:i], s[i+2:], true
		}
	}
	return s, "", false
}

func parseTerm(s string) (Term, error) {
	var t Term
	body := s
	if n, after, ok := strings.Cut(s, "*"); ok && !strings.Contains(n, "(") {
		c, err := strconv.Atoi(n)
		if err != nil || c < 1 {
			return t, fmt.Errorf("term %q: the count must be a whole number above 0", s)
		}
		t.Count, body = c, after
	}
	name, arg := body, ""
	i := strings.IndexByte(body, '(')
	if i >= 0 {
		if !strings.HasSuffix(body, ")") || strings.ContainsAny(body[i+1:len(body)-1], "()") {
			return t, fmt.Errorf("term %q: the parentheses do not match", s)
		}
		name, arg = body[:i], body[i+1:len(body)-1]
	}
	t.Action = Action(name)
	switch t.Action {
	case ActionError, ActionPanic:
		t.Text = arg
	case ActionDelay:
		ms, err := strconv.Atoi(arg)
		if err != nil || ms < 0 || time.Duration(ms) > maxDelay/time.Millisecond {
			return t, fmt.Errorf("term %q: delay takes milliseconds between 0 and %d", s, maxDelay/time.Millisecond)
		}
		t.Delay = time.Duration(ms) * time.Millisecond
	case ActionOff, ActionExit:
		if i >= 0 {
			return t, fmt.Errorf("term %q: %s takes no argument", s, name)
		}
	default:
		return t, fmt.Errorf("term %q: the action must be off, error, delay, panic or exit", s)
	}
	return t, nil
}

// String is the form that ParseTerms reads.
func (ts Terms) String() string {
	parts := make([]string, len(ts))
	for i, t := range ts {
		parts[i] = t.String()
	}
	return strings.Join(parts, "->")
}

// String is the form that ParseTerms reads.
func (t Term) String() string {
	s := string(t.Action)
	switch {
	case t.Action == ActionDelay:
		s += fmt.Sprintf("(%d)", t.Delay.Milliseconds())
	case t.Text != "":
		s += "(" + t.Text + ")"
	}
	if t.Count > 0 {
		s = strconv.Itoa(t.Count) + "*" + s
	}
	return s
}

// ParseSettings reads "name=terms;name=terms". An empty string sets nothing.
func ParseSettings(s string) (map[Name]Terms, error) {
	set := make(map[Name]Terms)
	for _, part := range strings.Split(s, ";") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		name, terms, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			return nil, fmt.Errorf("failpoint setting %q is not name=terms", part)
		}
		n, err := Parse(name)
		if err != nil {
			return nil, err
		}
		ts, err := ParseTerms(terms)
		if err != nil {
			return nil, fmt.Errorf("failpoint %s: %w", n, err)
		}
		set[n] = ts
	}
	return set, nil
}
