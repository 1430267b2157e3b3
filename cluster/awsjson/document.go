package awsjson

import (
	"encoding/base64"
	"reflect"
	"slices"
	"time"
)

// Hidden stands for a value that must not be told, as in the records of CloudTrail.
const Hidden = "HIDDEN_DUE_TO_SECURITY_REASONS"

// timeLayout is ISO 8601 in UTC with milliseconds, as in the events of EventBridge.
const timeLayout = "2006-01-02T15:04:05.000Z"

// ISOTime writes a time as documents have it: UTC, with milliseconds.
func ISOTime(t time.Time) string { return t.UTC().Format(timeLayout) }

// AppendDocument appends the encoding of the struct that v is or points to as events and
// audit records have it, which nobody decodes into the API's shapes again: times are ISO
// strings. Below a member for which hide is true, every text but that of members called
// name, and every value of a map, is Hidden. hide may be nil.
func AppendDocument(b []byte, v any, hide func(member string) bool) []byte {
	r := reflect.Indirect(reflect.ValueOf(v))
	if !r.IsValid() || r.Kind() != reflect.Struct {
		return append(b, "{}"...)
	}
	if hide == nil {
		hide = func(string) bool { return false }
	}
	return document{hide}.value(b, r, false)
}

type document struct{ hide func(member string) bool }

func (d document) value(b []byte, v reflect.Value, hidden bool) []byte {
	switch {
	case v.Type() == timeType:
		return appendString(b, ISOTime(v.Interface().(time.Time)))
	case hidden && (v.Kind() == reflect.String || v.Type() == rawType):
		return appendString(b, Hidden)
	case v.Type() == rawType:
		return encodeRaw(b, v)
	}
	switch v.Kind() {
	case reflect.Pointer:
		return d.value(b, v.Elem(), hidden)
	case reflect.Struct:
		return d.members(b, v, hidden)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			if hidden {
				return appendString(b, Hidden)
			}
			return appendString(b, base64.StdEncoding.EncodeToString(v.Bytes()))
		}
		b = append(b, '[')
		for i := range v.Len() {
			if i > 0 {
				b = append(b, ',')
			}
			b = d.value(b, v.Index(i), hidden)
		}
		return append(b, ']')
	case reflect.Map:
		return d.entries(b, v, hidden)
	}
	if c, ok := codecOf(v.Type()); ok {
		return c.encode(b, v)
	}
	return append(b, "null"...)
}

func (d document) members(b []byte, v reflect.Value, hidden bool) []byte {
	b = append(b, '{')
	first := true
	for _, f := range planOf(v.Type()).fields {
		fv := v.Field(f.index)
		if f.codec.absent != nil && f.codec.absent(fv) {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(b, f.key...)
		b = d.value(b, fv, hidden && f.name != "name" || d.hide(f.name))
	}
	return append(b, '}')
}

func (d document) entries(b []byte, v reflect.Value, hidden bool) []byte {
	keys := make([]string, 0, v.Len())
	for _, k := range v.MapKeys() {
		keys = append(keys, k.String())
	}
	slices.Sort(keys)
	b = append(b, '{')
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, k)
		b = append(b, ':')
		b = d.value(b, v.MapIndex(reflect.ValueOf(k).Convert(v.Type().Key())), hidden)
	}
	return append(b, '}')
}
