package render

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// dockerVersion is the oldest Docker Engine API that has every member written here
// (health checks came with 1.24).
const dockerVersion = "1.24"

const mebibyte = 1 << 20

// config is the part of the Docker Engine container config that a container definition
// can set. Members that the wire model carries itself (command, entryPoint, environment,
// image, ports) are not repeated here: a repeated Env would replace the agent's.
type config struct {
	Hostname        string            `json:",omitempty"`
	User            string            `json:",omitempty"`
	OpenStdin       bool              `json:",omitempty"`
	Tty             bool              `json:",omitempty"`
	WorkingDir      string            `json:",omitempty"`
	NetworkDisabled bool              `json:",omitempty"`
	Labels          map[string]string `json:",omitempty"`
	Healthcheck     *healthcheck      `json:",omitempty"`
}

// healthcheck has its durations in nanoseconds, as the Docker Engine API has.
type healthcheck struct {
	Test        []string
	Interval    time.Duration `json:",omitempty"`
	Timeout     time.Duration `json:",omitempty"`
	StartPeriod time.Duration `json:",omitempty"`
	Retries     int32         `json:",omitempty"`
}

// hostConfig is the part of the Docker Engine host config that a definition can set.
// Memory members are bytes.
type hostConfig struct {
	NetworkMode       string            `json:",omitempty"`
	Privileged        bool              `json:",omitempty"`
	ReadonlyRootfs    bool              `json:",omitempty"`
	Init              bool              `json:",omitempty"`
	CapAdd            []string          `json:",omitempty"`
	CapDrop           []string          `json:",omitempty"`
	Devices           []device          `json:",omitempty"`
	Ulimits           []ulimit          `json:",omitempty"`
	Sysctls           map[string]string `json:",omitempty"`
	Tmpfs             map[string]string `json:",omitempty"`
	ShmSize           int64             `json:",omitempty"`
	DNS               []string          `json:"Dns,omitempty"`
	DNSSearch         []string          `json:"DnsSearch,omitempty"`
	ExtraHosts        []string          `json:",omitempty"`
	SecurityOpt       []string          `json:",omitempty"`
	MemoryReservation int64             `json:",omitempty"`
	MemorySwap        int64             `json:",omitempty"`
	MemorySwappiness  *int64            `json:",omitempty"`
	LogConfig         *logConfig        `json:",omitempty"`
}

type device struct {
	PathOnHost        string
	PathInContainer   string
	CgroupPermissions string
}

type ulimit struct {
	Name string
	Soft int64
	Hard int64
}

type logConfig struct {
	Type   string
	Config map[string]string
}

// encode gives JSON text with sorted members, so that the same definition always gives
// the same string.
func encode(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

func dockerConfig(c *types.ContainerDefinition) config {
	out := config{
		Hostname:        aws.ToString(c.Hostname),
		User:            aws.ToString(c.User),
		OpenStdin:       aws.ToBool(c.Interactive),
		Tty:             aws.ToBool(c.PseudoTerminal),
		WorkingDir:      aws.ToString(c.WorkingDirectory),
		NetworkDisabled: aws.ToBool(c.DisableNetworking),
		Labels:          c.DockerLabels,
	}
	if h := c.HealthCheck; h != nil {
		out.Healthcheck = &healthcheck{
			Test:        h.Command,
			Interval:    seconds(h.Interval),
			Timeout:     seconds(h.Timeout),
			StartPeriod: seconds(h.StartPeriod),
			Retries:     aws.ToInt32(h.Retries),
		}
	}
	return out
}

func seconds(n *int32) time.Duration { return time.Duration(aws.ToInt32(n)) * time.Second }

func (t *target) hostConfig(c *types.ContainerDefinition) hostConfig {
	out := hostConfig{
		Privileged:        aws.ToBool(c.Privileged),
		ReadonlyRootfs:    aws.ToBool(c.ReadonlyRootFilesystem),
		Sysctls:           sysctls(c.SystemControls),
		DNS:               c.DnsServers,
		DNSSearch:         c.DnsSearchDomains,
		SecurityOpt:       c.DockerSecurityOptions,
		MemoryReservation: int64(aws.ToInt32(c.MemoryReservation)) * mebibyte,
		LogConfig:         t.logConfig(c),
	}
	// The mode that counts for an agent is this one. Containers of an awsvpc task join
	// a namespace that the agent makes, so there is nothing to say for them here.
	if mode := t.networkMode(); mode != string(types.NetworkModeAwsvpc) {
		out.NetworkMode = mode
	}
	for _, h := range c.ExtraHosts {
		out.ExtraHosts = append(out.ExtraHosts, aws.ToString(h.Hostname)+":"+aws.ToString(h.IpAddress))
	}
	for _, u := range c.Ulimits {
		out.Ulimits = append(out.Ulimits, ulimit{Name: string(u.Name), Soft: int64(u.SoftLimit), Hard: int64(u.HardLimit)})
	}
	if c.LinuxParameters != nil {
		out.linux(c.LinuxParameters, aws.ToInt32(c.Memory))
	}
	return out
}

// linux adds linuxParameters. memory is the container's hard limit in MiB; Docker counts
// swap on top of it, ECS without it.
func (h *hostConfig) linux(p *types.LinuxParameters, memory int32) {
	h.Init = aws.ToBool(p.InitProcessEnabled)
	h.ShmSize = int64(aws.ToInt32(p.SharedMemorySize)) * mebibyte
	if p.Capabilities != nil {
		h.CapAdd, h.CapDrop = p.Capabilities.Add, p.Capabilities.Drop
	}
	for _, d := range p.Devices {
		h.Devices = append(h.Devices, device{
			PathOnHost:        aws.ToString(d.HostPath),
			PathInContainer:   orElse(aws.ToString(d.ContainerPath), aws.ToString(d.HostPath)),
			CgroupPermissions: devicePermissions(d.Permissions),
		})
	}
	for _, f := range p.Tmpfs {
		if h.Tmpfs == nil {
			h.Tmpfs = make(map[string]string, len(p.Tmpfs))
		}
		options := append([]string{fmt.Sprintf("size=%dm", f.Size)}, f.MountOptions...)
		h.Tmpfs[aws.ToString(f.ContainerPath)] = strings.Join(options, ",")
	}
	// ECS ignores swappiness where maxSwap is absent (ECS API model, LinuxParameters).
	if p.MaxSwap != nil && memory > 0 {
		h.MemorySwap = (int64(memory) + int64(*p.MaxSwap)) * mebibyte
		if p.Swappiness != nil {
			n := int64(*p.Swappiness)
			h.MemorySwappiness = &n
		}
	}
}

func devicePermissions(list []types.DeviceCgroupPermission) string {
	if len(list) == 0 {
		return "rwm"
	}
	var b strings.Builder
	for _, p := range list {
		switch p {
		case types.DeviceCgroupPermissionRead:
			b.WriteByte('r')
		case types.DeviceCgroupPermissionWrite:
			b.WriteByte('w')
		case types.DeviceCgroupPermissionMknod:
			b.WriteByte('m')
		}
	}
	return b.String()
}

func sysctls(list []types.SystemControl) map[string]string {
	if len(list) == 0 {
		return nil
	}
	out := make(map[string]string, len(list))
	for _, s := range list {
		out[aws.ToString(s.Namespace)] = aws.ToString(s.Value)
	}
	return out
}

// logConfig passes driver and options on. Agents do not know awslogs-stream-prefix: the
// stream name <prefix>/<container>/<task id> is made here (agent protocol, "Logging").
func (t *target) logConfig(c *types.ContainerDefinition) *logConfig {
	l := c.LogConfiguration
	if l == nil {
		return nil
	}
	out := &logConfig{Type: string(l.LogDriver), Config: make(map[string]string, len(l.Options)+1)}
	for k, v := range l.Options {
		out.Config[k] = v
	}
	if l.LogDriver != types.LogDriverAwslogs {
		return out
	}
	if prefix, ok := out.Config["awslogs-stream-prefix"]; ok {
		delete(out.Config, "awslogs-stream-prefix")
		out.Config["awslogs-stream"] = prefix + "/" + aws.ToString(c.Name) + "/" + t.id
	}
	return out
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
