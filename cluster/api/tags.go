package api

import (
	"context"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
)

// maxTags is how many tags a resource may have (ECS API, "Tags").
const maxTags = 50

// validateTags checks the tags of a request. Lengths and alphabet are in the
// model; the number, the reserved prefix and duplicates are not.
func validateTags(tags []types.Tag) error {
	if len(tags) > maxTags {
		return invalidParameter("Too many tags: a resource may have at most %d.", maxTags)
	}
	seen := make(map[string]bool, len(tags))
	for _, t := range tags {
		key := aws.ToString(t.Key)
		switch {
		case key == "":
			return invalidParameter("Tag keys must not be empty.")
		case reserved(key) || reserved(aws.ToString(t.Value)):
			return invalidParameter("Tag keys and values may not start with the reserved prefix 'aws:': %s", clip(key))
		case seen[key]:
			return invalidParameter("Duplicate tag key: %s. Tag keys must be unique.", clip(key))
		}
		seen[key] = true
	}
	return nil
}

func reserved(s string) bool { return len(s) >= 4 && strings.EqualFold(s[:4], "aws:") }

// mergeTags returns old with the values of set; neither is changed.
func mergeTags(old, set []types.Tag) []types.Tag {
	out := slices.Clone(old)
	for _, t := range set {
		i := slices.IndexFunc(out, func(o types.Tag) bool { return aws.ToString(o.Key) == aws.ToString(t.Key) })
		if i < 0 {
			out = append(out, t)
		} else {
			out[i] = t
		}
	}
	return out
}

// dropTags returns old without the keys; unknown ones are ignored, and those
// of the system cannot be dropped.
func dropTags(old []types.Tag, keys []string) []types.Tag {
	out := []types.Tag{}
	for _, t := range old {
		if k := aws.ToString(t.Key); reserved(k) || !slices.Contains(keys, k) {
			out = append(out, t)
		}
	}
	return out
}

// tagged is a resource that carries tags: what they are, and how to store
// others.
type tagged struct {
	tags []types.Tag
	put  func(tx *store.Tx, tags []types.Tag)
}

// runsOn reports whether the ARN is that of a task on the instance.
func (a *API) runsOn(r store.Reader, instanceARN, arn string) bool {
	kind, parts, ok := a.resource(arn)
	if !ok || kind != "task" || len(parts) != 2 || instanceARN == "" {
		return false
	}
	t, ok := store.Get(r, store.Tasks, store.Key(parts...))
	return ok && aws.ToString(t.Task.ContainerInstanceArn) == instanceARN
}

// findTagged finds the resource of an ARN.
func (a *API) findTagged(r store.Reader, arn string) (*tagged, error) {
	kind, parts, ok := a.resource(arn)
	if !ok {
		return nil, invalidParameter("Invalid resource ARN: %s", clip(arn))
	}
	unknown := resourceNotFound("The specified %s was not found: %s", kind, clip(arn))
	switch {
	case kind == "cluster" && len(parts) == 1:
		c, ok := store.Get(r, store.Clusters, parts[0])
		if !ok || c.DeletedAt != nil {
			return nil, clusterNotFound()
		}
		return &tagged{c.Cluster.Tags, func(tx *store.Tx, tags []types.Tag) {
			n := *c
			n.Cluster.Tags = tags
			store.Put(tx, store.Clusters, parts[0], &n)
		}}, nil
	case kind == "task-definition" && len(parts) == 1:
		ref, ok := a.parseDefinition(arn)
		if !ok || ref.revision == 0 {
			return nil, invalidParameter("Invalid resource ARN: %s has no revision", clip(arn))
		}
		key := store.DefinitionKey(ref.family, ref.revision)
		d, ok := store.Get(r, store.TaskDefinitions, key)
		if !ok {
			return nil, unknown
		}
		return &tagged{d.Tags, func(tx *store.Tx, tags []types.Tag) {
			n := *d
			n.Tags = tags
			store.Put(tx, store.TaskDefinitions, key, &n)
		}}, nil
	case kind == "task" && len(parts) == 2:
		key := store.Key(parts...)
		t, ok := store.Get(r, store.Tasks, key)
		if !ok {
			return nil, unknown
		}
		return &tagged{t.Task.Tags, func(tx *store.Tx, tags []types.Tag) {
			n := *t
			n.Task.Tags = tags
			store.Put(tx, store.Tasks, key, &n)
		}}, nil
	case kind == "container-instance" && len(parts) == 2:
		key := store.Key(parts...)
		i, ok := store.Get(r, store.Instances, key)
		if !ok || aws.ToString(i.Instance.Status) == clusterInactive {
			return nil, unknown
		}
		return &tagged{i.Instance.Tags, func(tx *store.Tx, tags []types.Tag) {
			n := *i
			n.Instance.Tags = tags
			store.Put(tx, store.Instances, key, &n)
		}}, nil
	case len(parts) == 1:
		return nil, invalidParameter("Long arn format must be used for tagging operations: %s", clip(arn))
	}
	return nil, unknown
}

// TagResource adds tags, or replaces the values of those with the same key.
func (a *API) TagResource(ctx context.Context, in *ecs.TagResourceInput) (*ecs.TagResourceOutput, error) {
	if err := validateTags(in.Tags); err != nil {
		return nil, err
	}
	err := a.Store.Update(ctx, func(tx *store.Tx) error {
		t, err := a.findTagged(tx, aws.ToString(in.ResourceArn))
		if err != nil {
			return err
		}
		tags := mergeTags(t.tags, in.Tags)
		if len(tags) > maxTags {
			return failure("LimitExceededException", "A resource may have at most %d tags.", maxTags)
		}
		t.put(tx, tags)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &ecs.TagResourceOutput{}, nil
}

// UntagResource removes tags.
func (a *API) UntagResource(ctx context.Context, in *ecs.UntagResourceInput) (*ecs.UntagResourceOutput, error) {
	err := a.Store.Update(ctx, func(tx *store.Tx) error {
		t, err := a.findTagged(tx, aws.ToString(in.ResourceArn))
		if err != nil {
			return err
		}
		t.put(tx, dropTags(t.tags, in.TagKeys))
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &ecs.UntagResourceOutput{}, nil
}

// ListTagsForResource lists the tags of a resource. An instance key may ask
// about its own instance only.
func (a *API) ListTagsForResource(ctx context.Context, in *ecs.ListTagsForResourceInput) (*ecs.ListTagsForResourceOutput, error) {
	arn, caller := aws.ToString(in.ResourceArn), CallerOf(ctx)
	out := &ecs.ListTagsForResourceOutput{Tags: []types.Tag{}}
	var err error
	a.Store.View(func(r store.Reader) {
		if !a.runsOn(r, caller.InstanceARN, arn) { // an agent asks for its tasks as well
			if err = ownInstance(caller, arn); err != nil {
				return
			}
		}
		var t *tagged
		if t, err = a.findTagged(r, arn); err == nil {
			out.Tags = append(out.Tags, t.tags...)
		}
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
