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

const (
	definitionActive   = types.TaskDefinitionStatusActive
	definitionInactive = types.TaskDefinitionStatusInactive
	definitionDeleting = types.TaskDefinitionStatusDeleteInProgress
	// maxRevision is the highest revision of a family (ECS quotas).
	maxRevision = 1_000_000
	// deleteMax is how many definitions one call deletes (ECS API model).
	deleteMax = 10
)

// RegisterTaskDefinition stores a new revision of a family. Its number is
// one above the highest that the family ever had.
func (a *API) RegisterTaskDefinition(ctx context.Context, in *ecs.RegisterTaskDefinitionInput) (*ecs.RegisterTaskDefinitionOutput, error) {
	if err := validateTags(in.Tags); err != nil {
		return nil, err
	}
	d := types.TaskDefinition{
		Family:                  in.Family,
		TaskRoleArn:             in.TaskRoleArn,
		ExecutionRoleArn:        in.ExecutionRoleArn,
		NetworkMode:             in.NetworkMode,
		ContainerDefinitions:    in.ContainerDefinitions,
		Volumes:                 in.Volumes,
		PlacementConstraints:    in.PlacementConstraints,
		RequiresCompatibilities: in.RequiresCompatibilities,
		Cpu:                     in.Cpu,
		Memory:                  in.Memory,
		PidMode:                 in.PidMode,
		IpcMode:                 in.IpcMode,
		ProxyConfiguration:      in.ProxyConfiguration,
		InferenceAccelerators:   in.InferenceAccelerators,
		EphemeralStorage:        in.EphemeralStorage,
		RuntimePlatform:         in.RuntimePlatform,
		EnableFaultInjection:    in.EnableFaultInjection,
	}
	if err := checkDefinition(&d); err != nil {
		return nil, err
	}
	completeDefinition(&d)
	now := a.now()
	d.Status = definitionActive
	d.RegisteredAt = &now
	d.RegisteredBy = registeredBy(ctx)
	d.Compatibilities = compatibilities(&d)
	d.RequiresAttributes = requiredAttributes(&d)
	family := aws.ToString(in.Family)
	var out *store.TaskDefinition
	err := a.Store.Update(ctx, func(tx *store.Tx) error {
		revision := int32(1)
		if f, ok := store.Get(tx, store.Families, family); ok {
			revision = f.LastRevision + 1
		}
		if revision > maxRevision {
			return failure("LimitExceededException", "The family %s has reached its limit of %d revisions.", family, maxRevision)
		}
		out = &store.TaskDefinition{Definition: d, Tags: in.Tags}
		out.Definition.Revision = revision
		out.Definition.TaskDefinitionArn = aws.String(a.definitionARN(family, revision))
		store.Put(tx, store.Families, family, &store.Family{Name: family, LastRevision: revision})
		store.Put(tx, store.TaskDefinitions, store.DefinitionKey(family, revision), out)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &ecs.RegisterTaskDefinitionOutput{TaskDefinition: &out.Definition, Tags: in.Tags}, nil
}

// DescribeTaskDefinition describes a revision, or a family's latest ACTIVE
// one.
func (a *API) DescribeTaskDefinition(_ context.Context, in *ecs.DescribeTaskDefinitionInput) (*ecs.DescribeTaskDefinitionOutput, error) {
	var d *store.TaskDefinition
	a.Store.View(func(r store.Reader) { d, _ = a.findDefinition(r, aws.ToString(in.TaskDefinition)) })
	if d == nil {
		return nil, unknownDefinition()
	}
	out := &ecs.DescribeTaskDefinitionOutput{TaskDefinition: &d.Definition}
	if slices.Contains(in.Include, types.TaskDefinitionFieldTags) {
		out.Tags = append([]types.Tag{}, d.Tags...)
	}
	return out, nil
}

func unknownDefinition() error { return clientException("Unable to describe task definition.") }

// DeregisterTaskDefinition makes a revision INACTIVE. What runs of it goes
// on.
func (a *API) DeregisterTaskDefinition(ctx context.Context, in *ecs.DeregisterTaskDefinitionInput) (*ecs.DeregisterTaskDefinitionOutput, error) {
	ref, ok := a.parseDefinition(aws.ToString(in.TaskDefinition))
	if !ok {
		return nil, unknownDefinition()
	}
	if ref.revision == 0 {
		return nil, invalidParameter("The task definition %s has no revision: give family:revision or an ARN.", ref.family)
	}
	now := a.now()
	key := store.DefinitionKey(ref.family, ref.revision)
	var out *store.TaskDefinition
	err := a.Store.Update(ctx, func(tx *store.Tx) error {
		d, ok := store.Get(tx, store.TaskDefinitions, key)
		if !ok {
			return unknownDefinition()
		}
		out = d
		if d.Definition.Status != definitionActive {
			return nil
		}
		n := *d
		n.Definition.Status = definitionInactive
		n.Definition.DeregisteredAt = &now
		out = &n
		store.Put(tx, store.TaskDefinitions, key, &n)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &ecs.DeregisterTaskDefinitionOutput{TaskDefinition: &out.Definition}, nil
}

// DeleteTaskDefinitions marks INACTIVE revisions for deletion. They are
// removed by SweepDefinitions when no task uses them any more.
func (a *API) DeleteTaskDefinitions(ctx context.Context, in *ecs.DeleteTaskDefinitionsInput) (*ecs.DeleteTaskDefinitionsOutput, error) {
	if len(in.TaskDefinitions) == 0 || len(in.TaskDefinitions) > deleteMax {
		return nil, invalidParameter("Task definitions must have between 1 and %d items.", deleteMax)
	}
	now := a.now()
	var out *ecs.DeleteTaskDefinitionsOutput
	err := a.Store.Update(ctx, func(tx *store.Tx) error {
		out = new(ecs.DeleteTaskDefinitionsOutput)
		for _, ref := range in.TaskDefinitions {
			d, reason := a.markDeleted(tx, ref)
			if reason != "" {
				out.Failures = append(out.Failures, types.Failure{Arn: aws.String(a.wouldBeARN(ref)), Reason: aws.String(reason)})
				continue
			}
			n := *d
			if n.Definition.Status != definitionDeleting {
				n.Definition.Status = definitionDeleting
				n.Definition.DeleteRequestedAt = &now
				store.Put(tx, store.TaskDefinitions, store.DefinitionKey(aws.ToString(n.Definition.Family), n.Definition.Revision), &n)
			}
			out.TaskDefinitions = append(out.TaskDefinitions, n.Definition)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// markDeleted finds a definition that may be deleted, or says why not.
func (a *API) markDeleted(tx *store.Tx, ref string) (*store.TaskDefinition, string) {
	p, ok := a.parseDefinition(ref)
	switch {
	case !ok:
		return nil, "The specified task definition identifier is invalid. Specify a valid name or ARN and try again."
	case p.revision == 0:
		return nil, "The specified task definition identifier has no revision. Specify family:revision or an ARN and try again."
	}
	d, ok := store.Get(tx, store.TaskDefinitions, store.DefinitionKey(p.family, p.revision))
	switch {
	case !ok:
		return nil, "The specified task definition does not exist. Specify a valid account, family, revision and try again."
	case d.Definition.Status == definitionActive:
		return nil, "The specified task definition is still in ACTIVE status. Please deregister the target and try again."
	}
	return d, ""
}

// wouldBeARN is the ARN that a reference has or would have.
func (a *API) wouldBeARN(ref string) string {
	if p, ok := a.parseDefinition(ref); ok && p.revision > 0 {
		return a.definitionARN(p.family, p.revision)
	}
	return clip(ref)
}

// SweepDefinitions removes the definitions that are marked for deletion and
// that no task uses.
func (a *API) SweepDefinitions(ctx context.Context) error {
	var keys []string
	a.Store.View(func(r store.Reader) {
		marked := make(map[string]string)
		store.Scan(r, store.TaskDefinitions, "", func(key string, d *store.TaskDefinition) bool {
			if d.Definition.Status == definitionDeleting {
				marked[aws.ToString(d.Definition.TaskDefinitionArn)] = key
			}
			return true
		})
		if len(marked) == 0 {
			return
		}
		store.Scan(r, store.Tasks, "", func(_ string, t *store.Task) bool {
			if aws.ToString(t.Task.LastStatus) != statusStopped {
				delete(marked, aws.ToString(t.Task.TaskDefinitionArn))
			}
			return true
		})
		for _, key := range marked {
			keys = append(keys, key)
		}
	})
	for chunk := range slices.Chunk(keys, sweepChunk) {
		err := a.Store.Update(ctx, func(tx *store.Tx) error {
			for _, key := range chunk {
				if d, ok := store.Get(tx, store.TaskDefinitions, key); ok && d.Definition.Status == definitionDeleting {
					store.Delete(tx, store.TaskDefinitions, key)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ListTaskDefinitions lists definition ARNs by family and revision number.
// familyPrefix is the name of one family.
func (a *API) ListTaskDefinitions(_ context.Context, in *ecs.ListTaskDefinitionsInput) (*ecs.ListTaskDefinitionsOutput, error) {
	status := in.Status
	if status == "" {
		status = definitionActive
	}
	family := aws.ToString(in.FamilyPrefix)
	if family != "" && !nameRule.MatchString(family) {
		return nil, invalidParameter("Invalid familyPrefix: %s", clip(family))
	}
	p, err := newPage(in.NextToken, in.MaxResults, 100, 100, "ListTaskDefinitions", family, status, in.Sort)
	if err != nil {
		return nil, err
	}
	prefix := ""
	if family != "" {
		prefix = store.Prefix(family)
	}
	out := new(ecs.ListTaskDefinitionsOutput)
	take := func(key string, d *store.TaskDefinition) bool {
		if d.Definition.Status != status {
			return true
		}
		if !p.take(key) {
			return false
		}
		out.TaskDefinitionArns = append(out.TaskDefinitionArns, aws.ToString(d.Definition.TaskDefinitionArn))
		return true
	}
	a.Store.View(func(r store.Reader) {
		if in.Sort != types.SortOrderDesc {
			store.ScanAfter(r, store.TaskDefinitions, prefix, p.after, take)
			return
		}
		var keys []string
		store.Scan(r, store.TaskDefinitions, prefix, func(key string, _ *store.TaskDefinition) bool {
			if p.after == "" || key < p.after {
				keys = append(keys, key)
			}
			return true
		})
		for _, key := range slices.Backward(keys) {
			if d, ok := store.Get(r, store.TaskDefinitions, key); ok && !take(key, d) {
				return
			}
		}
	})
	out.NextToken = p.next()
	return out, nil
}

// ListTaskDefinitionFamilies lists families by true prefix: with an ACTIVE
// revision, with none but INACTIVE ones, or all.
func (a *API) ListTaskDefinitionFamilies(_ context.Context, in *ecs.ListTaskDefinitionFamiliesInput) (*ecs.ListTaskDefinitionFamiliesOutput, error) {
	prefix := aws.ToString(in.FamilyPrefix)
	p, err := newPage(in.NextToken, in.MaxResults, 100, 100, "ListTaskDefinitionFamilies", prefix, in.Status)
	if err != nil {
		return nil, err
	}
	out := new(ecs.ListTaskDefinitionFamiliesOutput)
	a.Store.View(func(r store.Reader) {
		store.ScanAfter(r, store.Families, prefix, p.after, func(family string, _ *store.Family) bool {
			if !strings.HasPrefix(family, prefix) || !familyShown(r, family, in.Status) {
				return true
			}
			if !p.take(family) {
				return false
			}
			out.Families = append(out.Families, family)
			return true
		})
	})
	out.NextToken = p.next()
	return out, nil
}

// familyShown tells whether a family is in the list of the status. One whose
// revisions are all deleted is in none.
func familyShown(r store.Reader, family string, status types.TaskDefinitionFamilyStatus) bool {
	active, any := false, false
	store.Scan(r, store.TaskDefinitions, store.Prefix(family), func(_ string, d *store.TaskDefinition) bool {
		any = true
		active = active || d.Definition.Status == definitionActive
		return !active
	})
	switch status {
	case types.TaskDefinitionFamilyStatusActive:
		return active
	case types.TaskDefinitionFamilyStatusInactive:
		return any && !active
	}
	return any
}
