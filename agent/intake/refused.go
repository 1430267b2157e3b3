package intake

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/acs"
)

// refusedMembers are members of a Docker host config that change how a container runs
// and that this agent does not act on, with what to do instead. A container must not run
// without what was asked for it. No task definition of the ECS API can set them.
var refusedMembers = map[string]string{
	"binds":                "use volumes and mountPoints",
	"mounts":               "use volumes and mountPoints",
	"volumedriver":         "use dockerVolumeConfiguration",
	"usernsmode":           "leave it out",
	"cgroup":               "leave it out",
	"isolation":            "leave it out",
	"storageopt":           "use ephemeralStorage",
	"kernelmemory":         "use memory",
	"kernelmemorytcp":      "use memory",
	"devicecgrouprules":    "use devices",
	"cpurealtimeperiod":    "leave it out",
	"cpurealtimeruntime":   "leave it out",
	"blkioweightdevice":    "use BlkioWeight",
	"blkiodevicereadbps":   "leave it out",
	"blkiodevicewritebps":  "leave it out",
	"blkiodevicereadiops":  "leave it out",
	"blkiodevicewriteiops": "leave it out",
	"maskedpaths":          "leave it out, or use Privileged",
	"readonlypaths":        "leave it out, or use Privileged",
}

// empty are the values of a member that ask for nothing.
var empty = []string{"null", "0", "false", `""`, "[]", "{}", `"default"`, `"host"`}

// refuseMembers names the first member of a host config that is refused.
func refuseMembers(container, hostConfig string) error {
	var members map[string]json.RawMessage
	if err := acs.DecodeText(hostConfig, &members); err != nil {
		return nil //nolint:nilerr // what is no object is refused where it is decoded
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		instead, ok := refusedMembers[strings.ToLower(name)]
		if ok && !slices.Contains(empty, string(bytes.TrimSpace(members[name]))) {
			return &Rejection{Container: container, Fault: fmt.Sprintf("%s: %s is not supported by this agent: %s", task.HostConfigInvalid, name, instead)}
		}
	}
	return nil
}
