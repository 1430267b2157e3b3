package cloudwatch

import (
	"encoding/json"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/smithy-go/encoding/cbor"
)

// A request in any of the protocols becomes a tree of map[string]any, []any, string,
// float64, bool and time.Time. Answers are made of the same.
type tree map[string]any

// Limits of a request, besides that of its size.
const (
	maxDepth = 12
	maxItems = 1000
)

// fromForm reads A.B.member.1.C=value (query protocol, Smithy's awsQuery).
func fromForm(form url.Values) (tree, error) {
	root := tree{}
	for key, values := range form {
		parts := strings.Split(key, ".")
		if len(parts) > maxDepth {
			return nil, malformed("%s is nested too deeply.", clip(key))
		}
		at := root
		for _, p := range parts[:len(parts)-1] {
			next, ok := at[p].(tree)
			if !ok {
				next = tree{}
				at[p] = next
			}
			at = next
		}
		if last := parts[len(parts)-1]; at[last] == nil && len(values) > 0 {
			at[last] = values[0]
		}
	}
	for name, v := range root {
		root[name] = lists(v)
	}
	return root, nil
}

// lists turns what has member.1, member.2, … into lists.
func lists(v any) any {
	t, ok := v.(tree)
	if !ok {
		return v
	}
	members, ok := t["member"].(tree)
	if !ok || len(t) != 1 {
		for name := range t {
			t[name] = lists(t[name])
		}
		return t
	}
	order := make([]int, 0, len(members))
	for name := range members {
		if n, err := strconv.Atoi(name); err == nil && strconv.Itoa(n) == name {
			order = append(order, n)
		}
	}
	slices.Sort(order)
	out := make([]any, 0, len(order))
	for _, n := range order {
		out = append(out, lists(members[strconv.Itoa(n)]))
	}
	return out
}

func fromJSON(body []byte) (tree, error) {
	var t map[string]any
	if err := json.Unmarshal(body, &t); err != nil {
		return nil, malformed("The request is not a JSON object.")
	}
	return t, nil
}

func fromCBOR(body []byte) (tree, error) {
	if len(body) == 0 {
		return tree{}, nil
	}
	v, err := cbor.Decode(body)
	if err != nil {
		return nil, malformed("The request is not valid CBOR.")
	}
	t, ok := plain(v).(tree)
	if !ok {
		return nil, malformed("The request is not a CBOR map.")
	}
	return t, nil
}

func plain(v cbor.Value) any {
	switch v := v.(type) {
	case cbor.Map:
		t := make(tree, len(v))
		for name, m := range v {
			t[name] = plain(m)
		}
		return t
	case cbor.List:
		out := make([]any, len(v))
		for i := range v {
			out[i] = plain(v[i])
		}
		return out
	case cbor.String:
		return string(v)
	case cbor.Bool:
		return bool(v)
	case cbor.Float32, cbor.Float64, cbor.Uint, cbor.NegInt:
		f, err := cbor.AsFloat64(v)
		if err != nil {
			return nil
		}
		return f
	case *cbor.Tag:
		if v.ID == 1 {
			return plain(v.Value) // seconds since 1970
		}
	}
	return nil
}

// The readers below take a member as any of the protocols writes it.

func (t tree) text(name string) (string, error) {
	switch v := t[name].(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	}
	return "", malformed("%s is not a string.", name)
}

func (t tree) flag(name string, otherwise bool) (bool, error) {
	switch v := t[name].(type) {
	case nil:
		return otherwise, nil
	case bool:
		return v, nil
	case string:
		if b, err := strconv.ParseBool(v); err == nil {
			return b, nil
		}
	}
	return false, malformed("%s is not a boolean.", name)
}

// number is a whole number; 0 stands for none.
func (t tree) number(name string) (int, error) {
	f := math.NaN()
	switch v := t[name].(type) {
	case nil:
		return 0, nil
	case float64:
		f = v
	case string:
		if n, err := strconv.ParseFloat(v, 64); err == nil {
			f = n
		}
	}
	if f != math.Trunc(f) || math.Abs(f) > math.MaxInt32 {
		return 0, malformed("%s is not a whole number.", name)
	}
	return int(f), nil
}

// instant is a time: ISO 8601, or seconds since 1970.
func (t tree) instant(name string) (time.Time, error) {
	switch v := t[name].(type) {
	case nil:
		return time.Time{}, missing(name)
	case float64:
		return seconds(name, v)
	case string:
		for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04Z07:00", "2006-01-02"} {
			if at, err := time.Parse(layout, v); err == nil {
				return at.UTC(), nil
			}
		}
		if f, err := strconv.ParseFloat(v, 64); err == nil {
			return seconds(name, f)
		}
	}
	return time.Time{}, malformed("%s is not a timestamp.", name)
}

func seconds(name string, f float64) (time.Time, error) {
	if math.IsNaN(f) || math.Abs(f) > 1e11 {
		return time.Time{}, malformed("%s is not a timestamp.", name)
	}
	return time.UnixMilli(int64(math.Round(f * 1000))).UTC(), nil
}

func (t tree) list(name string) ([]any, error) {
	switch v := t[name].(type) {
	case nil:
		return nil, nil
	case []any:
		if len(v) > maxItems {
			return nil, malformed("%s has more than %d items.", name, maxItems)
		}
		return v, nil
	case string:
		if v == "" { // an empty list of the query protocol
			return nil, nil
		}
	}
	return nil, malformed("%s is not a list.", name)
}

func (t tree) texts(name string) ([]string, error) {
	list, err := t.list(name)
	if err != nil {
		return nil, err
	}
	out := make([]string, len(list))
	for i, v := range list {
		s, ok := v.(string)
		if !ok {
			return nil, malformed("%s is not a list of strings.", name)
		}
		out[i] = s
	}
	return out, nil
}

func (t tree) trees(name string) ([]tree, error) {
	list, err := t.list(name)
	if err != nil {
		return nil, err
	}
	out := make([]tree, len(list))
	for i, v := range list {
		if out[i] = asTree(v); out[i] == nil {
			return nil, malformed("%s is not a list of structures.", name)
		}
	}
	return out, nil
}

func asTree(v any) tree {
	switch v := v.(type) {
	case tree:
		return v
	case map[string]any:
		return v
	}
	return nil
}
