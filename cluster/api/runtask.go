package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash/fnv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/awsjson"
	"berth.dev/berth/cluster/render"
	"berth.dev/berth/cluster/sched"
	"berth.dev/berth/cluster/store"
)

// Limits of RunTask and StartTask (ECS API model).
const (
	maxRunCount       = 10
	maxOverridesChars = 8192
	maxTokenChars     = 64
	runStartedByChars = 128
	startStartedBy    = 36
)

// launch is one RunTask or StartTask, validated, with everything that its tasks share.
type launch struct {
	operation string
	cluster   string
	token     string // of RunTask; empty without one
	digest    string // of the request without its token

	def         *types.TaskDefinition
	resolved    *types.TaskDefinition // overrides applied
	overrides   *types.TaskOverride
	need        sched.Need
	attributes  []sched.Attribute
	constraints []sched.Constraint
	strategies  []sched.Strategy
	network     *types.AwsVpcConfiguration // nil unless the network mode is awsvpc
	volume      *store.Volume              // configured at launch; what its tasks have in common
	places      []sched.Constraint         // where what the tasks need is

	group      string
	startedBy  *string
	launchType types.LaunchType
	exec       bool
	logMode    string // for log configurations without a mode
	tags       []types.Tag
	now        time.Time
}

// RunTask places count tasks and answers with those placed; the others are failures[].
// With a client token seen before it answers with the tasks of that time.
func (a *API) RunTask(ctx context.Context, in *ecs.RunTaskInput) (*ecs.RunTaskOutput, error) {
	count := 1
	if in.Count != nil {
		count = int(*in.Count)
	}
	if count < 1 || count > maxRunCount {
		return nil, invalidParameter("count must be between 1 and %d, %d given.", maxRunCount, count)
	}
	l, err := a.newRun(in)
	if err != nil {
		return nil, err
	}
	l.logMode = a.logMode(ctx)
	if l.strategies, err = sched.Strategies(in.PlacementStrategy); err != nil {
		return nil, invalidParameter("%s", err)
	}
	if err := l.constrain(in.PlacementConstraints); err != nil {
		return nil, err
	}
	out := &ecs.RunTaskOutput{}
	decide := func(s *sched.State, tasks []string) (sched.Result, error) {
		return sched.Place(s, sched.Request{
			Tasks: tasks, Group: l.group, Need: l.need, Attributes: l.attributes,
			Constraints: l.constraints, Strategies: l.strategies, Seed: seedOf(tasks[0]),
		})
	}
	out.Tasks, out.Failures, err = a.launch(ctx, l, count, decide)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// StartTask starts one task on each of the given instances.
func (a *API) StartTask(ctx context.Context, in *ecs.StartTaskInput) (*ecs.StartTaskOutput, error) {
	if n := len(in.ContainerInstances); n < 1 || n > maxRunCount {
		return nil, invalidParameter("Container instances must be between 1 and %d, %d given.", maxRunCount, n)
	}
	l, err := a.newStart(in)
	if err != nil {
		return nil, err
	}
	l.logMode = a.logMode(ctx)
	if err := l.constrain(nil); err != nil {
		return nil, err
	}
	instances := make([]string, len(in.ContainerInstances))
	for i, ref := range in.ContainerInstances {
		id, err := childRef("container-instance", l.cluster, ref)
		if err != nil {
			return nil, err
		}
		instances[i] = a.arn("container-instance", l.cluster, id)
	}
	decide := func(s *sched.State, tasks []string) (sched.Result, error) {
		var all sched.Result
		for i, instance := range instances {
			one, err := sched.Start(s, instance, sched.Request{
				Tasks: tasks[i : i+1], Group: l.group, Need: l.need, Attributes: l.attributes, Constraints: l.constraints,
			})
			if err != nil {
				return all, err
			}
			all.Placed = append(all.Placed, one.Placed...)
			all.Failed = append(all.Failed, one.Failed...)
		}
		return all, nil
	}
	out := &ecs.StartTaskOutput{}
	out.Tasks, out.Failures, err = a.launch(ctx, l, len(instances), decide)
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (a *API) newRun(in *ecs.RunTaskInput) (*launch, error) {
	if in.LaunchType != "" && len(in.CapacityProviderStrategy) > 0 {
		return nil, invalidParameter("Specifying both a launch type and capacity provider strategy is not supported. Remove one and try again.")
	}
	if len(in.CapacityProviderStrategy) > 0 {
		return nil, invalidParameter("The specified capacity provider '%s' was not found. Specify a valid name or ARN and try again.", clip(str(in.CapacityProviderStrategy[0].CapacityProvider)))
	}
	if in.LaunchType == types.LaunchTypeFargate || in.LaunchType == types.LaunchTypeManagedInstances {
		return nil, unsupportedFeature("The launch type %s is not offered by this cluster; use EC2 or EXTERNAL.", in.LaunchType)
	}
	if str(in.PlatformVersion) != "" {
		return nil, invalidParameter("The platform version must be null when specifying an EC2 launch type.")
	}
	if !validToken(str(in.ClientToken)) {
		return nil, invalidParameter("clientToken must have up to %d ASCII characters from 33 to 126.", maxTokenChars)
	}
	l, err := a.newLaunch(launchInput{
		operation: "RunTask", cluster: in.Cluster, definition: in.TaskDefinition, overrides: in.Overrides,
		network: in.NetworkConfiguration, volumes: in.VolumeConfigurations, propagate: in.PropagateTags, tags: in.Tags,
		managedTags: in.EnableECSManagedTags, group: in.Group, startedBy: in.StartedBy, startedByMax: runStartedByChars,
		exec: in.EnableExecuteCommand,
	})
	if err != nil {
		return nil, err
	}
	l.launchType, l.token = in.LaunchType, str(in.ClientToken)
	plain := *in
	plain.ClientToken = nil
	sum := sha256.Sum256(awsjson.Marshal(&plain))
	l.digest = hex.EncodeToString(sum[:])
	return l, nil
}

func (a *API) newStart(in *ecs.StartTaskInput) (*launch, error) {
	return a.newLaunch(launchInput{
		operation: "StartTask", cluster: in.Cluster, definition: in.TaskDefinition, overrides: in.Overrides,
		network: in.NetworkConfiguration, volumes: in.VolumeConfigurations, propagate: in.PropagateTags, tags: in.Tags,
		managedTags: in.EnableECSManagedTags, group: in.Group, startedBy: in.StartedBy, startedByMax: startStartedBy,
		exec: in.EnableExecuteCommand,
	})
}

// launchInput is what RunTask and StartTask have in common.
type launchInput struct {
	operation    string
	cluster      *string
	definition   *string
	overrides    *types.TaskOverride
	network      *types.NetworkConfiguration
	volumes      []types.TaskVolumeConfiguration
	propagate    types.PropagateTags
	tags         []types.Tag
	managedTags  bool
	group        *string
	startedBy    *string
	startedByMax int
	exec         bool
}

func (a *API) newLaunch(in launchInput) (*launch, error) {
	cluster, err := clusterRef(in.cluster)
	if err != nil {
		return nil, err
	}
	if n := utf8.RuneCountInString(str(in.startedBy)); n > in.startedByMax {
		return nil, invalidParameter("startedBy must have at most %d characters, %d given.", in.startedByMax, n)
	}
	if in.propagate == types.PropagateTagsService {
		return nil, invalidParameter("propagateTags SERVICE is only for tasks of a service.")
	}
	if in.overrides != nil && utf8.RuneCount(awsjson.Marshal(in.overrides)) > maxOverridesChars {
		return nil, invalidParameter("Container Overrides length must be at most %d", maxOverridesChars)
	}
	l := &launch{operation: in.operation, cluster: cluster, startedBy: in.startedBy, exec: in.exec, now: a.now()}
	var definition *store.TaskDefinition
	a.Store.View(func(r store.Reader) {
		if err = requireCluster(r, cluster); err == nil {
			definition, err = a.runnable(r, str(in.definition))
		}
	})
	if err != nil {
		return nil, err
	}
	l.def = &definition.Definition
	a.Store.View(func(r store.Reader) {
		if l.network, err = a.networkOf(r, l.def, in.network); l.network != nil {
			l.attributes = networkAttributes(r, l.network)
		}
	})
	if err != nil {
		return nil, err
	}
	a.Store.View(func(r store.Reader) { err = l.withVolume(r, definition.Tags, in.volumes) })
	if err != nil {
		return nil, err
	}
	if err := l.override(in.overrides); err != nil {
		return nil, err
	}
	if err := a.checkRoles(l.resolved); err != nil {
		return nil, err
	}
	if l.tags, err = launchTags(in, cluster, definition.Tags); err != nil {
		return nil, err
	}
	l.group = orElse(str(in.group), "family:"+str(l.def.Family))
	if strings.HasPrefix(l.group, "service:") {
		return nil, invalidParameter("Invalid namespace for group: %s is reserved for services.", clip(l.group))
	}
	return l, nil
}

// withVolume takes the volume that is configured at launch.
func (l *launch) withVolume(r store.Reader, inherited []types.Tag, given []types.TaskVolumeConfiguration) (err error) {
	if l.volume, err = volumeOf(r, l.def, inherited, given); err != nil || l.volume == nil || l.volume.SnapshotID == "" {
		return err
	}
	place, err := snapshotPlace(r, l.volume)
	l.places = append(l.places, place)
	return err
}

// constrain says where the task may be placed.
func (l *launch) constrain(given []types.PlacementConstraint) error {
	list, err := sched.Constraints(l.def.PlacementConstraints, given)
	if err != nil {
		return invalidParameter("%s", err)
	}
	l.constraints = append(list, l.places...)
	return nil
}

// checkRoles refuses a task whose roles nobody can take for it. The words are those of ECS.
func (a *API) checkRoles(def *types.TaskDefinition) error {
	if a.IAM == nil {
		return nil
	}
	for _, role := range []*string{def.TaskRoleArn, def.ExecutionRoleArn} {
		if str(role) == "" {
			continue
		}
		if err := a.IAM.Assumable(*role); err != nil {
			return clientException("ECS was unable to assume the role '%s' that was provided for this task. Please verify that the role being passed has the proper trust relationship and permissions and that your IAM user has permissions to pass this role. (%s)", clip(*role), err)
		}
	}
	return nil
}

// override resolves the overrides and what a task then needs of an instance.
func (l *launch) override(ov *types.TaskOverride) error {
	var err error
	if l.resolved, err = render.Resolve(l.def, ov); err != nil {
		return invalidParameter("Override for container is invalid: %s", err)
	}
	if l.need, err = sched.NeedOf(l.resolved, nil); err != nil {
		return invalidParameter("%s", err)
	}
	l.overrides = &types.TaskOverride{InferenceAcceleratorOverrides: []types.InferenceAcceleratorOverride{}}
	if ov != nil {
		*l.overrides = *ov
	}
	if len(l.overrides.ContainerOverrides) == 0 {
		for i := range l.def.ContainerDefinitions {
			l.overrides.ContainerOverrides = append(l.overrides.ContainerOverrides, types.ContainerOverride{Name: l.def.ContainerDefinitions[i].Name})
		}
	}
	for _, at := range l.def.RequiresAttributes {
		l.attributes = append(l.attributes, sched.Attribute{Name: str(at.Name), Value: str(at.Value)})
	}
	if l.volume != nil {
		l.attributes = append(l.attributes, volumePoolAttribute())
	}
	l.attributes = append(l.attributes, sched.PlatformAttributes(l.def.RuntimePlatform)...)
	return nil
}

func launchTags(in launchInput, cluster string, inherited []types.Tag) ([]types.Tag, error) {
	if err := validateTags(in.tags); err != nil {
		return nil, err
	}
	out := append([]types.Tag{}, in.tags...)
	if in.propagate == types.PropagateTagsTaskDefinition {
		for _, t := range inherited {
			if !hasTag(out, str(t.Key)) {
				out = append(out, t)
			}
		}
	}
	if len(out) > maxTags {
		return nil, invalidParameter("A task may have at most %d tags, those of its definition included.", maxTags)
	}
	if in.managedTags {
		out = append(out, types.Tag{Key: aws.String("aws:ecs:clusterName"), Value: aws.String(cluster)})
	}
	return out, nil
}

func hasTag(list []types.Tag, key string) bool {
	for _, t := range list {
		if str(t.Key) == key {
			return true
		}
	}
	return false
}

func validToken(s string) bool {
	if len(s) > maxTokenChars {
		return false
	}
	for _, c := range []byte(s) {
		if c < 33 || c > 126 {
			return false
		}
	}
	return true
}

// seedOf makes the random strategy differ between requests and repeat for the same.
func seedOf(task string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(task)) //nolint:errcheck // a hash never fails
	return h.Sum64()
}
