package intake

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/acs"
)

// Names of volumes, as in the ECS API, and of drivers become parts of paths.
var (
	volumeName = regexp.MustCompile(`^[0-9A-Za-z_-]{1,255}$`)
	driverName = regexp.MustCompile(`^[0-9A-Za-z_-][0-9A-Za-z_.-]{0,127}$`)
)

// translateVolume takes a volume; its type defaults to host (agent protocol,
// "Volumes and EBS").
func translateVolume(w *acs.Volume) (task.Volume, error) {
	v := task.Volume{Name: w.Name, Type: cmp.Or(w.Type, task.VolumeHost)}
	if !volumeName.MatchString(v.Name) {
		return v, unloadablef("a volume's name must be of letters, digits, - and _")
	}
	refuse := func(format string, args ...any) error {
		return &Rejection{Reason: fmt.Sprintf("%s: volume %s: ", task.ResourceInitialization, v.Name) + fmt.Sprintf(format, args...)}
	}
	switch v.Type {
	case task.VolumeHost:
		if w.Host != nil {
			v.HostPath = w.Host.SourcePath
		}
		if v.HostPath != "" && !strings.HasPrefix(v.HostPath, "/") {
			return v, unloadablef("sourcePath of volume %q is not absolute", v.Name)
		}
		return v, nil
	case task.VolumeDocker:
		return v, dockerVolume(&v, w.DockerVolumeConfiguration)
	case task.VolumeEFS:
		return v, efsVolume(&v, w.EFSVolumeConfiguration)
	case "fsxWindowsFileServer":
		// The words are the protocol's ("FSx for Windows File Server").
		return v, refuse("fsxWindowsFileServer volumes are supported on Windows hosts only")
	case "s3files":
		return v, refuse("s3files volumes are not supported: they need mount.s3files of the package amazon-efs-utils")
	default:
		return v, unloadablef("unrecognized volume type: %q", v.Type)
	}
}

func dockerVolume(v *task.Volume, w *acs.DockerVolume) error {
	if w == nil {
		w = &acs.DockerVolume{}
	}
	v.Docker = &task.DockerVolume{
		Autoprovision: w.Autoprovision, Driver: cmp.Or(w.Driver, "local"), Options: w.DriverOpts, Labels: w.Labels,
	}
	switch w.Scope {
	case "", "task":
	case "shared":
		v.Docker.Shared = true
	default:
		return unloadablef("volume %q: unknown scope", v.Name)
	}
	v.Docker.Driver = strings.ReplaceAll(v.Docker.Driver, ":", ".") // as in its capability
	if !driverName.MatchString(v.Docker.Driver) {
		return unloadablef("volume %q: a driver's name must be of letters, digits, dots, - and _", v.Name)
	}
	return nil
}

func efsVolume(v *task.Volume, w *acs.EFSVolume) error {
	if w == nil || w.FileSystemID == "" {
		return unloadablef("volume %q: efsVolumeConfiguration has no fileSystemId", v.Name)
	}
	if w.TransitEncryptionPort < 0 || w.TransitEncryptionPort > 65535 {
		return unloadablef("volume %q: transitEncryptionPort is out of range", v.Name)
	}
	v.EFS = &task.EFSVolume{
		FileSystemID: w.FileSystemID, Root: w.RootDirectory,
		Encrypted: w.TransitEncryption == "ENABLED", Port: int(w.TransitEncryptionPort),
	}
	if a := w.AuthorizationConfig; a != nil {
		v.EFS.AccessPoint, v.EFS.IAM = a.AccessPointID, a.IAM == "ENABLED"
	}
	return nil
}
