package awsjson

import (
	"encoding/base64"
	"math"
	"reflect"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// Marshal encodes the struct that v is or points to.
func Marshal(v any) []byte { return Append(nil, v) }

// Quote encodes a string.
func Quote(s string) []byte { return appendString(nil, s) }

// Append appends the encoding of the struct that v is or points to.
func Append(b []byte, v any) []byte {
	r := reflect.Indirect(reflect.ValueOf(v))
	if !r.IsValid() {
		return append(b, "{}"...)
	}
	return encodeStruct(b, r)
}

func encodeStruct(b []byte, v reflect.Value) []byte {
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
		b = f.codec.encode(b, fv)
	}
	return append(b, '}')
}

func encodeMap(b []byte, v reflect.Value, elem codec) []byte {
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
		b = elem.encode(b, v.MapIndex(reflect.ValueOf(k).Convert(v.Type().Key())))
	}
	return append(b, '}')
}

func encodeString(b []byte, v reflect.Value) []byte { return appendString(b, v.String()) }

func encodeBool(b []byte, v reflect.Value) []byte { return strconv.AppendBool(b, v.Bool()) }

func encodeInt(b []byte, v reflect.Value) []byte { return strconv.AppendInt(b, v.Int(), 10) }

func encodeFloat(b []byte, v reflect.Value) []byte {
	f := v.Float()
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return append(b, '0') // JSON has no such numbers and the API produces none
	}
	b = strconv.AppendFloat(b, f, 'f', -1, 64)
	if f == math.Trunc(f) {
		b = append(b, ".0"...)
	}
	return b
}

func encodeTime(b []byte, v reflect.Value) []byte {
	ms := v.Interface().(time.Time).UnixMilli()
	if ms < 0 {
		return strconv.AppendFloat(b, float64(ms)/1000, 'f', 3, 64)
	}
	b = strconv.AppendInt(b, ms/1000, 10)
	f := ms % 1000
	return append(b, '.', byte('0'+f/100), byte('0'+f/10%10), byte('0'+f%10))
}

func encodeBlob(b []byte, v reflect.Value) []byte {
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, v.Bytes())
	return append(b, '"')
}

func encodeRaw(b []byte, v reflect.Value) []byte { return append(b, v.Bytes()...) }

const hexDigits = "0123456789abcdef"

// appendString quotes s. Invalid UTF-8 becomes the replacement character.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				b = append(b, s[start:i]...)
				b = append(b, "\uFFFD"...)
				start = i + 1
			}
			i += n
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		start = i
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}
