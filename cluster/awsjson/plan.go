// Package awsjson is a codec between Go structs and the JSON of the AWS JSON
// 1.1 protocol.
//
// The structs of the AWS SDK carry no JSON tags, so the codec follows the
// rule that holds for the whole ECS API model: a member is named like its
// field with the first letter in lower case, timestamps are epoch seconds
// with a fraction of milliseconds, blobs are base64, absent members are left
// out and unknown ones are skipped. Numbers and booleans that are not
// pointers are always written, because the model gives them no absent state.
// Fields of interface type (unions and documents) are not encoded and are
// skipped when decoding.
package awsjson

import (
	"encoding/json"
	"reflect"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// plan is how to write and read one struct type.
type plan struct {
	fields []field
	byName map[string]int
}

type field struct {
	name  string
	key   string // `"name":`
	index int
	codec codec
}

// codec writes and reads values of one type.
type codec struct {
	// absent tells whether a value is left out; nil means never.
	absent func(v reflect.Value) bool
	encode func(b []byte, v reflect.Value) []byte
	decode func(d *decoder, v reflect.Value) error
}

// plans remembers the result of planOf by struct type.
var plans sync.Map

var (
	timeType = reflect.TypeFor[time.Time]()
	rawType  = reflect.TypeFor[json.RawMessage]()
)

func planOf(t reflect.Type) *plan {
	if p, ok := plans.Load(t); ok {
		return p.(*plan)
	}
	p := &plan{byName: make(map[string]int)}
	for i := range t.NumField() {
		f := t.Field(i)
		// ResultMetadata is the SDK's own and no member of an answer.
		if !f.IsExported() || f.Anonymous || f.Name == "ResultMetadata" {
			continue
		}
		c, ok := codecOf(f.Type)
		if !ok {
			continue
		}
		name := memberName(f.Name)
		p.byName[name] = len(p.fields)
		p.fields = append(p.fields, field{name: name, key: `"` + name + `":`, index: i, codec: c})
	}
	made, _ := plans.LoadOrStore(t, p)
	return made.(*plan)
}

// Skipped lists the exported fields of a struct type, and of all types it is
// made of, that the codec does not carry: those of interface, function,
// channel, unsigned and complex types.
func Skipped(t reflect.Type) []string {
	var out []string
	seen := make(map[reflect.Type]bool)
	var walk func(t reflect.Type)
	walk = func(t reflect.Type) {
		switch t.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			walk(t.Elem())
			return
		}
		if t.Kind() != reflect.Struct || t == timeType || seen[t] {
			return
		}
		seen[t] = true
		for i := range t.NumField() {
			f := t.Field(i)
			if !f.IsExported() || f.Anonymous || f.Name == "ResultMetadata" {
				continue
			}
			if _, ok := codecOf(f.Type); !ok {
				out = append(out, t.Name()+"."+f.Name)
				continue
			}
			walk(f.Type)
		}
	}
	walk(t)
	return out
}

// memberName is the name of a field in JSON.
func memberName(field string) string {
	r, n := utf8.DecodeRuneInString(field)
	return string(unicode.ToLower(r)) + field[n:]
}

// codecOf finds how to treat a type; ok is false for one that is skipped.
func codecOf(t reflect.Type) (c codec, ok bool) {
	switch {
	case t == timeType:
		return codec{func(v reflect.Value) bool { return v.Interface().(time.Time).IsZero() }, encodeTime, decodeTime}, true
	case t == rawType:
		return codec{func(v reflect.Value) bool { return v.Len() == 0 }, encodeRaw, decodeRaw}, true
	}
	switch t.Kind() {
	case reflect.String:
		return codec{func(v reflect.Value) bool { return v.Len() == 0 }, encodeString, decodeString}, true
	case reflect.Bool:
		return codec{nil, encodeBool, decodeBool}, true
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return codec{nil, encodeInt, decodeInt}, true
	case reflect.Float32, reflect.Float64:
		return codec{nil, encodeFloat, decodeFloat}, true
	case reflect.Struct:
		// The plan is looked up when it is used: types may refer to
		// themselves.
		return codec{nil, encodeStruct, decodeStruct}, true
	case reflect.Pointer:
		return pointerCodec(t)
	case reflect.Slice:
		return sliceCodec(t)
	case reflect.Map:
		return mapCodec(t)
	}
	return codec{}, false
}

func isNil(v reflect.Value) bool { return v.IsNil() }

func pointerCodec(t reflect.Type) (codec, bool) {
	elem, ok := codecOf(t.Elem())
	if !ok {
		return codec{}, false
	}
	return codec{
		isNil,
		func(b []byte, v reflect.Value) []byte { return elem.encode(b, v.Elem()) },
		func(d *decoder, v reflect.Value) error {
			p := reflect.New(t.Elem())
			if err := elem.decode(d, p.Elem()); err != nil {
				return err
			}
			v.Set(p)
			return nil
		},
	}, true
}

func sliceCodec(t reflect.Type) (codec, bool) {
	if t.Elem().Kind() == reflect.Uint8 {
		return codec{isNil, encodeBlob, decodeBlob}, true
	}
	elem, ok := codecOf(t.Elem())
	if !ok {
		return codec{}, false
	}
	return codec{
		isNil,
		func(b []byte, v reflect.Value) []byte {
			b = append(b, '[')
			for i := range v.Len() {
				if i > 0 {
					b = append(b, ',')
				}
				b = elem.encode(b, v.Index(i))
			}
			return append(b, ']')
		},
		func(d *decoder, v reflect.Value) error { return d.array(v, elem) },
	}, true
}

func mapCodec(t reflect.Type) (codec, bool) {
	elem, ok := codecOf(t.Elem())
	if !ok || t.Key().Kind() != reflect.String {
		return codec{}, false
	}
	return codec{
		isNil,
		func(b []byte, v reflect.Value) []byte { return encodeMap(b, v, elem) },
		func(d *decoder, v reflect.Value) error { return d.dict(v, elem) },
	}, true
}
