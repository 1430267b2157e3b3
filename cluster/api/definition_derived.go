package api

import (
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// Defaults that are written into a stored health check (ECS API model).
const (
	healthInterval = 30
	healthTimeout  = 5
	healthRetries  = 3
)

// completeDefinition writes the documented defaults, and nothing else:
// clients compare what they sent with what they get, and take anything more
// for a change.
func completeDefinition(d *types.TaskDefinition) {
	if d.Volumes == nil {
		d.Volumes = []types.Volume{}
	}
	if d.PlacementConstraints == nil {
		d.PlacementConstraints = []types.TaskDefinitionPlacementConstraint{}
	}
	for i := range d.ContainerDefinitions {
		c := &d.ContainerDefinitions[i]
		if c.Essential == nil {
			c.Essential = aws.Bool(true)
		}
		if c.PortMappings == nil {
			c.PortMappings = []types.PortMapping{}
		}
		if c.Environment == nil {
			c.Environment = []types.KeyValuePair{}
		}
		if c.MountPoints == nil {
			c.MountPoints = []types.MountPoint{}
		}
		if c.VolumesFrom == nil {
			c.VolumesFrom = []types.VolumeFrom{}
		}
		for j := range c.PortMappings {
			completePort(d.NetworkMode, &c.PortMappings[j])
		}
		if h := c.HealthCheck; h != nil {
			for _, f := range []struct {
				value **int32
				usual int32
			}{{&h.Interval, healthInterval}, {&h.Timeout, healthTimeout}, {&h.Retries, healthRetries}} {
				if *f.value == nil {
					*f.value = aws.Int32(f.usual)
				}
			}
		}
	}
}

func completePort(mode types.NetworkMode, p *types.PortMapping) {
	if p.Protocol == "" {
		p.Protocol = types.TransportProtocolTcp
	}
	if p.ContainerPortRange != nil {
		return
	}
	if mode == types.NetworkModeAwsvpc || mode == types.NetworkModeHost {
		p.HostPort = p.ContainerPort
	} else if p.HostPort == nil {
		p.HostPort = aws.Int32(0)
	}
}

// compatibilities lists the launch types that a valid definition satisfies.
func compatibilities(d *types.TaskDefinition) []types.Compatibility {
	out := []types.Compatibility{types.CompatibilityEc2}
	if d.NetworkMode != types.NetworkModeAwsvpc {
		out = append(out, types.CompatibilityExternal)
	}
	try := *d
	try.RequiresCompatibilities = []types.Compatibility{types.CompatibilityFargate}
	if checkDefinition(&try) == nil {
		out = append(out, types.CompatibilityFargate)
	}
	if requires(d, types.CompatibilityManagedInstances) {
		out = append(out, types.CompatibilityManagedInstances)
	}
	return out
}

// The prefixes of capability attributes (agent protocol, "Attributes
// registered").
const (
	dockerCapability = "com.amazonaws.ecs.capability."
	ecsCapability    = "ecs.capability."
)

// A container chooses a runtime by a docker label, and its task then requires the
// attribute that agents register for the runtime (docs/settings.md, BERTH_RUNTIMES).
const (
	runtimeLabel      = "berth.runtime"
	runtimeCapability = "berth.capability.runtime."
)

// A container joins networks of its instance's operator by a docker label, and its task
// then requires the attributes that agents register for them (docs/networks.md).
const (
	networksLabel     = "berth.networks"
	networkCapability = "berth.capability.network."
)

// networkRule is what names of CNI networks are made of (CNI specification), and bounded.
var networkRule = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$`)

// requiredAttributes lists the capabilities that an instance must have
// registered to run a definition.
func requiredAttributes(d *types.TaskDefinition) []types.Attribute {
	need := make(map[string]bool)
	docker := func(names ...string) {
		for _, n := range names {
			need[dockerCapability+n] = true
		}
	}
	capability := func(names ...string) {
		for _, n := range names {
			need[ecsCapability+n] = true
		}
	}
	if aws.ToString(d.TaskRoleArn) != "" {
		docker("task-iam-role")
		if d.NetworkMode == types.NetworkModeHost {
			docker("task-iam-role-network-host")
		}
	}
	if d.NetworkMode == types.NetworkModeAwsvpc {
		capability("task-eni")
	}
	if d.Cpu != nil || d.Memory != nil {
		capability("task-cpu-mem-limit")
	}
	if number(d.Cpu) > 10240 {
		capability("increased-task-cpu-limit")
	}
	if d.PidMode != "" || d.IpcMode != "" {
		capability("pid-ipc-namespace-sharing")
	}
	if d.ProxyConfiguration != nil {
		capability("aws-appmesh")
	}
	if aws.ToBool(d.EnableFaultInjection) {
		capability("fault-injection")
	}
	for i := range d.Volumes {
		volumeAttributes(&d.Volumes[i], capability)
	}
	for i := range d.ContainerDefinitions {
		containerAttributes(d, &d.ContainerDefinitions[i], docker, capability)
	}
	for i := range d.ContainerDefinitions {
		if name := d.ContainerDefinitions[i].DockerLabels[runtimeLabel]; name != "" {
			need[runtimeCapability+name] = true
		}
		for name := range strings.SplitSeq(d.ContainerDefinitions[i].DockerLabels[networksLabel], ",") {
			if name = strings.TrimSpace(name); name != "" {
				need[networkCapability+name] = true
			}
		}
	}
	names := make([]string, 0, len(need))
	for n := range need {
		names = append(names, n)
	}
	slices.Sort(names)
	out := make([]types.Attribute, len(names))
	for i, n := range names {
		out[i].Name = aws.String(n)
	}
	return out
}

func volumeAttributes(v *types.Volume, capability func(...string)) {
	switch {
	case v.DockerVolumeConfiguration != nil:
		driver := aws.ToString(v.DockerVolumeConfiguration.Driver)
		if driver == "" {
			driver = "local"
		}
		capability("docker-plugin." + strings.ReplaceAll(driver, ":", "."))
	case v.EfsVolumeConfiguration != nil:
		capability("efs")
		if v.EfsVolumeConfiguration.TransitEncryption == types.EFSTransitEncryptionEnabled {
			capability("efsAuth")
		}
	case v.S3filesVolumeConfiguration != nil:
		capability("storage.s3-files")
	case aws.ToBool(v.ConfiguredAtLaunch):
		capability("storage.ebs-task-volume-attach")
	}
}

func containerAttributes(d *types.TaskDefinition, c *types.ContainerDefinition, docker, capability func(...string)) {
	if aws.ToBool(c.Privileged) {
		docker("privileged-container")
	}
	if l := c.LogConfiguration; l != nil {
		docker("logging-driver." + string(l.LogDriver))
		if l.LogDriver == types.LogDriverAwslogs && aws.ToString(d.ExecutionRoleArn) != "" {
			capability("execution-role-awslogs")
		}
		if l.LogDriver == types.LogDriverAwsfirelens && l.Options["log-driver-buffer-limit"] != "" {
			capability("logging-driver.awsfirelens.log-driver-buffer-limit")
		}
		for _, s := range l.SecretOptions {
			capability(secretCapability(s, "bootstrap.log-driver"))
		}
	}
	for _, o := range c.DockerSecurityOptions {
		switch kind, value, _ := strings.Cut(strings.Replace(o, "=", ":", 1), ":"); {
		case kind == "label" && value != "disable":
			docker("selinux")
		case kind == "apparmor" && value != "unconfined":
			docker("apparmor")
		}
	}
	for _, s := range c.Secrets {
		capability(secretCapability(s, "environment-variables"))
	}
	if strings.Contains(aws.ToString(c.Image), ".dkr.ecr.") {
		docker("ecr-auth")
		if aws.ToString(d.ExecutionRoleArn) != "" {
			capability("execution-role-ecr-pull")
		}
	}
	if c.RepositoryCredentials != nil {
		capability("private-registry-authentication.secretsmanager")
	}
	if c.HealthCheck != nil {
		capability("container-health-check")
	}
	if len(c.DependsOn) > 0 {
		capability("container-ordering")
	}
	if len(c.EnvironmentFiles) > 0 {
		capability("env-files.s3")
	}
	if p := c.RestartPolicy; p != nil && aws.ToBool(p.Enabled) {
		capability("container-restart-policy")
	}
	for _, p := range c.PortMappings {
		if p.ContainerPortRange != nil {
			capability("network.container-port-range")
		}
	}
	if f := c.FirelensConfiguration; f != nil {
		capability("firelens." + string(f.Type))
		if kind := f.Options["config-file-type"]; kind == "s3" || kind == "file" {
			capability("firelens.options.config." + kind)
		}
		if user, _, _ := strings.Cut(aws.ToString(c.User), ":"); user != "" && user != "0" && user != "root" {
			capability("firelens.non-root-user")
		}
	}
}

// secretCapability names the capability to read a secret: from Secrets
// Manager or from the Parameter Store.
func secretCapability(s types.Secret, use string) string {
	if strings.Contains(aws.ToString(s.ValueFrom), ":secretsmanager:") {
		return "secrets.asm." + use
	}
	return "secrets.ssm." + use
}
