package api

import (
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// Limits of a container definition (ECS API model).
const (
	maxEnvironmentFiles = 10
	maxIgnoredCodes     = 50
	fargateMaxTimeout   = 120 // seconds
)

// checkContainer applies the rules of one container that need no other.
func checkContainer(d *types.TaskDefinition, c *types.ContainerDefinition) error {
	for _, check := range []func(*types.TaskDefinition, *types.ContainerDefinition) error{
		checkHealth, checkTimeouts, checkRestart, checkEnvironment, checkLogging, checkLinux, checkSecurity, checkRequirements,
	} {
		if err := check(d, c); err != nil {
			return err
		}
	}
	return nil
}

// within tells whether an optional number is absent or in a range.
func within(v *int32, from, to int32) bool { return v == nil || *v >= from && *v <= to }

func checkHealth(_ *types.TaskDefinition, c *types.ContainerDefinition) error {
	h := c.HealthCheck
	if h == nil {
		return nil
	}
	if len(h.Command) < 2 || h.Command[0] != "CMD" && h.Command[0] != "CMD-SHELL" {
		return clientException("The health check command of container '%s' must begin with CMD or CMD-SHELL, and name what to run.", *c.Name)
	}
	for _, r := range []struct {
		name     string
		value    *int32
		from, to int32
	}{
		{"interval", h.Interval, 5, 300}, {"timeout", h.Timeout, 2, 60},
		{"retries", h.Retries, 1, 10}, {"startPeriod", h.StartPeriod, 0, 300},
	} {
		if !within(r.value, r.from, r.to) {
			return clientException("The health check %s of container '%s' must be between %d and %d.", r.name, *c.Name, r.from, r.to)
		}
	}
	return nil
}

func checkTimeouts(d *types.TaskDefinition, c *types.ContainerDefinition) error {
	if !within(c.StartTimeout, 0, 1<<31-1) || !within(c.StopTimeout, 0, 1<<31-1) {
		return clientException("The timeouts of container '%s' must not be negative.", *c.Name)
	}
	if requires(d, types.CompatibilityFargate) {
		if !within(c.StartTimeout, 2, fargateMaxTimeout) {
			return clientException("The startTimeout of container '%s' must be between 2 and %d seconds on Fargate.", *c.Name, fargateMaxTimeout)
		}
		if !within(c.StopTimeout, 0, fargateMaxTimeout) {
			return clientException("The stopTimeout of container '%s' must be at most %d seconds on Fargate.", *c.Name, fargateMaxTimeout)
		}
	}
	return nil
}

func checkRestart(_ *types.TaskDefinition, c *types.ContainerDefinition) error {
	p := c.RestartPolicy
	if p == nil {
		return nil
	}
	if len(p.IgnoredExitCodes) > maxIgnoredCodes {
		return clientException("The restart policy of container '%s' may ignore at most %d exit codes.", *c.Name, maxIgnoredCodes)
	}
	if !within(p.RestartAttemptPeriod, 60, 1800) {
		return clientException("The restartAttemptPeriod of container '%s' must be between 60 and 1800 seconds.", *c.Name)
	}
	return nil
}

func checkEnvironment(_ *types.TaskDefinition, c *types.ContainerDefinition) error {
	if len(c.EnvironmentFiles) > maxEnvironmentFiles {
		return clientException("Container '%s' may have at most %d environment files.", *c.Name, maxEnvironmentFiles)
	}
	for _, f := range c.EnvironmentFiles {
		if !strings.HasSuffix(aws.ToString(f.Value), ".env") {
			return clientException("The environment files of container '%s' must have the extension .env.", *c.Name)
		}
	}
	seen := make(map[string]bool)
	for _, e := range c.Environment {
		name := aws.ToString(e.Name)
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return clientException("An environment variable of container '%s' has an empty or invalid name.", *c.Name)
		}
		seen[name] = true
	}
	for _, s := range c.Secrets {
		switch name := aws.ToString(s.Name); {
		case name == "" || aws.ToString(s.ValueFrom) == "":
			return clientException("The secrets of container '%s' need a name and a valueFrom.", *c.Name)
		case seen[name]:
			return clientException("The secret name must be unique and not shared with any new or existing environment variables set on the container, such as '%s'.", clip(name))
		}
	}
	return nil
}

func checkLogging(d *types.TaskDefinition, c *types.ContainerDefinition) error {
	l := c.LogConfiguration
	if l == nil {
		return nil
	}
	if requires(d, types.CompatibilityFargate) && !slices.Contains([]types.LogDriver{types.LogDriverAwslogs, types.LogDriverSplunk, types.LogDriverAwsfirelens}, l.LogDriver) {
		return clientException("The log driver %s is not supported on Fargate. Use awslogs, splunk or awsfirelens.", l.LogDriver)
	}
	if l.LogDriver == types.LogDriverAwslogs {
		for _, o := range []string{"awslogs-group", "awslogs-region"} {
			if l.Options[o] == "" {
				return clientException("Log driver awslogs requires options: %s", o)
			}
		}
	}
	if l.LogDriver == types.LogDriverAwsfirelens && !slices.ContainsFunc(d.ContainerDefinitions, func(c types.ContainerDefinition) bool { return c.FirelensConfiguration != nil }) {
		return clientException("When a container uses the log driver awsfirelens, one container must have a firelensConfiguration.")
	}
	return nil
}

func checkLinux(d *types.TaskDefinition, c *types.ContainerDefinition) error {
	l := c.LinuxParameters
	fargate := requires(d, types.CompatibilityFargate)
	if fargate && aws.ToBool(c.Privileged) {
		return clientException("Fargate does not support privileged containers.")
	}
	for _, u := range c.Ulimits {
		if u.SoftLimit > u.HardLimit && u.HardLimit != -1 {
			return clientException("The soft limit of ulimit %s of container '%s' exceeds its hard limit.", u.Name, *c.Name)
		}
	}
	if l == nil {
		return nil
	}
	if !within(l.Swappiness, 0, 100) {
		return clientException("The swappiness of container '%s' must be between 0 and 100.", *c.Name)
	}
	if !within(l.MaxSwap, 0, 1<<31-1) || !within(l.SharedMemorySize, 0, 1<<31-1) {
		return clientException("The swap and shared memory sizes of container '%s' must not be negative.", *c.Name)
	}
	for _, t := range l.Tmpfs {
		if !strings.HasPrefix(aws.ToString(t.ContainerPath), "/") || t.Size <= 0 {
			return clientException("A tmpfs of container '%s' needs an absolute containerPath and a size.", *c.Name)
		}
	}
	for _, dev := range l.Devices {
		if aws.ToString(dev.HostPath) == "" {
			return clientException("A device of container '%s' needs a hostPath.", *c.Name)
		}
	}
	if !fargate {
		return nil
	}
	if len(l.Devices) > 0 || l.SharedMemorySize != nil || len(l.Tmpfs) > 0 || l.MaxSwap != nil || l.Swappiness != nil {
		return clientException("Fargate does not support devices, sharedMemorySize, tmpfs and swap in linuxParameters.")
	}
	if k := l.Capabilities; k != nil {
		for _, add := range k.Add {
			if add != "SYS_PTRACE" {
				return clientException("Fargate supports adding the capability SYS_PTRACE only.")
			}
		}
	}
	return nil
}

func checkRequirements(_ *types.TaskDefinition, c *types.ContainerDefinition) error {
	for _, h := range c.ExtraHosts {
		if aws.ToString(h.Hostname) == "" || aws.ToString(h.IpAddress) == "" {
			return clientException("The extra hosts of container '%s' need a hostname and an ipAddress.", *c.Name)
		}
	}
	if r := c.RepositoryCredentials; r != nil && aws.ToString(r.CredentialsParameter) == "" {
		return clientException("The repository credentials of container '%s' need a credentialsParameter.", *c.Name)
	}
	return nil
}
