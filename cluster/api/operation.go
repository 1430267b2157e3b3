package api

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"berth.dev/berth/cluster/api/model"
	"berth.dev/berth/cluster/awsjson"
)

// An operation is one entry of the table: how to decode and check its input,
// run it and complete its answer.
type operation struct {
	name string
	// agent marks the operations that instance keys may call.
	agent bool
	input reflect.Type
	// check is set when the table is made.
	check *model.Validator
	call  func(ctx context.Context, check *model.Validator, body []byte) (any, error)
}

// op makes an operation of a typed method. The input is decoded and
// validated against the model before fn sees it.
func op[In, Out any](name string, fn func(context.Context, *In) (*Out, error)) operation {
	lists := requiredLists(reflect.TypeFor[Out]())
	return operation{
		name:  name,
		input: reflect.TypeFor[In](),
		call: func(ctx context.Context, check *model.Validator, body []byte) (any, error) {
			in := new(In)
			if err := awsjson.Unmarshal(body, in); err != nil {
				return nil, undecodable(err)
			}
			if err := check.Check(in); err != nil {
				return nil, invalidParameter("%s", err)
			}
			out, err := fn(ctx, in)
			if err != nil {
				return nil, err
			}
			v := reflect.ValueOf(out).Elem()
			for _, i := range lists {
				if f := v.Field(i); f.IsNil() {
					f.Set(reflect.MakeSlice(f.Type(), 0, 0))
				}
			}
			return out, nil
		},
	}
}

// agentOp is op for an operation that instance keys may call too.
func agentOp[In, Out any](name string, fn func(context.Context, *In) (*Out, error)) operation {
	o := op(name, fn)
	o.agent = true
	return o
}

// requiredLists are the lists of an answer that are written as [] when they
// are empty: all but tags, which are there when they were asked for. Clients
// index and iterate them without looking whether they are there.
func requiredLists(out reflect.Type) []int {
	var lists []int
	for i := range out.NumField() {
		if f := out.Field(i); f.IsExported() && f.Type.Kind() == reflect.Slice && f.Name != "Tags" {
			lists = append(lists, i)
		}
	}
	return lists
}

func undecodable(err error) error {
	var te *awsjson.TypeError
	if errors.As(err, &te) {
		return failure("SerializationException", "%s", te)
	}
	return failure("SerializationException", "%s", err)
}

// table makes the table of all operations with their checks.
func (a *API) table() (map[string]operation, error) {
	m, err := model.Load()
	if err != nil {
		return nil, err
	}
	out := make(map[string]operation)
	for _, part := range []map[string]operation{a.resourceOperations(), a.taskOperations(), a.serviceOperations()} {
		for name, o := range part {
			if name != o.name {
				return nil, fmt.Errorf("operation %s is listed as %s", o.name, name)
			}
			if o.check, err = m.Validator(name, o.input); err != nil {
				return nil, err
			}
			out[name] = o
		}
	}
	return out, nil
}

// list makes a table part of operations.
func list(ops ...operation) map[string]operation {
	out := make(map[string]operation, len(ops))
	for _, o := range ops {
		out[o.name] = o
	}
	return out
}

// resourceOperations are the operations on clusters, task definitions,
// attributes, tags and settings.
func (a *API) resourceOperations() map[string]operation {
	return list(
		agentOp("CreateCluster", a.CreateCluster),
		op("DescribeClusters", a.DescribeClusters),
		op("ListClusters", a.ListClusters),
		op("UpdateCluster", a.UpdateCluster),
		op("UpdateClusterSettings", a.UpdateClusterSettings),
		op("PutClusterCapacityProviders", a.PutClusterCapacityProviders),
		op("DeleteCluster", a.DeleteCluster),
		op("RegisterTaskDefinition", a.RegisterTaskDefinition),
		op("DescribeTaskDefinition", a.DescribeTaskDefinition),
		op("ListTaskDefinitions", a.ListTaskDefinitions),
		op("ListTaskDefinitionFamilies", a.ListTaskDefinitionFamilies),
		op("DeregisterTaskDefinition", a.DeregisterTaskDefinition),
		op("DeleteTaskDefinitions", a.DeleteTaskDefinitions),
		op("PutAttributes", a.PutAttributes),
		op("DeleteAttributes", a.DeleteAttributes),
		op("ListAttributes", a.ListAttributes),
		op("TagResource", a.TagResource),
		op("UntagResource", a.UntagResource),
		agentOp("ListTagsForResource", a.ListTagsForResource),
		op("ListAccountSettings", a.ListAccountSettings),
		op("PutAccountSetting", a.PutAccountSetting),
		op("PutAccountSettingDefault", a.PutAccountSettingDefault),
		op("DeleteAccountSetting", a.DeleteAccountSetting),
	)
}

// forbidden is the answer to an instance key that calls an operator's
// operation.
func forbidden(c Caller, service, operation string) error {
	return accessDenied("User: %s is not authorized to perform: %s:%s on resource: * because no identity-based policy allows the %s:%s action",
		c.ARN, service, operation, service, strings.TrimSpace(operation))
}
