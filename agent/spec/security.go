package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Capabilities are those of the container's processes: capAdd and capDrop as Docker
// applies them, "ALL" first, then single names; dropping wins over adding. What the
// defaults have and the host withholds is left out; what was asked for by name and the
// host withholds is an error.
func Capabilities(in Input) ([]string, error) {
	hc := &in.Container.HostConfig
	if hc.Privileged {
		return slices.Clone(in.Host.Capabilities), nil
	}
	add, err := capabilityNames("capabilities.add", hc.CapAdd)
	if err != nil {
		return nil, err
	}
	drop, err := capabilityNames("capabilities.drop", hc.CapDrop)
	if err != nil {
		return nil, err
	}
	caps := slices.DeleteFunc(slices.Clone(capabilitiesDefault), func(c string) bool { return !slices.Contains(in.Host.Capabilities, c) })
	if slices.Contains(add, "ALL") {
		caps = slices.Clone(in.Host.Capabilities)
	}
	if slices.Contains(drop, "ALL") {
		caps = []string{}
	}
	for _, c := range add {
		switch {
		case c == "ALL" || slices.Contains(caps, c):
		case !slices.Contains(in.Host.Capabilities, c) && !slices.Contains(drop, c):
			return nil, invalid("capabilities.add: this host cannot give %s: remove it, or place the task on another instance", strings.TrimPrefix(c, "CAP_"))
		default:
			caps = append(caps, c)
		}
	}
	return slices.DeleteFunc(caps, func(c string) bool { return slices.Contains(drop, c) }), nil
}

func capabilityNames(field string, in []string) ([]string, error) {
	var out []string
	for _, c := range in {
		name := strings.ToUpper(c)
		if name != "ALL" && !strings.HasPrefix(name, "CAP_") {
			name = "CAP_" + name
		}
		if name != "ALL" && !slices.Contains(capabilitiesAll, name) {
			return nil, invalid("%s: unknown capability %q: see capabilities(7) for the names", field, c)
		}
		out = append(out, name)
	}
	return out, nil
}

// Unconfined is the value of a security option that takes a default away.
const Unconfined = "unconfined"

// SecurityOptions are what dockerSecurityOptions come to.
type SecurityOptions struct {
	NoNewPrivileges bool
	Seccomp         string   // "" is the default profile, Unconfined none, else the name or text of one
	AppArmor        string   // "" is the host's default, Unconfined none, else the name of a profile
	Labels          []string // of SELinux, as "type:x"; "disable" leaves them away
}

// ParseSecurity reads dockerSecurityOptions, each KEY:VALUE or KEY=VALUE.
func ParseSecurity(list []string) (SecurityOptions, error) {
	var s SecurityOptions
	for _, opt := range list {
		at := strings.IndexAny(opt, ":=")
		key, value := opt, ""
		if at >= 0 {
			key, value = opt[:at], opt[at+1:]
		}
		switch {
		case key == "no-new-privileges" && (value == "" || value == "true"):
			s.NoNewPrivileges = true
		case key == "no-new-privileges" && value == "false":
		case key == "seccomp" && value != "":
			s.Seccomp = value
		case key == "apparmor" && value != "":
			s.AppArmor = value
		case key == "label" && value != "":
			kind, _, valued := strings.Cut(value, ":")
			if value != "disable" && (!valued || !slices.Contains([]string{"user", "role", "type", "level"}, kind)) {
				return s, invalid("dockerSecurityOptions: %q: a label is disable, user:, role:, type: or level:", opt)
			}
			s.Labels = append(s.Labels, value)
		case key == "credentialspec" || key == "credentialspecdomainless":
			return s, invalid("dockerSecurityOptions: credential specs are not supported by this agent: remove %q", opt)
		default:
			return s, invalid("dockerSecurityOptions: %q is not known: use no-new-privileges, seccomp:, apparmor: or label:", opt)
		}
	}
	return s, nil
}

// security is what dockerSecurityOptions and privileged decide.
type security struct {
	noNewPrivileges  bool
	appArmor         string
	seccomp          *specs.LinuxSeccomp
	masked, readonly []string
}

func parseSecurity(in Input, caps []string) (security, error) {
	s := security{appArmor: in.Host.AppArmor, masked: maskedPaths, readonly: readonlyPaths}
	o, err := ParseSecurity(in.Container.HostConfig.SecurityOpt)
	if err != nil {
		return s, err
	}
	s.noNewPrivileges = o.NoNewPrivileges
	privileged := in.Container.HostConfig.Privileged
	if privileged {
		s.appArmor, s.masked, s.readonly = "", nil, nil
	}
	switch {
	case o.AppArmor == Unconfined:
		s.appArmor = ""
	case o.AppArmor != "" && !in.Host.HasAppArmor:
		return s, invalid("dockerSecurityOptions: this host has no AppArmor for the profile %q: remove it, or place the task on an instance with the attribute com.amazonaws.ecs.capability.apparmor", o.AppArmor)
	case o.AppArmor != "":
		s.appArmor = o.AppArmor
	}
	if len(o.Labels) > 0 && !slices.Equal(o.Labels, []string{"disable"}) && !in.Host.HasSELinux {
		return s, invalid("dockerSecurityOptions: this host has no SELinux for the label %q: remove it, or place the task on an instance with the attribute com.amazonaws.ecs.capability.selinux", o.Labels[0])
	}
	switch {
	case o.Seccomp == Unconfined, o.Seccomp == "" && privileged:
	case o.Seccomp == "":
		if s.seccomp, err = Seccomp(in.Host, caps); err != nil {
			return s, fmt.Errorf("seccomp: %w", err)
		}
	case in.Seccomp == nil:
		return s, invalid("dockerSecurityOptions: the seccomp profile %.40q was not read", o.Seccomp)
	default:
		s.seccomp = in.Seccomp
	}
	return s, nil
}
