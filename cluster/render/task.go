package render

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/wire/acs"
)

// target is the task that is being rendered.
type target struct {
	def    *types.TaskDefinition // overrides applied
	task   *types.Task
	id     string
	region string
}

// Task renders t, whose definition with all overrides applied is def (see Resolve). The
// credentials of its roles are not part of the result; who sends it adds them. An error
// means that the definition holds something that cannot be said on the wire, which its
// registration should have refused.
func Task(def *types.TaskDefinition, t *types.Task) (*acs.Task, error) {
	parts := strings.Split(aws.ToString(t.TaskArn), ":")
	if len(parts) != 6 {
		return nil, fmt.Errorf("task ARN %q: want six parts", aws.ToString(t.TaskArn))
	}
	tg := &target{
		def: def, task: t, region: parts[3],
		id: parts[5][strings.LastIndexByte(parts[5], '/')+1:],
	}
	cpu, err := number("cpu", def.Cpu)
	if err != nil {
		return nil, err
	}
	memory, err := number("memory", def.Memory)
	if err != nil {
		return nil, err
	}
	out := &acs.Task{
		ARN:                     aws.ToString(t.TaskArn),
		TaskClusterARN:          aws.ToString(t.ClusterArn),
		Family:                  aws.ToString(def.Family),
		Version:                 strconv.Itoa(int(def.Revision)),
		DesiredStatus:           aws.ToString(t.DesiredStatus),
		Overrides:               "{}",
		Zone:                    aws.ToString(t.AvailabilityZone),
		TaskDefinitionAccountID: parts[4],
		LaunchType:              string(t.LaunchType),
		NetworkMode:             tg.networkMode(),
		CPU:                     float64(cpu) / 1024,
		Memory:                  memory,
		PidMode:                 string(def.PidMode),
		IpcMode:                 string(def.IpcMode),
		Group:                   aws.ToString(t.Group),
		EnableFaultInjection:    aws.ToBool(def.EnableFaultInjection),
	}
	if name, ok := strings.CutPrefix(out.Group, "service:"); ok {
		out.ServiceName = name
	}
	if p := def.ProxyConfiguration; p != nil {
		out.ProxyConfiguration = &acs.ProxyConfiguration{
			Type: string(p.Type), ContainerName: aws.ToString(p.ContainerName), Properties: pairs(p.Properties),
		}
	}
	for i := range def.ContainerDefinitions {
		c, err := tg.container(&def.ContainerDefinitions[i])
		if err != nil {
			return nil, fmt.Errorf("container %q: %w", aws.ToString(def.ContainerDefinitions[i].Name), err)
		}
		out.Containers = append(out.Containers, c)
	}
	for i := range def.Volumes {
		out.Volumes = append(out.Volumes, volume(&def.Volumes[i]))
	}
	if s := def.EphemeralStorage; s != nil {
		out.EphemeralStorage = &acs.EphemeralStorage{SizeInGiB: int64(s.SizeInGiB)}
	}
	for i := range t.Containers {
		for _, id := range t.Containers[i].GpuIds {
			out.Associations = append(out.Associations, acs.Association{
				Type: "gpu", Name: id, Containers: []string{aws.ToString(t.Containers[i].Name)},
			})
		}
	}
	return out, nil
}

func (t *target) networkMode() string {
	return orElse(string(t.def.NetworkMode), string(types.NetworkModeBridge))
}

// number reads a cpu or memory setting of a task, stored as a plain integer.
func number(field string, s *string) (int64, error) {
	if aws.ToString(s) == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(*s, 10, 32)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("task %s %q: not a number of units", field, *s)
	}
	return n, nil
}

func pairs(list []types.KeyValuePair) map[string]string {
	if len(list) == 0 {
		return nil
	}
	out := make(map[string]string, len(list))
	for _, kv := range list {
		out[aws.ToString(kv.Name)] = aws.ToString(kv.Value)
	}
	return out
}

func volume(v *types.Volume) acs.Volume {
	out := acs.Volume{Name: aws.ToString(v.Name)}
	switch {
	case v.DockerVolumeConfiguration != nil:
		d := v.DockerVolumeConfiguration
		out.Type = "docker"
		out.DockerVolumeConfiguration = &acs.DockerVolume{
			Scope:         string(d.Scope),
			Autoprovision: aws.ToBool(d.Autoprovision),
			Driver:        aws.ToString(d.Driver),
			DriverOpts:    d.DriverOpts,
			Labels:        d.Labels,
		}
	case v.EfsVolumeConfiguration != nil:
		out.Type = "efs"
		out.EFSVolumeConfiguration = efs(v.EfsVolumeConfiguration)
	case v.FsxWindowsFileServerVolumeConfiguration != nil:
		f := v.FsxWindowsFileServerVolumeConfiguration
		out.Type = "fsxWindowsFileServer"
		out.FSxWindowsFileServerVolumeConfiguration = &acs.FSxWindowsFileServer{
			FileSystemID: aws.ToString(f.FileSystemId), RootDirectory: aws.ToString(f.RootDirectory),
		}
		if a := f.AuthorizationConfig; a != nil {
			out.FSxWindowsFileServerVolumeConfiguration.AuthorizationConfig = &acs.FSxAuthorization{
				CredentialsParameter: aws.ToString(a.CredentialsParameter), Domain: aws.ToString(a.Domain),
			}
		}
	case aws.ToBool(v.ConfiguredAtLaunch):
		// It has no type: it is the volume of the attachment that has its name (agent
		// protocol, "Attachment").
	default:
		out.Type = "host"
		out.Host = &acs.HostVolume{}
		if v.Host != nil {
			out.Host.SourcePath = aws.ToString(v.Host.SourcePath)
		}
	}
	return out
}

func efs(e *types.EFSVolumeConfiguration) *acs.EFSVolume {
	out := &acs.EFSVolume{
		FileSystemID:          aws.ToString(e.FileSystemId),
		RootDirectory:         aws.ToString(e.RootDirectory),
		TransitEncryption:     string(e.TransitEncryption),
		TransitEncryptionPort: int64(aws.ToInt32(e.TransitEncryptionPort)),
	}
	if a := e.AuthorizationConfig; a != nil {
		out.AuthorizationConfig = &acs.EFSAuthorization{AccessPointID: aws.ToString(a.AccessPointId), IAM: string(a.Iam)}
	}
	return out
}
