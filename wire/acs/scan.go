package acs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// Limits of one frame. They bound the memory that a frame can make a receiver use; a
// payload of a thousand ordinary tasks is far below each of them.
const (
	// MaxFrame is the size of the largest frame in bytes.
	MaxFrame = 4 << 20
	// MaxDepth is how deep objects and arrays may be nested.
	MaxDepth = 32
	// MaxElements is how many objects and array elements a frame may hold in all.
	MaxElements = 20_000
	// MaxString is the size of the largest string in bytes, as it is written.
	MaxString = 1 << 20
	// MaxKeys is how many members one object may have.
	MaxKeys = 4_096
)

// FrameError says why a frame was refused. It names the place and the fault and holds
// nothing of the frame's content.
type FrameError struct {
	Offset int    // bytes from the start of the frame
	Field  string // the member with the wrong type, if that is the fault
	Fault  string
}

// Error is one line for the log.
func (e *FrameError) Error() string {
	if e.Field != "" {
		return fmt.Sprintf("acs: member %s: %s", e.Field, e.Fault)
	}
	return fmt.Sprintf("acs: byte %d: %s", e.Offset, e.Fault)
}

// scanner walks over JSON text once without building anything. It refuses what the
// decoder of the standard library would take but no cluster means: doubled members,
// null array elements, and sizes beyond the limits. Syntax that it lets pass is still
// checked by the decoder.
type scanner struct {
	data     []byte
	pos      int
	elements int
	names    [][]byte // member names of all open objects, the innermost's last
}

// level is one open object or array.
type level struct {
	object  bool
	expects bool                // an object: a member name comes next
	first   int                 // where its member names start in scanner.names
	count   int                 // how many members it has
	many    map[string]struct{} // takes over from names when there are many
}

// scan checks data against the limits.
func scan(data []byte) error {
	if len(data) > MaxFrame {
		return &FrameError{Fault: fmt.Sprintf("frame of %d bytes is larger than %d", len(data), MaxFrame)}
	}
	if !utf8.Valid(data) {
		return &FrameError{Fault: "not valid UTF-8"}
	}
	s := &scanner{data: data}
	return s.run()
}

func (s *scanner) fault(format string, args ...any) error {
	return &FrameError{Offset: s.pos, Fault: fmt.Sprintf(format, args...)}
}

func (s *scanner) run() error {
	var stack []level
	top := func() *level { return &stack[len(stack)-1] }
	for s.pos < len(s.data) {
		c := s.data[s.pos]
		switch c {
		case ' ', '\t', '\r', '\n', ':':
			s.pos++
			continue
		case ',':
			if len(stack) > 0 && top().object {
				top().expects = true
			}
			s.pos++
			continue
		case '}', ']':
			if len(stack) == 0 {
				return s.fault("unbalanced brackets")
			}
			s.names = s.names[:top().first]
			stack = stack[:len(stack)-1]
			s.pos++
			continue
		}
		if len(stack) > 0 && top().object && top().expects {
			if err := s.member(top()); err != nil {
				return err
			}
			continue
		}
		inArray := len(stack) > 0 && !top().object
		if inArray || c == '{' {
			if s.elements++; s.elements > MaxElements {
				return s.fault("more than %d elements", MaxElements)
			}
		}
		switch c {
		case '{', '[':
			if len(stack) == MaxDepth {
				return s.fault("nested deeper than %d", MaxDepth)
			}
			stack = append(stack, level{object: c == '{', expects: c == '{', first: len(s.names)})
			s.pos++
		case '"':
			if _, err := s.text(); err != nil {
				return err
			}
		case 'n':
			if inArray {
				return s.fault("null in a list")
			}
			s.literal()
		default:
			s.literal()
		}
	}
	if len(stack) > 0 {
		return s.fault("unexpected end")
	}
	return nil
}

// member reads the name of an object's member and refuses a name seen before.
func (s *scanner) member(l *level) error {
	if s.data[s.pos] != '"' {
		return s.fault("member name expected")
	}
	name, err := s.name()
	if err != nil {
		return err
	}
	if !s.add(l, name) {
		return s.fault("member name given twice")
	}
	if l.count > MaxKeys {
		return s.fault("more than %d members in one object", MaxKeys)
	}
	l.expects = false
	return nil
}

// fewNames is up to where names are compared one by one, which covers every object
// of the protocol without a map.
const fewNames = 48

// add remembers a member's name and reports whether it is new.
func (s *scanner) add(l *level, name []byte) bool {
	l.count++
	if l.many != nil {
		_, known := l.many[string(name)]
		l.many[string(name)] = struct{}{}
		return !known
	}
	for _, n := range s.names[l.first:] {
		if bytes.Equal(n, name) {
			return false
		}
	}
	s.names = append(s.names, name)
	if l.count == fewNames {
		l.many = make(map[string]struct{}, 2*fewNames)
		for _, n := range s.names[l.first:] {
			l.many[string(n)] = struct{}{}
		}
	}
	return true
}

// name reads a string and returns what it means.
func (s *scanner) name() ([]byte, error) {
	start := s.pos
	escaped, err := s.text()
	if err != nil {
		return nil, err
	}
	if !escaped {
		return s.data[start+1 : s.pos-1], nil
	}
	var name string
	if json.Unmarshal(s.data[start:s.pos], &name) != nil {
		return nil, s.fault("bad escape in a member name")
	}
	return []byte(name), nil
}

// text skips a string and reports whether it holds escapes.
func (s *scanner) text() (escaped bool, err error) {
	start := s.pos
	for i := start + 1; i < len(s.data); i++ {
		switch s.data[i] {
		case '\\':
			escaped = true
			i++
		case '"':
			if i-start > MaxString {
				return false, s.fault("string of %d bytes is larger than %d", i-start, MaxString)
			}
			s.pos = i + 1
			return escaped, nil
		}
	}
	return false, s.fault("string without end")
}

// literal skips a number, true, false or null, or whatever stands in its place.
func (s *scanner) literal() {
	for s.pos++; s.pos < len(s.data); s.pos++ {
		switch s.data[s.pos] {
		case ' ', '\t', '\r', '\n', ',', ':', '}', ']', '{', '[', '"':
			return
		}
	}
}
