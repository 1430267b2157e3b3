package render

import (
	"regexp"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/wire/acs"
)

func (t *target) container(c *types.ContainerDefinition) (acs.Container, error) {
	name := aws.ToString(c.Name)
	out := acs.Container{
		Name:         name,
		Image:        aws.ToString(c.Image),
		Command:      c.Command,
		CPU:          int64(c.Cpu),
		Memory:       int64(aws.ToInt32(c.Memory)),
		Essential:    c.Essential == nil || *c.Essential,
		Environment:  pairs(c.Environment),
		Links:        c.Links,
		Overrides:    "{}",
		StartTimeout: int64(aws.ToInt32(c.StartTimeout)),
		StopTimeout:  int64(aws.ToInt32(c.StopTimeout)),
		ContainerARN: t.containerARN(name),

		CredentialSpecs:        c.CredentialSpecs,
		RegistryAuthentication: t.registryAuth(c),
		Secrets:                t.secrets(c),
		PortMappings:           ports(c.PortMappings),
	}
	// An empty list here means "not set", as it does in the ECS API. On the wire it
	// would clear the image's entry point.
	if len(c.EntryPoint) > 0 {
		out.EntryPoint = &c.EntryPoint
	}
	if c.HealthCheck != nil {
		out.HealthCheckType = "docker"
	}
	if l := c.LogConfiguration; l != nil && l.LogDriver == types.LogDriverAwslogs && t.hasExecutionRole() {
		out.LogsAuthStrategy = "ExecutionRole"
	}
	for _, f := range c.EnvironmentFiles {
		out.EnvironmentFiles = append(out.EnvironmentFiles, acs.EnvironmentFile{Value: aws.ToString(f.Value), Type: string(f.Type)})
	}
	for _, m := range c.MountPoints {
		out.MountPoints = append(out.MountPoints, acs.MountPoint{
			SourceVolume: aws.ToString(m.SourceVolume), ContainerPath: aws.ToString(m.ContainerPath), ReadOnly: aws.ToBool(m.ReadOnly),
		})
	}
	for _, v := range c.VolumesFrom {
		out.VolumesFrom = append(out.VolumesFrom, acs.VolumeFrom{SourceContainer: aws.ToString(v.SourceContainer), ReadOnly: aws.ToBool(v.ReadOnly)})
	}
	for _, d := range c.DependsOn {
		out.DependsOn = append(out.DependsOn, acs.ContainerDependency{ContainerName: aws.ToString(d.ContainerName), Condition: string(d.Condition)})
	}
	if f := c.FirelensConfiguration; f != nil {
		out.FirelensConfiguration = &acs.FirelensConfiguration{Type: string(f.Type), Options: f.Options}
	}
	if r := c.RestartPolicy; r != nil {
		out.RestartPolicy = &acs.RestartPolicy{
			Enabled: aws.ToBool(r.Enabled), RestartAttemptPeriod: restartPeriod,
		}
		if p := aws.ToInt32(r.RestartAttemptPeriod); p > 0 {
			out.RestartPolicy.RestartAttemptPeriod = int64(p)
		}
		for _, code := range r.IgnoredExitCodes {
			out.RestartPolicy.IgnoredExitCodes = append(out.RestartPolicy.IgnoredExitCodes, int64(code))
		}
	}
	config, err := encode(dockerConfig(c))
	if err != nil {
		return out, err
	}
	host, err := encode(t.hostConfig(c))
	if err != nil {
		return out, err
	}
	out.DockerConfig = &acs.DockerConfig{Version: dockerVersion, Config: config, HostConfig: host}
	return out, nil
}

// restartPeriod is the restartAttemptPeriod of a policy that names none, in seconds (ECS
// API, ContainerRestartPolicy).
const restartPeriod = 300

func (t *target) containerARN(name string) string {
	for i := range t.task.Containers {
		if c := &t.task.Containers[i]; aws.ToString(c.Name) == name {
			return aws.ToString(c.ContainerArn)
		}
	}
	return ""
}

func (t *target) hasExecutionRole() bool { return aws.ToString(t.def.ExecutionRoleArn) != "" }

func ports(list []types.PortMapping) []acs.PortMapping {
	var out []acs.PortMapping
	for _, p := range list {
		out = append(out, acs.PortMapping{
			ContainerPort:      int64(aws.ToInt32(p.ContainerPort)),
			HostPort:           int64(aws.ToInt32(p.HostPort)),
			ContainerPortRange: aws.ToString(p.ContainerPortRange),
			Protocol:           orElse(string(p.Protocol), string(types.TransportProtocolTcp)),
		})
	}
	return out
}

// ecrImage is the form of an image name in an ECR registry, with account and region.
var ecrImage = regexp.MustCompile(`^([0-9]{12})\.dkr\.ecr(?:-fips)?\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/`)

func (t *target) registryAuth(c *types.ContainerDefinition) *acs.RegistryAuthentication {
	if r := c.RepositoryCredentials; r != nil && aws.ToString(r.CredentialsParameter) != "" {
		return &acs.RegistryAuthentication{Type: "asm", ASMAuthData: &acs.ASMAuthData{
			CredentialsParameter: *r.CredentialsParameter, Region: t.regionOf(*r.CredentialsParameter),
		}}
	}
	if m := ecrImage.FindStringSubmatch(aws.ToString(c.Image)); m != nil {
		return &acs.RegistryAuthentication{Type: "ecr", ECRAuthData: &acs.ECRAuthData{
			RegistryID: m[1], Region: m[2], UseExecutionRole: t.hasExecutionRole(),
		}}
	}
	return nil
}

// secrets are references; agents fetch the values (agent protocol, "Secrets"). Those of
// a log driver become options of the driver, except with awsfirelens, whose router
// reads them from its environment.
func (t *target) secrets(c *types.ContainerDefinition) []acs.Secret {
	var out []acs.Secret
	for _, s := range c.Secrets {
		out = append(out, t.secret(s, "ENVIRONMENT_VARIABLE", "CONTAINER"))
	}
	if l := c.LogConfiguration; l != nil {
		kind := "BOOTSTRAP"
		if l.LogDriver == types.LogDriverAwsfirelens {
			kind = "ENVIRONMENT_VARIABLE"
		}
		for _, s := range l.SecretOptions {
			out = append(out, t.secret(s, kind, "LOG_DRIVER"))
		}
	}
	return out
}

func (t *target) secret(s types.Secret, kind, use string) acs.Secret {
	from := aws.ToString(s.ValueFrom)
	out := acs.Secret{
		Name: aws.ToString(s.Name), ValueFrom: from, Type: kind, Target: use,
		Provider: "ssm", Region: t.regionOf(from),
	}
	if arn := strings.SplitN(from, ":", 4); len(arn) == 4 && arn[0] == "arn" && arn[2] == "secretsmanager" {
		out.Provider = "asm"
	}
	return out
}

// regionOf is the region of an ARN, and the cluster's for anything else.
func (t *target) regionOf(s string) string {
	if arn := strings.SplitN(s, ":", 6); len(arn) == 6 && arn[0] == "arn" && arn[3] != "" {
		return arn[3]
	}
	return t.region
}
