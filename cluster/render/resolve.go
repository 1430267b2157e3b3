package render

import (
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// Resolve gives the definition of one task: def with the overrides of RunTask or
// StartTask applied. def is not changed. Without overrides the result is def itself.
//
// Environment overrides replace variables by name and add new ones; every other override
// replaces the whole value (ECS API model, ContainerOverride and TaskOverride). An
// override that names no container of the definition is an error.
func Resolve(def *types.TaskDefinition, ov *types.TaskOverride) (*types.TaskDefinition, error) {
	if ov == nil {
		return def, nil
	}
	out := *def
	if ov.Cpu != nil {
		out.Cpu = ov.Cpu
	}
	if ov.Memory != nil {
		out.Memory = ov.Memory
	}
	if ov.TaskRoleArn != nil {
		out.TaskRoleArn = ov.TaskRoleArn
	}
	if ov.ExecutionRoleArn != nil {
		out.ExecutionRoleArn = ov.ExecutionRoleArn
	}
	if ov.EphemeralStorage != nil {
		out.EphemeralStorage = ov.EphemeralStorage
	}
	if len(ov.ContainerOverrides) == 0 {
		return &out, nil
	}
	out.ContainerDefinitions = slices.Clone(def.ContainerDefinitions)
	for i := range ov.ContainerOverrides {
		o := &ov.ContainerOverrides[i]
		name := aws.ToString(o.Name)
		at := slices.IndexFunc(out.ContainerDefinitions, func(c types.ContainerDefinition) bool {
			return aws.ToString(c.Name) == name
		})
		if at < 0 {
			return nil, fmt.Errorf("containerOverrides[%d]: the task definition has no container named %q", i, name)
		}
		overrideContainer(&out.ContainerDefinitions[at], o)
	}
	return &out, nil
}

// LogMode gives def with the delivery mode of log configurations that name none, which
// the definition as it was registered does not tell (ECS API, account setting
// defaultLogDriverMode). def is not changed; an empty mode leaves it as it is.
//
// The log router of awsfirelens has a setting of its own on each host for whether
// containers wait for it, which only the wish for blocking overrides.
func LogMode(def *types.TaskDefinition, mode string) *types.TaskDefinition {
	if mode == "" {
		return def
	}
	out := *def
	out.ContainerDefinitions = slices.Clone(def.ContainerDefinitions)
	for i := range out.ContainerDefinitions {
		c := &out.ContainerDefinitions[i]
		l := c.LogConfiguration
		if l == nil || l.Options["mode"] != "" {
			continue
		}
		switch l.LogDriver {
		case types.LogDriverAwslogs, types.LogDriverSyslog, types.LogDriverJournald, types.LogDriverGelf, types.LogDriverFluentd, types.LogDriverSplunk:
		case types.LogDriverAwsfirelens:
			if mode != "blocking" {
				continue
			}
		default:
			continue
		}
		with := *l
		with.Options = map[string]string{"mode": mode}
		if mode == "blocking" && l.Options["max-buffer-size"] != "" {
			with.Options["mode"] = "non-blocking" // which is what a buffer is for
		}
		for k, v := range l.Options {
			if k != "mode" {
				with.Options[k] = v
			}
		}
		c.LogConfiguration = &with
	}
	return &out
}

// overrideContainer changes c, which the caller owns, but nothing that c points to.
func overrideContainer(c *types.ContainerDefinition, o *types.ContainerOverride) {
	if o.Command != nil {
		c.Command = o.Command
	}
	if o.Cpu != nil {
		c.Cpu = *o.Cpu
	}
	if o.Memory != nil {
		c.Memory = o.Memory
	}
	if o.MemoryReservation != nil {
		c.MemoryReservation = o.MemoryReservation
	}
	if o.EnvironmentFiles != nil {
		c.EnvironmentFiles = o.EnvironmentFiles
	}
	if o.ResourceRequirements != nil {
		c.ResourceRequirements = o.ResourceRequirements
	}
	if len(o.Environment) == 0 {
		return
	}
	env := slices.Clone(c.Environment)
	for _, v := range o.Environment {
		at := slices.IndexFunc(env, func(e types.KeyValuePair) bool {
			return aws.ToString(e.Name) == aws.ToString(v.Name)
		})
		if at < 0 {
			env = append(env, v)
		} else {
			env[at] = v
		}
	}
	c.Environment = env
}
