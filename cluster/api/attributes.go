package api

import (
	"context"
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
)

const (
	// attributesPerCall and maxCustom are limits of the ECS API: in one
	// call, and of custom attributes on one resource.
	attributesPerCall = 10
	maxCustom         = 10
)

// The alphabets of attribute names and values (ECS API).
var (
	attributeName  = regexp.MustCompile(`^[a-zA-Z0-9_./\\-]{1,128}$`)
	attributeValue = regexp.MustCompile(`^[a-zA-Z0-9_.@:/\\ -]{0,128}$`)
)

// builtIn tells whether an attribute is the agent's or the cluster's own.
func builtIn(name string) bool {
	return strings.HasPrefix(name, "ecs.") || strings.HasPrefix(name, "com.amazonaws.")
}

func checkAttributes(in []types.Attribute, values bool) error {
	if len(in) == 0 || len(in) > attributesPerCall {
		return invalidParameter("Attributes must have between 1 and %d items.", attributesPerCall)
	}
	for _, at := range in {
		name, value := aws.ToString(at.Name), aws.ToString(at.Value)
		switch {
		case !attributeName.MatchString(name):
			return invalidParameter("Invalid attribute name: %s. Up to 128 letters, numbers, hyphens, underscores, slashes, backslashes and periods are allowed.", clip(name))
		case at.TargetType != "" && at.TargetType != types.TargetTypeContainerInstance:
			return invalidParameter("Invalid target type: %s", clip(string(at.TargetType)))
		case aws.ToString(at.TargetId) == "":
			return invalidParameter("TargetId can not be blank.")
		case values && builtIn(name):
			return invalidParameter("The attribute name %s has a reserved prefix.", clip(name))
		case values && (!attributeValue.MatchString(value) || strings.TrimSpace(value) != value):
			return invalidParameter("Invalid value of attribute %s.", clip(name))
		}
	}
	return nil
}

// targetInstance finds the ACTIVE or DRAINING instance that an attribute is
// for.
func targetInstance(r store.Reader, cluster string, at types.Attribute) (string, *store.Instance, error) {
	id, err := childRef("container-instance", cluster, aws.ToString(at.TargetId))
	if err != nil {
		return "", nil, err
	}
	key := store.Key(cluster, id)
	i, ok := store.Get(r, store.Instances, key)
	if !ok || aws.ToString(i.Instance.Status) == clusterInactive {
		return "", nil, targetNotFound("Unable to find the specified target: %s", clip(aws.ToString(at.TargetId)))
	}
	return key, i, nil
}

// changeAttributes applies change to the attributes of each target, which it
// gets as a copy.
func (a *API) changeAttributes(ctx context.Context, ref *string, in []types.Attribute, change func(old []types.Attribute, at types.Attribute) ([]types.Attribute, error)) ([]types.Attribute, error) {
	var out []types.Attribute
	err := a.Store.Update(ctx, func(tx *store.Tx) error {
		out = nil
		cluster, _, err := activeCluster(tx, ref)
		if err != nil {
			return err
		}
		for _, at := range in {
			key, i, err := targetInstance(tx, cluster, at)
			if err != nil {
				return err
			}
			n := *i
			if n.Instance.Attributes, err = change(slices.Clone(i.Instance.Attributes), at); err != nil {
				return err
			}
			n.Instance.Version++
			store.Put(tx, store.Instances, key, &n)
			out = append(out, types.Attribute{
				Name: at.Name, Value: at.Value,
				TargetType: types.TargetTypeContainerInstance, TargetId: i.Instance.ContainerInstanceArn,
			})
		}
		return nil
	})
	return out, err
}

func byName(name *string) func(types.Attribute) bool {
	return func(o types.Attribute) bool { return aws.ToString(o.Name) == aws.ToString(name) }
}

// PutAttributes sets custom attributes of container instances.
func (a *API) PutAttributes(ctx context.Context, in *ecs.PutAttributesInput) (*ecs.PutAttributesOutput, error) {
	if err := checkAttributes(in.Attributes, true); err != nil {
		return nil, err
	}
	out, err := a.changeAttributes(ctx, in.Cluster, in.Attributes, func(attrs []types.Attribute, at types.Attribute) ([]types.Attribute, error) {
		set := types.Attribute{Name: at.Name, Value: at.Value}
		if i := slices.IndexFunc(attrs, byName(at.Name)); i >= 0 {
			attrs[i] = set
			return attrs, nil
		}
		custom := 0
		for _, o := range attrs {
			if !builtIn(aws.ToString(o.Name)) {
				custom++
			}
		}
		if custom >= maxCustom {
			return nil, failure("AttributeLimitExceededException", "A resource may have at most %d custom attributes.", maxCustom)
		}
		return append(attrs, set), nil
	})
	if err != nil {
		return nil, err
	}
	return &ecs.PutAttributesOutput{Attributes: out}, nil
}

// DeleteAttributes removes custom attributes; absent ones are ignored.
func (a *API) DeleteAttributes(ctx context.Context, in *ecs.DeleteAttributesInput) (*ecs.DeleteAttributesOutput, error) {
	if err := checkAttributes(in.Attributes, false); err != nil {
		return nil, err
	}
	out, err := a.changeAttributes(ctx, in.Cluster, in.Attributes, func(attrs []types.Attribute, at types.Attribute) ([]types.Attribute, error) {
		if builtIn(aws.ToString(at.Name)) {
			return nil, invalidParameter("The attribute %s cannot be deleted.", clip(aws.ToString(at.Name)))
		}
		return slices.DeleteFunc(attrs, byName(at.Name)), nil
	})
	if err != nil {
		return nil, err
	}
	return &ecs.DeleteAttributesOutput{Attributes: out}, nil
}

// ListAttributes lists the attributes of a cluster's container instances.
func (a *API) ListAttributes(_ context.Context, in *ecs.ListAttributesInput) (*ecs.ListAttributesOutput, error) {
	name := aws.ToString(in.AttributeName)
	if in.AttributeValue != nil && name == "" {
		return nil, invalidParameter("attributeName must be given with attributeValue.")
	}
	p, err := newPage(in.NextToken, in.MaxResults, 100, 100, "ListAttributes", in.Cluster, in.AttributeName, in.AttributeValue)
	if err != nil {
		return nil, err
	}
	out := new(ecs.ListAttributesOutput)
	a.Store.View(func(r store.Reader) {
		var cluster string
		if cluster, _, err = activeCluster(r, in.Cluster); err != nil {
			return
		}
		// A page may end inside an instance, so its key has two parts.
		instance, _, _ := strings.Cut(p.after, "\x00")
		store.Scan(r, store.Instances, store.Prefix(cluster), func(key string, i *store.Instance) bool {
			if key < instance || aws.ToString(i.Instance.Status) == clusterInactive {
				return true
			}
			attrs := slices.Clone(i.Instance.Attributes)
			slices.SortFunc(attrs, func(x, y types.Attribute) int { return strings.Compare(aws.ToString(x.Name), aws.ToString(y.Name)) })
			for _, at := range attrs {
				at.TargetId = i.Instance.ContainerInstanceArn
				item := key + "\x00" + aws.ToString(at.Name)
				switch {
				case item <= p.after,
					name != "" && aws.ToString(at.Name) != name,
					in.AttributeValue != nil && aws.ToString(at.Value) != *in.AttributeValue:
					continue
				}
				if !p.take(item) {
					return false
				}
				out.Attributes = append(out.Attributes, at)
			}
			return true
		})
	})
	if err != nil {
		return nil, err
	}
	out.NextToken = p.next()
	return out, nil
}
