package runtime

import (
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"berth.dev/berth/agent/task"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/typeurl/v2"
)

// RuntimeLabel is the docker label by which a container chooses its runtime.
const RuntimeLabel = "berth.runtime"

// RuntimeAttribute begins the name of the attribute that an instance has for each
// runtime, and that a task which names the runtime requires.
const RuntimeAttribute = "berth.capability.runtime."

// OCIRuntime is a runtime that containers may choose by name.
type OCIRuntime struct {
	Name string
	// Shim is the name of a containerd runtime ("io.containerd.kata.v2") or the path of a
	// shim's program; "" is the runc shim.
	Shim string
	// Program is the OCI runtime that the runc shim runs; "" is the shim's default, runc.
	Program string
}

var (
	runtimeName = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,62}$`)
	shimName    = regexp.MustCompile(`^io\.containerd\.[a-z0-9_-]+\.v[0-9]+$`)
)

// FindRuntimes lists the runtimes of this host: runc, crun where it is installed and
// works, and those of the setting BERTH_RUNTIMES, each NAME=WHAT, where WHAT is the name of a
// containerd runtime, the path of a shim (containerd-shim-...) or the path of an OCI
// runtime. An entry replaces one of the same name.
func FindRuntimes(setting []string) ([]OCIRuntime, error) {
	found := map[string]OCIRuntime{"runc": {Name: "runc", Program: "runc"}}
	if path, err := exec.LookPath("crun"); err == nil && !hybrid() {
		found["crun"] = OCIRuntime{Name: "crun", Program: path}
	}
	for _, entry := range setting {
		name, what, ok := strings.Cut(entry, "=")
		if !ok || !runtimeName.MatchString(name) {
			return nil, fmt.Errorf("runtime %q: must be NAME=SHIM or NAME=/PATH", entry)
		}
		r := OCIRuntime{Name: name}
		switch {
		case shimName.MatchString(what):
			r.Shim = what
		case !filepath.IsAbs(what):
			return nil, fmt.Errorf("runtime %q: %q is neither the name of a containerd runtime (io.containerd.NAME.v2) nor an absolute path", name, what)
		case strings.HasPrefix(filepath.Base(what), "containerd-shim-"):
			r.Shim = what
		default:
			r.Program = what
		}
		found[name] = r
	}
	out := make([]OCIRuntime, 0, len(found))
	for _, name := range slices.Sorted(maps.Keys(found)) {
		out = append(out, found[name])
	}
	return out, nil
}

// chosen is a runtime as containerd is told of it.
type chosen struct {
	shim    string
	options typeurl.Any // nil for shims that are not runc's
}

// runcOptions are the options of the runc shim for one OCI runtime program.
func (c *Client) runcOptions(program string) (typeurl.Any, error) {
	return typeurl.MarshalAny(&runcoptions.Options{BinaryName: program, Root: c.runcRoot()})
}

// runtimeOf is the runtime of a container: the one that its label names, or hostConfig,
// else the default.
func (c *Client) runtimeOf(k *task.Container) (chosen, error) {
	field, name := "label "+RuntimeLabel, k.Config.Labels[RuntimeLabel]
	if name == "" {
		field, name = "Runtime", k.HostConfig.Runtime
	}
	if name == "" {
		return chosen{shimRuntime, c.options}, nil
	}
	i := slices.IndexFunc(c.cfg.Runtimes, func(r OCIRuntime) bool { return r.Name == name })
	if i < 0 {
		return chosen{}, refuse("%s: this host has no runtime %q, it has %s: install it and name it in BERTH_RUNTIMES, or place the task on an instance with the attribute %s%s",
			field, name, strings.Join(c.runtimeNames(), ", "), RuntimeAttribute, name)
	}
	r := c.cfg.Runtimes[i]
	if r.Shim != "" {
		return chosen{shim: r.Shim}, nil
	}
	options, err := c.runcOptions(r.Program)
	return chosen{shimRuntime, options}, err
}

func (c *Client) runtimeNames() []string {
	names := make([]string, 0, len(c.cfg.Runtimes))
	for _, r := range c.cfg.Runtimes {
		names = append(names, r.Name)
	}
	return names
}
