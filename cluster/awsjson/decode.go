package awsjson

import (
	"encoding/base64"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds the nesting of a document. The deepest shape of the ECS
// API model has 9 levels.
const maxDepth = 64

// maxElements bounds the memory of all list elements of a document, in
// bytes: an element may take a thousand times the space of its text "{}".
const maxElements = 16 << 20

// A SyntaxError is a document that is not JSON.
type SyntaxError struct {
	Offset int
	Msg    string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("invalid JSON at byte %d: %s", e.Offset, e.Msg)
}

// A TypeError is a member whose JSON value has another type than the member.
type TypeError struct {
	// Member is the path of the member, as containerDefinitions[0].name.
	Member string
	// Got names the kind of JSON value as AWS does: STRING_VALUE,
	// NUMBER_VALUE, TRUE_VALUE, FALSE_VALUE, NULL_VALUE, START_OBJECT,
	// START_ARRAY.
	Got string
	// Want names the type of the member: String, Integer, Long, Double,
	// Boolean, Timestamp, Blob, List, Map, Structure.
	Want string
}

func (e *TypeError) Error() string {
	member := e.Member
	if member == "" {
		member = "request"
	}
	return fmt.Sprintf("%s: %s can not be converted to %s", member, e.Got, e.Want)
}

// Unmarshal decodes a JSON object into the struct that v points to. Members
// that the struct does not have are skipped, null means absent.
func Unmarshal(data []byte, v any) error {
	r := reflect.ValueOf(v)
	if r.Kind() != reflect.Pointer || r.IsNil() || r.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("decode into %T: not a pointer to a struct", v)
	}
	d := &decoder{data: data}
	if err := decodeStruct(d, r.Elem()); err != nil {
		return err
	}
	if d.space(); d.pos != len(d.data) {
		return d.syntax("text after the document")
	}
	return nil
}

type decoder struct {
	data  []byte
	pos   int
	depth int
	path  []step
	// elementBytes counts towards maxElements.
	elementBytes int
}

// step is one part of the path to the value being decoded.
type step struct {
	name  string // of a member or key; empty for an element
	index int
}

func (d *decoder) syntax(msg string) error { return &SyntaxError{d.pos, msg} }

func (d *decoder) mismatch(want string) error {
	got := "UNKNOWN"
	switch c := d.peek(); {
	case c == '"':
		got = "STRING_VALUE"
	case c == '{':
		got = "START_OBJECT"
	case c == '[':
		got = "START_ARRAY"
	case c == 't':
		got = "TRUE_VALUE"
	case c == 'f':
		got = "FALSE_VALUE"
	case c == 'n':
		got = "NULL_VALUE"
	case c == '-' || c >= '0' && c <= '9':
		got = "NUMBER_VALUE"
	default:
		return d.syntax("a value is missing")
	}
	return &TypeError{Member: d.member(), Got: got, Want: want}
}

func (d *decoder) member() string {
	var b strings.Builder
	for _, s := range d.path {
		switch {
		case s.name == "":
			fmt.Fprintf(&b, "[%d]", s.index)
		case b.Len() > 0:
			b.WriteByte('.')
			fallthrough
		default:
			b.WriteString(s.name)
		}
	}
	return b.String()
}

func (d *decoder) space() {
	for d.pos < len(d.data) {
		switch d.data[d.pos] {
		case ' ', '\t', '\n', '\r':
			d.pos++
		default:
			return
		}
	}
}

// peek skips space and returns the next byte, 0 at the end.
func (d *decoder) peek() byte {
	d.space()
	if d.pos >= len(d.data) {
		return 0
	}
	return d.data[d.pos]
}

func (d *decoder) enter() error {
	d.pos++
	if d.depth++; d.depth > maxDepth {
		return d.syntax("nested too deeply")
	}
	return nil
}

func (d *decoder) leave() {
	d.pos++
	d.depth--
}

// literal consumes a word such as null if it comes next.
func (d *decoder) literal(word string) bool {
	if d.peek() != word[0] || !strings.HasPrefix(string(d.data[d.pos:min(d.pos+len(word), len(d.data))]), word) {
		return false
	}
	d.pos += len(word)
	return true
}

// object walks over an object; fn consumes each value.
func (d *decoder) object(want string, fn func(key string) error) error {
	if d.peek() != '{' {
		return d.mismatch(want)
	}
	if err := d.enter(); err != nil {
		return err
	}
	if d.peek() == '}' {
		d.leave()
		return nil
	}
	for {
		if d.peek() != '"' {
			return d.syntax("a member name must be a string")
		}
		key, err := d.text()
		if err != nil {
			return err
		}
		if d.peek() != ':' {
			return d.syntax("colon expected")
		}
		d.pos++
		if err := fn(key); err != nil {
			return err
		}
		switch d.peek() {
		case ',':
			d.pos++
		case '}':
			d.leave()
			return nil
		default:
			return d.syntax("comma or closing brace expected")
		}
	}
}

// elements walks over an array; fn consumes each element.
func (d *decoder) elements(want string, fn func(i int) error) error {
	if d.peek() != '[' {
		return d.mismatch(want)
	}
	if err := d.enter(); err != nil {
		return err
	}
	if d.peek() == ']' {
		d.leave()
		return nil
	}
	for i := 0; ; i++ {
		if err := fn(i); err != nil {
			return err
		}
		switch d.peek() {
		case ',':
			d.pos++
		case ']':
			d.leave()
			return nil
		default:
			return d.syntax("comma or closing bracket expected")
		}
	}
}

func decodeStruct(d *decoder, v reflect.Value) error {
	p := planOf(v.Type())
	return d.object("a Structure", func(key string) error {
		i, ok := p.byName[key]
		if !ok {
			return d.skip()
		}
		if d.literal("null") {
			return nil
		}
		f := &p.fields[i]
		d.path = append(d.path, step{name: f.name})
		if err := f.codec.decode(d, v.Field(f.index)); err != nil {
			return err
		}
		d.path = d.path[:len(d.path)-1]
		return nil
	})
}

func (d *decoder) array(v reflect.Value, elem codec) error {
	out := reflect.MakeSlice(v.Type(), 0, 0)
	zero := reflect.Zero(v.Type().Elem())
	size := int(v.Type().Elem().Size())
	err := d.elements("a List", func(i int) error {
		if d.elementBytes += size; d.elementBytes > maxElements {
			return d.syntax("too many list elements")
		}
		d.path = append(d.path, step{index: i})
		out = reflect.Append(out, zero)
		if err := elem.decode(d, out.Index(i)); err != nil {
			return err
		}
		d.path = d.path[:len(d.path)-1]
		return nil
	})
	if err != nil {
		return err
	}
	v.Set(out)
	return nil
}

func (d *decoder) dict(v reflect.Value, elem codec) error {
	out := reflect.MakeMap(v.Type())
	err := d.object("a Map", func(key string) error {
		d.path = append(d.path, step{name: key})
		value := reflect.New(v.Type().Elem()).Elem()
		if err := elem.decode(d, value); err != nil {
			return err
		}
		d.path = d.path[:len(d.path)-1]
		out.SetMapIndex(reflect.ValueOf(key).Convert(v.Type().Key()), value)
		return nil
	})
	if err != nil {
		return err
	}
	v.Set(out)
	return nil
}

// skip consumes any value.
func (d *decoder) skip() error {
	switch c := d.peek(); {
	case c == '"':
		_, err := d.text()
		return err
	case c == '{':
		return d.object("", func(string) error { return d.skip() })
	case c == '[':
		return d.elements("", func(int) error { return d.skip() })
	case c == '-' || c >= '0' && c <= '9':
		_, err := d.number("")
		return err
	case d.literal("true") || d.literal("false") || d.literal("null"):
		return nil
	}
	return d.syntax("a value is missing")
}

func decodeString(d *decoder, v reflect.Value) error {
	if d.peek() != '"' {
		return d.mismatch("a String")
	}
	s, err := d.text()
	if err != nil {
		return err
	}
	v.SetString(s)
	return nil
}

func decodeBool(d *decoder, v reflect.Value) error {
	switch {
	case d.literal("true"):
		v.SetBool(true)
	case d.literal("false"):
		v.SetBool(false)
	default:
		return d.mismatch("a Boolean")
	}
	return nil
}

func decodeInt(d *decoder, v reflect.Value) error {
	want := "an Integer"
	if v.Kind() == reflect.Int64 {
		want = "a Long"
	}
	at := d.pos
	s, err := d.number(want)
	if err != nil {
		return err
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		f, ferr := strconv.ParseFloat(s, 64)
		if ferr != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
			d.pos = at
			return d.mismatch(want)
		}
		n = int64(f)
	}
	if v.OverflowInt(n) {
		d.pos = at
		return d.mismatch(want)
	}
	v.SetInt(n)
	return nil
}

func decodeFloat(d *decoder, v reflect.Value) error {
	at := d.pos
	s, err := d.number("a Double")
	if err != nil {
		return err
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		d.pos = at
		return d.mismatch("a Double")
	}
	v.SetFloat(f)
	return nil
}

// maxEpoch bounds timestamps to what the calendar and JSON can hold.
const maxEpoch = 253402300799 // the end of the year 9999

func decodeTime(d *decoder, v reflect.Value) error {
	at := d.pos
	if d.peek() == '"' {
		s, err := d.text()
		if err != nil {
			return err
		}
		t, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			d.pos = at
			return d.mismatch("a Timestamp")
		}
		v.Set(reflect.ValueOf(t.UTC()))
		return nil
	}
	s, err := d.number("a Timestamp")
	if err != nil {
		return err
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.Abs(f) > maxEpoch {
		d.pos = at
		return d.mismatch("a Timestamp")
	}
	v.Set(reflect.ValueOf(time.UnixMilli(int64(math.Round(f * 1000))).UTC()))
	return nil
}

func decodeBlob(d *decoder, v reflect.Value) error {
	at := d.pos
	if d.peek() != '"' {
		return d.mismatch("a Blob")
	}
	s, err := d.text()
	if err != nil {
		return err
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		d.pos = at
		return d.mismatch("a Blob")
	}
	v.SetBytes(b)
	return nil
}

func decodeRaw(d *decoder, v reflect.Value) error {
	d.space()
	from := d.pos
	if err := d.skip(); err != nil {
		return err
	}
	v.SetBytes(append([]byte(nil), d.data[from:d.pos]...))
	return nil
}

// number consumes a JSON number and returns its text.
func (d *decoder) number(want string) (string, error) {
	c := d.peek()
	if c != '-' && (c < '0' || c > '9') {
		return "", d.mismatch(want)
	}
	from := d.pos
	digits := func() int {
		n := 0
		for d.pos < len(d.data) && d.data[d.pos] >= '0' && d.data[d.pos] <= '9' {
			d.pos++
			n++
		}
		return n
	}
	at := func(set string) bool {
		return d.pos < len(d.data) && strings.IndexByte(set, d.data[d.pos]) >= 0
	}
	if c == '-' {
		d.pos++
	}
	lead := d.pos
	n := digits()
	if n == 0 || n > 1 && d.data[lead] == '0' {
		return "", d.syntax("invalid number")
	}
	if at(".") {
		d.pos++
		if digits() == 0 {
			return "", d.syntax("invalid number")
		}
	}
	if at("eE") {
		d.pos++
		if at("+-") {
			d.pos++
		}
		if digits() == 0 {
			return "", d.syntax("invalid number")
		}
	}
	return string(d.data[from:d.pos]), nil
}

// text consumes a JSON string.
func (d *decoder) text() (string, error) {
	d.pos++ // the quote, which the caller has seen
	from := d.pos
	for i := from; i < len(d.data); i++ {
		switch c := d.data[i]; {
		case c == '"':
			d.pos = i + 1
			return strings.ToValidUTF8(string(d.data[from:i]), "\uFFFD"), nil
		case c == '\\':
			return d.escaped(from, i)
		case c < ' ':
			d.pos = i
			return "", d.syntax("control character in a string")
		}
	}
	return "", d.syntax("string without end")
}

// escaped consumes the rest of a string whose first backslash is at i.
func (d *decoder) escaped(from, i int) (string, error) {
	b := append(make([]byte, 0, i-from+32), d.data[from:i]...)
	for i < len(d.data) {
		c := d.data[i]
		switch {
		case c == '"':
			d.pos = i + 1
			return strings.ToValidUTF8(string(b), "\uFFFD"), nil
		case c < ' ':
			d.pos = i
			return "", d.syntax("control character in a string")
		case c != '\\':
			b = append(b, c)
			i++
			continue
		}
		if i+1 >= len(d.data) {
			break
		}
		i += 2
		switch e := d.data[i-1]; e {
		case '"', '\\', '/':
			b = append(b, e)
		case 'b':
			b = append(b, '\b')
		case 'f':
			b = append(b, '\f')
		case 'n':
			b = append(b, '\n')
		case 'r':
			b = append(b, '\r')
		case 't':
			b = append(b, '\t')
		case 'u':
			r, ok := d.hex4(i)
			if !ok {
				d.pos = i
				return "", d.syntax("invalid \\u escape")
			}
			i += 4
			if utf16.IsSurrogate(r) {
				low := rune(-1)
				if i+1 < len(d.data) && d.data[i] == '\\' && d.data[i+1] == 'u' {
					low, _ = d.hex4(i + 2)
				}
				if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
					i += 6
				}
			}
			b = utf8.AppendRune(b, r)
		default:
			d.pos = i
			return "", d.syntax("invalid escape")
		}
	}
	d.pos = len(d.data)
	return "", d.syntax("string without end")
}

func (d *decoder) hex4(at int) (rune, bool) {
	if at+4 > len(d.data) {
		return -1, false
	}
	n, err := strconv.ParseUint(string(d.data[at:at+4]), 16, 32)
	if err != nil {
		return -1, false
	}
	return rune(n), true
}
