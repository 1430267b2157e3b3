package spec

import (
	"berth.dev/berth/agent/task"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Values of pidMode and ipcMode (ECS API model, TaskDefinition).
const (
	modeHost = "host"
	modeTask = "task"
	modeNone = "none"
)

// pidMode is the task's, or where it has none the container's: "" is a namespace of the
// container's own (agent protocol, "Namespaces").
func pidMode(in Input) string { return mode(in.Task.PidMode, in.Container.HostConfig.PidMode) }

func ipcMode(in Input) string { return mode(in.Task.IpcMode, in.Container.HostConfig.IpcMode) }

func mode(task, container string) string {
	if task != "" {
		return task
	}
	switch container {
	case "private", "shareable":
		return "" // nothing can ask for a share of it but a task, which asks for itself
	}
	return container
}

func namespaces(in Input) ([]specs.LinuxNamespace, error) {
	ns := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	switch uts := in.Container.HostConfig.UTSMode; uts {
	case "":
		ns = append(ns, specs.LinuxNamespace{Type: specs.UTSNamespace})
	case modeHost:
	default:
		return nil, invalid("UTSMode: %q is not supported: leave it out, or use host", uts)
	}
	if in.Network.Namespace != "" {
		ns = append(ns, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: in.Network.Namespace})
	}
	for _, k := range []struct {
		field, mode string
		kind        specs.LinuxNamespaceType
		shared      string
		none        bool
	}{
		{"pidMode", pidMode(in), specs.PIDNamespace, in.Shared.PID, false},
		{"ipcMode", ipcMode(in), specs.IPCNamespace, in.Shared.IPC, true},
	} {
		switch {
		case k.mode == "", k.mode == modeNone && k.none:
			ns = append(ns, specs.LinuxNamespace{Type: k.kind})
		case k.mode == modeHost:
		case k.mode == modeTask && k.shared != "":
			ns = append(ns, specs.LinuxNamespace{Type: k.kind, Path: k.shared})
		case k.mode == modeTask:
			return nil, task.Failf(task.Invalid, task.CannotCreateContainer, "%s: the namespace of the task was not made", k.field)
		default:
			return nil, invalid("%s: %q is not supported: use host or task", k.field, k.mode)
		}
	}
	switch c := in.Container.HostConfig.CgroupnsMode; c {
	case "", "private":
		if c == "private" || in.Host.CgroupV2 && !in.Container.HostConfig.Privileged {
			ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		}
	case modeHost:
	default:
		return nil, invalid("CgroupnsMode: %q is not supported: use private or host", c)
	}
	return ns, nil
}

// SharedNamespaces tells which namespaces the containers of a task share among
// themselves.
func SharedNamespaces(t *task.Task) (pid, ipc bool) {
	return t.PidMode == modeTask, t.IpcMode == modeTask
}

// ownIPC reports whether a container's IPC namespace is not the host's.
func ownIPC(in Input) bool { return ipcMode(in) != modeHost }
