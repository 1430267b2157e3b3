package intake

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/acs"
)

// Limits of what is taken. Names become parts of paths, of cgroups and of runtime
// identifiers, so nothing but plain characters may be in them.
const (
	maxContainers = 256
	maxStorage    = 64 << 10        // GiB of a task's storage
	maxSeconds    = 365 * 24 * 3600 // of a timeout; a year
)

var (
	taskARN       = regexp.MustCompile(`^arn:[a-z0-9-]{1,32}:ecs:[a-z0-9-]{0,64}:[0-9A-Za-z-]{0,64}:task/(?:[0-9A-Za-z_-]{1,255}/)?[0-9A-Za-z_-]{1,128}$`)
	containerName = regexp.MustCompile(`^[0-9A-Za-z_-]{1,255}$`)
)

// Rejection is why a task is not taken. It is final: the same task will not be taken
// later either.
type Rejection struct {
	Reason    string // of the task; empty when a container is at fault
	Container string // the container at fault
	Fault     string // its reason
}

// Error is the reason as the cluster shows it.
func (r *Rejection) Error() string {
	if r.Container != "" {
		return "container " + r.Container + ": " + r.Fault
	}
	return r.Reason
}

// unloadable is a task that makes no sense (agent protocol, "Server -> agent
// messages", PayloadMessage; the spelling is the protocol's).
func unloadable(err error) error {
	return &Rejection{Reason: string(task.UnrecognizedTask) + ": Error loading task - " + err.Error()}
}

func unloadablef(format string, args ...any) error { return unloadable(fmt.Errorf(format, args...)) }

// Translate turns a task of the wire into the agent's own, with the Docker-shaped
// strings decoded. It is pure. Its error is a *Rejection.
func Translate(w *acs.Task, clusterARN string) (*task.Task, error) {
	if !taskARN.MatchString(w.ARN) {
		return nil, unloadablef("arn is not the ARN of a task")
	}
	if w.TaskClusterARN != "" {
		clusterARN = w.TaskClusterARN
	}
	if w.CPU < 0 || w.Memory < 0 {
		return nil, unloadablef("cpu and memory of the task must not be negative")
	}
	if len(w.Containers) == 0 || len(w.Containers) > maxContainers {
		return nil, unloadablef("%d containers; a task has 1 to %d", len(w.Containers), maxContainers)
	}
	t := &task.Task{
		ARN: w.ARN, ClusterARN: clusterARN, Family: w.Family, Version: w.Version, LaunchType: w.LaunchType,
		CPU: w.CPU, Memory: w.Memory, PidMode: w.PidMode, IpcMode: w.IpcMode, ServiceName: w.ServiceName, Group: w.Group,
		FaultInjection: w.EnableFaultInjection,
	}
	if s := w.EphemeralStorage; s != nil {
		if s.SizeInGiB < 0 || s.SizeInGiB > maxStorage {
			return nil, unloadablef("ephemeralStorage of %d GiB", s.SizeInGiB)
		}
		t.Storage = s.SizeInGiB << 30
	}
	if c := w.RoleCredentials; c != nil {
		t.CredentialsID = c.CredentialsID
	}
	if c := w.ExecutionRoleCredentials; c != nil {
		t.ExecutionCredentialsID = c.CredentialsID
	}
	if err := unsupported(w); err != nil {
		return nil, err
	}
	blocks, err := attached(w)
	if err != nil {
		return nil, err
	}
	for i := range w.Volumes {
		v, block := blocks[w.Volumes[i].Name]
		if w.Volumes[i].Type != "" || !block {
			if v, err = translateVolume(&w.Volumes[i]); err != nil {
				return nil, err
			}
		}
		if slices.ContainsFunc(t.Volumes, func(o task.Volume) bool { return o.Name == v.Name }) {
			return nil, unloadablef("two volumes are named %q", v.Name)
		}
		t.Volumes = append(t.Volumes, v)
	}
	for i := range w.Containers {
		c, err := translateContainer(&w.Containers[i])
		if err != nil {
			return nil, err
		}
		if t.Container(c.Name) != nil {
			return nil, unloadablef("two containers are named %q", c.Name)
		}
		t.Containers = append(t.Containers, *c)
	}
	if err := giveGPUs(t, w.Associations); err != nil {
		return nil, err
	}
	if err := networkMode(t, w.NetworkMode); err != nil {
		return nil, err
	}
	if t.NetworkMode == task.NetworkHost && len(t.NetworksOf("")) > 0 {
		return nil, unloadablef("label %s: containers of network mode host have the host's networks; use bridge, awsvpc or none", task.LabelNetworks)
	}
	if w.DesiredStatus != "STOPPED" {
		if err := interfaces(t, w); err != nil {
			return nil, err
		}
	}
	if err := logRouters(t); err != nil {
		return nil, err
	}
	return t, checkReferences(t)
}

// unsupported refuses what this agent cannot do yet and a task must not run without.
// The agent does not claim the capabilities, so a cluster that heeds them sends no
// such task.
func unsupported(w *acs.Task) error {
	refuse := func(what string) error {
		return &Rejection{Reason: string(task.ResourceInitialization) + ": " + what + " not supported by this agent"}
	}
	if w.ProxyConfiguration != nil && w.ProxyConfiguration.Type != "" {
		return refuse("proxyConfiguration is")
	}
	for i := range w.Associations {
		if kind := w.Associations[i].Type; kind != "gpu" {
			return refuse("associations of type " + strconv.Quote(kind) + " are")
		}
	}
	for i := range w.Containers {
		c := &w.Containers[i]
		switch {
		case len(c.CredentialSpecs) > 0:
			return refuse("credentialSpecs are")
		}
	}
	return nil
}

func translateContainer(w *acs.Container) (*task.Container, error) {
	if !containerName.MatchString(w.Name) {
		return nil, unloadablef("a container's name must be of letters, digits, - and _")
	}
	fault := func(format string, args ...any) error {
		return unloadablef("container %s: "+format, append([]any{w.Name}, args...)...)
	}
	if w.CPU < 0 || w.Memory < 0 {
		return nil, fault("cpu and memory must not be negative")
	}
	c := &task.Container{
		Name: w.Name, ARN: w.ContainerARN, Image: w.Image, Command: w.Command, EntryPoint: w.EntryPoint,
		Environment: w.Environment, CPU: w.CPU, Memory: w.Memory, Essential: w.Essential, Links: w.Links,
		HealthCheckType: w.HealthCheckType, LogsAuth: w.LogsAuthStrategy,
	}
	var err error
	if c.StartTimeout, err = seconds("startTimeout", w.StartTimeout); err != nil {
		return nil, fault("%w", err)
	}
	if c.StopTimeout, err = seconds("stopTimeout", w.StopTimeout); err != nil {
		return nil, fault("%w", err)
	}
	if p := w.RestartPolicy; p != nil && p.Enabled {
		c.Restart = &task.Restart{}
		if c.Restart.AttemptPeriod, err = seconds("restartAttemptPeriod", p.RestartAttemptPeriod); err != nil {
			return nil, fault("%w", err)
		}
		for _, code := range p.IgnoredExitCodes {
			c.Restart.IgnoredExitCodes = append(c.Restart.IgnoredExitCodes, int(code))
		}
	}
	for i := range w.PortMappings {
		p, err := translatePort(&w.PortMappings[i])
		if err != nil {
			return nil, fault("%w", err)
		}
		c.Ports = append(c.Ports, p)
	}
	for _, m := range w.MountPoints {
		c.Mounts = append(c.Mounts, task.Mount{Volume: m.SourceVolume, Path: m.ContainerPath, ReadOnly: m.ReadOnly})
	}
	for _, v := range w.VolumesFrom {
		c.VolumesFrom = append(c.VolumesFrom, task.VolumesFrom{Container: v.SourceContainer, ReadOnly: v.ReadOnly})
	}
	for _, d := range w.DependsOn {
		switch condition := task.Condition(d.Condition); condition {
		case task.ConditionStart, task.ConditionComplete, task.ConditionSuccess, task.ConditionHealthy:
			c.DependsOn = append(c.DependsOn, task.Dependency{Container: d.ContainerName, Condition: condition})
		default:
			return nil, fault("dependsOn: unknown condition")
		}
	}
	if err := override(c, w.Overrides); err != nil {
		return nil, fault("overrides: %w", err)
	}
	if err := docker(c, w.DockerConfig); err != nil {
		return nil, err
	}
	if f := w.FirelensConfiguration; f != nil && f.Type != "" {
		if f.Type != "fluentd" && f.Type != "fluentbit" {
			return nil, fault("firelensConfiguration: type must be fluentd or fluentbit")
		}
		c.Router = &task.LogRouter{Type: f.Type, Options: f.Options}
	}
	if err := references(c, w); err != nil {
		return nil, fault("%w", err)
	}
	if err := joins(c); err != nil {
		return nil, fault("label %s: %w", task.LabelNetworks, err)
	}
	if c.Image == "" {
		return nil, fault("image is empty")
	}
	return c, nil
}

// networkName is what names of CNI networks may be made of (CNI specification), and bounded.
var networkName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$`)

// joins reads which networks the container's label names.
func joins(c *task.Container) error {
	label, ok := c.Config.Labels[task.LabelNetworks]
	if !ok {
		return nil
	}
	if c.Config.NetworkDisabled {
		return errors.New("disableNetworking leaves the container without any network")
	}
	for name := range strings.SplitSeq(label, ",") {
		name = strings.TrimSpace(name)
		switch {
		case !networkName.MatchString(name):
			return errors.New("must be names of networks with commas between them")
		case slices.Contains(c.Networks, name):
			return fmt.Errorf("network %s is named twice", name)
		case len(c.Networks) == task.MaxNetworks:
			return fmt.Errorf("more than %d networks", task.MaxNetworks)
		}
		c.Networks = append(c.Networks, name)
	}
	return nil
}

func seconds(name string, n int64) (time.Duration, error) {
	if n < 0 || n > maxSeconds {
		return 0, fmt.Errorf("%s of %d seconds", name, n)
	}
	return time.Duration(n) * time.Second, nil
}

func translatePort(w *acs.PortMapping) (task.Port, error) {
	p := task.Port{Protocol: w.Protocol, ContainerRange: w.ContainerPortRange}
	if p.Protocol == "" {
		p.Protocol = "tcp"
	}
	if p.Protocol != "tcp" && p.Protocol != "udp" {
		return p, errors.New("portMappings: protocol must be tcp or udp")
	}
	if p.ContainerRange != "" {
		first, last, _ := strings.Cut(p.ContainerRange, "-")
		a, err1 := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || a == 0 || a > b {
			return p, errors.New("portMappings: containerPortRange must be two ports, the first not above the second")
		}
		if w.ContainerPort != 0 || w.HostPort != 0 {
			return p, errors.New("portMappings: containerPortRange excludes containerPort and hostPort")
		}
		return p, nil
	}
	if w.ContainerPort < 1 || w.ContainerPort > 65535 || w.HostPort < 0 || w.HostPort > 65535 {
		return p, errors.New("portMappings: a port is out of range")
	}
	p.ContainerPort, p.HostPort = uint16(w.ContainerPort), uint16(w.HostPort)
	return p, nil
}

// override applies a container's overrides, of which only the command counts (agent
// protocol, "Adding a task").
func override(c *task.Container, text string) error {
	if text == "" {
		return nil
	}
	var o struct {
		Command *[]string `json:"command"`
	}
	if err := acs.DecodeText(text, &o); err != nil {
		return err
	}
	if o.Command != nil {
		c.Command = *o.Command
	}
	return nil
}

// words is a Docker command: a list, or one text that stands for a list of one.
type words []string

// UnmarshalJSON takes both forms.
func (w *words) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '"' {
		*w = make(words, 1)
		return json.Unmarshal(data, &(*w)[0])
	}
	return json.Unmarshal(data, (*[]string)(w))
}

// docker decodes the two Docker-shaped documents of a container. What the first says
// of the members that the wire model has itself replaces them (agent protocol, "Base
// configuration, then dockerConfig.config on top").
func docker(c *task.Container, d *acs.DockerConfig) error {
	if d == nil {
		d = &acs.DockerConfig{}
	}
	if d.Config != "" {
		var over struct {
			Image      string
			Cmd        *words
			Entrypoint *words
		}
		err := acs.DecodeText(d.Config, &c.Config)
		if err == nil {
			err = acs.DecodeText(d.Config, &over)
		}
		if err != nil {
			return &Rejection{Container: c.Name, Fault: fmt.Sprintf("%s: Unable to decode given docker config: %v", dockerConfigInvalid, err)}
		}
		if over.Image != "" {
			c.Image = over.Image
		}
		if over.Cmd != nil {
			c.Command = *over.Cmd
		}
		if over.Entrypoint != nil {
			entry := append([]string{}, *over.Entrypoint...)
			c.EntryPoint = &entry
		}
	}
	if d.HostConfig != "" {
		if err := acs.DecodeText(d.HostConfig, &c.HostConfig); err != nil {
			return &Rejection{Container: c.Name, Fault: fmt.Sprintf("%s: Unable to decode given host config: %v", task.HostConfigInvalid, err)}
		}
		if err := refuseMembers(c.Name, d.HostConfig); err != nil {
			return err
		}
	}
	if c.HealthCheckType == "docker" && c.Config.Healthcheck == nil {
		return &Rejection{Container: c.Name, Fault: string(dockerConfigInvalid) + ": docker health check is nil while container health check type is DOCKER"}
	}
	return nil
}

// dockerConfigInvalid is the name of a container config that cannot be used (agent
// protocol, "Error names and texts").
const dockerConfigInvalid task.Code = "DockerClientConfigError"

// networkMode settles the network mode of a task: that of the host configs for host
// and none, else the task's, else bridge.
func networkMode(t *task.Task, mode string) error {
	modes := make(map[string]bool, 1)
	for i := range t.Containers {
		switch m := t.Containers[i].HostConfig.NetworkMode; m {
		case task.NetworkHost, task.NetworkNone:
			modes[m] = true
		case "", "default", task.NetworkBridge:
			modes[task.NetworkBridge] = true
		default:
			return &Rejection{
				Container: t.Containers[i].Name,
				Fault:     fmt.Sprintf("%s: NetworkMode must be bridge, host or none", task.HostConfigInvalid),
			}
		}
	}
	if len(modes) > 1 {
		return unloadablef("the containers ask for different network modes")
	}
	switch {
	case modes[task.NetworkHost]:
		t.NetworkMode = task.NetworkHost
	case modes[task.NetworkNone]:
		t.NetworkMode = task.NetworkNone
	default:
		switch mode {
		case "", "default":
			t.NetworkMode = task.NetworkBridge
		case task.NetworkBridge, task.NetworkHost, task.NetworkNone, task.NetworkAWSVPC:
			t.NetworkMode = mode
		default:
			return unloadablef("networkMode must be bridge, host, none or awsvpc")
		}
	}
	return nil
}
