package intake

import (
	"strings"
	"testing"
)

func TestRefuseMembers(t *testing.T) {
	for text, want := range map[string]string{
		`{"Memory":5,"CapAdd":["X"]}`:                     "",
		`{"Binds":null,"Mounts":[],"UsernsMode":"host"}`:  "",
		`{"binds":["/:/host"]}`:                           "binds is not supported by this agent: use volumes",
		`{"UsernsMode":"remap"}`:                          "UsernsMode is not supported",
		`{"MaskedPaths":["/proc/kcore"]}`:                 "MaskedPaths is not supported",
		`{"BlkioDeviceReadBps":[{"Path":"/x","Rate":1}]}`: "BlkioDeviceReadBps is not supported",
		`{"CpuRealtimeRuntime":5}`:                        "CpuRealtimeRuntime is not supported",
	} {
		err := refuseMembers("c", text)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
