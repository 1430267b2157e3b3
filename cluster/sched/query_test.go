package sched

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func viewA() *View {
	return &View{
		AgentConnected: true,
		AgentVersion:   "1.86.10",
		EC2InstanceID:  "i-0123",
		RegisteredAt:   time.Date(2018, 6, 18, 13, 30, 15, 500e6, time.UTC),
		RunningTasks:   3,
		Groups:         slices.Values([]string{"service:web", "family:batch"}),
		Attributes: map[string]string{
			"ecs.availability-zone": "us-east-1a", "ecs.instance-type": "t2.micro", "stack": "prod",
			"flag": "", "size": "10", "odd/name": "it's", "text": "a b",
		},
	}
}

func TestQueryMatch(t *testing.T) {
	tests := []struct {
		query string
		want  bool
	}{
		{"agentConnected == true", true},
		{"agentConnected equals false", false},
		{"agentConnected != false", true},
		{"agentConnected in [true, false]", true},
		{"agentVersion == 1.86.10", true},
		{"agentVersion > 1.86.9", true},
		{"agentVersion > 1.86.10", false},
		{"agentVersion >= 1.86.10", true},
		{"agentVersion < 1.100", true},
		{"agentVersion <= v2", true},
		{"agentVersion > 1.86.10-rc1", true},
		{"agentVersion in [1.0, 1.86.10.0]", true},
		{"agentVersion =~ 1\\.86\\..*", true},
		{"agentVersion exists", true},
		{"ec2InstanceId == i-0123", true},
		{"ec2InstanceId in ['i-1','i-0123']", true},
		{"ec2InstanceId !in [i-1, i-0123]", false},
		{"ec2InstanceId =~ i-.*", true},
		{"registeredAt == 2018-06-18", true},
		{"registeredAt != 2018-06-18", false},
		{"registeredAt == 2018-06-18T13:30", true},
		{"registeredAt == 2018-06-18T13:30:15Z", true},
		{"registeredAt == 2018-06-18T13:30:16Z", false},
		{"registeredAt == '2018-06-18 13:30:15.5'", true},
		{"registeredAt >= 2018-06-18", true},
		{"registeredAt < 2018-06-18T14:30:16+01:00", true},
		{"registeredAt < 2018-06-18T14:30:15+0100", false},
		{"registeredAt exists", true},
		{"runningTasksCount > 2", true},
		{"runningTasksCount == 3", true},
		{"runningTasksCount in [1,2]", false},
		{"runningTasksCount less_than_equal 2", false},
		{"task:group == service:web", true},
		{"task:group == service:db", false},
		{"task:group != service:web", false},
		{"task:group not_equals service:db", true},
		{"task:group in [x, family:batch]", true},
		{"task:group =~ family:.*", true},
		{"task:group !~ family:.*", false},
		{"task:group exists", true},
		{"attribute:stack == prod", true},
		{"attribute:stack==prod", true},
		{"attribute:stack!=prod", false},
		{"attribute:stack == Prod", false},
		{"attribute:none == x", false},
		{"attribute:none != x", true},
		{"attribute:none !in [x]", true},
		{"attribute:none exists", false},
		{"attribute:none !exists", true},
		{"attribute:none NOT_EXISTS", true},
		{"attribute:none !~ .*", true},
		{"attribute:none < 5", false},
		{"attribute:flag exists", true},
		{"attribute:flag == ''", true},
		{"attribute:size > 9", true},
		{"attribute:size > a", false},
		{"attribute:stack >= prod", true},
		{"attribute:text == 'a b'", true},
		{`attribute:odd/name == 'it\'s'`, true},
		{"attribute:ecs.instance-type =~ t2.*", true},
		{"attribute:ecs.instance-type =~ t2", false}, // the whole value
		{"attribute:ecs.instance-type =~ t[0-9].(micro|nano)", true},
		{"(attribute:ecs.instance-type =~ (t2|t3).*)", true},
		{"attribute:ecs.instance-type matches 't2.micro|t2.nano'", true},
		{"attribute:ecs.instance-type not_matches g2.*", true},
		{"attribute:ecs.availability-zone in [us-east-1a, us-east-1b] and attribute:stack == test", false},
		{"attribute:stack == test || attribute:stack == prod && agentConnected == false", false},
		{"(attribute:stack == test or attribute:stack == prod) AND agentConnected == true", true},
		{"not (attribute:stack == prod)", false},
		{"!attribute:stack == test", true},
		{"!!agentConnected == true", true},
		{"NOT attribute:none exists and attribute:flag exists", true},
		{"attribute:in in [in] or attribute:stack == prod", true},
		{"  agentConnected\t==\ntrue  ", true},
	}
	for _, tt := range tests {
		q, err := ParseQuery(tt.query)
		if err != nil {
			t.Errorf("ParseQuery(%q): %v", tt.query, err)
			continue
		}
		if got := q.Match(viewA()); got != tt.want {
			t.Errorf("%q matches: got %v, want %v", tt.query, got, tt.want)
		}
	}
}

func TestQueryOfEmptyInstance(t *testing.T) {
	for query, want := range map[string]bool{
		"agentVersion exists": false, "agentVersion > 1": false, "agentVersion != 1": true,
		"ec2InstanceId exists": false, "registeredAt exists": false, "registeredAt < 2030-01-01": false,
		"task:group exists": false, "task:group != x": true, "runningTasksCount == 0": true, "agentConnected == true": false,
	} {
		q, err := ParseQuery(query)
		if err != nil {
			t.Fatalf("ParseQuery(%q): %v", query, err)
		}
		if got := q.Match(&View{}); got != want {
			t.Errorf("%q matches an empty instance: got %v, want %v", query, got, want)
		}
	}
}

func TestQueryErrors(t *testing.T) {
	tests := []struct {
		query string
		pos   int
		text  string
	}{
		{"", 1, "expected a subject, found the end"},
		{"   ", 4, "expected a subject"},
		{"foo == bar", 1, "unknown subject \"foo\""},
		{"attribute: == x", 1, "needs a name"},
		{"attribute:x", 12, "expected an operator"},
		{"attribute:x = y", 13, "write \"==\""},
		{"attribute:x ~ y", 13, "expected an operator"},
		{"attribute:x ==", 15, "expected a value, found the end"},
		{"attribute:x == [a]", 16, "only allowed after"},
		{"attribute:x in [a", 18, "expected \",\" or \"]\""},
		{"attribute:x in []", 17, "expected a value"},
		{"attribute:x in [a b]", 19, "expected \",\" or \"]\""},
		{"attribute:x == 'a", 16, "never closed"},
		{"attribute:x == \"a\"", 16, "single quotes"},
		{"attribute:x == a'b'", 17, "quote inside"},
		{"attribute:x == f(y)", 17, "parenthesis inside"},
		{"(attribute:x == y", 18, "for the parenthesis at position 1"},
		{"attribute:x == y)", 17, "without an opening one"},
		{"attribute:x == y attribute:z == w", 18, "expected \"and\", \"or\" or the end"},
		{"attribute:x == y | attribute:z == w", 18, "expected \"and\""},
		{"attribute:x == y and", 21, "expected a subject"},
		{"agentConnected > true", 16, "cannot be used with this operator"},
		{"agentConnected == maybe", 19, "true or false"},
		{"agentVersion > new", 16, "a version such as"},
		{"runningTasksCount > many", 21, "whole number"},
		{"runningTasksCount =~ 3", 19, "cannot be used"},
		{"registeredAt > yesterday", 16, "not a time"},
		{"registeredAt =~ 2018.*", 14, "cannot be used"},
		{"task:group > a", 12, "cannot be used"},
		{"attribute:x =~ 'a(b'", 16, "missing closing )"},
		{"attribute:x =~ '(?=a)'", 16, "lookahead"},
		{"attribute:x =~ '(?<!a)b'", 16, "lookbehind"},
		{"attribute:x =~ 'a*+'", 16, "possessive"},
		{"attribute:x =~ '(a)\\1'", 16, "reference to a group"},
		{"attribute:x =~ '[a-z&&[^b]]'", 16, "intersection"},
		{"attribute:x =~ '[a[b]]'", 16, "inside a character class"},
		{"attribute:x =~ '(a{1000}){1000}'", 16, "invalid repeat"},
		{"attribute:x =~ '(a{900}b{900}c{900})'", 16, "too complex"},
		{strings.Repeat("(", 200), 102, "more than 100"},
		{strings.Repeat("x", MaxQueryLength+1), MaxQueryLength + 1, "longer than"},
	}
	for _, tt := range tests {
		_, err := ParseQuery(tt.query)
		var se *SyntaxError
		if !errors.As(err, &se) {
			t.Errorf("ParseQuery(%.40q): got %v, want a syntax error", tt.query, err)
			continue
		}
		if se.Pos != tt.pos || !strings.Contains(se.Msg, tt.text) {
			t.Errorf("ParseQuery(%.40q): got %v, want position %d and %q", tt.query, err, tt.pos, tt.text)
		}
	}
}

func TestJavaPatterns(t *testing.T) {
	tests := []struct {
		pattern, value string
		want           bool
	}{
		{`\p{Lower}+`, "abc", true},
		{`\P{Lower}+`, "ABC", true},
		{`[\p{Upper}\d]+`, "A1", true},
		{`\p{IsGreek}`, "λ", true},
		{`\p{script=Greek}`, "λ", true},
		{`\pL+`, "abc", true},
		{`\u0041\x42`, "AB", true},
		{`a\hb`, "a\tb", true},
		{`[\h]`, "\u00a0", true},
		{`a\Rb`, "a\r\nb", true},
		{`\Qa.b\E.`, "a.bc", true},
		{`\Qa.b\E`, "axb", false},
		{`\cA`, "\x01", true},
		{`\e`, "\x1b", true},
		{`(?i)PROD`, "prod", true},
		{`(?<name>a)b`, "ab", true},
		{`a|b`, "b", true},
		{`a|b`, "ab", false},
		{`.*\.large`, "m5.large", true},
		{`\s`, "\v", true},
		{`\S+`, "ab", true},
		{`[^a]`, "b", true},
	}
	for _, tt := range tests {
		re, err := javaPattern(tt.pattern)
		if err != nil {
			t.Errorf("%q: %v", tt.pattern, err)
			continue
		}
		if got := re.MatchString(tt.value); got != tt.want {
			t.Errorf("%q matches %q: got %v, want %v", tt.pattern, tt.value, got, tt.want)
		}
	}
}

// A query that parses must evaluate without a panic, and again to the same result; an
// error must point into the expression and quote little of it.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{
		"attribute:stack == prod", "not (task:group in [a, 'b c'] or agentVersion >= 1.2.3)", "registeredAt > 2018-06-18T13:00:00Z",
		"attribute:ecs.instance-type =~ (t2|t3).*&&runningTasksCount<5", "!attribute:x !exists", `attribute:x =~ '[\h\p{Lower}]\Qa\E'`,
		"ec2InstanceId =~ i-[0-9a-f]{17}", "((", "attribute:x == 'it\\'s'", "agentConnected!=true",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := ParseQuery(s)
		if err != nil {
			var se *SyntaxError
			if !errors.As(err, &se) || se.Pos < 1 || se.Pos > len(s)+1 {
				t.Fatalf("ParseQuery(%q): bad error %v", s, err)
			}
			if len(s) < 200 && len(se.Msg) > 400 {
				t.Fatalf("ParseQuery(%q): message of %d bytes", s, len(se.Msg))
			}
			return
		}
		v := viewA()
		first := q.Match(v)
		again, err := ParseQuery(q.String())
		if err != nil || again.Match(v) != first {
			t.Fatalf("%q: second parse differs (%v)", s, err)
		}
		q.Match(&View{})
	})
}
