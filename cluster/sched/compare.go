package sched

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

type subjectKind uint8

const (
	subjectAttribute subjectKind = iota
	subjectConnected
	subjectVersion
	subjectEC2ID
	subjectRegistered
	subjectRunning
	subjectGroup
)

type subject struct {
	kind subjectKind
	name string // of an attribute
}

var subjectNames = map[string]subjectKind{
	"agentConnected":    subjectConnected,
	"agentVersion":      subjectVersion,
	"ec2InstanceId":     subjectEC2ID,
	"registeredAt":      subjectRegistered,
	"runningTasksCount": subjectRunning,
	"task:group":        subjectGroup,
}

func newSubject(name string) (subject, error) {
	if attr, ok := strings.CutPrefix(name, "attribute:"); ok {
		if attr == "" {
			return subject{}, fmt.Errorf("attribute: needs a name after the colon")
		}
		return subject{kind: subjectAttribute, name: attr}, nil
	}
	if k, ok := subjectNames[name]; ok {
		return subject{kind: k}, nil
	}
	return subject{}, fmt.Errorf("unknown subject %s: expected agentConnected, agentVersion, ec2InstanceId, registeredAt, runningTasksCount, task:group or attribute:NAME", quote(name))
}

func (s subject) uses() uses {
	switch s.kind {
	case subjectAttribute:
		return uses{attributes: []string{s.name}}
	case subjectConnected:
		return uses{} // part of a class
	}
	return uses{instance: true}
}

func (s subject) String() string {
	if s.kind == subjectAttribute {
		return "attribute:" + s.name
	}
	for name, k := range subjectNames {
		if k == s.kind {
			return name
		}
	}
	return "subject"
}

type comparison struct {
	subject     subject
	op          operator
	args        []string
	badOperator bool // compile failed because of the operator, not the value
}

func (c *comparison) negated() bool { return c.op&opNegated != 0 }

// compile gives the test of the positive operator; the caller negates it.
func (c *comparison) compile() (func(*View) bool, error) {
	switch c.subject.kind {
	case subjectConnected:
		return c.connected()
	case subjectVersion:
		return compareValues(c, parseVersion, version.compare, func(v *View) (string, bool) {
			return v.AgentVersion, v.AgentVersion != ""
		}, "a version such as 1.80.0")
	case subjectRunning:
		return c.running()
	case subjectRegistered:
		return c.registered()
	case subjectGroup:
		return c.group()
	case subjectEC2ID:
		return c.text(func(v *View) (string, bool) { return v.EC2InstanceID, v.EC2InstanceID != "" })
	}
	name := c.subject.name
	return c.text(func(v *View) (string, bool) { a, ok := v.Attributes[name]; return a, ok })
}

func (c *comparison) unsupported() error {
	c.badOperator = true
	return fmt.Errorf("%s cannot be used with this operator", c.subject)
}

func (c *comparison) connected() (func(*View) bool, error) {
	op := c.op &^ opNegated
	if op == opExists {
		return func(*View) bool { return true }, nil
	}
	if op != opEqual && op != opIn {
		return nil, c.unsupported()
	}
	var yes, no bool
	for _, a := range c.args {
		switch {
		case strings.EqualFold(a, "true"):
			yes = true
		case strings.EqualFold(a, "false"):
			no = true
		default:
			return nil, fmt.Errorf("agentConnected is true or false, not %s", quote(a))
		}
	}
	return func(v *View) bool { return v.AgentConnected && yes || !v.AgentConnected && no }, nil
}

func (c *comparison) running() (func(*View) bool, error) {
	op := c.op &^ opNegated
	if op == opExists {
		return func(*View) bool { return true }, nil
	}
	if op == opMatches {
		return nil, c.unsupported()
	}
	var ns []int
	for _, a := range c.args {
		n, err := strconv.Atoi(a)
		if err != nil {
			return nil, fmt.Errorf("runningTasksCount is compared with a whole number, not %s", quote(a))
		}
		ns = append(ns, n)
	}
	return func(v *View) bool {
		return slices.ContainsFunc(ns, func(n int) bool { return holds(op, cmp.Compare(v.RunningTasks, n)) })
	}, nil
}

// holds reports whether the operator accepts the result of a comparison.
func holds(op operator, c int) bool {
	switch op {
	case opEqual, opIn:
		return c == 0
	case opLess:
		return c < 0
	case opLessEqual:
		return c <= 0
	case opGreater:
		return c > 0
	case opGreaterEqual:
		return c >= 0
	}
	return false
}

func (c *comparison) registered() (func(*View) bool, error) {
	op := c.op &^ opNegated
	if op == opExists {
		return func(v *View) bool { return !v.RegisteredAt.IsZero() }, nil
	}
	if op == opMatches {
		return nil, c.unsupported()
	}
	var moments []moment
	for _, a := range c.args {
		m, err := parseMoment(a)
		if err != nil {
			return nil, err
		}
		moments = append(moments, m)
	}
	return func(v *View) bool {
		if v.RegisteredAt.IsZero() {
			return false
		}
		for _, m := range moments {
			if (op == opEqual || op == opIn) && !v.RegisteredAt.Before(m.at) && v.RegisteredAt.Before(m.at.Add(m.width)) {
				return true
			}
			if op != opEqual && op != opIn && holds(op, v.RegisteredAt.Compare(m.at)) {
				return true
			}
		}
		return false
	}, nil
}

// moment is a time with the precision it was written in, so that a date is equal to
// every time of that day.
type moment struct {
	at    time.Time
	width time.Duration
}

var momentLayouts = []struct {
	layout string
	width  time.Duration
}{
	{"2006-01-02", 24 * time.Hour},
	{"2006-01-02T15:04", time.Minute},
	{"2006-01-02T15:04:05", time.Second}, // also reads a fraction
}

func parseMoment(s string) (moment, error) {
	t := strings.Replace(strings.ToUpper(s), " ", "T", 1)
	for _, l := range momentLayouts {
		for _, zone := range []string{"", "Z07:00", "Z0700", "Z07"} {
			if at, err := time.Parse(l.layout+zone, t); err == nil {
				width := l.width
				if strings.Contains(t, ".") {
					width = time.Nanosecond
				}
				return moment{at, width}, nil
			}
		}
	}
	return moment{}, fmt.Errorf("%s is not a time such as 2018-06-18, 2018-06-18T13:30:00Z or 2018-06-18T13:30:00+01:00", quote(s))
}

func (c *comparison) group() (func(*View) bool, error) {
	var one func(string) bool
	switch op := c.op &^ opNegated; op {
	case opExists:
		one = func(string) bool { return true }
	case opEqual, opIn:
		one = func(g string) bool { return slices.Contains(c.args, g) }
	case opMatches:
		re, err := javaPattern(c.args[0])
		if err != nil {
			return nil, err
		}
		one = re.MatchString
	default:
		return nil, c.unsupported()
	}
	return func(v *View) bool {
		if v.Groups == nil {
			return false
		}
		for g := range v.Groups {
			if one(g) {
				return true
			}
		}
		return false
	}, nil
}

// text compares values that are plain strings.
func (c *comparison) text(value func(*View) (string, bool)) (func(*View) bool, error) {
	op := c.op &^ opNegated
	switch op {
	case opExists:
		return func(v *View) bool { _, ok := value(v); return ok }, nil
	case opMatches:
		return matching(c.args[0], value)
	case opEqual:
		want := c.args[0]
		return func(v *View) bool { s, ok := value(v); return ok && s == want }, nil
	case opIn:
		return func(v *View) bool { s, ok := value(v); return ok && slices.Contains(c.args, s) }, nil
	}
	want := c.args[0]
	number, notNumber := strconv.ParseFloat(want, 64)
	return func(v *View) bool {
		s, ok := value(v)
		if !ok {
			return false
		}
		if n, err := strconv.ParseFloat(s, 64); err == nil && notNumber == nil {
			return holds(op, cmp.Compare(n, number))
		}
		return holds(op, cmp.Compare(s, want))
	}, nil
}

func matching(pattern string, value func(*View) (string, bool)) (func(*View) bool, error) {
	re, err := javaPattern(pattern)
	if err != nil {
		return nil, err
	}
	return func(v *View) bool { s, ok := value(v); return ok && re.MatchString(s) }, nil
}

// compareValues compares a parsed value; a value of the instance that cannot be
// parsed compares as if it were absent.
func compareValues[T any](c *comparison, parse func(string) (T, error), compare func(a, b T) int, value func(*View) (string, bool), want string) (func(*View) bool, error) {
	op := c.op &^ opNegated
	switch op {
	case opExists:
		return func(v *View) bool { _, ok := value(v); return ok }, nil
	case opMatches:
		return matching(c.args[0], value)
	}
	var args []T
	for _, a := range c.args {
		t, err := parse(a)
		if err != nil {
			return nil, fmt.Errorf("%s is compared with %s, not %s", c.subject, want, quote(a))
		}
		args = append(args, t)
	}
	return func(v *View) bool {
		s, ok := value(v)
		if !ok {
			return false
		}
		have, err := parse(s)
		if err != nil {
			return false
		}
		return slices.ContainsFunc(args, func(t T) bool { return holds(op, compare(have, t)) })
	}, nil
}

// version is a dotted number with an optional suffix, which sorts before the same
// number without one ("1.2.0-rc1" < "1.2.0").
type version struct {
	numbers []uint64
	suffix  string
}

var versionPattern = regexp.MustCompile(`^[vV]?([0-9]{1,9}(?:\.[0-9]{1,9}){0,7})(?:[-+.]?([A-Za-z][0-9A-Za-z.+-]*))?$`)

func parseVersion(s string) (version, error) {
	m := versionPattern.FindStringSubmatch(s)
	if m == nil {
		return version{}, fmt.Errorf("%s is not a version", quote(s))
	}
	v := version{suffix: m[2]}
	for part := range strings.SplitSeq(m[1], ".") {
		n, err := strconv.ParseUint(part, 10, 64)
		if err != nil {
			return version{}, err
		}
		v.numbers = append(v.numbers, n)
	}
	for len(v.numbers) > 1 && v.numbers[len(v.numbers)-1] == 0 {
		v.numbers = v.numbers[:len(v.numbers)-1] // 1.2 equals 1.2.0
	}
	return v, nil
}

func (v version) compare(w version) int {
	if c := slices.Compare(v.numbers, w.numbers); c != 0 {
		return c
	}
	switch {
	case v.suffix == w.suffix:
		return 0
	case v.suffix == "":
		return 1
	case w.suffix == "":
		return -1
	}
	return cmp.Compare(v.suffix, w.suffix)
}
