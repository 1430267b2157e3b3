package logs

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// lazy is a field whose value is made when it is asked for.
type lazy func() (string, error)

// chain is a field of a value, and a field of that, and so on. A member that a map of the
// container lacks is empty.
func chain(v any, names []string) (any, error) {
	for _, name := range names {
		switch m := v.(type) {
		case map[string]any:
			field, ok := m[name]
			if !ok {
				return nil, fmt.Errorf("there is no field %s", name)
			}
			v = field
		case map[string]string:
			v = m[name]
		default:
			return nil, fmt.Errorf("%s has no field %s", show(v), name)
		}
		if l, ok := v.(lazy); ok {
			made, err := l()
			if err != nil {
				return nil, err
			}
			v = made
		}
	}
	return v, nil
}

// show is a value as text.
func show(v any) string {
	if v == nil {
		return "<no value>"
	}
	return fmt.Sprint(v)
}

// truth reports whether a value is not the empty one of its kind.
func truth(v any) bool {
	switch v := v.(type) {
	case nil:
		return false
	case string:
		return v != ""
	case bool:
		return v
	case int:
		return v != 0
	case []string:
		return len(v) > 0
	case map[string]string:
		return len(v) > 0
	default:
		return true
	}
}

var errArguments = errors.New("wrong number or kind of arguments")

// texts are n arguments, all of them texts.
func texts(args []any, n int) ([]string, error) {
	out := make([]string, n)
	if len(args) != n {
		return nil, errArguments
	}
	for i, a := range args {
		s, ok := a.(string)
		if !ok {
			return nil, errArguments
		}
		out[i] = s
	}
	return out, nil
}

func toJSON(args []any) (any, error) {
	if len(args) != 1 {
		return nil, errArguments
	}
	b, err := json.Marshal(args[0])
	return string(b), err
}

func split(args []any) (any, error) {
	s, err := texts(args, 2)
	if err != nil {
		return nil, err
	}
	return strings.Split(s[0], s[1]), nil
}

func join(args []any) (any, error) {
	if len(args) != 2 {
		return nil, errArguments
	}
	list, ok1 := args[0].([]string)
	by, ok2 := args[1].(string)
	if !ok1 || !ok2 {
		return nil, errArguments
	}
	return strings.Join(list, by), nil
}

func upper(args []any) (any, error) { return one(args, strings.ToUpper) }
func lower(args []any) (any, error) { return one(args, strings.ToLower) }

func title(args []any) (any, error) {
	return one(args, func(s string) string {
		if s == "" {
			return s
		}
		return strings.ToUpper(s[:1]) + s[1:]
	})
}

func one(args []any, f func(string) string) (any, error) {
	s, err := texts(args, 1)
	if err != nil {
		return nil, err
	}
	return f(s[0]), nil
}

func pad(args []any) (any, error) {
	if len(args) != 3 {
		return nil, errArguments
	}
	s, ok := args[0].(string)
	before, ok1 := args[1].(int)
	after, ok2 := args[2].(int)
	switch {
	case !ok || !ok1 || !ok2:
		return nil, errArguments
	case s == "" || before < 0 || after < 0 || before > maxTag || after > maxTag:
		return s, nil
	default:
		return strings.Repeat(" ", before) + s + strings.Repeat(" ", after), nil
	}
}

func truncate(args []any) (any, error) {
	if len(args) != 2 {
		return nil, errArguments
	}
	s, ok1 := args[0].(string)
	n, ok2 := args[1].(int)
	if !ok1 || !ok2 {
		return nil, errArguments
	}
	return s[:max(0, min(n, len(s)))], nil
}

func not(args []any) (any, error) {
	if len(args) != 1 {
		return nil, errArguments
	}
	return !truth(args[0]), nil
}

// last is what "and" and "or" come to when no argument before has settled it.
func last(args []any) (any, error) {
	if len(args) == 0 {
		return nil, errArguments
	}
	return args[len(args)-1], nil
}

func length(args []any) (any, error) {
	if len(args) != 1 {
		return nil, errArguments
	}
	switch v := args[0].(type) {
	case string:
		return len(v), nil
	case []string:
		return len(v), nil
	case map[string]string:
		return len(v), nil
	default:
		return nil, errArguments
	}
}

func index(args []any) (any, error) {
	if len(args) != 2 {
		return nil, errArguments
	}
	switch v := args[0].(type) {
	case []string:
		i, ok := args[1].(int)
		if !ok || i < 0 || i >= len(v) {
			return nil, fmt.Errorf("there is no item %s", show(args[1]))
		}
		return v[i], nil
	case map[string]string:
		k, ok := args[1].(string)
		if !ok {
			return nil, errArguments
		}
		return v[k], nil
	default:
		return nil, errArguments
	}
}

func print(args []any) (any, error)   { return fmt.Sprint(args...), nil }
func println(args []any) (any, error) { return fmt.Sprintln(args...), nil }

func printf(args []any) (any, error) {
	if len(args) == 0 {
		return nil, errArguments
	}
	format, ok := args[0].(string)
	if !ok {
		return nil, errArguments
	}
	s := fmt.Sprintf(format, args[1:]...)
	if len(s) > maxTag {
		return nil, fmt.Errorf("the tag is longer than %d bytes", maxTag)
	}
	return s, nil
}

// equal reports whether the first argument equals one of the others.
func equal(args []any) (any, error) {
	if len(args) < 2 {
		return nil, errArguments
	}
	for _, a := range args {
		switch a.(type) {
		case string, int, bool:
		default:
			return nil, errArguments
		}
	}
	for _, a := range args[1:] {
		if a == args[0] {
			return true, nil
		}
	}
	return false, nil
}

func different(args []any) (any, error) {
	if len(args) != 2 {
		return nil, errArguments
	}
	same, err := equal(args)
	return same == false, err
}
