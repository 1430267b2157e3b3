// Package model validates ECS requests against the service model: required
// members, enumerations, lengths, ranges and patterns.
//
// The model is botocore's, see NOTICE. What it does not say, the operations
// check themselves.
package model

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

//go:embed ecs-2014-11-13.model.json
var source []byte

// maxViolations is how many violations one error lists.
const maxViolations = 10

// A Model is a parsed service model.
type Model struct {
	operations map[string]string // input shape by operation
	shapes     map[string]*shape
}

type shape struct {
	Type     string
	Required []string
	Members  map[string]member
	Member   member
	Key      member
	Value    member
	Enum     []string
	Min, Max *float64
	Pattern  string
}

type member struct{ Shape string }

// Load parses the embedded model.
func Load() (*Model, error) {
	var doc struct {
		Operations map[string]struct{ Input member }
		Shapes     map[string]*shape
	}
	if err := json.Unmarshal(source, &doc); err != nil {
		return nil, fmt.Errorf("parse the ECS service model: %w", err)
	}
	m := &Model{operations: make(map[string]string), shapes: doc.Shapes}
	for name, o := range doc.Operations {
		m.operations[name] = o.Input.Shape
	}
	return m, nil
}

// Known tells whether the model has an operation of this name.
func (m *Model) Known(operation string) bool { return m.operations[operation] != "" }

// A Validator checks the inputs of one operation. It may be used by many
// goroutines.
type Validator struct{ root *rule }

// A Violation is a request that the model does not allow.
type Violation struct{ Constraints []string }

func (v *Violation) Error() string {
	noun := "validation error"
	if len(v.Constraints) > 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s detected: %s", len(v.Constraints), noun, strings.Join(v.Constraints, "; "))
}

// Validator compiles the checks of an operation for the SDK's input struct.
func (m *Model) Validator(operation string, input reflect.Type) (*Validator, error) {
	name := m.operations[operation]
	if name == "" {
		return nil, fmt.Errorf("operation %s is not in the ECS service model", operation)
	}
	c := compiler{m, make(map[string]*rule)}
	root, err := c.compile(name, input)
	if err != nil {
		return nil, fmt.Errorf("compile the checks of %s: %w", operation, err)
	}
	return &Validator{root}, nil
}

// Check returns nil or a *Violation that names each offending member.
func (v *Validator) Check(input any) error {
	var found Violation
	v.root.check(reflect.Indirect(reflect.ValueOf(input)), "", &found)
	if len(found.Constraints) == 0 {
		return nil
	}
	return &found
}

// rule is the compiled shape.
type rule struct {
	members  []memberRule
	element  *rule // of lists and of map values
	enum     []string
	min, max *float64
	pattern  *regexp.Regexp
	source   string // of the pattern
	trivial  bool   // nothing below can be violated
}

type memberRule struct {
	name     string
	index    int
	required bool
	rule     *rule
}

type compiler struct {
	m    *Model
	done map[string]*rule
}

func (c compiler) compile(name string, t reflect.Type) (*rule, error) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if r, ok := c.done[name]; ok {
		return r, nil
	}
	s := c.m.shapes[name]
	if s == nil {
		return nil, fmt.Errorf("shape %s is missing", name)
	}
	r := &rule{enum: s.Enum, min: s.Min, max: s.Max, source: s.Pattern}
	c.done[name] = r
	if s.Pattern != "" {
		p, err := regexp.Compile("^(?:" + s.Pattern + ")$")
		if err != nil {
			return nil, fmt.Errorf("shape %s: %w", name, err)
		}
		r.pattern = p
	}
	var err error
	switch {
	case s.Type == "structure" && t.Kind() == reflect.Struct:
		err = c.compileMembers(r, s, t)
	case s.Type == "list" && t.Kind() == reflect.Slice:
		r.element, err = c.compile(s.Member.Shape, t.Elem())
	case s.Type == "map" && t.Kind() == reflect.Map:
		r.element, err = c.compile(s.Value.Shape, t.Elem())
	}
	if err != nil {
		return nil, err
	}
	r.trivial = r.enum == nil && r.min == nil && r.max == nil && r.pattern == nil &&
		len(r.members) == 0 && (r.element == nil || r.element.trivial)
	return r, nil
}

func (c compiler) compileMembers(r *rule, s *shape, t reflect.Type) error {
	for i := range t.NumField() {
		f := t.Field(i)
		first, n := utf8.DecodeRuneInString(f.Name)
		name := string(unicode.ToLower(first)) + f.Name[n:]
		sm, ok := s.Members[name]
		if !ok || !f.IsExported() {
			continue
		}
		below, err := c.compile(sm.Shape, f.Type)
		if err != nil {
			return err
		}
		m := memberRule{name: name, index: i, rule: below}
		for _, q := range s.Required {
			m.required = m.required || q == name
		}
		if m.required || !below.trivial {
			r.members = append(r.members, m)
		}
	}
	return nil
}

// absent tells whether a member was not sent. Numbers and booleans that are
// not pointers have no absent state.
func absent(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Interface:
		return v.IsNil()
	case reflect.String:
		return v.Len() == 0
	}
	return false
}

func (r *rule) check(v reflect.Value, path string, found *Violation) {
	if r.trivial || len(found.Constraints) >= maxViolations {
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for _, m := range r.members {
			f := v.Field(m.index)
			at := m.name
			if path != "" {
				at = path + "." + at
			}
			if absent(f) {
				if m.required {
					found.add("Value null at '%s' failed to satisfy constraint: Member must not be null", at)
				}
				continue
			}
			m.rule.check(reflect.Indirect(f), at, found)
		}
	case reflect.Slice:
		r.length(v.Len(), fmt.Sprintf("Value at '%s'", path), found)
		for i := range v.Len() {
			r.element.check(reflect.Indirect(v.Index(i)), path+"."+strconv.Itoa(i+1)+".member", found)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			r.element.check(it.Value(), path+"."+it.Key().String(), found)
		}
	case reflect.String:
		r.text(v.String(), path, found)
	case reflect.Int, reflect.Int32, reflect.Int64:
		r.number(float64(v.Int()), path, found)
	case reflect.Float64:
		r.number(v.Float(), path, found)
	}
}

func (v *Violation) add(format string, args ...any) {
	if len(v.Constraints) < maxViolations {
		v.Constraints = append(v.Constraints, fmt.Sprintf(format, args...))
	}
}

// shown is how much of an offending value an error repeats.
const shown = 128

func (r *rule) text(s, path string, found *Violation) {
	value := s
	if len(value) > shown {
		value = strings.ToValidUTF8(value[:shown], "") + "..."
	}
	if r.enum != nil {
		for _, e := range r.enum {
			if s == e {
				return
			}
		}
		found.add("Value '%s' at '%s' failed to satisfy constraint: Member must satisfy enum value set: [%s]", value, path, strings.Join(r.enum, ", "))
		return
	}
	r.length(utf8.RuneCountInString(s), fmt.Sprintf("Value '%s' at '%s'", value, path), found)
	if r.pattern != nil && !r.pattern.MatchString(s) {
		found.add("Value '%s' at '%s' failed to satisfy constraint: Member must satisfy regular expression pattern: %s", value, path, r.source)
	}
}

func (r *rule) length(n int, where string, found *Violation) {
	if r.min != nil && n < int(*r.min) {
		found.add("%s failed to satisfy constraint: Member must have length greater than or equal to %d", where, int(*r.min))
	}
	if r.max != nil && n > int(*r.max) {
		found.add("%s failed to satisfy constraint: Member must have length less than or equal to %d", where, int(*r.max))
	}
}

func (r *rule) number(n float64, path string, found *Violation) {
	value := strconv.FormatFloat(n, 'f', -1, 64)
	if r.min != nil && n < *r.min {
		found.add("Value '%s' at '%s' failed to satisfy constraint: Member must have value greater than or equal to %s", value, path, strconv.FormatFloat(*r.min, 'f', -1, 64))
	}
	if r.max != nil && n > *r.max {
		found.add("Value '%s' at '%s' failed to satisfy constraint: Member must have value less than or equal to %s", value, path, strconv.FormatFloat(*r.max, 'f', -1, 64))
	}
}
