package iam

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxPolicy is how long a document may be, in bytes (IAM quotas: 10,240 characters of
// inline policies of a role).
const maxPolicy = 10240

// A Policy is a policy document.
type Policy struct {
	Version   string
	Statement statements
}

// Statement is one rule of a policy.
type Statement struct {
	Sid          string
	Effect       string
	Action       texts
	NotAction    texts
	Resource     texts
	NotResource  texts
	Principal    *principals
	NotPrincipal *principals
	Condition    map[string]map[string]texts
}

// texts is a text or a list of texts.
type texts []string

// UnmarshalJSON takes both forms.
func (t *texts) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		return json.Unmarshal(b, (*[]string)(t))
	}
	*t = make(texts, 1)
	return json.Unmarshal(b, &(*t)[0])
}

// statements is a statement or a list of statements.
type statements []Statement

// UnmarshalJSON takes both forms.
func (s *statements) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		return strict(b, (*[]Statement)(s))
	}
	*s = make(statements, 1)
	return strict(b, &(*s)[0])
}

// principals says who a trust policy is about: everybody, or names by kind.
type principals map[string]texts

// UnmarshalJSON takes "*" and an object.
func (p *principals) UnmarshalJSON(b []byte) error {
	var all string
	if json.Unmarshal(b, &all) == nil {
		if all != "*" {
			return fmt.Errorf("principal %.64q", all)
		}
		*p = principals{"AWS": {"*"}, "Service": {"*"}}
		return nil
	}
	return json.Unmarshal(b, (*map[string]texts)(p))
}

// strict decodes JSON without members that nobody knows: a misspelt "Condition" must not
// give more than was meant.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one document")
	}
	return nil
}

// ParsePolicy reads a policy of what a role may do.
func ParsePolicy(doc string) (*Policy, error) {
	p, err := parse(doc)
	if err != nil {
		return nil, err
	}
	for i := range p.Statement {
		s := &p.Statement[i]
		switch {
		case (len(s.Resource) == 0) == (len(s.NotResource) == 0):
			return nil, errors.New("a statement needs either Resource or NotResource")
		case s.Principal != nil || s.NotPrincipal != nil:
			return nil, errors.New("a policy of a role names no Principal")
		}
	}
	return p, nil
}

// ParseTrust reads a policy of who may take a role.
func ParseTrust(doc string) (*Policy, error) {
	p, err := parse(doc)
	if err != nil {
		return nil, err
	}
	for i := range p.Statement {
		s := &p.Statement[i]
		switch {
		case (s.Principal == nil) == (s.NotPrincipal == nil):
			return nil, errors.New("a statement of a trust policy needs either Principal or NotPrincipal")
		case len(s.Resource) > 0 || len(s.NotResource) > 0:
			return nil, errors.New("a trust policy names no Resource")
		}
	}
	return p, nil
}

func parse(doc string) (*Policy, error) {
	if len(doc) > maxPolicy {
		return nil, fmt.Errorf("the document has more than %d bytes", maxPolicy)
	}
	var raw struct {
		Version   string
		ID        string `json:"Id"`
		Statement statements
	}
	if err := strict([]byte(doc), &raw); err != nil {
		return nil, fmt.Errorf("syntax errors in policy: %w", err)
	}
	p := &Policy{Version: raw.Version, Statement: raw.Statement}
	if p.Version != "" && p.Version != "2012-10-17" && p.Version != "2008-10-17" {
		return nil, fmt.Errorf("version %.32q", p.Version)
	}
	if len(p.Statement) == 0 {
		return nil, errors.New("there is no Statement")
	}
	for i := range p.Statement {
		s := &p.Statement[i]
		switch {
		case s.Effect != "Allow" && s.Effect != "Deny":
			return nil, errors.New("Effect must be Allow or Deny") //nolint:staticcheck // names the member
		case (len(s.Action) == 0) == (len(s.NotAction) == 0):
			return nil, errors.New("a statement needs either Action or NotAction")
		}
		for _, a := range append(s.Action, s.NotAction...) {
			if a != "*" && !strings.Contains(a, ":") {
				return nil, fmt.Errorf("action %.64q: actions are SERVICE:NAME", a)
			}
		}
	}
	return p, nil
}

// Decision is what policies come to.
type Decision int

// Decisions. Denied by a statement beats every allowance.
const (
	NotAllowed Decision = iota
	Allowed
	ExplicitlyDenied
)

// Evaluate decides about one action on one resource. Context holds values that
// conditions may be about, by their keys in lower case.
func Evaluate(policies []*Policy, action, resource string, context map[string]string) Decision {
	d := NotAllowed
	for _, p := range policies {
		for i := range p.Statement {
			s := &p.Statement[i]
			if !s.about(action, resource) {
				continue
			}
			met, known := s.conditions(context)
			switch {
			// A condition that is not understood never allows and always denies.
			case s.Effect == "Deny" && (met || !known):
				return ExplicitlyDenied
			case s.Effect == "Allow" && met && known:
				d = Allowed
			}
		}
	}
	return d
}

func (s *Statement) about(action, resource string) bool {
	if len(s.Action) > 0 != anyMatch(s.Action, action, true) && len(s.Action) > 0 {
		return false
	}
	if len(s.NotAction) > 0 && anyMatch(s.NotAction, action, true) {
		return false
	}
	if len(s.Resource) > 0 && !anyMatch(s.Resource, resource, false) {
		return false
	}
	return len(s.NotResource) == 0 || !anyMatch(s.NotResource, resource, false)
}

func anyMatch(patterns []string, s string, fold bool) bool {
	for _, p := range patterns {
		if fold {
			p, s = strings.ToLower(p), strings.ToLower(s)
		}
		if match(p, s) {
			return true
		}
	}
	return false
}

// match compares with * for any characters and ? for one. It takes time in proportion to
// the product of the lengths at most.
func match(pattern, s string) bool {
	p, i, star, from := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			from++
			p, i = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// conditions reports whether all conditions are met, and whether all are understood.
func (s *Statement) conditions(context map[string]string) (met, known bool) {
	met, known = true, true
	for operator, keys := range s.Condition {
		for key, values := range keys {
			value, have := context[strings.ToLower(key)]
			ok := false
			switch operator {
			case "StringEquals", "ArnEquals":
				ok = have && anyEqual(values, value)
				if operator == "ArnEquals" {
					ok = have && anyMatch(values, value, false)
				}
			case "StringLike", "ArnLike":
				ok = have && anyMatch(values, value, false)
			case "StringNotEquals":
				ok = !have || !anyEqual(values, value)
			case "StringNotLike", "ArnNotLike", "ArnNotEquals":
				ok = !have || !anyMatch(values, value, false)
			default:
				known = false
			}
			met = met && ok
		}
	}
	return met, known
}

func anyEqual(values []string, s string) bool {
	for _, v := range values {
		if v == s {
			return true
		}
	}
	return false
}

// Trusts reports whether a trust policy lets a principal of a kind ("AWS" or "Service")
// take the role.
func (p *Policy) Trusts(kind string, names ...string) bool {
	trusted := false
	for i := range p.Statement {
		s := &p.Statement[i]
		if !(len(s.Action) > 0 && anyMatch(s.Action, "sts:AssumeRole", true)) {
			continue
		}
		whom := false
		if s.Principal != nil {
			for _, want := range (*s.Principal)[kind] {
				for _, name := range names {
					whom = whom || want == "*" || want == name
				}
			}
		}
		switch {
		case s.Effect == "Deny" && (whom || s.NotPrincipal != nil):
			return false
		case s.Effect == "Allow" && whom && len(s.Condition) == 0:
			trusted = true
		case s.Effect == "Allow" && whom && kind == "Service":
			// Conditions such as aws:SourceAccount guard against other accounts, of which
			// there is none here.
			trusted = true
		}
	}
	return trusted
}
