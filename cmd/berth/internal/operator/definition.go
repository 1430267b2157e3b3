package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// ReadDefinition reads a task definition file: the JSON that
// "aws ecs register-task-definition --cli-input-json" takes.
func ReadDefinition(path string) (*ecs.RegisterTaskDefinitionInput, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	in, err := decodeDefinition(b)
	if err != nil {
		return nil, fmt.Errorf("task definition %s: %w", path, err)
	}
	return in, nil
}

func decodeDefinition(b []byte) (*ecs.RegisterTaskDefinitionInput, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var in ecs.RegisterTaskDefinitionInput
	if err := d.Decode(&in); err != nil {
		var syntax *json.SyntaxError
		var typ *json.UnmarshalTypeError
		switch {
		case errors.As(err, &syntax):
			return nil, fmt.Errorf("line %d: %w", line(b, syntax.Offset), err)
		case errors.As(err, &typ):
			return nil, fmt.Errorf("line %d: member %s cannot be a JSON %s", line(b, typ.Offset), typ.Field, typ.Value)
		}
		return nil, err
	}
	if d.More() {
		return nil, fmt.Errorf("line %d: something follows the definition", line(b, d.InputOffset()))
	}
	return &in, nil
}

func line(b []byte, offset int64) int {
	return 1 + bytes.Count(b[:min(offset, int64(len(b)))], []byte("\n"))
}

// Register makes sure that the newest revision of a family is what in says, and
// returns it. A revision that says the same is used as it is.
func (c *Client) Register(ctx context.Context, in *ecs.RegisterTaskDefinitionInput) (d *types.TaskDefinition, registered bool, err error) {
	if in.Family != nil {
		out, err := c.DescribeTaskDefinition(ctx, &ecs.DescribeTaskDefinitionInput{TaskDefinition: in.Family})
		var none *types.ClientException // "Unable to describe task definition": there is no such family
		if err != nil && !errors.As(err, &none) {
			return nil, false, c.Explain(err)
		}
		if err == nil && len(in.Tags) == 0 && Says(out.TaskDefinition, in) {
			return out.TaskDefinition, false, nil
		}
	}
	out, err := c.RegisterTaskDefinition(ctx, in)
	if err != nil {
		return nil, false, c.Explain(err)
	}
	return out.TaskDefinition, true, nil
}

// defaults are the members that a cluster may fill in where a file says nothing
// (ECS API, "RegisterTaskDefinition: validation rules").
var defaults = map[string]any{"Essential": true, "Protocol": types.TransportProtocolTcp, "NetworkMode": types.NetworkModeBridge}

// Says reports whether a registered definition is what in asks for, no more and no
// less; what the cluster fills in by default does not count.
func Says(have *types.TaskDefinition, in *ecs.RegisterTaskDefinitionInput) bool {
	if have == nil {
		return false
	}
	want, got := reflect.ValueOf(*in), reflect.ValueOf(*have)
	for i := range want.NumField() {
		f := want.Type().Field(i)
		if !f.IsExported() || f.Name == "Tags" {
			continue
		}
		if g := got.FieldByName(f.Name); !g.IsValid() || !same(f.Name, g, want.Field(i)) {
			return false
		}
	}
	return true
}

// same compares one member. Absent, empty, zero and the default are the same.
func same(name string, have, want reflect.Value) bool {
	have, want = value(have), value(want)
	switch {
	case !want.IsValid():
		return says(name, have)
	case !have.IsValid():
		return says(name, want)
	case have.Type() != want.Type():
		return false
	}
	switch want.Kind() {
	case reflect.Slice:
		if have.Len() != want.Len() {
			return false
		}
		for i := range want.Len() {
			if !same(name, have.Index(i), want.Index(i)) {
				return false
			}
		}
		return true
	case reflect.Struct:
		for i := range want.NumField() {
			f := want.Type().Field(i)
			if f.IsExported() && !same(f.Name, have.Field(i), want.Field(i)) {
				return false
			}
		}
		return true
	default: // maps here have strings for keys and values
		return reflect.DeepEqual(have.Interface(), want.Interface())
	}
}

// says reports whether v says what leaving the member out would say.
func says(name string, v reflect.Value) bool {
	return !v.IsValid() || v.IsZero() && defaults[name] == nil || reflect.DeepEqual(v.Interface(), defaults[name])
}

// value is v without pointers; the invalid Value for what is absent or empty.
func value(v reflect.Value) reflect.Value {
	pointed := false
	for v.IsValid() && (v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface) {
		v, pointed = v.Elem(), true
	}
	if !v.IsValid() || v.IsZero() && !pointed || (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0 {
		return reflect.Value{}
	}
	return v
}

// Essential reports whether a container of d is essential, which is the default.
func Essential(d *types.TaskDefinition, name string) bool {
	for _, c := range d.ContainerDefinitions {
		if aws.ToString(c.Name) == name {
			return c.Essential == nil || *c.Essential
		}
	}
	return true
}
