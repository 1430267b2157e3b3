package spec

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// seccompRules is the default profile: what is allowed, by architecture and capability.
//
//go:embed seccomp.json
var seccompRules []byte

// seccompRule is one rule of the profile. Action is SCMP_ACT_ALLOW unless it is set.
type seccompRule struct {
	Names      []string                `json:"names"`
	Action     string                  `json:"action"`
	Errno      *uint                   `json:"errno"`
	Args       []specs.LinuxSeccompArg `json:"args"`
	Arches     []string                `json:"arches"`            // Go architecture names; none means all
	Capability string                  `json:"capability"`        // only for containers that have it
	Without    string                  `json:"withoutCapability"` // only for containers that lack it
}

var parseSeccomp = sync.OnceValues(func() ([]seccompRule, error) {
	var rules []seccompRule
	err := json.Unmarshal(seccompRules, &rules)
	return rules, err
})

var seccompArches = map[string][]specs.Arch{
	"amd64": {specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
	"arm64": {specs.ArchARM, specs.ArchAARCH64},
}

// Seccomp is the default profile for a container with the given bounding capabilities
// on the given host (amd64 or arm64).
func Seccomp(host Host, capabilities []string) (*specs.LinuxSeccomp, error) {
	arch := host.Arch
	rules, err := parseSeccomp()
	if err != nil {
		return nil, fmt.Errorf("built-in seccomp profile: %w", err)
	}
	arches, ok := seccompArches[arch]
	if !ok {
		return nil, fmt.Errorf("no seccomp profile for architecture %q", arch)
	}
	arches = slices.Clone(arches)
	if host.NoX32 {
		arches = slices.DeleteFunc(arches, func(a specs.Arch) bool { return a == specs.ArchX32 })
	}
	s := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: arches}
	for _, r := range rules {
		if len(r.Arches) > 0 && !slices.Contains(r.Arches, arch) ||
			r.Capability != "" && !slices.Contains(capabilities, r.Capability) ||
			r.Without != "" && slices.Contains(capabilities, r.Without) {
			continue
		}
		action := specs.ActAllow
		if r.Action != "" {
			action = specs.LinuxSeccompAction(r.Action)
		}
		s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{Names: r.Names, Action: action, ErrnoRet: r.Errno, Args: r.Args})
	}
	return s, nil
}
