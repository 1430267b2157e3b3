package sched

import (
	"fmt"
	"iter"
	"time"
)

// MaxQueryLength is the longest expression ParseQuery reads, in bytes.
const MaxQueryLength = 16 << 10

// Query is a compiled expression of the cluster query language. It is immutable and
// safe for concurrent use.
type Query struct {
	text  string
	parts []*expr // all must match; the top-level "and" is taken apart
}

// View is what an expression is asked about: one container instance.
type View struct {
	AgentConnected bool
	AgentVersion   string
	EC2InstanceID  string
	RegisteredAt   time.Time
	RunningTasks   int
	Groups         iter.Seq[string]  // groups of the tasks on the instance; nil for none
	Attributes     map[string]string // an attribute without a value has ""
}

// SyntaxError says where an expression cannot be understood.
type SyntaxError struct {
	Pos int // 1 is the first byte of the expression
	Msg string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("position %d: %s", e.Pos, e.Msg) }

// ParseQuery compiles an expression. Errors are *SyntaxError. The grammar (ECS API
// reference, "Placement"):
//
//	expr    = and { ( "||" | "or" ) and }
//	and     = unary { ( "&&" | "and" ) unary }
//	unary   = ( "!" | "not" ) unary | "(" expr ")" | subject op [ arg ]
//	subject = agentConnected | agentVersion | ec2InstanceId | registeredAt
//	        | runningTasksCount | task:group | attribute:NAME
//	op      = "==" equals | "!=" not_equals | ">" greater_than | ">=" greater_than_equal
//	        | "<" less_than | "<=" less_than_equal | exists | "!exists" not_exists
//	        | in | "!in" not_in | "=~" matches | "!~" not_matches
//	arg     = literal | "[" literal { "," literal } "]"
//
// Words of operators may be written in any case. A literal is bare or in single
// quotes, in which \' stands for a quote. A pattern is a Java regular expression that
// must match the whole value. The negative operators are the exact opposite of the
// positive ones, so they hold for an instance without the attribute. task:group has
// the groups of all tasks on the instance: "==" holds if any of them is equal.
// Values of attributes are compared by size if both sides are numbers and by bytes
// otherwise. Times without a zone are UTC.
func ParseQuery(text string) (*Query, error) {
	if len(text) > MaxQueryLength {
		return nil, &SyntaxError{MaxQueryLength + 1, fmt.Sprintf("expression is longer than %d bytes", MaxQueryLength)}
	}
	p := &parser{s: text}
	root, err := p.or(0)
	if err != nil {
		return nil, err
	}
	if p.space(); p.pos < len(p.s) {
		if p.s[p.pos] == ')' {
			return nil, p.errorf(p.pos, "closing parenthesis without an opening one")
		}
		return nil, p.errorf(p.pos, "expected \"and\", \"or\" or the end, found %s", p.near())
	}
	return &Query{text: text, parts: conjuncts(root, nil)}, nil
}

// String is the text the query was parsed from.
func (q *Query) String() string { return q.text }

// Match reports whether the instance satisfies the expression.
func (q *Query) Match(v *View) bool {
	for _, e := range q.parts {
		if !e.match(v) {
			return false
		}
	}
	return true
}

type exprKind uint8

const (
	exprTest exprKind = iota
	exprAnd
	exprOr
	exprNot
)

type expr struct {
	kind exprKind
	kids []*expr
	test func(*View) bool // of exprTest
	uses uses
}

// uses says what an expression depends on, which decides where it is evaluated: once
// for a class of instances or for each instance.
type uses struct {
	attributes []string
	instance   bool // something that differs between instances of a class
}

func (e *expr) match(v *View) bool {
	switch e.kind {
	case exprAnd:
		for _, k := range e.kids {
			if !k.match(v) {
				return false
			}
		}
		return true
	case exprOr:
		for _, k := range e.kids {
			if k.match(v) {
				return true
			}
		}
		return false
	case exprNot:
		return !e.kids[0].match(v)
	}
	return e.test(v)
}

func combine(kind exprKind, kids ...*expr) *expr {
	e := &expr{kind: kind, kids: kids}
	for _, k := range kids {
		e.uses.attributes = append(e.uses.attributes, k.uses.attributes...)
		e.uses.instance = e.uses.instance || k.uses.instance
	}
	return e
}

func conjuncts(e *expr, out []*expr) []*expr {
	if e.kind != exprAnd {
		return append(out, e)
	}
	for _, k := range e.kids {
		out = conjuncts(k, out)
	}
	return out
}
