package runtime

import (
	"fmt"
	"slices"
	"strings"

	"berth.dev/berth/agent/task"

	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// GPUs are the GPUs of this host, as files of the Container Device Interface describe
// them (github.com/cncf-tags/container-device-interface, SPEC.md). The programs of the
// vendors write those files: nvidia-ctk cdi generate, for example.
type GPUs struct {
	cache         *cdi.Cache
	vendor, class string
}

// FindGPUs reads the descriptions of one kind of device, such as nvidia.com/gpu, in
// directories of which the last has precedence.
func FindGPUs(kind string, dirs []string) (*GPUs, error) {
	vendor, class := parser.ParseQualifier(kind)
	if vendor == "" || class == "" {
		return nil, fmt.Errorf("kind of devices %q: must be VENDOR/CLASS, such as nvidia.com/gpu", kind)
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return nil, fmt.Errorf("device descriptions in %s: %w", strings.Join(dirs, ", "), err)
	}
	return &GPUs{cache: cache, vendor: vendor, class: class}, nil
}

// IDs names the GPUs. A description may name one device twice, by number and by its
// unique id; the unique ids count where there are any. "all" stands for no device.
func (g *GPUs) IDs() []string {
	var ids []string
	for _, name := range g.cache.ListDevices() {
		vendor, class, id, err := parser.ParseQualifiedName(name)
		if err == nil && vendor == g.vendor && class == g.class && id != "all" {
			ids = append(ids, id)
		}
	}
	unique := func(id string) bool { return strings.HasPrefix(id, "GPU-") || strings.HasPrefix(id, "MIG-") }
	if slices.ContainsFunc(ids, unique) {
		ids = slices.DeleteFunc(ids, func(id string) bool { return !unique(id) })
	}
	slices.Sort(ids)
	return ids
}

// inject adds what a container needs of its GPUs to its specification: device nodes,
// libraries, variables, hooks.
func (g *GPUs) inject(oci *specs.Spec, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	if g == nil {
		return refuse("resourceRequirements: this agent gives no GPUs: set ECS_ENABLE_GPU_SUPPORT=true")
	}
	names := make([]string, 0, len(ids))
	for _, id := range ids {
		names = append(names, parser.QualifiedName(g.vendor, g.class, id))
	}
	if missing, err := g.cache.InjectDevices(oci, names...); err != nil {
		return task.Failf(task.Invalid, task.CannotCreateContainer,
			"resourceRequirements: the GPUs %s cannot be given: %w: have the vendor's program describe them anew", strings.Join(missing, ", "), err)
	}
	return nil
}
