package sched

import (
	"fmt"
	"strings"
)

// maxNesting bounds parentheses and negations inside each other.
const maxNesting = 100

type parser struct {
	s   string
	pos int
}

func (p *parser) errorf(pos int, format string, args ...any) error {
	return &SyntaxError{pos + 1, fmt.Sprintf(format, args...)}
}

// near quotes what stands at the current position, cut short.
func (p *parser) near() string {
	if p.pos >= len(p.s) {
		return "the end"
	}
	rest := p.s[p.pos:]
	if i := strings.IndexAny(rest[1:], " \t\r\n"); i >= 0 {
		rest = rest[:i+1]
	}
	return quote(rest)
}

func quote(s string) string { return fmt.Sprintf("%.24q", s) }

func (p *parser) space() {
	for p.pos < len(p.s) && isSpace(p.s[p.pos]) {
		p.pos++
	}
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

func isWord(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// symbol consumes tok if it comes next.
func (p *parser) symbol(tok string) bool {
	if !strings.HasPrefix(p.s[p.pos:], tok) {
		return false
	}
	p.pos += len(tok)
	return true
}

// word consumes the word w, in any case, if it comes next and ends there.
func (p *parser) word(w string) bool {
	end := p.pos + len(w)
	if end > len(p.s) || !strings.EqualFold(p.s[p.pos:end], w) {
		return false
	}
	if end < len(p.s) && (isWord(p.s[end]) || p.s[end] == ':') {
		return false
	}
	p.pos = end
	return true
}

func (p *parser) or(depth int) (*expr, error) {
	return p.chain(exprOr, "||", "or", func() (*expr, error) {
		return p.chain(exprAnd, "&&", "and", func() (*expr, error) { return p.unary(depth) })
	})
}

func (p *parser) chain(kind exprKind, sym, word string, operand func() (*expr, error)) (*expr, error) {
	e, err := operand()
	if err != nil {
		return nil, err
	}
	kids := []*expr{e}
	for {
		p.space()
		if !p.symbol(sym) && !p.word(word) {
			break
		}
		if e, err = operand(); err != nil {
			return nil, err
		}
		kids = append(kids, e)
	}
	if len(kids) == 1 {
		return e, nil
	}
	return combine(kind, kids...), nil
}

func (p *parser) unary(depth int) (*expr, error) {
	p.space()
	if depth > maxNesting {
		return nil, p.errorf(p.pos, "more than %d expressions inside each other", maxNesting)
	}
	start := p.pos
	switch {
	case p.symbol("!"), p.word("not"):
		e, err := p.unary(depth + 1)
		if err != nil {
			return nil, err
		}
		return combine(exprNot, e), nil
	case p.symbol("("):
		e, err := p.or(depth + 1)
		if err != nil {
			return nil, err
		}
		p.space()
		if !p.symbol(")") {
			return nil, p.errorf(p.pos, "expected \")\" for the parenthesis at position %d, found %s", start+1, p.near())
		}
		return e, nil
	}
	return p.comparison()
}

func (p *parser) comparison() (*expr, error) {
	at := p.pos
	for p.pos < len(p.s) && !isSpace(p.s[p.pos]) && !strings.ContainsRune("=!<>()[],'\"&|", rune(p.s[p.pos])) {
		p.pos++
	}
	name := p.s[at:p.pos]
	if name == "" {
		return nil, p.errorf(at, "expected a subject, found %s", p.near())
	}
	subj, err := newSubject(name)
	if err != nil {
		return nil, p.errorf(at, "%s", err)
	}
	p.space()
	opAt := p.pos
	op, err := p.operator()
	if err != nil {
		return nil, err
	}
	c := comparison{subject: subj, op: op}
	argAt := p.pos
	if op&^opNegated != opExists {
		if c.args, argAt, err = p.arguments(op); err != nil {
			return nil, err
		}
	}
	test, err := c.compile()
	if err != nil {
		if c.badOperator {
			argAt = opAt
		}
		return nil, p.errorf(argAt, "%s", err)
	}
	e := &expr{test: test, uses: subj.uses()}
	if c.negated() {
		return combine(exprNot, e), nil
	}
	return e, nil
}

type operator uint8

const (
	opEqual operator = iota
	opLess
	opLessEqual
	opGreater
	opGreaterEqual
	opExists
	opIn
	opMatches
	opNegated operator = 1 << 7 // or-ed: the opposite of the operator
)

// Symbols are tried in this order, so longer ones come first.
var symbolOperators = []struct {
	symbol string
	op     operator
}{
	{"==", opEqual}, {"!=", opEqual | opNegated}, {"=~", opMatches}, {"!~", opMatches | opNegated},
	{">=", opGreaterEqual}, {"<=", opLessEqual}, {">", opGreater}, {"<", opLess},
}

var wordOperators = []struct {
	word string
	op   operator
}{
	{"equals", opEqual}, {"not_equals", opEqual | opNegated},
	{"greater_than", opGreater}, {"greater_than_equal", opGreaterEqual},
	{"less_than", opLess}, {"less_than_equal", opLessEqual},
	{"exists", opExists}, {"not_exists", opExists | opNegated},
	{"in", opIn}, {"not_in", opIn | opNegated},
	{"matches", opMatches}, {"not_matches", opMatches | opNegated},
}

func (p *parser) operator() (operator, error) {
	start := p.pos
	for _, o := range symbolOperators {
		if p.symbol(o.symbol) {
			return o.op, nil
		}
	}
	negated := operator(0)
	if p.symbol("!") {
		negated = opNegated
	}
	for _, o := range wordOperators {
		if negated != 0 && o.op != opExists && o.op != opIn {
			continue
		}
		if p.word(o.word) {
			return o.op | negated, nil
		}
	}
	p.pos = start
	if p.pos < len(p.s) && p.s[p.pos] == '=' {
		return 0, p.errorf(start, "unknown operator \"=\": write \"==\"")
	}
	return 0, p.errorf(start, "expected an operator, found %s", p.near())
}

// arguments reads a literal or a list and returns where it begins. A list is only
// allowed after "in".
func (p *parser) arguments(op operator) ([]string, int, error) {
	p.space()
	at := p.pos
	if op&^opNegated != opIn || !p.symbol("[") {
		lit, err := p.literal(op, false)
		return []string{lit}, at, err
	}
	var out []string
	for {
		p.space()
		lit, err := p.literal(op, true)
		if err != nil {
			return nil, at, err
		}
		out = append(out, lit)
		p.space()
		switch {
		case p.symbol("]"):
			return out, at, nil
		case !p.symbol(","):
			return nil, at, p.errorf(p.pos, "expected \",\" or \"]\" in the list, found %s", p.near())
		}
	}
}

func (p *parser) literal(op operator, list bool) (string, error) {
	switch {
	case p.pos >= len(p.s):
		return "", p.errorf(p.pos, "expected a value, found the end")
	case p.s[p.pos] == '\'':
		return p.quoted()
	case p.s[p.pos] == '"':
		return "", p.errorf(p.pos, "values are quoted with single quotes")
	}
	start, pattern := p.pos, op&^opNegated == opMatches
	if !pattern && p.s[p.pos] == '[' {
		return "", p.errorf(p.pos, "a list is only allowed after \"in\" and \"not_in\"")
	}
	if err := p.bare(list, pattern); err != nil {
		return "", err
	}
	if p.pos == start {
		return "", p.errorf(p.pos, "expected a value, found %s", p.near())
	}
	return p.s[start:p.pos], nil
}

// bare moves past a literal without quotes. A pattern may hold pairs of parentheses.
func (p *parser) bare(list, pattern bool) error {
	open := 0
	for ; p.pos < len(p.s); p.pos++ {
		switch c := p.s[p.pos]; {
		case isSpace(c), list && (c == ',' || c == ']'):
			return nil
		case open == 0 && (c == ')' || strings.HasPrefix(p.s[p.pos:], "&&") || strings.HasPrefix(p.s[p.pos:], "||")):
			return nil
		case c == '\'' || c == '"':
			return p.errorf(p.pos, "quote inside a value: put the whole value in single quotes")
		case c == '\\' && pattern && p.pos+1 < len(p.s) && !isSpace(p.s[p.pos+1]):
			p.pos++
		case c == '(' && !pattern:
			return p.errorf(p.pos, "parenthesis inside a value: put the value in single quotes")
		case c == '(':
			open++
		case c == ')':
			open--
		}
	}
	return nil
}

func (p *parser) quoted() (string, error) {
	start := p.pos
	var b strings.Builder
	for p.pos++; p.pos < len(p.s); p.pos++ {
		switch c := p.s[p.pos]; {
		case c == '\\' && p.pos+1 < len(p.s) && p.s[p.pos+1] == '\'':
			p.pos++
			b.WriteByte('\'')
		case c == '\\' && p.pos+1 < len(p.s) && p.s[p.pos+1] == '\\':
			// Both stay: a pattern needs its backslashes.
			p.pos++
			b.WriteString(`\\`)
		case c == '\'':
			p.pos++
			return b.String(), nil
		default:
			b.WriteByte(c)
		}
	}
	return "", p.errorf(start, "quote is never closed")
}
