package spec

import "github.com/opencontainers/runtime-spec/specs-go"

// Pause is the container whose namespaces the containers of a task share. It runs
// berth-pause and nothing else: no capability, no network, nothing of an image.
func Pause(host Host, cgroupsPath string) (*specs.Spec, error) {
	if host.Hold == "" {
		return nil, invalid("pidMode and ipcMode: the program berth-pause, which holds the namespaces of a task, is not installed on this host: install it beside berth-agent, or set BERTH_PAUSE_PATH")
	}
	seccomp, err := Seccomp(host, nil)
	if err != nil {
		return nil, err
	}
	shares := uint64(minShares)
	none := []string{}
	return &specs.Spec{
		Version: version,
		Root:    &specs.Root{Path: "rootfs", Readonly: true},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: holdPath, Type: "bind", Source: host.Hold, Options: []string{"rbind", "ro", "rprivate"}},
		},
		Process: &specs.Process{
			Args:            []string{holdPath},
			Env:             []string{defaultPath},
			Cwd:             "/",
			Capabilities:    &specs.LinuxCapabilities{Bounding: none, Effective: none, Permitted: none},
			NoNewPrivileges: true,
			ApparmorProfile: host.AppArmor,
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroupsPath,
			Resources: &specs.LinuxResources{
				CPU:     &specs.LinuxCPU{Shares: &shares},
				Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}},
			},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace},
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace},
			},
			Seccomp:       seccomp,
			MaskedPaths:   maskedPaths,
			ReadonlyPaths: readonlyPaths,
		},
	}, nil
}
