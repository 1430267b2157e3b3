package sched

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
)

// maxProgram bounds a compiled pattern, in instructions, and with it the time that one
// match can take.
const maxProgram = 2000

// javaPattern compiles a Java regular expression that has to match a whole value. Java
// and RE2 agree on nearly everything people write; what differs is translated, and what
// RE2 cannot do (it never backtracks) is refused by name.
func javaPattern(pattern string) (*regexp.Regexp, error) {
	t := translator{s: pattern}
	body, err := t.translate()
	if err != nil {
		return nil, fmt.Errorf("pattern: %w", err)
	}
	tree, err := syntax.Parse(body, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("pattern: %s", patternProblem(err))
	}
	prog, err := syntax.Compile(tree.Simplify())
	if err != nil {
		return nil, fmt.Errorf("pattern: %s", patternProblem(err))
	}
	if len(prog.Inst) > maxProgram {
		return nil, fmt.Errorf("pattern: too complex, its repetitions make %d steps where %d are allowed", len(prog.Inst), maxProgram)
	}
	re, err := regexp.Compile(`\A(?:` + body + `)\z`)
	if err != nil {
		return nil, fmt.Errorf("pattern: %s", patternProblem(err))
	}
	return re, nil
}

func patternProblem(err error) string {
	if e, ok := err.(*syntax.Error); ok {
		return fmt.Sprintf("%s: %s", e.Code, quote(e.Expr))
	}
	return err.Error()
}

type translator struct {
	s     string
	pos   int
	class int // where the open character class began, plus one
	out   strings.Builder
}

// Java's shorthand escapes that RE2 lacks or reads differently: inside and outside a
// character class.
var javaEscapes = map[byte][2]string{
	'h': {` \t\x{A0}\x{1680}\x{180e}\x{2000}-\x{200a}\x{202f}\x{205f}\x{3000}`, `[ \t\x{A0}\x{1680}\x{180e}\x{2000}-\x{200a}\x{202f}\x{205f}\x{3000}]`},
	'v': {`\n\x0B\f\r\x{85}\x{2028}\x{2029}`, `[\n\x0B\f\r\x{85}\x{2028}\x{2029}]`},
	's': {`\s\x0B`, `[\s\x0B]`},
	'S': {"", `[^\s\x0B]`},
	'R': {"", `(?:\r\n|[\n\x0B\f\r\x{85}\x{2028}\x{2029}])`},
	'e': {`\x1B`, `\x1B`},
	'Z': {"", `\n?\z`},
}

// Java's POSIX classes, by the name RE2 has for them.
var javaClasses = map[string]string{
	"Lower": "lower", "Upper": "upper", "ASCII": "ascii", "Alpha": "alpha", "Digit": "digit", "Alnum": "alnum",
	"Punct": "punct", "Graph": "graph", "Print": "print", "Blank": "blank", "Cntrl": "cntrl", "XDigit": "xdigit", "Space": "space",
}

func (t *translator) translate() (string, error) {
	for t.pos < len(t.s) {
		var err error
		switch c := t.s[t.pos]; {
		case c == '\\':
			err = t.escape()
		case t.class > 0:
			err = t.inClass(c)
		default:
			err = t.plain(c)
		}
		if err != nil {
			return "", err
		}
	}
	return t.out.String(), nil
}

func (t *translator) copy(n int) {
	t.out.WriteString(t.s[t.pos : t.pos+n])
	t.pos += n
}

func (t *translator) inClass(c byte) error {
	switch {
	case c == ']':
		t.class = 0
	case c == '[':
		return fmt.Errorf("a character class inside a character class is not supported")
	case c == '&' && strings.HasPrefix(t.s[t.pos:], "&&"):
		return fmt.Errorf("an intersection of character classes (&&) is not supported")
	}
	t.copy(1)
	return nil
}

func (t *translator) plain(c byte) error {
	rest := t.s[t.pos:]
	switch c {
	case '[':
		t.class = t.pos + 1
		t.copy(1)
		if t.pos < len(t.s) && t.s[t.pos] == '^' {
			t.copy(1)
		}
		return nil
	case '(':
		for _, bad := range []struct{ prefix, name string }{
			{"(?=", "lookahead"}, {"(?!", "lookahead"}, {"(?<=", "lookbehind"}, {"(?<!", "lookbehind"}, {"(?>", "an atomic group"},
		} {
			if strings.HasPrefix(rest, bad.prefix) {
				return fmt.Errorf("%s (%s) is not supported", bad.name, bad.prefix)
			}
		}
	case '*', '+', '?', '}':
		if len(rest) > 1 && rest[1] == '+' && t.pos > 0 {
			return fmt.Errorf("a possessive quantifier (%s) is not supported", rest[:2])
		}
	}
	t.copy(1)
	return nil
}

func (t *translator) escape() error {
	if t.pos+1 >= len(t.s) {
		return fmt.Errorf("a backslash at the end")
	}
	c := t.s[t.pos+1]
	if e, ok := javaEscapes[c]; ok {
		text := e[1]
		if t.class > 0 {
			text = e[0]
		}
		if text == "" {
			return fmt.Errorf("\\%c inside a character class is not supported", c)
		}
		t.out.WriteString(text)
		t.pos += 2
		return nil
	}
	switch {
	case c >= '1' && c <= '9', c == 'k':
		return fmt.Errorf("a reference to a group (\\%c) is not supported", c)
	case c == 'G', c == 'X':
		return fmt.Errorf("\\%c is not supported", c)
	case c == 'u':
		return t.unicode()
	case c == 'c':
		if t.pos+2 >= len(t.s) {
			return fmt.Errorf("\\c needs a character")
		}
		fmt.Fprintf(&t.out, `\x{%X}`, t.s[t.pos+2]^64)
		t.pos += 3
		return nil
	case c == 'p' || c == 'P':
		return t.property()
	case c == 'Q':
		return t.quotation()
	case c == '0':
		return fmt.Errorf("an octal escape (\\0) is not supported: write \\xNN")
	}
	t.copy(2)
	return nil
}

// unicode translates \uXXXX.
func (t *translator) unicode() error {
	hex := t.s[t.pos+2:]
	if len(hex) < 4 || strings.Trim(hex[:4], "0123456789abcdefABCDEF") != "" {
		return fmt.Errorf("\\u needs four hexadecimal digits")
	}
	t.out.WriteString(`\x{` + hex[:4] + `}`)
	t.pos += 6
	return nil
}

// property translates \p{…}: POSIX names, "Is" prefixes and key=value forms.
func (t *translator) property() error {
	rest := t.s[t.pos+2:]
	if !strings.HasPrefix(rest, "{") {
		t.copy(2)
		return nil
	}
	name, _, ok := strings.Cut(rest[1:], "}")
	if !ok {
		return fmt.Errorf("\\p{ is never closed")
	}
	negated := t.s[t.pos+1] == 'P'
	size := len(`\p{}`) + len(name)
	if posix, ok := javaClasses[name]; ok {
		text := "[:" + posix + ":]"
		if negated {
			text = "[:^" + posix + ":]"
		}
		if t.class == 0 {
			text = "[" + text + "]"
		}
		t.out.WriteString(text)
		t.pos += size
		return nil
	}
	if _, value, ok := strings.Cut(name, "="); ok {
		name = value
	}
	t.out.WriteString(t.s[t.pos:t.pos+2] + "{" + strings.TrimPrefix(name, "Is") + "}")
	t.pos += size
	return nil
}

// quotation copies what stands between \Q and \E literally.
func (t *translator) quotation() error {
	text, _, closed := strings.Cut(t.s[t.pos+2:], `\E`)
	t.out.WriteString(regexp.QuoteMeta(text))
	if t.class > 0 && strings.Contains(text, "-") {
		return fmt.Errorf("a quotation with a hyphen inside a character class is not supported")
	}
	t.pos += 2 + len(text)
	if closed {
		t.pos += 2
	}
	return nil
}
