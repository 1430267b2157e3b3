package api

import (
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

func checkVolumes(d *types.TaskDefinition) error {
	names := make(map[string]bool)
	launch := 0
	for i := range d.Volumes {
		v := &d.Volumes[i]
		name := aws.ToString(v.Name)
		if !nameRule.MatchString(name) {
			return clientException("Volume name '%s' is invalid. Up to 255 letters, numbers, underscores, and hyphens are allowed.", clip(name))
		}
		if names[name] {
			return clientException("Volume names must be unique: '%s' is used more than once.", name)
		}
		names[name] = true
		if aws.ToBool(v.ConfiguredAtLaunch) {
			launch++
		}
		if err := checkVolume(d, v); err != nil {
			return err
		}
	}
	if launch > 1 {
		return clientException("Task definition supports one volume that is configured at launch.")
	}
	for i := range d.ContainerDefinitions {
		c := &d.ContainerDefinitions[i]
		for _, m := range c.MountPoints {
			source, path := aws.ToString(m.SourceVolume), aws.ToString(m.ContainerPath)
			if !names[source] {
				return clientException("Unknown volume '%s'.", clip(source))
			}
			if !strings.HasPrefix(path, "/") {
				return clientException("The containerPath '%s' of volume '%s' in container '%s' is not absolute.", clip(path), source, *c.Name)
			}
		}
	}
	return nil
}

func checkVolume(d *types.TaskDefinition, v *types.Volume) error {
	name := *v.Name
	kinds := 0
	for _, given := range []bool{
		v.Host != nil && aws.ToString(v.Host.SourcePath) != "", v.DockerVolumeConfiguration != nil, v.EfsVolumeConfiguration != nil,
		v.FsxWindowsFileServerVolumeConfiguration != nil, v.S3filesVolumeConfiguration != nil, aws.ToBool(v.ConfiguredAtLaunch),
	} {
		if given {
			kinds++
		}
	}
	if kinds > 1 {
		return clientException("Volume '%s' must have only one configuration.", name)
	}
	fargate := requires(d, types.CompatibilityFargate)
	if h := v.Host; h != nil && aws.ToString(h.SourcePath) != "" {
		if fargate {
			return clientException("Volume '%s': host.sourcePath is not supported on Fargate.", name)
		}
		if !strings.HasPrefix(*h.SourcePath, "/") {
			return clientException("Volume '%s': host.sourcePath must be absolute.", name)
		}
	}
	if dv := v.DockerVolumeConfiguration; dv != nil {
		if fargate {
			return clientException("Volume '%s': Docker volumes are not supported on Fargate.", name)
		}
		if dv.Autoprovision != nil && dv.Scope != types.ScopeShared {
			return clientException("Volume '%s': autoprovision is supported with scope 'shared' only.", name)
		}
	}
	if e := v.EfsVolumeConfiguration; e != nil {
		encrypted := e.TransitEncryption == types.EFSTransitEncryptionEnabled
		if auth := e.AuthorizationConfig; auth != nil {
			point := aws.ToString(auth.AccessPointId) != ""
			if (point || auth.Iam == types.EFSAuthorizationConfigIAMEnabled) && !encrypted {
				return clientException("Volume '%s': EFS authorization requires transit encryption.", name)
			}
			if root := aws.ToString(e.RootDirectory); point && root != "" && root != "/" {
				return clientException("Volume '%s': with an EFS access point the root directory must be absent or '/'.", name)
			}
		}
		if e.TransitEncryptionPort != nil && !encrypted {
			return clientException("Volume '%s': a transit encryption port requires transit encryption.", name)
		}
	}
	return nil
}
